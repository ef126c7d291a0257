"""The safetensors format: a file's header read and checked, and written.

8 bytes of header length, a JSON header, then the tensors' bytes, back to back
(https://huggingface.co/docs/safetensors/index#format). The format's own library does neither thing that is needed here:
it maps files into memory, and a conversion streams 67 GB, whose pages would count as the process's own; it writes a
file from tensors that are all there; and numpy, to which it gives them, has no bfloat16.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from step_audio.config import DType
from step_audio.errors import CheckpointError

# How a file of a git clone begins whose content git-lfs has not brought (git-lfs, Specification, "The Pointer").
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

# safetensors' name -> (ours, numpy's storage type). numpy has no bfloat16: its raw bits travel as uint16.
DTYPES: dict[str, tuple[DType, type]] = {
    "F32": ("float32", np.float32),
    "BF16": ("bfloat16", np.uint16),
    "F16": ("float16", np.float16),
}
STORAGE: dict[DType, type] = dict(DTYPES.values())
SAFETENSORS_NAME: dict[DType, str] = {ours: name for name, (ours, _) in DTYPES.items()}

Shapes = dict[str, tuple[int, ...]]


def byte_size(dtype: DType, shape: tuple[int, ...]) -> int:
    """Of a tensor."""
    return math.prod(shape) * np.dtype(STORAGE[dtype]).itemsize


def is_lfs_pointer(path: Path) -> bool:
    """Raises OSError for a file that cannot be read."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def pull(directory: Path) -> str:
    """What to do about pointers."""
    return f"run `git lfs install` and `git lfs pull` in {directory}"


def safetensors_header(tensors: Mapping[str, tuple[DType, tuple[int, ...]]]) -> bytes:
    """What a file that holds `tensors` (name -> type and shape) back to back begins with."""
    ends = list(itertools.accumulate(byte_size(dtype, shape) for dtype, shape in tensors.values()))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (name, (dtype, shape)), start, end in zip(tensors.items(), [0, *ends], ends, strict=False):
        entries[name] = {"dtype": SAFETENSORS_NAME[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for tensors that begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `start` and `stop` are byte positions in the file, header included."""

    file: Path
    dtype: str  # safetensors' name, such as BF16
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class SafetensorsFile:
    """One file's checked header. Size, time and header hash together tell whether the file was changed later."""

    path: Path
    size: int  # bytes
    mtime_ns: int
    header_sha256: str
    tensors: dict[str, TensorInfo]

    @classmethod
    def open(cls, path: Path, remedy: str = "download it again") -> SafetensorsFile:
        """Raises CheckpointError for a file that is missing, cut short, or contradicts itself, with the `remedy`."""
        name = path.name
        try:
            if is_lfs_pointer(path):
                raise CheckpointError(f"{name} is a git-lfs pointer, not the file: {pull(path.parent)}")
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                length = int.from_bytes(file.read(8), "little")
                if status.st_size < 8 or length > status.st_size - 8:
                    raise CheckpointError(
                        f"{name} is truncated: {status.st_size} bytes, its header does not fit; {remedy}"
                    )
                if length > MAX_HEADER_BYTES:
                    raise CheckpointError(f"{name} is not a safetensors file: a header of {length} bytes")
                raw = file.read(length)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
        try:
            header = json.loads(raw)
            header.pop("__metadata__", None)
            tensors = {key: _tensor_info(path, 8 + length, entry) for key, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{name} is not a safetensors file: its header is malformed") from None
        last_stop, last_key = 8 + length, "the header"
        for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
            if info.start < last_stop:
                raise CheckpointError(f"{name} is corrupt: {key} overlaps {last_key}")
            last_stop, last_key = info.stop, key
        if last_stop != status.st_size:
            fault = "truncated" if last_stop > status.st_size else "damaged"
            raise CheckpointError(
                f"{name} is {fault}: it has {status.st_size} bytes, its header lists {last_stop}; {remedy}"
            )
        return cls(path, status.st_size, status.st_mtime_ns, hashlib.sha256(raw).hexdigest(), tensors)


def _tensor_info(path: Path, base: int, entry: Mapping[str, Any]) -> TensorInfo:
    """One entry of a header; `base` is where the tensors' bytes begin. Raises ValueError where it makes no sense."""
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, start, stop)) or start > stop:
        raise ValueError
    # Other dtypes may be there (quantised checkpoints); `verify` refuses them by name.
    if dtype in DTYPES and stop - start != byte_size(DTYPES[dtype][0], shape):
        raise ValueError
    return TensorInfo(path, dtype, shape, base + start, base + stop)
