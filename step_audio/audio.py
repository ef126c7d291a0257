"""Any recording in, 16 kHz mono float32 out.

The route is the reference's: mean over the channels at the source's rate, then soxr HQ to 16 kHz,
so that a stereo or 48 kHz recording gives the model what it was evaluated with. What the bytes are
is read from the bytes; a file's name or a declared format is often wrong.
"""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import av
import numpy as np
import soxr

from step_audio.arrays import AnyArray, Float32Array
from step_audio.audio_blocks import whole_blocks
from step_audio.audio_boxes import whole_boxes
from step_audio.audio_clusters import whole_clusters
from step_audio.audio_file import (
    kind_of,
    little_endian,
    open_file,
    plain_wav,
    promised_bytes,
    promised_seconds,
    track,
    wav_rate,
    without_rest,
)
from step_audio.audio_frames import whole_frames
from step_audio.audio_pages import whole_pages
from step_audio.audio_track import Piece, Track
from step_audio.clips import SAMPLE_RATE
from step_audio.containers import ADVICE
from step_audio.errors import AudioTooLong, InvalidRequest

SOURCE_RATES = range(1_000, 768_001)  # Hz; outside is a damaged header, which could ask for any amount of memory
VALUES_PER_SECOND = 192_000  # samples of all channels that a second may cost: those of 96 kHz in stereo
LEAST_BYTES = 500  # that a second of speech takes: codecs of telephones take 600
BLOCK_VALUES = 131_072  # decoded frames are gathered to this many, so that numpy and soxr run on long rows
LOUDEST = 1e12  # of float samples, where 1 is full scale: the powers of louder ones leave float32
MOST_PLANES = 8
PADDING_FRAMES = 4  # a lossy codec's delay and filling, which headers count and decoders drop
HEADER_SLACK = 1.0  # seconds: more than any codec's padding, where only the header is known
MOST_LOST = 0.25  # of a recording, beyond which it is refused
LEAST_LOST = 0.01  # seconds, below which nothing is said: size fields are often a few bytes off
CANCELLED = 0.01  # of the channels' power, below which their mean has lost what they say


@dataclass
class Budget:
    """What may be decoded: each recording takes its part, the next gets what is left."""

    seconds: float
    values: float = field(init=False)  # samples of all channels at the sources' own rates, which decoding costs

    def __post_init__(self) -> None:
        self.values = self.seconds * VALUES_PER_SECOND


@dataclass(frozen=True, eq=False)
class Recording:
    """`samples`: float32 [n], mono, 16 kHz, n >= 1; float sources keep values beyond [-1, 1].

    `lost`: seconds that are missing at the end, or could not be decoded; within the recording they are silent where
    the file's clock has a place for them. `cancelled`: the channels are nearly each other's opposites, and their mean
    nearly silent.
    """

    samples: Float32Array
    lost: float = 0.0
    cancelled: bool = False


def decode_audio(data: bytes, budget: Budget | None = None, name: str = "audio") -> Float32Array:
    """The samples of `read_recording`."""
    return read_recording(data, budget, name).samples


def read_recording(
    data: bytes,
    budget: Budget | None = None,
    name: str = "audio",
    channel: int | None = None,
    most_lost: float = MOST_LOST,
) -> Recording:
    """Decode the track of a file's bytes that is marked as default, or the first.

    `channel`: from 0 on; None takes the mean of all. `most_lost`: the share of the recording that may be missing or
    damaged. The budget is checked against the header before decoding and against the samples while decoding. Raises
    InvalidRequest, which names `name`, AudioTooLong for more seconds than the budget has.
    """
    if not data:
        raise InvalidRequest(f"{name}: there are no bytes", name)
    budget = budget or Budget(math.inf)
    data = whole_clusters(whole_boxes(without_rest(little_endian(data, name)), budget.values))
    if data[:4] == b"RIFF":
        data, gone = whole_blocks(data)
    else:
        data, gone = whole_frames(data, budget.seconds) if data[:5] == b"#!AMR" else whole_pages(data)
    if (rate := wav_rate(data)) is not None:
        _check_rate(rate, name)
    if channel in (None, 0) and (recording := _plain(data, budget)) is not None:
        return recording
    try:
        with open_file(data) as container:
            return _Reading(container, data, gone, budget, name, channel).read(most_lost)
    except av.FFmpegError:
        if data[4:8] == b"ftyp" or data[:4] == b"caff":
            raise InvalidRequest(f"{name}: the file is cut off or damaged: its index cannot be read", name) from None
        raise InvalidRequest(f"{name}: not an audio file that can be read; send {ADVICE}", name) from None


