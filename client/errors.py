"""What can go wrong with a request, as a caller sees it."""

from __future__ import annotations

import re


class RequestError(Exception):
    """The server refused or failed the request; the text is meant for a person."""


class ServerBusy(RequestError):
    """The server's queue is full; the same request may succeed later."""


# The words of our engine, of NVIDIA's, and of tritonserver when a burst fills the queue in front of the engine.
BUSY = ("requests are waiting already", "Maximum queue size of", "Exceeds maximum queue size")


def request_error(text: str) -> RequestError:
    """The server's text without the ensemble's prefixes, which mean nothing to a caller."""
    text = re.sub(r"^in ensemble '[^']*', |\[request id: [^]]*\] ", "", text)
    if any(words in text for words in BUSY):
        return ServerBusy("the server's queue is full: try again later")
    return RequestError(text)
