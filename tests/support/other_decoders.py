"""Decoders that share nothing with ours but the file: libsndfile, and FFmpeg's command."""

from __future__ import annotations

import io
import subprocess
import tempfile
from pathlib import Path

import soundfile

from step_audio.clips import SAMPLE_RATE


def by_libsndfile(data: bytes) -> float | None:
    """Seconds; None for what it cannot read."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            read = 0
            while count := len(file.read(1 << 16)):
                read += count
            return read / file.samplerate
    except soundfile.LibsndfileError:
        return None


def by_ffmpeg(data: bytes, command: str) -> float | None:
    """Seconds; None for what it cannot read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a"
        file.write_bytes(data)
        asked = [command, "-v", "quiet", "-i", str(file), "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "f32le", "-"]
        out = subprocess.run(asked, capture_output=True).stdout
    return len(out) / 4 / SAMPLE_RATE or None
