"""Matrices in 8 bits: one scale to a row, symmetric, as TensorRT-LLM's weight-only INT8 has them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from step_audio.arrays import AnyArray, Float32Array, Int8Array
from step_audio.checkpoint import to_float32

ROWS_AT_ONCE = 1024  # in float32


class Int8Matrix(NamedTuple):
    """values * scales is the matrix, to within half a scale."""

    values: Int8Array  # [out, in], from -127 to 127
    scales: Float32Array  # [out, 1]


def quantised(matrix: AnyArray) -> Int8Matrix:
    """`matrix` [out, in], in its storage's type."""
    values = np.empty(matrix.shape, np.int8)
    scales = np.empty((len(matrix), 1), np.float32)
    for begin in range(0, len(matrix), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        rows = to_float32(matrix[part])
        largest = np.abs(rows).max(1, keepdims=True)
        scales[part] = np.where(largest > 0, largest / np.float32(127), np.float32(1))
        values[part] = np.rint(rows / scales[part])
    return Int8Matrix(values, scales)
