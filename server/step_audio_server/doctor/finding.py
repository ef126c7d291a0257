"""What one check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """`advice`: what to do, empty when nothing is. A fault keeps the server from working, a warning may."""

    name: str
    status: Status
    found: str
    advice: str = ""

    def line(self) -> str:
        return f"{self.status:<8}{self.name:<18}{self.found}{': ' if self.advice else ''}{self.advice}"

    def json(self) -> dict[str, str]:
        return asdict(self)


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def warning(name: str, found: str, advice: str) -> Finding:
    return Finding(name, "warning", found, advice)


def fault(name: str, found: str, advice: str) -> Finding:
    return Finding(name, "fault", found, advice)


def in_words(size: float) -> str:
    """Bytes: "70.5 GB", "67 MB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.{1 if name == 'GB' else 0}f} {name}"
    return f"{size:.0f} bytes"
