"""Files that look like Parquet from outside."""

from __future__ import annotations


def parquet(*columns: str) -> bytes:
    """The shape of such a file: its schema's names, each behind its length."""
    footer = b"".join(b"\x18" + bytes([len(name)]) + name.encode() for name in columns)
    return b"PAR1rows" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
