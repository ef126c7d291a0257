"""API keys: who may call."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from step_audio_gateway.errors import ApiError


class Keys:
    """Knows whether a header carries one of the keys. The time it takes tells nothing about them."""

    def __init__(self, keys: Iterable[str]):
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, authorization: str) -> int:
        """Which of the keys it is; `authorization`: the header's value, empty if none. Raises ApiError (401)."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them: no early end
        if scheme.lower() != "bearer" or not any(matches):
            said = "the API key is not valid" if key else "an API key is needed: Authorization: Bearer KEY"
            raise wrong_key(said)
        return matches.index(True)

    def sign(self, key: int, data: bytes) -> bytes:
        """What only a holder of that key can make. Without keys everybody can: then everybody may call, too."""
        return hmac.digest(self._digests[key] if self._digests else b"", data, "sha256")


def wrong_key(text: str) -> ApiError:
    """401. `text`: what is wrong with the key, or with what stands in its place."""
    return ApiError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _digest(key: str) -> bytes:
    """Of equal length for all keys, which compare_digest needs to hide theirs."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
