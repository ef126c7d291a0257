"""What a server says of recordings that it answered although something was amiss with them."""

from __future__ import annotations

from dataclasses import dataclass

from step_audio.arrays import AnyArray


@dataclass(frozen=True)
class AudioReport:
    """What was found amiss with a recording, the `index`-th of the messages, that was answered all the same.

    `lost_seconds` are missing at its end, or could not be decoded. `cancelled`: its channels cancel each other, so that
    their mean is nearly silent; ask for one of them (`Audio.channel`).
    """

    index: int
    lost_seconds: float
    cancelled: bool

    @property
    def text(self) -> str:
        """In words, of a recording that is named before."""
        said = []
        if self.lost_seconds:
            said.append(f"{self.lost_seconds:.2f} s of it are missing or could not be decoded")
        if self.cancelled:
            said.append("its channels cancel each other, their mean is nearly silent: ask for one with `channel`")
        return "; ".join(said)


def audio_reports(report: AnyArray) -> tuple[AudioReport, ...]:
    """Of the featurizer's `audio_report`, [1, 2, recordings], what is worth a word."""
    lost, cancelled = report.reshape(2, -1).tolist()
    found = (AudioReport(i, round(lost[i], 3), cancelled[i] > 0) for i in range(len(lost)))
    return tuple(one for one in found if one.lost_seconds or one.cancelled)
