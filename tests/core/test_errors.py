"""Codes: they travel, they are Triton's, and each means one thing on every way."""

from __future__ import annotations

import pytest

from step_audio import errors
from step_audio.errors import MAX_TEXT, Code, Retry, StepAudioError, one_line, take_code

TRITON = {
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
}


@pytest.mark.parametrize("code", Code)
def test_a_code_travels(code):
    assert take_code(code.put_before("this\nand   that")) == (code, "this and that")
    assert code.triton in TRITON and 400 <= code.status < 600


@pytest.mark.parametrize("text", ["", "messages is empty", "[request id: 1] x", "[NO_SUCH] x", "x [INTERNAL] y"])
def test_other_texts_have_none(text):
    assert take_code(text) is None


def test_what_may_be_tried_again_is_no_fault_of_the_request():
    assert all(code.status in (429, 503) for code in Code if code.retry is not Retry.NEVER)
    assert all(code.retry is Retry.NEVER for code in Code if code.status == 400)


def test_every_error_has_a_code_and_can_be_given_another():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StepAudioError)]
    assert len(kinds) > 10 and all(kind.code in Code for kind in kinds)
    assert StepAudioError("x").code is Code.INTERNAL and StepAudioError("x", Code.QUEUE_FULL).code is Code.QUEUE_FULL


def test_a_text_is_one_short_line():
    assert one_line("a" * 10_000) == "a" * (MAX_TEXT - 1) + "…"
    assert one_line("\x1b[31m\ud800red\r\n\tand\x00 more") == "[31mred and more"
