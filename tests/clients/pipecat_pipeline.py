"""What the cases of Pipecat's classes share: recordings as frames, and a pipeline around a processor."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Sequence

import numpy as np
import soxr
from cases import CALCULATOR
from pipecat.adapters.schemas.function_schema import FunctionSchema
from pipecat.adapters.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import ErrorFrame, Frame, InputAudioRawFrame
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.tests.utils import run_test

TOOLS = ToolsSchema(
    standard_tools=[
        FunctionSchema(
            name=CALCULATOR["name"],
            description=CALCULATOR["description"],
            properties=CALCULATOR["parameters"]["properties"],
            required=CALCULATOR["parameters"]["required"],
        )
    ]
)


def frames(path: str, rate: int | None = None) -> list[InputAudioRawFrame]:
    """Of 20 ms; `rate`: in Hz, other than the file's."""
    with wave.open(path) as file:
        own, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    rate, samples = rate or own, soxr.resample(samples, own, rate or own)
    pieces = range(0, len(samples), rate // 50)
    return [InputAudioRawFrame(samples[start : start + rate // 50].tobytes(), rate, 1) for start in pieces]


async def through(processor: FrameProcessor, given: Iterable[Frame], rate: int = 16_000) -> Sequence[Frame]:
    """What comes out of it."""
    down, up = await run_test(
        processor,
        frames_to_send=given,
        pipeline_params=PipelineParams(audio_in_sample_rate=rate),
        start_timeout=30,
    )
    for frame in (*down, *up):
        assert not isinstance(frame, ErrorFrame), frame.error
    return down
