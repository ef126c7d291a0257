"""Names of the arrays' types; what an array's axes are is said where it is passed on."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
Int8Array: TypeAlias = npt.NDArray[np.int8]
Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]
IndexArray: TypeAlias = npt.NDArray[np.intp]  # as numpy sorts and finds
AnyArray: TypeAlias = npt.NDArray[Any]  # of the dtype that its source has

_BFLOAT16_EXPONENT = np.uint16(0x7F80)


def all_finite(values: AnyArray) -> bool:
    """Whether none is NaN or infinity; uint16 is bfloat16's bits."""
    if values.dtype == np.uint16:
        return not bool(((values & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any())
    return bool(np.isfinite(values).all())
