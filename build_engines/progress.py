"""How far a build is: a bar with bytes and time left in a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Call it with (done, total) in bytes; `done` may begin above zero when a build is resumed.

    >>> report = Progress("decoder")
    >>> report(100, 100)
    """

    def __init__(self, label: str, stream: TextIO = sys.stderr) -> None:
        self.label = label
        self.stream = stream
        self._bar: tqdm | None = None
        self._first: tuple[float, int] | None = None  # time and bytes at the first call, for the rate
        self._tenths = -1

    def __call__(self, done: int, total: int) -> None:
        if self.stream.isatty():
            self._draw(done, total)
        else:
            self._print(done, total)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc=self.label, total=total, initial=done, unit="B", unit_scale=True, file=self.stream, mininterval=0.5
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()

    def _print(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)
        tenths = 10 * done // total if total else 10
        if tenths == self._tenths:
            return
        self._tenths = tenths
        rate = (done - self._first[1]) / max(now - self._first[0], 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total and rate > 0 else ""
        print(f"{self.label}: {10 * tenths} % of {total / 1e9:.2f} GB{left}", file=self.stream, flush=True)
