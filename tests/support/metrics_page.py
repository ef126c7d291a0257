"""What a page of metrics says (Prometheus' text format)."""

from __future__ import annotations


def figure(page: str, name: str, default: float | None = None) -> float:
    """Of `name`, with its labels where it has some; `default` where it is not on the page. Raises KeyError."""
    told = dict(line.rpartition(" ")[::2] for line in page.splitlines() if not line.startswith("#"))
    return float(told[name] if default is None else told.get(name, default))