def stated_seconds(data: bytes) -> float | None:
    """The duration of a file's track as its header states it; it may be HEADER_SLACK too long.

    None where the header states none, and for what is no recording.
    """
    if (plain := plain_wav(data)) is not None and plain[1] in SOURCE_RATES:
        return len(plain[0]) / plain[1]
    try:
        with open_file(data) as container:
            stream = track(container)
            return None if stream is None else promised_seconds(container, stream, data)
    except av.FFmpegError:
        return None


def likely_values(data: bytes, most_seconds: float) -> float:
    """Samples of all channels that decoding has to make, by a file's header. 0 for what is no recording.

    They are those of `most_seconds` at most; where no length is stated, of as much speech as its bytes can hold.
    """
    if (plain := plain_wav(data)) is not None:
        return len(plain[0])
    try:
        with open_file(data) as container:
            if (stream := track(container)) is None:
                return 0
            seconds = promised_seconds(container, stream, data)
            seconds = len(data) / LEAST_BYTES if seconds is None else seconds
            return min(seconds, most_seconds) * stream.rate * stream.channels
    except av.FFmpegError:
        return 0


def encode_wav(samples: Float32Array, rate: int = SAMPLE_RATE) -> bytes:
    """[n] as a file of 16 bits a sample, mono; what is beyond [-1, 1] is clipped."""
    return wav_of(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), rate)


