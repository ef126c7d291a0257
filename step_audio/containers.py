"""The audio containers that are read: one list, which the decoder, the page, the help and the documents follow.

Every one of them is decoded by a test, so one that PyAV's FFmpeg cannot read cannot stand here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Container:
    """A kind of file with audio in it."""

    name: str  # for people
    demuxer: str  # FFmpeg's
    extensions: tuple[str, ...]
    mime_types: tuple[str, ...]  # that browsers and systems give such files
    raw: bool = False  # bare frames: FFmpeg guesses the duration, and tags may stand between and behind them
    clock: float = 0.0  # seconds of silence that its timestamps may state; 0: they only count what is there
    whole: bool = False  # it never leaves silence out: what its timestamps leap over is lost
    exact: bool = False  # it states the length of lossless recordings to the sample
    common: bool = False  # one of those to advise


HOURS = 24 * 3600.0

# FFmpeg also reads playlists, which make it open files and addresses of the server's: only these are let in.
CONTAINERS = (
    Container("WAV", "wav", ("wav",), ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"), common=True),
    Container("FLAC", "flac", ("flac",), ("audio/flac", "audio/x-flac"), exact=True, common=True),
    Container("MP3", "mp3", ("mp3",), ("audio/mpeg", "audio/mp3", "audio/x-mp3"), raw=True, common=True),
    Container(
        "Ogg",
        "ogg",
        ("ogg", "oga", "opus"),
        ("audio/ogg", "audio/opus", "application/ogg", "video/ogg"),
        clock=HOURS,
        common=True,
    ),
    Container(
        "M4A",
        "mov",
        ("m4a", "m4b", "mp4", "mov", "3gp", "3g2"),
        ("audio/mp4", "audio/m4a", "audio/x-m4a", "video/mp4", "video/quicktime", "audio/3gpp", "video/3gpp"),
        clock=HOURS,
        common=True,
    ),
    Container(
        "WebM",
        "matroska",
        ("webm", "mka", "mkv"),
        ("audio/webm", "video/webm", "audio/matroska", "audio/x-matroska", "video/matroska", "video/x-matroska"),
        clock=HOURS,
        common=True,
    ),
    Container("AAC", "aac", ("aac",), ("audio/aac", "audio/x-aac", "audio/aacp", "audio/vnd.dlna.adts"), raw=True),
    Container("AMR", "amr", ("amr",), ("audio/amr", "audio/amr-wb"), raw=True),
    Container("AIFF", "aiff", ("aif", "aiff", "aifc"), ("audio/aiff", "audio/x-aiff")),
    Container("AU", "au", ("au", "snd"), ("audio/basic",)),
    Container("CAF", "caf", ("caf",), ("audio/x-caf",)),
    Container("Wave64", "w64", ("w64",), ()),
    Container("WMA", "asf", ("wma", "asf"), ("audio/x-ms-wma", "video/x-ms-asf"), clock=HOURS, whole=True),
    Container("AC-3", "ac3", ("ac3",), ("audio/ac3", "audio/vnd.dolby.dd-raw"), raw=True),
    Container("E-AC-3", "eac3", ("eac3", "ec3"), ("audio/eac3",), raw=True),
    Container("MPEG-TS", "mpegts", ("ts", "mts", "m2ts"), ("video/mp2t",), clock=10.0),  # clocks begin anew
    Container("AVI", "avi", ("avi",), ("video/avi", "video/x-msvideo", "video/vnd.avi")),
    Container("WavPack", "wv", ("wv",), ("audio/wavpack", "audio/x-wavpack"), clock=HOURS, whole=True, exact=True),
)
EXTENSIONS = tuple(extension for one in CONTAINERS for extension in one.extensions)
MIME_TYPES = tuple(kind for one in CONTAINERS for kind in one.mime_types)

*_FIRST, _LAST = (one.name for one in CONTAINERS if one.common)
ADVICE = f"{', '.join(_FIRST)} or {_LAST}"  # what to send, for the end of a sentence
