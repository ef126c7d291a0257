"""Any recording in, 16 kHz mono float32 out.

The route is the reference's: mean over the channels at the source's rate, then soxr HQ to 16 kHz,
so that a stereo or 48 kHz recording gives the model what it was evaluated with. What the bytes are
is read from the bytes; a file's name or a declared format is often wrong.
"""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np
import soxr

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio.containers import ADVICE, CONTAINERS, RAW_DEMUXERS
from step_audio.errors import AudioTooLong, InvalidRequest

SOURCE_RATES = range(1_000, 768_001)  # Hz; outside is a damaged header, which could ask for any amount of memory
VALUES_PER_SECOND = 192_000  # samples of all channels that a second may cost: those of 96 kHz in stereo
BLOCK_VALUES = 131_072  # decoded frames are gathered to this many, so that numpy and soxr run on long rows
LOUDEST = 1e12  # of float samples, where 1 is full scale: the powers of louder ones leave float32
PADDING_FRAMES = 4  # a lossy codec's delay and filling, which headers count and decoders drop
HEADER_SLACK = 1.0  # seconds: more than any codec's padding, where only the header is known
WAV_PROBE_BYTES = "8192"  # of samples that might be DTS in disguise; by default FFmpeg looks at all, for up to 30 ms
WAV_SIZE_UNKNOWN = 0x7FFF0000  # a WAV streamed to a pipe has a size from here up (or 0): its end is the file's end


@dataclass
class Budget:
    """What may be decoded: each recording takes its part, the next gets what is left."""

    seconds: float
    values: float = field(init=False)  # samples of all channels at the sources' own rates, which decoding costs

    def __post_init__(self) -> None:
        self.values = self.seconds * VALUES_PER_SECOND


def decode_audio(data: bytes, budget: Budget | None = None, name: str = "audio") -> Float32Array:
    """Decode the first audio stream of a file's bytes.

    Returns float32 [n], mono, 16 kHz, n >= 1. Float sources keep values beyond [-1, 1]. The budget is
    checked against the header before decoding and against the samples while decoding. Raises InvalidRequest,
    its text starting with `name`, AudioTooLong for more seconds than the budget has.
    """
    if not data:
        raise InvalidRequest(f"{name}: there are no bytes")
    _check_wav_header(data, name)
    try:
        with _open(data) as container:
            return _decode(container, data, budget or Budget(math.inf), name)
    except av.FFmpegError:
        raise InvalidRequest(f"{name}: not an audio file that can be read; send {ADVICE}") from None


def stated_seconds(data: bytes) -> float | None:
    """The duration of a file's first audio stream as its header states it; it may be HEADER_SLACK too long.

    None where the header states none, and for what is no recording.
    """
    try:
        with _open(data) as container:
            return _stated_seconds(container, data) if container.streams.audio else None
    except av.FFmpegError:
        return None


def _open(data: bytes) -> av.container.InputContainer:
    """The file with these bytes, its header read. Raises av.FFmpegError."""
    options = {"format_whitelist": ",".join(one.demuxer for one in CONTAINERS)}
    if data[:4] == b"RIFF":
        options["probesize"] = WAV_PROBE_BYTES
    # Tags are often not UTF-8, and not our business.
    return av.open(io.BytesIO(data), "r", options=options, metadata_errors="replace")


def encode_wav(samples: Float32Array, rate: int = SAMPLE_RATE) -> bytes:
    """[n] as a file of 16 bits a sample, mono; what is beyond [-1, 1] is clipped."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def _check_wav_header(data: bytes, name: str) -> None:
    """Look for what FFmpeg passes over silently: a WAV data chunk that ends before its stated size."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if kind == b"fmt " and position + 8 <= len(data):
            _check_rate(struct.unpack_from("<I", data, position + 4)[0], name)
        if kind == b"data":
            if len(data) - position < size < WAV_SIZE_UNKNOWN:
                raise InvalidRequest(
                    f"{name}: the file is cut off: its header promises {size} bytes of audio, "
                    f"it holds {len(data) - position}"
                )
            return
        position += size + size % 2


def _check_rate(rate: int, name: str) -> None:
    if rate not in SOURCE_RATES:
        raise InvalidRequest(
            f"{name}: the header says {rate} Hz; send {SOURCE_RATES.start} to {SOURCE_RATES.stop - 1} Hz"
        )


def _mp3_samples(data: bytes) -> int | None:
    """The length, at the source's rate, that an MP3's first frame states (Xing header), or None.

    FFmpeg reads it too, but replaces it by a guess where anything follows the music, as large tags do.
    """
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        start = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    frame = data[start : start + 64]
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark)
        if at > 0 and frame[0] == 0xFF and len(frame) >= at + 12:
            flags, count = struct.unpack_from(">II", frame, at + 4)
            return count * (1152 if frame[1] & 0x08 else 576) if flags & 1 else None  # MPEG-1, or MPEG-2 and 2.5
    return None


