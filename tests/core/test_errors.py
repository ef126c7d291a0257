"""Codes: they travel, they are Triton's, and each means one thing on every way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import step_audio
import step_audio_client
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
    assert take_code(code.put_before("this\nand   that")) == (code, "this and that", None)
    assert take_code(code.put_before("[a] is wrong", "messages[0].content[1]")) == (
        code,
        "[a] is wrong",
        "messages[0].content[1]",
    )
    assert code.triton in TRITON and 400 <= code.status < 600


@pytest.mark.parametrize(
    "text", ["", "messages is empty", "[request id: 1] x", "[NO_SUCH] x", "x [INTERNAL] y", "[INTERNAL a b] x"]
)
def test_other_texts_have_none(text):
    assert take_code(text) is None


def test_what_may_be_tried_again_is_no_fault_of_the_request():
    assert all(code.status in (429, 503) for code in Code if code.retry is not Retry.NEVER)
    assert all(code.retry is Retry.NEVER for code in Code if code.status == 400)


def test_every_error_has_a_code_and_can_be_given_another():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StepAudioError)]
    assert len(kinds) > 10 and all(kind.code in Code for kind in kinds)
    assert StepAudioError("x").code is Code.INTERNAL
    assert StepAudioError("x", code=Code.QUEUE_FULL).code is Code.QUEUE_FULL


# What no one parameter is at fault for.
OF_NONE = {
    "request id {} is in use: choose another",
    "the request's id has {} characters, at most {} are accepted",
    "the request's id must be {} and the id of the answer",
    "the request needs an id, by which its answer can be ended",
    "there is a lease for this id already",
    "stop needs the id of the request to stop",
    "output '{}' must be requested",
    "no token can be drawn: the prompt table, the penalties or bad_words leave none",
}


def test_a_refusal_says_which_parameter():
    without = set()
    for file in (
        *Path(step_audio.__file__).parent.rglob("*.py"),
        *Path(step_audio_client.__file__).parent.rglob("*.py"),
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=kind), args=[text], keywords=[])) if kind in REFUSALS:
                    without.add(_said(text))
    assert without == OF_NONE


# Those that have a parameter by their kind, ContextTooLong and InvalidGuide, aside.
REFUSALS = ("InvalidRequest", "AudioTooLong", "Unsupported", "Conflict", "RequestError")


def _said(text: ast.expr) -> str:
    match text:
        case ast.Constant(value=str(said)):
            return said
        case ast.JoinedStr(values=values):
            return "".join(map(_said, values))
        case ast.IfExp(body=body):
            return _said(body)
        case _:
            return "{}"


def test_a_text_is_one_short_line():
    assert one_line("a" * 10_000) == "a" * (MAX_TEXT - 1) + "…"
    assert one_line("\x1b[31m\ud800red\r\n\tand\x00 more") == "[31mred and more"
