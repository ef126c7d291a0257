"""Short-lived secrets that open realtime sessions: for browsers, which are to see no API key.

A secret holds its session's settings and its end, signed with the key of who asked for it. So no gateway keeps any, and
each one that has the key takes it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from step_audio_gateway.auth import Keys, wrong_key
from step_audio_gateway.errors import refused

PREFIX = "ek_"
MOST_CHARACTERS = 16_384  # it travels in a header
_PROTOCOL = "openai-insecure-api-key."  # by which a browser says a key: it can set no header


@dataclass(frozen=True)
class Caller:
    """Who opens a session: the holder of API key number `key`. `session`: what a secret says of it."""

    key: int
    session: dict[str, Any]


def make_secret(keys: Keys, key: int, session: dict[str, Any], expires_at: int) -> str:
    """`expires_at`: seconds since the epoch. Raises ApiError."""
    said = json.dumps({"exp": expires_at, "session": session}, separators=(",", ":")).encode()
    secret = f"{PREFIX}{_text(said)}.{_text(keys.sign(key, said))}"
    if len(secret) > MOST_CHARACTERS:
        said_of = f"its settings make a secret of {len(secret)} characters, at most {MOST_CHARACTERS} travel"
        raise refused(f"session: {said_of}: send the rest by session.update", "session")
    return secret


def caller_of(authorization: str, keys: Keys) -> Caller:
    """`authorization`: the header's value; an API key or a secret. Raises ApiError (401)."""
    _, _, given = authorization.partition(" ")
    if given.startswith(PREFIX) and len(given) <= MOST_CHARACTERS:
        return _of_secret(given.removeprefix(PREFIX), keys)
    return Caller(keys.check(authorization) if keys else 0, {})


def authorization_of(protocols: Sequence[str]) -> str:
    """The header's value, of what a browser says instead of it."""
    keys = (name.removeprefix(_PROTOCOL) for name in protocols if name.startswith(_PROTOCOL))
    return next((f"Bearer {key}" for key in keys), "")


def _of_secret(secret: str, keys: Keys) -> Caller:
    said, _, signature = secret.partition(".")
    try:
        told, signed = _bytes(said), _bytes(signature)
    except (binascii.Error, ValueError):
        raise wrong_key("the client secret is not valid") from None
    matches = [hmac.compare_digest(keys.sign(key, told), signed) for key in range(max(1, len(keys)))]
    if not any(matches):
        raise wrong_key("the client secret is not valid")
    values = json.loads(told)  # ours, as it is signed
    if keys and values["exp"] < time.time():
        raise wrong_key("the client secret has expired: ask for another")
    return Caller(matches.index(True), values["session"])


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
