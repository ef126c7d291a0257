"""Recordings in every container, written by PyAV and by hand."""

import io
import struct
from pathlib import Path

import av
import numpy as np

from step_audio.clips import SAMPLE_RATE

TONE = 440  # Hz


def tone(seconds, rate, channels=1):
    """[channels, n]: the tone; a second channel has it an octave up at a third of the level."""
    time_axis = np.arange(round(seconds * rate)) / rate
    rows = [0.5 * np.sin(2 * np.pi * TONE * time_axis), 0.15 * np.sin(4 * np.pi * TONE * time_axis)]
    return np.stack(rows[:channels]).astype(np.float32)


def encode(container, codec, samples, rate, target=None, with_video=False, **options):
    """Encode float32 [channels, n] with PyAV. `target`: a path, for muxers that must read their file again."""
    file = target or io.BytesIO()
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(file) if target else file, "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        sample_format = stream.codec_context.codec.audio_formats[0]
        if codec.startswith("wma"):
            stream.bit_rate = 64_000
        if with_video:
            video = out.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            for i in range(20):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")
                out.mux(video.encode(picture.reformat(format="yuv420p")))
            out.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate, frame_size=size)
        for piece in resampler.resample(frame) + resampler.resample(None):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return Path(target).read_bytes() if target else file.getvalue()


def wav(body, rate=SAMPLE_RATE, channels=1, bits=16, tag=1, size=None, before=b""):
    """A WAV file by hand; `size` is what the data chunk states."""
    step = channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, (rate * step) & 0xFFFFFFFF, step, bits)
    data = struct.pack("<4sI", b"data", len(body) if size is None else size) + body
    riff = len(fmt + before + data) + 4 if size is None else size
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + fmt + before + data


def peak(samples):
    """The strongest frequency, Hz."""
    length = 1 << len(samples).bit_length()  # with zeros behind: a prime number of samples takes five times as long
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), length))
    return np.argmax(spectrum) * SAMPLE_RATE / length
