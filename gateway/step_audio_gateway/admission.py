"""Who is let in, decided when a request's headers have come and before its body is read.

What is let in takes places, one for each answer that is generated for it, and bytes, those of its body. There are as
many places as the servers compute answers at once, and a few for requests that wait. So what is in is served soon, and
what is not let in is told so at once.

With several API keys the last eighth of places and bytes is kept for keys that hold less than their fair share: the
whole divided by the keys that hold some, and by two if it is one alone. The very last place is for a key without any.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from step_audio.errors import Code
from step_audio_client import RequestError, StepAudioClient
from step_audio_gateway.errors import RETRY_AFTER, ApiError, from_client
from step_audio_gateway.metrics import Metrics
from step_audio_gateway.settings import GatewaySettings

Refusal = Literal["queue", "bytes", "share", "sessions"]
_SAID: dict[Refusal, str] = {
    "queue": "as many requests are under way as can be served: try again later",
    "bytes": "the requests under way are too large together for another: try again later",
    "sessions": "there are as many realtime sessions as this server takes: try again later",
    "share": "this API key has its share of what can be served: try again later",
}


class Bound:
    """So much (`limit`) of something that requests take and give back; `full`: why there is none left.

    `shared`: there are several keys.
    """

    def __init__(self, full: Refusal, limit: int, shared: bool):
        self.full = full
        self.limit = limit
        self.taken = 0
        self._shared = shared
        self._held: Counter[int] = Counter()  # by key, those that hold some

    @property
    def most(self) -> int:
        """What one request may take if there is no other."""
        return self.limit - self._kept

    def refusal(self, key: int, more: int) -> Refusal | None:
        """Why `key` may not take as many more; None if it may."""
        left, held = self.limit - self.taken - more, self._held[key]
        if left < 0:
            return self.full
        if left >= self._kept or not held:
            return None
        fair = self.limit // max(2, len(+self._held))
        return None if held + more <= fair and left else "share"

    def take(self, key: int, amount: int) -> None:
        """Less than nothing: give back."""
        self.taken += amount
        self._held[key] += amount

    @property
    def _kept(self) -> int:
        return max(1, self.limit // 8) if self._shared else 0


class Admission:
    """Of one gateway. `keys`: how many API keys there are."""

    def __init__(self, settings: GatewaySettings, client: StepAudioClient, keys: int, metrics: Metrics):
        self.places = Bound("queue", settings.max_concurrent_requests or 0, keys > 1)
        self.bytes = Bound("bytes", max(settings.max_bytes_in_flight, settings.max_body_bytes), keys > 1)
        self.sessions = Bound("sessions", settings.max_sessions, keys > 1)
        self._settings = settings
        self._client = client
        self._metrics = metrics
        metrics.sessions.set_function(lambda: self.sessions.taken)
        metrics.requests_in_flight.set_function(lambda: self.places.taken)
        metrics.requests_limit.set_function(lambda: self.places.limit)
        metrics.bytes_in_flight.set_function(lambda: self.bytes.taken)

    async def enter(self, key: int, stated: int) -> Admitted:
        """`stated`: the body's length by its header. Raises ApiError: 429; 503 if no server has ever been reached."""
        if self._settings.max_concurrent_requests is None:
            self.places.limit = await self._count_places()
        request = Admitted(self, key)
        try:
            request.answers(1)
            request.received(stated)
        except ApiError:
            request.leave()
            raise
        return request

    def refused(self, refusal: Refusal) -> ApiError:
        """Counted."""
        self._metrics.refused.labels(refusal).inc()
        code = Code.QUEUE_FULL
        return ApiError(code.status, _SAID[refusal], code=code.openai, headers={"Retry-After": str(RETRY_AFTER)})

    async def _count_places(self) -> int:
        """Of the servers in reach, and of those expected back: while one is restarted, requests wait a little longer.

        One that stays away has none in the end; while no other is left, requests wait for one.
        """
        try:
            at_once = (await self._client.serving_info())["max_batch_size"]
        except RequestError as error:
            raise from_client(error) from None
        return at_once * max(1, self._client.expected) + self._settings.max_waiting


class Admitted:
    """What one request holds."""

    def __init__(self, admission: Admission, key: int):
        self._admission = admission
        self._key = key
        self._held: dict[Bound, int] = {admission.places: 0, admission.bytes: 0}

    def answers(self, count: int) -> None:
        """It needs as many places; for more than there are, all of them. Raises ApiError (429)."""
        places = self._admission.places
        self._hold(places, min(count, max(1, places.most)))

    def received(self, size: int) -> None:
        """So much of its body is here, or announced. Raises ApiError (429)."""
        self._hold(self._admission.bytes, size)

    def leave(self) -> None:
        for bound, amount in self._held.items():
            bound.take(self._key, -amount)
            self._held[bound] = 0

    def _hold(self, bound: Bound, amount: int) -> None:
        more = amount - self._held[bound]
        if more <= 0:
            return
        if refusal := bound.refusal(self._key, more):
            raise self._admission.refused(refusal)
        bound.take(self._key, more)
        self._held[bound] = amount


class HeldSession:
    """What one session holds of the bytes, which grows and shrinks, and its place among the sessions.

    Raises ApiError (429).
    """

    def __init__(self, admission: Admission, key: int):
        self._admission = admission
        self._key = key
        self._size = 0
        if refusal := admission.sessions.refusal(key, 1):
            raise admission.refused(refusal)
        admission.sessions.take(key, 1)
        self._here = 1

    def set(self, size: int) -> None:
        """Raises ApiError (429)."""
        bound, more = self._admission.bytes, size - self._size
        if more > 0 and (refusal := bound.refusal(self._key, more)):
            raise self._admission.refused(refusal)
        bound.take(self._key, more)
        self._size = size

    def leave(self) -> None:
        """Once, or more often."""
        self._admission.bytes.take(self._key, -self._size)
        self._admission.sessions.take(self._key, -self._here)
        self._size = self._here = 0
