"""Pipecat: its LLM and STT service classes in a pipeline."""

from __future__ import annotations

import wave
from collections.abc import Sequence

import numpy as np
import soxr
from cases import CALCULATOR, DICTATION, KEY, LARGE, MODEL, MOST_TOKENS, SUM, URL, WRITTEN, case, holds, main, same
from loguru import logger
from pipecat.adapters.schemas.function_schema import FunctionSchema
from pipecat.adapters.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMTextFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.services.openai.responses.llm import OpenAIResponsesHttpLLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.tests.utils import SleepFrame, run_test

ADDRESS = {"base_url": URL, "api_key": KEY}
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


async def through(processor: FrameProcessor, given: Sequence[Frame], rate: int = 16_000) -> Sequence[Frame]:
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


def cases_of(name: str, kind: type[OpenAILLMService] | type[OpenAIResponsesHttpLLMService]) -> None:
    def service() -> OpenAILLMService | OpenAIResponsesHttpLLMService:
        return kind(settings=kind.Settings(model=MODEL, temperature=0, max_completion_tokens=MOST_TOKENS), **ADDRESS)

    @case(f"{name}, text")
    async def _() -> None:
        context = LLMContext([{"role": "system", "content": "Listen and answer."}])
        context.add_message({"role": "user", "content": WRITTEN["text"]})
        said = [f.text for f in await through(service(), [LLMContextFrame(context)]) if isinstance(f, LLMTextFrame)]
        holds("".join(said), WRITTEN["answer"])

    @case(f"{name}, audio")
    async def _() -> None:
        context = LLMContext()
        await context.add_audio_frames_message(audio_frames=frames(SUM["file"]), text="Answer the question.")
        said = [f.text for f in await through(service(), [LLMContextFrame(context)]) if isinstance(f, LLMTextFrame)]
        holds("".join(said), SUM["answer"])

    @case(f"{name}, tool call and back")
    async def _() -> None:
        asked: list[dict[str, str]] = []

        async def calculator(params: FunctionCallParams) -> None:
            asked.append(dict(params.arguments))
            await params.result_callback("777")

        llm, context = service(), LLMContext(tools=TOOLS)
        llm.register_function(CALCULATOR["name"], calculator)
        await context.add_audio_frames_message(audio_frames=frames(LARGE["file"]), text="Answer the question.")
        pair = LLMContextAggregatorPair(context)
        pipeline = Pipeline([pair.user(), llm, pair.assistant()])
        await through(pipeline, [LLMContextFrame(context), SleepFrame(sleep=8)])
        same(asked, [{"expression": LARGE["expression"]}])
        holds(str(context.get_messages()[-1].get("content")), "777")


cases_of("OpenAILLMService", OpenAILLMService)
cases_of("OpenAIResponsesHttpLLMService", OpenAIResponsesHttpLLMService)


@case("OpenAILLMService, run_inference with a schema")
async def _() -> None:
    llm = OpenAILLMService(settings=OpenAILLMService.Settings(model=MODEL, temperature=0), **ADDRESS)
    schema = {
        "type": "object",
        "properties": {"result": {"type": "integer"}},
        "required": ["result"],
        "additionalProperties": False,
    }
    context = LLMContext([{"role": "user", "content": WRITTEN["text"]}])
    said = await llm.run_inference(context, max_tokens=MOST_TOKENS, response_schema=schema)
    holds(said, '"result": ')
    assert (said or "").endswith("}")


@case("OpenAISTTService, language en")
async def _() -> None:
    for one in DICTATION:
        stt = OpenAISTTService(settings=OpenAISTTService.Settings(model=MODEL), **ADDRESS)
        spoken = [VADUserStartedSpeakingFrame(), *frames(one["file"]), SleepFrame(sleep=0.5)]
        told = await through(stt, [*spoken, VADUserStoppedSpeakingFrame()])
        same([frame.text for frame in told if isinstance(frame, TranscriptionFrame)], [one["text"]])


async def realtime(turn_detection: events.TurnDetection | bool, spoken: Sequence[Frame]) -> str:
    """What is answered to what is spoken."""
    properties = events.SessionProperties(
        instructions="Listen and answer.",
        output_modalities=["text"],
        audio=events.AudioConfiguration(input=events.AudioInput(turn_detection=turn_detection)),
    )
    kind = OpenAIRealtimeLLMService
    settings = kind.Settings(model=MODEL, session_properties=properties)
    llm = kind(api_key=KEY, base_url=f"ws{URL.removeprefix('http')}/realtime", settings=settings)
    told = await through(llm, [SleepFrame(sleep=1), *spoken, SleepFrame(sleep=8)], rate=24_000)
    return "".join(frame.text for frame in told if isinstance(frame, LLMTextFrame))


@case("OpenAIRealtimeLLMService, server VAD")
async def _() -> None:
    silence = [InputAudioRawFrame(bytes(48_000), 24_000, 1)] * 2
    holds(await realtime(events.TurnDetection(), [*frames(SUM["file"], 24_000), *silence]), SUM["answer"])


@case("OpenAIRealtimeLLMService, by hand, interrupted")
async def _() -> None:
    """Each interruption sends `response.cancel`, answer or not."""
    begin = [VADUserStartedSpeakingFrame(), UserStartedSpeakingFrame(), InterruptionFrame()]
    pause = SleepFrame(sleep=0.5)  # what is sent before has been sent then
    spoken = [*begin, pause, *frames(SUM["file"], 24_000), pause, UserStoppedSpeakingFrame()]
    holds(await realtime(False, spoken), SUM["answer"])


logger.remove()
main()
