"""Stop and bad words in TensorRT-LLM's packed form."""

import numpy as np
import pytest

from step_audio.errors import InvalidRequest
from step_audio.word_list import pack_word_list, unpack_word_list


def test_the_form_of_nvidia_s_documentation():
    """Words [5], [6, 7, 8], [9]: ids in a row, ends behind each word, -1 behind the last."""
    packed = pack_word_list([[5], [6, 7, 8], [9]])
    assert packed.dtype == np.int32
    assert packed.tolist() == [[5, 6, 7, 8, 9], [1, 4, 5, -1, -1]]


@pytest.mark.parametrize("words", [[[1]], [[1], [2]], [[1, 2, 3], [4], [5, 6]]])
def test_round_trip(words):
    packed = pack_word_list(words)
    assert unpack_word_list(packed) == words
    padded = np.pad(packed, ((0, 0), (0, 3)))  # other clients pad to the longest of a batch
    padded[1, packed.shape[1] :] = -1
    assert unpack_word_list(padded) == words


def test_no_words():
    assert unpack_word_list(np.array([[0, 0], [-1, -1]], np.int32)) == []
    assert unpack_word_list(np.zeros((2, 0), np.int32)) == []
    for nothing in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one"):
            pack_word_list(nothing)


@pytest.mark.parametrize("ends", [[3, -1], [0, 2], [1, 1], [2, 1], [-2, 2]])
def test_offsets_that_make_no_sense(ends):
    with pytest.raises(InvalidRequest, match=r"^bad_words_list: the offsets in row 1 .* 2$"):
        unpack_word_list(np.array([[7, 8], ends], np.int32), "bad_words_list")


@pytest.mark.parametrize("shape", [(2,), (3, 4), (1, 2, 4)])
def test_wrong_shape(shape):
    with pytest.raises(InvalidRequest, match=r"stop_words_list must have shape \[2, n\]"):
        unpack_word_list(np.zeros(shape, np.int32))