def _decode(container: av.container.InputContainer, data: bytes, budget: Budget, name: str) -> Float32Array:
    if not container.streams.audio:
        raise InvalidRequest(f"{name}: the file has no audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise InvalidRequest(f"{name}: the file's audio codec is not supported; send {ADVICE}")
    if stream.codec_context.name == "flac":
        stream.codec_context.options = {"err_detect": "crccheck+explode"}  # or damage is heard as noise
    stated = _stated_seconds(container, data)
    if stated is not None and stated > budget.seconds + HEADER_SLACK:
        raise AudioTooLong(f"{name}: {stated:.1f} s long, the limit is {budget.seconds:g} s")
    if stated is not None:  # a header may state half of the rate, and never more than it
        _check_cost((stated - HEADER_SLACK) * stream.rate, stream.rate, stream.channels, budget, name)

    pcm = bytearray()  # grows in place: no list of pieces to join, which would double the memory
    rate = count = values = longest = 0  # of the source: Hz, samples, the same of all channels, samples in a frame
    end = 0.0  # seconds, by the file's clock
    resampler = None
    for frames in _batches(_frames(container, stream, name)):
        if not rate:
            rate = frames[0].sample_rate  # the decoder's word: HE-AAC headers state half of it
            _check_rate(rate, name)
            if rate != SAMPLE_RATE:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        if frames[0].sample_rate != rate:
            raise InvalidRequest(f"{name}: the sample rate changes from {rate} to {frames[0].sample_rate} Hz midway")
        longest = max(longest, *(frame.samples for frame in frames))
        end = (frames[-1].time or 0.0) + frames[-1].samples / rate
        block = _mono(frames)
        count += len(block)
        channels = frames[0].layout.nb_channels
        values += len(block) * channels
        if count > budget.seconds * rate:
            raise AudioTooLong(f"{name}: longer than the limit of {budget.seconds:g} s")
        _check_cost(values / channels, rate, channels, budget, name)
        if not (np.abs(block) <= LOUDEST).all():
            raise InvalidRequest(f"{name}: the samples hold NaN or infinity, or reach {LOUDEST:g}")
        pcm.extend(resampler.resample_chunk(block) if resampler else block)
    if not count:
        raise InvalidRequest(f"{name}: there are no samples")
    budget.seconds -= count / rate
    budget.values -= values

    slack = rate // 100 if stream.codec_context.codec.lossless else PADDING_FRAMES * longest
    held = count / rate
    if "matroska" in container.format.name:
        held = max(held, end)  # WebM may leave silence out, which is no loss
    if stated is not None and (stated - held) * rate > slack:
        raise InvalidRequest(
            f"{name}: the file is cut off or damaged: its header promises {stated:.2f} s, it holds {held:.2f} s"
        )
    if resampler:
        pcm.extend(resampler.resample_chunk(np.empty(0, np.float32), last=True))
        # soxr rounds the length, the reference (librosa) pads it to the next whole sample.
        missing = -(-count * SAMPLE_RATE // rate) - len(pcm) // 4
        pcm.extend(bytes(4 * max(missing, 0)))
    return np.frombuffer(pcm, np.float32)


def _check_cost(samples: float, rate: int, channels: int, budget: Budget, name: str) -> None:
    if samples * channels > budget.values:
        raise InvalidRequest(
            f"{name}: too long to decode at {rate} Hz with {channels} channels; send up to 96000 Hz in mono or stereo"
        )


def _stated_seconds(container: av.container.InputContainer, data: bytes) -> float | None:
    stream = container.streams.audio[0]
    if container.format.name in RAW_DEMUXERS:
        samples = _mp3_samples(data)
        return samples / stream.rate if samples and stream.rate else None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:  # else it may be the picture's duration
        return container.duration / av.time_base
    return None


def _frames(container: av.container.InputContainer, stream: av.AudioStream, name: str) -> Iterator[av.AudioFrame]:
    """Decode packet by packet. A packet that cannot be decoded is an error, except behind the end of a raw stream."""
    damaged = False
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                damaged = True
                continue
            if damaged and frames:
                break
            yield from frames
        else:
            damaged = damaged and container.format.name not in RAW_DEMUXERS
    except av.FFmpegError:
        damaged = True
    if damaged:
        raise InvalidRequest(f"{name}: the audio is damaged or cut off, it cannot be decoded to its end")


def _batches(frames: Iterator[av.AudioFrame]) -> Iterator[list[av.AudioFrame]]:
    """Gather frames of one sample format, layout and rate, at least BLOCK_VALUES where there are as many."""
    batch: list[av.AudioFrame] = []
    kind: tuple[str, int, int] | None = None
    values = 0
    for frame in frames:
        this = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
        if batch and (this != kind or values >= BLOCK_VALUES):
            yield batch
            batch = []
        if not batch:
            kind, values = this, 0
        batch.append(frame)
        values += frame.samples * this[1]
    if batch:
        yield batch


def _mono(frames: list[av.AudioFrame]) -> Float32Array:
    """The channels' mean, float32 [n], integers scaled to [-1, 1)."""
    samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    channels = frames[0].layout.nb_channels
    if not frames[0].format.is_planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinity, which the caller refuses
        mean: Float32Array = samples.astype(np.float32, copy=False).mean(axis=0)
    return mean
