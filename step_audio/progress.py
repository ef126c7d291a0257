"""How far long work is: a bar with the time left in a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from typing import NoReturn, TextIO

from tqdm import tqdm


class Progress:
    """Call it with (done, total), in bytes or, with `unit` "", in pieces; `done` may begin above zero where work is
    resumed. Work of known size counts itself: `total` and `done` are given here, and `step` is one piece more.

    >>> report = Progress("decoder")
    >>> report(100, 100)
    """

    def __init__(
        self, label: str, *, unit: str = "B", done: int = 0, total: int = 0, stream: TextIO | None = None
    ) -> None:
        self.label = label
        self.done, self.total = done, total
        self._unit = unit
        self._note = ""
        self._stream = stream or sys.stderr
        self._bar: tqdm[NoReturn] | None = None  # made when first drawn
        self._first: tuple[float, int] | None = None  # time and place at the first call, for the rate
        self._tenths = 10 * done // total if total else -1

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self._stream.isatty():
            self._draw()
        else:
            self._print()

    def step(self, note: str = "") -> None:
        """One piece is done. `note` is shown behind it, until there is another one."""
        self._note = note or self._note
        self(self.done + 1, self.total)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> None:
        if (bar := self._bar) is None:
            bar = self._bar = tqdm(
                desc=self.label,
                total=self.total,
                initial=self.done,
                unit=self._unit,
                unit_scale=bool(self._unit),
                file=self._stream,
                mininterval=0.5,
            )
        bar.set_postfix_str(self._note, refresh=False)
        bar.update(self.done - bar.n)
        if self.done >= self.total:
            bar.close()

    def _print(self) -> None:
        now = time.monotonic()
        self._first = self._first or (now, self.done)
        tenths = 10 * self.done // self.total if self.total else 10
        if tenths == self._tenths:
            return
        self._tenths = tenths
        rate = (self.done - self._first[1]) / max(now - self._first[0], 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if 0 < self.done < self.total and rate > 0 else ""
        far = f"{10 * tenths} % of {self.total / 1e9:.2f} GB" if self._unit else f"{self.done} of {self.total}"
        print(f"{self.label}: {far}{left}{', ' if self._note else ''}{self._note}", file=self._stream, flush=True)