def wav_of(pcm16: bytes, rate: int) -> bytes:
    """Samples of 16 bits, little-endian, mono, as a file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(pcm16)
    return file.getvalue()


def _check_rate(rate: int, name: str) -> None:
    if rate not in SOURCE_RATES:
        raise InvalidRequest(
            f"{name}: the header says {rate} Hz; send {SOURCE_RATES.start} to {SOURCE_RATES.stop - 1} Hz", name
        )


class _Resampled:
    """Blocks of one channel at their rates, 16 kHz out."""

    def __init__(self) -> None:
        self.pcm = bytearray()  # grows in place: no list of pieces to join, which would double the memory
        self._rate = 0
        self._begin = 0  # in `pcm`, of what has this rate
        self._count = 0
        self._stream: soxr.ResampleStream | None = None

    def add(self, block: Float32Array, rate: int) -> None:
        if rate != self._rate:
            self.end()
            self._rate, self._begin, self._count = rate, len(self.pcm), 0
            if rate != SAMPLE_RATE:
                self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self._count += len(block)
        self.pcm.extend(self._stream.resample_chunk(block) if self._stream else block)

    def end(self) -> None:
        if self._stream is None:
            return
        self.pcm.extend(self._stream.resample_chunk(np.empty(0, np.float32), last=True))
        self._stream = None
        # soxr rounds the length, the reference (librosa) pads it to the next whole sample.
        missing = -(-self._count * SAMPLE_RATE // self._rate) - (len(self.pcm) - self._begin) // 4
        self.pcm.extend(bytes(4 * max(missing, 0)))


def _plain(data: bytes, budget: Budget) -> Recording | None:
    """What FFmpeg would say of the plainest file, in a tenth of its time; None for others, and beyond the budget."""
    if (plain := plain_wav(data)) is None:
        return None
    samples, rate = plain
    if len(samples) / rate > budget.seconds or len(samples) > budget.values:
        return None
    out = _Resampled()
    for begin in range(0, len(samples), BLOCK_VALUES):
        out.add(samples[begin : begin + BLOCK_VALUES] / np.float32(32768), rate)
    out.end()
    budget.seconds -= len(samples) / rate
    budget.values -= len(samples)
    return Recording(np.frombuffer(out.pcm, np.float32))


class _Reading:
    """One recording on its way; `gone`: bytes that were at its ends, beside `data`."""

    def __init__(
        self,
        container: av.container.InputContainer,
        data: bytes,
        gone: int,
        budget: Budget,
        name: str,
        channel: int | None,
    ):
        if not container.streams.audio:
            raise InvalidRequest(f"{name}: the file has no audio stream", name)
        stream = track(container)
        if stream is None:
            raise InvalidRequest(f"{name}: the file's audio codec is not supported; send {ADVICE}", name)
        codec = stream.codec_context
        if codec.name == "flac":
            codec.options = {"err_detect": "crccheck+explode"}  # or damage is heard as noise
        if codec.name == "alac" and container.format.name == "caf":
            codec.flags2 |= av.codec.context.Flags2.skip_manual  # FFmpeg cuts the end off a second time
        self._container, self._stream, self._data, self._gone = container, stream, data, gone
        self._budget, self._name, self._channel = budget, name, channel
        self._kind = kind_of(container)
        self._promised = promised_seconds(container, stream, data)
        self._out = _Resampled()
        self._seconds = 0.0
        self._values = 0
        self._longest = 0.0  # seconds in a frame
        self._rate = self._channels = 0
        self._power = self._mean_power = 0.0

    def read(self, most_lost: float) -> Recording:
        budget, promised = self._budget, self._promised
        if promised is not None and promised > budget.seconds + HEADER_SLACK:
            raise AudioTooLong(f"{self._name}: {promised:.1f} s long, the limit is {budget.seconds:g} s", self._name)
        if promised is not None:  # a header may state half of the rate, and never more than it
            rate, channels = self._stream.rate, self._stream.channels
            self._check_cost((promised - HEADER_SLACK) * rate * channels, rate, channels)
        pieces = Track(self._container, self._stream, self._data, promised)
        for batch in _batches(pieces):
            if isinstance(batch, float):
                self._add_silence(batch)
            else:
                self._add(batch)
        if not self._longest:
            why = "nothing of it can be decoded" if pieces.failed else "there are no samples"
            raise InvalidRequest(f"{self._name}: {why}", self._name)
        self._out.end()
        missing = self._missing(pieces)
        lost, length = pieces.lost + missing, self._seconds + pieces.lost - pieces.filled + missing
        if lost < LEAST_LOST:
            lost = 0.0
        if lost > most_lost * length:
            raise InvalidRequest(
                f"{self._name}: the file is cut off or damaged: of {length:.2f} s, {lost:.2f} s are lost; "
                f"{f'at most {most_lost:.0%} may be' if most_lost else 'only whole recordings are taken here'}",
                self._name,
            )
        budget.seconds -= self._seconds
        budget.values -= self._values
        cancelled = self._channel is None and self._mean_power < CANCELLED * self._power
        return Recording(np.frombuffer(self._out.pcm, np.float32), lost, cancelled)

    def _missing(self, pieces: Track) -> float:
        """Seconds that are not there, besides those that were found missing between the frames."""
        raw, exact = self._kind.raw, self._kind.exact and self._stream.codec_context.codec.lossless
        held = max(self._seconds + pieces.lost - pieces.filled, pieces.end)
        missing = max(0.0 if raw else pieces.failed, self._seconds * self._gone / len(self._data) - pieces.lost)
        if (said := promised_bytes(self._data)) is not None:
            promised, there = said
            missing = max(missing, self._seconds * (promised - there) / there if there else 0.0)
        if self._promised is not None:
            if exact:  # the only word for what is lost within, too
                return self._promised - self._seconds - (pieces.lost - pieces.filled)
            # An AVI's length counts the heads of its chunks as sound; what is cut off its size tells.
            short = self._promised - held if self._kind.demuxer != "avi" else 0.0
            if short > PADDING_FRAMES * self._longest + LEAST_LOST:
                missing = max(missing, short)
        return missing

    def _add(self, frames: list[av.AudioFrame]) -> None:
        first = frames[0]
        rate, channels = first.sample_rate, first.layout.nb_channels  # the decoder's word: HE-AAC headers state half
        _check_rate(rate, self._name)
        self._rate, self._channels = rate, channels
        self._longest = max(self._longest, *(frame.samples / rate for frame in frames))
        samples = _samples(frames)
        if self._channel is None:
            with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 is refused, below
                block: Float32Array = samples.astype(np.float32, copy=False).mean(axis=0)
        elif self._channel < channels:
            block = np.ascontiguousarray(samples[self._channel], np.float32)
        else:
            raise InvalidRequest(
                f"{self._name}: channel {self._channel}: it has {channels}, counted from 0", self._name
            )
        self._take(len(block) / rate, len(block) * channels)
        if not (np.abs(block) <= LOUDEST).all():
            raise InvalidRequest(f"{self._name}: the samples hold NaN or infinity, or reach {LOUDEST:g}", self._name)
        if channels > 1 and self._channel is None:
            self._power += float(np.vdot(samples, samples)) / channels
            self._mean_power += float(np.vdot(block, block))
        self._out.add(block, rate)

    def _add_silence(self, seconds: float) -> None:
        rate = self._rate or SAMPLE_RATE
        count = round(seconds * rate)
        self._take(count / rate, 0)
        while count > 0:
            self._out.add(np.zeros(min(count, BLOCK_VALUES), np.float32), rate)
            count -= BLOCK_VALUES

    def _take(self, seconds: float, values: int) -> None:
        """Raises AudioTooLong, InvalidRequest."""
        self._seconds += seconds
        self._values += values
        if self._seconds > self._budget.seconds * (1 + 1e-12):
            raise AudioTooLong(f"{self._name}: longer than the limit of {self._budget.seconds:g} s", self._name)
        self._check_cost(self._values, self._rate, self._channels)

    def _check_cost(self, values: float, rate: int, channels: int) -> None:
        if values > self._budget.values:
            raise InvalidRequest(
                f"{self._name}: too long to decode at {rate} Hz with {channels} channels; "
                "send up to 96000 Hz in mono or stereo",
                self._name,
            )


def _batches(pieces: Iterable[Piece]) -> Iterator[list[av.AudioFrame] | float]:
    """Frames of one sample format, layout and rate together, at least BLOCK_VALUES where there are as many."""
    batch: list[av.AudioFrame] = []
    kind: tuple[str, int, int] | None = None
    values, silence = 0, 0.0
    for piece in pieces:
        if isinstance(piece, float):
            if batch:
                yield batch
                batch = []
            silence += piece
            continue
        if silence:
            yield silence
            silence = 0.0
        this = (piece.format.name, piece.layout.nb_channels, piece.sample_rate)
        if batch and (this != kind or values >= BLOCK_VALUES):
            yield batch
            batch = []
        if not batch:
            kind, values = this, 0
        batch.append(piece)
        values += piece.samples * this[1]
    if batch:
        yield batch
    if silence:
        yield silence


def _interleaved(frames: list[av.AudioFrame]) -> list[av.AudioFrame]:
    """The same, where each channel has a plane of its own and there are many: of more than MOST_PLANES PyAV reads on
    behind the last one, and the process dies."""
    first = frames[0]
    if not first.format.is_planar or first.layout.nb_channels <= MOST_PLANES:
        return frames
    converter = av.AudioResampler(first.format.packed, first.layout, first.sample_rate)
    return [packed for frame in frames for packed in converter.resample(frame)]


def _samples(frames: list[av.AudioFrame]) -> AnyArray:
    """[channels, n], integers scaled to float32 in [-1, 1)."""
    frames = _interleaved(frames)
    samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    if not frames[0].format.is_planar:
        samples = samples.reshape(-1, frames[0].layout.nb_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    return samples
