"""bfloat16 tensors to and from Triton's Python backend, which knows them by DLPack alone, without torch.

numpy has no such type: on our side they are uint16, the bits as they are. The structures are those of DLPack's C header
(dlpack.h, version 0), which pb_utils speaks.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

CPU, BFLOAT = 1, 4  # kDLCPU, kDLBfloat
NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

_alive: dict[int, tuple[Any, ...]] = {}  # what a consumer still holds, by the address of its structure


def _let_go(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


_release = _Deleter(_let_go)


def bfloat16_capsule(bits: npt.NDArray[np.uint16]) -> Any:
    """uint16 [...] -> a DLPack capsule of a bfloat16 tensor, which keeps the array alive while it is held."""
    bits = np.ascontiguousarray(bits)
    shape = (ctypes.c_int64 * bits.ndim)(*bits.shape)
    managed = _Managed(_Tensor(bits.ctypes.data, CPU, 0, bits.ndim, BFLOAT, 16, 1, shape, None, 0), None, _release)
    address = ctypes.addressof(managed)
    _alive[address] = (bits, shape, managed)
    return _new_capsule(address, NAME, None)


def bfloat16_bits(capsule: Any) -> npt.NDArray[np.uint16]:
    """A DLPack capsule of a bfloat16 tensor in the host's memory -> uint16 [...], a copy. Raises ValueError."""
    tensor = _Managed.from_address(_pointer(capsule, NAME)).tensor
    if (tensor.device_type, tensor.code, tensor.bits, tensor.lanes) != (CPU, BFLOAT, 16, 1):
        raise ValueError("not a bfloat16 tensor in the host's memory")
    shape = tuple(tensor.shape[: tensor.ndim])
    size = int(np.prod(shape, dtype=np.int64))
    if not size:
        return np.zeros(shape, np.uint16)
    raw = (ctypes.c_uint16 * size).from_address(tensor.data + tensor.byte_offset)
    return np.array(memoryview(raw), np.uint16).reshape(shape)


def memory(capsule: Any) -> tuple[int, int]:
    """Where a contiguous tensor in the host's memory lies, and its bytes; of any other 0 bytes."""
    tensor = _Managed.from_address(_pointer(capsule, NAME)).tensor
    size = math.prod(tensor.shape[: tensor.ndim]) * tensor.bits // 8
    return (tensor.data or 0) + tensor.byte_offset, size if tensor.device_type == CPU else 0
