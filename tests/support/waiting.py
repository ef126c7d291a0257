"""Waiting for what must happen, however busy the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

SECONDS = 60  # for what takes a moment on an idle machine


def wait_until(condition: Callable[[], Any], what: str = "it") -> None:
    """Returns when `condition()` is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)


async def until(condition: Callable[[], Any], what: str = "it") -> None:
    """The same within an event loop, which goes on meanwhile."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        await asyncio.sleep(0.01)
