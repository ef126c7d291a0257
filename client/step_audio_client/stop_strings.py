"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from step_audio_client.markers import partial_marker


class StopStrings:
    """Lets text pass up to the first stop string, and never a part of one; the result does not depend on the cuts.

    Of several stop strings the one that is complete first counts, of those complete at the same character the
    longest. Neither it nor what follows is let pass.

    `found`: the stop string that ended the text, None so far. `size`: how many characters came until then, `passed`:
    how many of them were let pass.
    """

    def __init__(self, stop: Sequence[str] = ()):
        """`stop`: none of them empty."""
        self.found: str | None = None
        self.size = 0
        self.passed = 0
        self._stop = tuple(stop)
        self._held = ""  # may be the beginning of one

    def push(self, text: str) -> str:
        """The next piece; what is surely in front of a stop string."""
        if self.found is not None:
            return ""
        self.size += len(text)
        if not self._stop:
            self.passed = self.size
            return text
        text = self._held + text
        hits = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if hits:
            _, sure, self.found = min(hits)
            self._held = ""
        else:
            sure = len(text) - partial_marker(text, self._stop)
            self._held = text[sure:]
        self.passed += sure
        return text[:sure]

    def flush(self) -> str:
        """The end of the text: what was held back was no stop string."""
        held, self._held = self._held, ""
        self.passed += len(held)
        return held

    def has_passed(self, place: int) -> bool:
        """Whether what begins at `place`, a `size` of before, was let pass. It may be empty: then, all before it."""
        return place < self.passed or (self.found is None and self.passed == self.size)
