"""Odd recordings, made here, and how long each is for us, for FFmpeg's command and for libsndfile.

    python tests/recordings/compare.py [--keep DIR] [--page]

FFmpeg's command is that of the package imageio-ffmpeg, in an environment of its own, made on first use. --keep leaves
the files behind; --page writes docs/recordings.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))
import soundfile

from odd_damage import damaged, halves
from odd_recordings import Odd, whole
from other_decoders import by_ffmpeg, by_libsndfile
from peers.environments import Environment
from step_audio.audio import read_recording
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import echo
from step_audio.errors import InvalidRequest, StepAudioError
from step_audio.markdown import markdown_table
from step_audio_server.commands.bench import CACHE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs/recordings.md"
HEAD = "recording", "true", "ours", "of it lost", "ffmpeg", "libsndfile"
INTRODUCTION = """# Odd recordings

What phones, browsers, call recorders, podcasts and telephone systems write, and what becomes of it on the way: each of
these is made by `tests/support/odd_recordings.py` and `odd_damage.py`, and read by the tests. The rules are in the
[README](../README.md#recordings). Lengths are in seconds; a dash stands where a decoder cannot read the file. Silence
that a file's clock tells of is part of our length, and not of FFmpeg's.

Written by `python tests/recordings/compare.py --page` on {date}, at commit {commit}, beside
{ffmpeg} and {libsndfile}.
"""
PARTS = {
    "Whole ones": ("Nothing is missing, however odd they are.", whole),
    "Damaged inside": (
        "500 bytes of 12 seconds are gone, have come twice, or are others. Where nothing is lost, whatever stands\n"
        "there can be decoded: bare samples, codecs without a check.",
        damaged,
    ),
    "Cut in half": ("Refused: more than a quarter is lost.", halves),
}


def command() -> str:
    """FFmpeg's. Raises StepAudioError."""
    environment = Environment(CACHE / "decoders", "ffmpeg", HERE / "requirements")
    environment.install(echo)
    asked = [str(environment.python), "-c", "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def row(odd: Odd, ffmpeg: str) -> list[str]:
    def told(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds:.2f}"

    try:
        found = read_recording(odd.data)
        ours, lost = f"{len(found.samples) / SAMPLE_RATE:.2f}", f"{found.lost:.2f}" if found.lost else ""
    except InvalidRequest:
        ours, lost = "refused", ""
    return [odd.name, told(odd.seconds), ours, lost, told(by_ffmpeg(odd.data, ffmpeg)), told(by_libsndfile(odd.data))]


def kept(recordings: Iterable[Odd], folder: Path | None) -> Iterable[Odd]:
    for number, odd in enumerate(recordings):
        if folder:
            letters = "".join(letter if letter.isalnum() else "-" for letter in odd.name)
            (folder / f"{number:03}-{letters}").write_bytes(odd.data)
        yield odd


def first_line(*asked: str) -> str:
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.partition("\n")[0].strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write every recording there")
    parser.add_argument("--page", action="store_true", help="write docs/recordings.md")
    given = parser.parse_args()
    ffmpeg = command()
    said = INTRODUCTION.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=first_line("git", "rev-parse", "--short", "HEAD"),
        ffmpeg=" ".join(first_line(ffmpeg, "-version").split()[:3]),
        libsndfile=f"libsndfile {soundfile.__libsndfile_version__}",
    )
    for part, (about, made) in PARTS.items():
        folder = given.keep / part.lower().replace(" ", "-") if given.keep else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        rows = [row(odd, ffmpeg) for odd in kept(made(), folder)]
        said += f"\n## {part}\n\n{about}\n\n{markdown_table([HEAD, *rows])}\n"
    print(said)
    if given.page:
        PAGE.write_text(said, "utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StepAudioError as error:
        sys.exit(f"error: {error}")
