"""The frames of a recording's track in order, and what lies between them: silence by the file's clock, and losses.

Damage inside a recording is not its end. What cannot be decoded is skipped; where the file's clock says how long it
was, silence takes its place. A gap in the clock alone is no loss: call recorders and phones leave silence out. It is
one where packets could not be decoded, or where bytes of the file were passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import av

from step_audio.audio_file import kind_of, tag_end
from step_audio.audio_frames import FRAME_SECONDS, OpusLengths, amr_frames
from step_audio.audio_pages import in_order

LEAST_GAP = 0.1  # seconds: what clocks, and codecs' delays, may be off
LEAST_LOSS = 0.005  # seconds, where bytes are known to be damaged: what clocks of milliseconds may be off
MOST_ERRORS = 4096  # of reading a file: behind each, FFmpeg looks for what is whole again
OVERHEAD = 128  # bytes of a container between two packets
NO_LOSS = 16  # bytes between two bare frames
AMR = ("amrnb", "amrwb")
BESIDE_TAG = 2048  # bytes behind a tag: the frame that only says how long the recording is

Piece = av.AudioFrame | float  # a frame, or seconds of silence


class Track:
    """`promised`: seconds that the header states. Iterated once; then the rest holds, in seconds.

    `lost`: in front of the last frame, `filled`: of these, what silence stands for; `failed`: of packets behind it;
    `end`: of it by the file's clock.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.AudioStream, data: bytes, promised: float | None
    ):
        self._container, self._stream, self._data, self._promised = container, stream, data, promised
        self._kind = kind_of(container)
        self.lost = self.filled = self.failed = self.end = 0.0
        self._failures = 0  # packets
        self._broken = False  # something could not be decoded since the last frame
        self._begin = self._behind = 0  # of the last packet of any stream: its first byte, and the one behind it
        self._passed = 0  # bytes since the last frame that belong to no packet
        self._tagged = 0  # up to there a tag reaches
        self._last = 0  # bytes of the last frame's packet
        self._good_bytes, self._good_packets, self._good_seconds = 0, 0, 0.0
        self._pages = deque([0], maxlen=3)  # where Ogg's begin: a gap shows up to a page behind the one that is missing
        self._clock: float | None = None  # seconds, where the next frame is due
        self._codec = stream.codec_context.name
        self._lengths = OpusLengths()
        self._frames = self._bad = 0  # AMR's, and those of them that are damaged by their own word

    def __iter__(self) -> Iterator[Piece]:
        yield from self._pieces()
        if self._bad < self._frames:  # else it is a habit of whoever wrote it
            self.lost += self._bad * FRAME_SECONDS
            self.filled += self._bad * FRAME_SECONDS

    def _pieces(self) -> Iterator[Piece]:
        for packet in self._packets():
            position, size = packet.pos or 0, packet.size
            if size and position:
                if self._begin < position < self._behind and self._kind.demuxer == "matroska":
                    self._broken = True
                if self._behind:
                    self._pass(self._behind, position)
                self._begin, self._behind = position, max(self._behind, position + size)
            if packet.stream.index != self._stream.index:
                continue
            if self._failures > MOST_ERRORS + self._good_packets:
                return
            said = amr_frames(bytes(packet), self._codec == "amrwb") if self._codec in AMR else []
            if said and not any(speech for speech, _ in said):  # a pause: decoders give nothing for it
                if self._kind.raw:
                    self._heed(said)
                    yield len(said) * FRAME_SECONDS
                else:
                    self._broken |= any(not whole for _, whole in said)
                continue
            if self._codec == "opus" and self._has_another_length(packet):
                self._fail(packet)
                continue
            try:
                frames = cast(list[av.AudioFrame], packet.decode())
            except av.FFmpegError:
                self._fail(packet)
                continue
            self._broken |= packet.is_corrupt
            for frame in frames:
                yield from self._silence(frame, position)
                yield frame
            if frames:
                self._heed(said)
                self._last = size
                self._good_bytes += size
                self._good_packets += 1

    def _heed(self, said: list[tuple[bool, bool]]) -> None:
        self._frames += len(said)
        self._bad += sum(not whole for _, whole in said)

    def _has_another_length(self, packet: av.Packet[Any]) -> bool:
        """A last one may be longer: what of it is none of the recording is dropped."""
        excess, end = self._lengths.excess(packet), (packet.pts or 0) + (packet.duration or 0)
        last = self._promised is None or float(end * (packet.time_base or 0)) > self._promised - LEAST_GAP
        return excess < -LEAST_LOSS or (excess > LEAST_LOSS and not last)

    def _packets(self) -> Iterator[av.Packet[Any]]:
        for _ in range(MOST_ERRORS):
            try:
                yield from self._container.demux()
                return
            except av.FFmpegError:
                self._broken = True

    def _fail(self, packet: av.Packet[Any]) -> None:
        self._broken = True
        self._failures += 1
        if self._kind.raw:  # its duration is a guess
            self._pass(packet.pos or 0, (packet.pos or 0) + packet.size)
        elif packet.duration and packet.time_base:
            self.failed += float(packet.duration * packet.time_base)

    def _pass(self, start: int, stop: int) -> None:
        """Bytes that are in no packet that can be decoded; tags between bare frames are no loss."""
        if self._kind.raw:
            if (end := tag_end(self._data, start, stop)) is not None:
                self._tagged = max(self._tagged, end)
            most = NO_LOSS if start >= self._tagged else BESIDE_TAG
            start = max(start, self._tagged)
        else:
            most = OVERHEAD
        if stop - start > most:
            self._passed += stop - start

    def _silence(self, frame: av.AudioFrame, position: int) -> Iterator[float]:
        """In front of a frame; what is lost there is counted."""
        if position != self._pages[-1]:
            self._pages.append(position)
        seconds = frame.samples / frame.sample_rate
        time, gap = frame.time, 0.0
        if time is None or not self._kind.clock:
            if self._broken or self._passed:
                self.lost += self._lost_bytes() if self._kind.raw else self.failed
        else:
            due = time if self._clock is None else self._clock
            gap = time - due
            if self._broken and gap <= 0 and self._clock is None:
                self.lost += self.failed  # its first packets
            damaged = gap > LEAST_LOSS and (self._broken or self._damaged(position))
            if gap > LEAST_GAP or damaged:
                if self._believed(time, gap):
                    yield gap
                    if damaged or self._kind.whole:
                        self.lost += gap
                        self.filled += gap
                due = time
            elif gap < -LEAST_GAP:  # another recording was put behind the first one
                due = time
            self._clock = due + seconds
            self.end = self._clock
        self._broken, self.failed, self._passed = False, 0.0, 0
        self._good_seconds += seconds

    def _believed(self, time: float, gap: float) -> bool:
        """Whether a clock's jump is silence, and not another clock."""
        within = self._promised is None or time <= self._promised + 1
        return within and gap <= self._kind.clock

    def _lost_bytes(self) -> float:
        if not self._good_bytes:
            return 0.0
        return self._passed * self._good_seconds / self._good_bytes

    def _damaged(self, position: int) -> bool:
        if self._kind.demuxer == "ogg":
            return not in_order(self._data, self._pages[0], position)
        usual = self._good_bytes / max(self._good_packets, 1)
        return self._kind.demuxer == "matroska" and (self._passed > 0 or self._last > 4 * usual)
