"""What can go wrong with a request, as a caller sees it. What is done about it hangs on `code` alone."""

from __future__ import annotations

import logging
import re

import grpc

from step_audio.errors import Code, Said, StepAudioError, one_line, take_code
from step_audio.sampling_parameters import PARAMETERS
from step_audio_client.known_texts import translate, untrusted

TOO_LATE = "the answer took longer than the timeout"
FAILED = "internal error: the server failed, its log has the details"

_GUIDE = re.compile(r"\bguided_decoding_guide(_type)?\b")

log = logging.getLogger(__name__)


class RequestError(Exception):
    """The server refused or failed the request; the text is a line for a person.

    `code`: what that means. `param`: the one parameter at fault, by the caller's name for it, or a place in it;
    `audio[i]` is the i-th of the request's recordings.
    """

    code = Code.INVALID_REQUEST
    param: str | None = None

    def __init__(self, text: str, param: str | None = None, code: Code | None = None):
        super().__init__(one_line(text))
        self.param = param or type(self).param
        self.code = code or type(self).code


class ContextTooLong(RequestError):
    """The prompt leaves no room for an answer."""

    code = Code.CONTEXT_TOO_LONG
    param = "messages"


class InvalidGuide(RequestError):
    """The guide of an answer, or a schema that it is made from, cannot be used."""

    code = Code.INVALID_GUIDE

    def by_name(self, name: str) -> InvalidGuide:
        """By the caller's word for it."""
        said, count = _GUIDE.subn(name, str(self))
        return InvalidGuide(said if count else f"{name}: {said}", name)


class UnsupportedParameter(RequestError):
    """The served LLM cannot do what a parameter asks for."""

    code = Code.UNSUPPORTED

    def __init__(self, name: str):
        super().__init__(f"{name} is not supported: the served LLM's backend does not take it", name)


class ServerFailed(RequestError):
    """A fault of the server's, not of the request; what it said is in the log of this process, or in its own."""

    code = Code.INTERNAL


class ServerBusy(RequestError):
    """The server's queue is full; the same request may succeed later."""

    code = Code.QUEUE_FULL


class RequestTimeout(RequestError):
    """The answer took longer than the caller's timeout."""

    code = Code.TIMED_OUT


class EmbeddingsGone(RequestError):
    """The server has dropped the recordings' embeddings: they are to be made again."""

    code = Code.NOT_CACHED


class Unavailable(RequestError):
    """No server answers, or it went away in the middle."""

    code = Code.UNAVAILABLE


class ServerLost(Unavailable):
    """A server died, or the connection to it, with the request in hand."""

    code = Code.SERVER_LOST
    stands = False  # it says so itself, of one of its processes, and says it again until it is started anew


class AnswerLost(Unavailable):
    """A server died in the middle of an answer that no other server can go on with."""

    code = Code.ANSWER_LOST


class Quarantined(Unavailable):
    """Servers, or their processes, have died with this request in hand: it is not tried again."""

    code = Code.QUARANTINED


_KINDS = {
    kind.code: kind
    for kind in (
        ContextTooLong, InvalidGuide, ServerFailed, ServerBusy, RequestTimeout, EmbeddingsGone, Unavailable, ServerLost,
        AnswerLost, Quarantined,
    )
}  # fmt: skip

# How a server that ends, or a proxy before it, ends a call. An error of a model has them only with a code of ours, and
# a cancel by this client is none of gRPC's errors.
LOST = (grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED, grpc.StatusCode.DATA_LOSS)

# Triton's, before a text: they mean nothing to a caller.
_PREFIXES = re.compile(r"(in ensemble '[^']*', |\[request id: [^]]*\] )*")


# The caller's names of what has others inside.
_NAMES = {one.input: one.name for one in PARAMETERS if one.input != one.name} | {
    "max_new_tokens": "max_tokens",
    "stop_words_list": "stop_token_ids",
    "stop_words": "stop_token_ids",
    "bad_words_list": "bad_words",
}
_NAME = re.compile(rf"\b({'|'.join(_NAMES)})\b")


def error_of(code: Code, text: str, param: str | None = None) -> RequestError:
    """Of an error with the names of inside."""
    kind = _KINDS.get(code, RequestError)
    return kind(_called(text), param and _called(param), code)


def refused(error: StepAudioError) -> RequestError:
    """As if a server had said it."""
    return error_of(error.code, str(error), error.param)


def request_error(text: str, request_id: str = "") -> RequestError:
    """The server's text as an error: by the code before it, or by the table of known texts.

    Any other is a fault of the server's. It may name files, processes and memory there, so it goes into the log.
    """
    if meaning := _meaning(text):
        return error_of(*meaning)
    log.error("request %s: the server failed: %s", request_id or "without an id", text)
    return ServerFailed(FAILED)


def call_error(
    error: grpc.aio.AioRpcError, address: str, connected: bool = False, request_id: str = ""
) -> RequestError:
    """What gRPC says of a failed call; `connected`: when it was begun."""
    details, status = error.details() or "", error.code()
    if meaning := _meaning(details):
        return error_of(*meaning)
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return RequestTimeout(TOO_LATE)
    gone = ServerLost(f"the server at {address} went away: try again later")
    if status in LOST:
        return gone
    if status == grpc.StatusCode.UNAVAILABLE:
        if connected:
            return gone
        if untrusted(details):
            return Unavailable(f"the certificate of the server at {address} is not trusted here, or for another name")
        return Unavailable(f"no server answers at {address}")
    return request_error(details or status.name, request_id)


def _called(text: str) -> str:
    return _NAME.sub(lambda match: _NAMES[match[1]], text)


def _meaning(text: str) -> Said | tuple[Code, str] | None:
    said = _PREFIXES.sub("", text, count=1)  # matches at the beginning, if it is nothing
    return take_code(said) or translate(said)
