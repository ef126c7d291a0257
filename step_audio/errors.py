"""The errors that a person is meant to read, and the codes that decide what is done about them.

Every message names what is wrong and what to change, in one line, without paths of the server's
machine: an edge may hand `str(error)` to a client as it is. Anything else that is raised is a fault
of ours and reaches a client only as "internal error".

A code travels from a step to the client at the head of the text, in brackets, and with it the parameter that is at
fault, where it is one: a stream of tritonserver's has no place of its own for them, for an error there is a text. (The
header `triton_grpc_error` makes it the stream's status; but tritonserver 2.51 crashes where another request is under
way on the same stream, and what it refuses before a model gets it comes as a text all the same.) Words in a text
decide nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

MAX_TEXT = 400  # characters of a text that a caller gets


class Retry(Enum):
    """What a client does with a request that failed."""

    NEVER = "never"
    HERE = "here"  # at once, at the same server, with more along
    ELSEWHERE = "elsewhere"  # at once, at another server; if none is left and nothing has begun, the caller's turn
    WAIT = "wait"  # at another server, or at the same when it is back


@dataclass(frozen=True)
class _Means:
    triton: str  # TRITONSERVER_ERROR_..., pb_utils.TritonError's name for it
    status: int  # HTTP's
    openai: str | None  # `code` of OpenAI's error; its `type` follows from the status
    retry: Retry = Retry.NEVER


# Triton's name -> gRPC's, where they differ (tritonserver 2.51, src/grpc/grpc_utils.cc, and measured).
_GRPC = {"INVALID_ARG": "INVALID_ARGUMENT", "UNSUPPORTED": "UNIMPLEMENTED"}


class Code(Enum):
    """Why a request failed, on all ways: in a step, at Triton's ports, in the client library, over HTTP."""

    INVALID_REQUEST = _Means("INVALID_ARG", 400, None)
    INVALID_GUIDE = _Means("INVALID_ARG", 400, "invalid_guide")
    CONTEXT_TOO_LONG = _Means("INVALID_ARG", 400, "context_length_exceeded")
    UNSUPPORTED = _Means("UNSUPPORTED", 400, "unsupported_parameter")
    CONFLICT = _Means("ALREADY_EXISTS", 409, "conflict")
    NOT_CACHED = _Means("NOT_FOUND", 503, "unavailable", Retry.HERE)
    QUEUE_FULL = _Means("UNAVAILABLE", 429, "server_busy", Retry.ELSEWHERE)
    UNAVAILABLE = _Means("UNAVAILABLE", 503, "unavailable", Retry.WAIT)
    SERVER_LOST = _Means("UNAVAILABLE", 503, "unavailable", Retry.WAIT)  # with the request in hand: it may be why
    ANSWER_LOST = _Means("UNAVAILABLE", 503, "unavailable")  # begun, and no other server can go on with it
    QUARANTINED = _Means("INTERNAL", 500, "quarantined")
    TIMED_OUT = _Means("UNAVAILABLE", 504, "timeout")
    CANCELLED = _Means("CANCELLED", 499, "cancelled")
    INTERNAL = _Means("INTERNAL", 500, "internal_error")

    # Several mean the same, and are not aliases for all that.
    def __new__(cls, means: _Means) -> Code:
        code = object.__new__(cls)
        code._value_ = len(cls.__members__)
        code.triton, code.status, code.openai, code.retry = means.triton, means.status, means.openai, means.retry
        return code

    triton: str
    status: int
    openai: str | None
    retry: Retry

    @property
    def grpc(self) -> str:
        """Of `grpc.StatusCode`: what tritonserver makes of `triton` where an error is a status."""
        return _GRPC.get(self.triton, self.triton)

    def put_before(self, text: str, param: str | None = None) -> str:
        """As it travels; `param`: what is at fault, without spaces.

        >>> Code.INVALID_REQUEST.put_before("messages is empty", "messages")
        '[INVALID_REQUEST messages] messages is empty'
        """
        return f"[{self.name}{f' {param}' if param else ''}] {one_line(text)}"


_CODED = re.compile(r"\[([A-Z_]+)(?: (\S+))?\] (.*)", re.DOTALL)


class Said(NamedTuple):
    """An error as it has come."""

    code: Code
    text: str
    param: str | None


def take_code(text: str) -> Said | None:
    """What `put_before` has put together; None for any other text.

    >>> take_code("[QUEUE_FULL] later")
    Said(code=<Code.QUEUE_FULL: 6>, text='later', param=None)
    """
    match = _CODED.fullmatch(text)
    return Said(Code[match[1]], one_line(match[3]), match[2]) if match and match[1] in Code.__members__ else None


def one_line(text: str) -> str:
    r"""Short, and without line breaks and control characters.

    >>> one_line("not this:\n  \x1b[1mthat")
    'not this: [1mthat'
    """
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in text[: 4 * MAX_TEXT]).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


class StepAudioError(Exception):
    """Base of every error whose text is meant for a person. `code` INTERNAL: for the operator, not for a caller.

    `param`: the one parameter that is at fault, by its name here, or a place in it, as `messages[0].content`.
    """

    code = Code.INTERNAL
    param: str | None = None

    def __init__(self, text: str, param: str | None = None, code: Code | None = None):
        super().__init__(text)
        self.param = param or type(self).param
        self.code = code or type(self).code


class InvalidRequest(StepAudioError):
    """The request cannot be served as it is; the text says what to change."""

    code = Code.INVALID_REQUEST


class InvalidGuide(InvalidRequest):
    """The guide of an answer is not what its kind says, or asks for what cannot be had."""

    code = Code.INVALID_GUIDE
    param = "guided_decoding_guide"


class ContextTooLong(InvalidRequest):
    """Prompt and answer have no room in `max_seq_len`."""

    code = Code.CONTEXT_TOO_LONG
    param = "messages"


class Unsupported(InvalidRequest):
    """What is asked for is not served here."""

    code = Code.UNSUPPORTED


class AudioTooLong(InvalidRequest):
    """A recording is longer than what was allowed for it."""


class Conflict(InvalidRequest):
    """There is such a thing already."""

    code = Code.CONFLICT


class Overloaded(StepAudioError):
    """The queue is full; the same request may succeed later."""

    code = Code.QUEUE_FULL


class NotServing(StepAudioError):
    """Not now: it is ending, or cannot begin."""

    code = Code.UNAVAILABLE


class Deadly(StepAudioError):
    """The request has ended the processes that worked on it, and is not tried again."""

    code = Code.QUARANTINED


class NotCached(StepAudioError):
    """Recordings were named by content hash alone, and their embeddings are not in the cache, or no longer."""

    code = Code.NOT_CACHED

    def __init__(self) -> None:
        super().__init__("the recordings' embeddings are not in the encoder's cache: send mel, too")


class CheckpointError(StepAudioError):
    """A checkpoint directory lacks something, or its parts contradict each other."""


class ArtefactError(StepAudioError):
    """A built artefact (rank files, ONNX, engine directory) is missing, incomplete or of another build."""


class SettingsError(StepAudioError):
    """A setting is out of range, unknown or unreadable, or two of them contradict each other."""
