"""TensorRT-LLM's form of stop and bad words: one int32 [2, n] tensor.

Row 0 holds the words' ids one after another, zero-padded; row 1 where each word ends, padded with -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from step_audio.arrays import Int32Array
from step_audio.errors import InvalidRequest

MAX_IDS = 16_384  # of one list, 16 for each of the engine's most words


def pack_word_list(words: Sequence[Sequence[int]]) -> Int32Array:
    """Words of one or more ids -> int32 [2, n]."""
    if not words or not all(words):
        raise ValueError("a word list needs at least one word, and a word at least one id")
    ids = [token for word in words for token in word]
    packed = np.full((2, len(ids)), -1, np.int32)
    packed[0] = ids
    packed[1, : len(words)] = np.cumsum([len(word) for word in words])
    return packed


def unpack_word_list(packed: Int32Array, name: str = "stop_words_list") -> list[list[int]]:
    """int32 [2, n] -> words. Raises InvalidRequest for offsets that are not increasing and within the row."""
    if packed.ndim != 2 or packed.shape[0] != 2:
        raise InvalidRequest(f"{name} must have shape [2, n], got {list(packed.shape)}", name)
    if packed.shape[1] > MAX_IDS:
        raise InvalidRequest(f"{name} has {packed.shape[1]} ids, at most {MAX_IDS} are accepted", name)
    words, start = [], 0
    for end in packed[1].tolist():
        if end == -1:
            break
        if not start < end <= packed.shape[1]:
            raise InvalidRequest(f"{name}: the offsets in row 1 must increase and stay within {packed.shape[1]}", name)
        words.append(packed[0, start:end].tolist())
        start = end
    return words
