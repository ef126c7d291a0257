"""What happened to one request: when it was sent, when which tokens came, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Record:
    """Times are seconds of one clock, that of the load."""

    sent: float
    audio_seconds: float = 0.0
    pieces: list[tuple[float, int]] = field(default_factory=list)  # time of each message, tokens in it
    first_answer: float | None = None  # when the first token behind the thought came
    ended: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)  # where the target tells them
    error: str | None = None

    @property
    def first_token(self) -> float | None:
        """Seconds from sending."""
        return self.pieces[0][0] - self.sent if self.pieces else None

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.sent

    @property
    def token_seconds(self) -> float | None:
        """Between tokens, on average: from the first message's to the last one's."""
        later = self.output_tokens - (self.pieces[0][1] if self.pieces else 0)
        return (self.pieces[-1][0] - self.pieces[0][0]) / later if later > 0 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between messages, which is what a reader notices."""
        return [after[0] - before[0] for before, after in pairwise(self.pieces)]

    def share_out(self) -> None:
        """Where messages do not say how many tokens they carry: the first one, the others the rest evenly."""
        rest = len(self.pieces) - 1
        if rest > 0 and self.output_tokens > 1:
            bounds = [1 + (self.output_tokens - 1) * n // rest for n in range(rest + 1)]
            tokens = [1, *(after - before for before, after in pairwise(bounds))]
            self.pieces = [(when, count) for (when, _), count in zip(self.pieces, tokens, strict=True)]
