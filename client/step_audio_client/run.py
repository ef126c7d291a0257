"""One answer on its way: where it is made, until when, under which ids."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from step_audio_client.errors import TOO_LATE, RequestTimeout
from step_audio_client.servers import Server


def new_request_id() -> str:
    """Unguessable: whoever knows it can stop the request."""
    return uuid.uuid4().hex


@dataclass(eq=False)
class Run:
    """Where and until when one answer is made, however many generations it takes."""

    route: list[Server]  # the first has the work; the others are tried in turn if it does not begin
    timeout: float | None = None  # seconds, of all together
    request_id: str = field(default_factory=new_request_id)
    lora_task_id: int | None = None  # of the adapter that makes it
    generations: int = 0
    stopped: bool = False  # on somebody's demand: what is still to be generated is not
    start: float = field(default_factory=time.monotonic)

    @property
    def last_id(self) -> str:
        """Of the generation under way."""
        return self.request_id if self.generations < 2 else f"{self.request_id}/{self.generations}"

    def next_id(self) -> str:
        """Every generation has its own: a late `stop` for the last one must not end the next."""
        self.generations += 1
        return self.last_id

    def time_left(self) -> float | None:
        """Seconds. Raises RequestTimeout."""
        if self.timeout is None:
            return None
        if (left := self.start + self.timeout - time.monotonic()) <= 0:
            raise RequestTimeout(TOO_LATE)
        return left
