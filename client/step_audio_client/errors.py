"""What can go wrong with a request, as a caller sees it."""

from __future__ import annotations

import re

import grpc

from step_audio.errors import NotCached


class RequestError(Exception):
    """The server refused or failed the request; the text is meant for a person."""


class ServerBusy(RequestError):
    """The server's queue is full; the same request may succeed later."""


class RequestTimeout(RequestError):
    """The answer took longer than the caller's timeout."""


class UnsupportedParameter(RequestError):
    """The served LLM cannot do what a parameter asks for; `name` is the parameter's."""

    def __init__(self, name: str):
        super().__init__(f"{name} is not supported: the served LLM's backend does not take it")
        self.name = name


class Unavailable(RequestError):
    """No server answers, or it went away in the middle."""


class EmbeddingsGone(RequestError):
    """The server has dropped the recordings' embeddings: they are to be made again."""


class ServerLost(Unavailable):
    """A server died, or the connection to it, with the request in hand."""


class AnswerLost(Unavailable):
    """A server died in the middle of an answer that no other server can go on with."""


class Quarantined(Unavailable):
    """Servers have died with this request in hand: it is not tried again."""


# The words of our engine, of NVIDIA's, and of tritonserver when a burst fills the queue in front of the engine.
BUSY = ("requests are waiting already", "Maximum queue size of", "Exceeds maximum queue size")
# tritonserver's, while it shuts down (the second to last, of models that it has unloaded) or loads its models.
GONE = (
    "Server is stopping", "has stopped accepting new inference requests", "Request for unknown model", "is not ready",
)  # fmt: skip
# And when a model's process is dead.
DEAD = ("is not healthy",)
# gRPC's, of a server's certificate that is by somebody unknown, and of one that is for another name.
UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "is not in peer certificate", "Hostname Verification Check failed")

TOO_LATE = "the answer took longer than the timeout"


def request_error(text: str) -> RequestError:
    """The server's text without the ensemble's prefixes, which mean nothing to a caller."""
    text = re.sub(r"^in ensemble '[^']*', |\[request id: [^]]*\] ", "", text)
    if any(words in text for words in BUSY):
        return ServerBusy("the server's queue is full: try again later")
    if any(words in text for words in DEAD):
        return ServerLost("the server is broken: try again later")
    if any(words in text for words in GONE):
        return Unavailable("the server is stopping: try again later")
    if NotCached.TEXT in text:
        return EmbeddingsGone(text)
    return RequestError(text)


def call_error(error: grpc.aio.AioRpcError, address: str, connected: bool = False) -> RequestError:
    """What gRPC says of a failed call; `connected`: when it was begun."""
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return RequestTimeout(TOO_LATE)
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        if connected:
            return ServerLost(f"the server at {address} went away: try again later")
        if any(words in (error.details() or "") for words in UNTRUSTED):
            return Unavailable(f"the certificate of the server at {address} is not trusted here, or for another name")
        return Unavailable(f"no server answers at {address}")
    return request_error(error.details() or error.code().name)
