"""An event loop for tests of what time decides: its time passes only when nothing is left to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock


class _Selector(selectors.DefaultSelector):
    now = 0.0  # seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        self.now += max(timeout, 0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, Any], module: ModuleType) -> Any:
    """`asyncio.run`, in whose time the `time.monotonic()` of `module` is, too."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        clock = SimpleNamespace(monotonic=runner.get_loop().time)
        with mock.patch.object(module, "time", clock):
            return runner.run(main)
