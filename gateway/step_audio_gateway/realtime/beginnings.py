"""A recording of which a server has heard the beginning: what is still to be sent, so that it hears all of it."""

from __future__ import annotations

from step_audio.clips import CLIP_SAMPLES, CLIP_SECONDS, SAMPLE_RATE
from step_audio_client import Audio, Beginning, HeardClips
from step_audio_gateway.realtime.formats import SpokenAudio

MARGIN = 100  # ms behind a clip that resampling may look at: with them its samples are those of the whole turn
BEFORE = 200  # ms before what follows it, in the same way

# Samples at a rate that soxr takes at once. What begins with such a block is resampled as it is within the whole, to
# the bit; what begins elsewhere is rounded otherwise.
BLOCKS = {24_000: 2202, 8_000: 830}


def finished_clips(recording: SpokenAudio) -> int:
    """How many will stay as they are, whatever follows."""
    return max(0, int((recording.seconds - MARGIN / 1000) // CLIP_SECONDS))


def heard_of(recording: SpokenAudio, begun: SpokenAudio, heard: HeardClips) -> HeardClips | None:
    """What has been heard of `recording` by who has heard `begun`."""
    if not recording.data.startswith(begun.data) or recording.format != begun.format:
        return None
    if len(recording.data) == len(begun.data):
        return heard
    clips = heard.clips[: finished_clips(begun)]
    return HeardClips(heard.server, clips) if clips else None


def audio_of(recording: SpokenAudio, heard: HeardClips | None) -> Audio:
    """As the client library takes it. `heard`: of its clips the first, or all; the file of the whole is then made only
    if it is asked for."""
    if heard is None:
        return Audio(recording.wav())
    format = recording.format
    samples = -(-len(recording.data) // format.sample_bytes * SAMPLE_RATE // format.rate)
    if len(heard.clips) == -(-samples // CLIP_SAMPLES):
        return Audio(b"", known=Beginning(heard, recording.wav))
    begin = start = len(heard.clips) * CLIP_SECONDS * format.rate
    if format.rate != SAMPLE_RATE:
        start = (begin - BEFORE * format.rate // 1000) // BLOCKS[format.rate] * BLOCKS[format.rate]
    rest = SpokenAudio(format, recording.data[start * format.sample_bytes :])
    skip = (begin - start) * SAMPLE_RATE // format.rate
    return Audio(rest.wav(), known=Beginning(heard, recording.wav, skip))
