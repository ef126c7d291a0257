"""Pipecat: its realtime service class in a pipeline."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from itertools import chain

from cases import CALCULATOR, KEY, LARGE, MODEL, SUM, URL, WRITTEN, case, holds, main, same, sounds
from loguru import logger
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.tests.utils import SleepFrame
from pipecat_pipeline import TOOLS, frames, through


class Ear(FrameProcessor):
    """What has come out of a pipeline so far; `answers`: that have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.answers = "", 0
        self.audio: list[bytes] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            self.text += frame.text
        elif isinstance(frame, TTSAudioRawFrame):
            self.audio.append(frame.audio)
        elif isinstance(frame, LLMFullResponseEndFrame):
            self.answers += 1
        await self.push_frame(frame, direction)


def until(there: Callable[[], object]) -> Iterator[SleepFrame]:
    end = time.monotonic() + 60
    while not there() and time.monotonic() < end:
        yield SleepFrame(sleep=0.05)


def realtime(turn_detection: events.TurnDetection | bool, modality: str = "text") -> OpenAIRealtimeLLMService:
    properties = events.SessionProperties(
        instructions="Listen and answer.",
        output_modalities=[modality],
        audio=events.AudioConfiguration(input=events.AudioInput(turn_detection=turn_detection)),
    )
    kind = OpenAIRealtimeLLMService
    settings = kind.Settings(model=MODEL, session_properties=properties)
    return kind(api_key=KEY, base_url=f"ws{URL.removeprefix('http')}/realtime", settings=settings)


def spoken(path: str) -> list[InputAudioRawFrame]:
    """A recording at 24 kHz, and the silence after which its turn has ended."""
    return [*frames(path, 24_000), *[InputAudioRawFrame(bytes(48_000), 24_000, 1)] * 2]


@case("OpenAIRealtimeLLMService, server VAD")
async def _() -> None:
    ear = Ear()
    given = [SleepFrame(sleep=1)], spoken(SUM["file"]), until(lambda: ear.answers)
    await through(Pipeline([realtime(events.TurnDetection()), ear]), chain(*given), rate=24_000)
    holds(ear.text, SUM["answer"])


@case("OpenAIRealtimeLLMService, server VAD, answered aloud")
async def _() -> None:
    ear = Ear()
    given = [SleepFrame(sleep=1)], spoken(SUM["file"]), until(lambda: ear.answers)
    await through(Pipeline([realtime(events.TurnDetection(), "audio"), ear]), chain(*given), rate=24_000)
    holds(ear.text, SUM["answer"])
    sounds(ear.audio)


@case("OpenAIRealtimeLLMService, tool call and back")
async def _() -> None:
    """It sends no temperature, so what is heard of a large number is not always right."""
    asked: list[dict[str, str]] = []

    async def calculator(params: FunctionCallParams) -> None:
        asked.append(dict(params.arguments))
        await params.result_callback(777)  # it is sent as JSON

    llm, ear = realtime(events.TurnDetection()), Ear()
    llm.register_function(CALCULATOR["name"], calculator)
    context = LLMContext([{"role": "user", "content": WRITTEN["text"]}], tools=TOOLS)
    pair = LLMContextAggregatorPair(context)
    pipeline = Pipeline([pair.user(), llm, ear, pair.assistant()])
    begun = [LLMContextFrame(context)], until(lambda: ear.answers)
    await through(pipeline, chain(*begun, spoken(LARGE["file"]), until(lambda: ear.answers > 2)), rate=24_000)
    ((name, expression),) = asked[0].items()
    assert len(asked) == 1 and name == "expression" and re.fullmatch(r"\d+[+-]\d+", expression), asked
    holds(ear.text, WRITTEN["answer"])
    holds(str(context.get_messages()[-1].get("content")), "777")


@case("OpenAIRealtimeLLMService, interrupted while it speaks")
async def _() -> None:
    """It forgets what was not heard of the answer, and answers what was said meanwhile."""
    llm, ear = realtime(events.TurnDetection(), "audio"), Ear()
    items: list[events.ConversationItem] = []

    @llm.event_handler("on_conversation_item_created")
    async def _(_: object, item_id: str, item: events.ConversationItem) -> None:
        items.append(item)

    kept: list[events.ConversationItem] = []

    @llm.event_handler("on_conversation_item_updated")
    async def _(_: object, item_id: str, item: events.ConversationItem | None) -> None:
        if item is not None and item.role == "user" and len(items) > 2 and not kept:
            kept.append(await llm.retrieve_conversation_item(items[1].id))

    context = LLMContext([{"role": "user", "content": WRITTEN["text"]}])
    pair = LLMContextAggregatorPair(context)
    pipeline = Pipeline([pair.user(), llm, ear, pair.assistant()])
    begun = [LLMContextFrame(context)], until(lambda: ear.audio)
    await through(pipeline, chain(*begun, spoken(SUM["file"]), until(lambda: ear.answers > 1 and kept)), rate=24_000)
    same([item.role for item in items], ["user", "assistant", "user", "assistant"])
    assert WRITTEN["answer"] not in (kept[0].content[0].transcript or ""), "it was the last of it"
    holds(ear.text, SUM["answer"])


@case("OpenAIRealtimeLLMService, by hand, interrupted")
async def _() -> None:
    """Each interruption sends `response.cancel`, answer or not."""
    ear = Ear()
    begin = [VADUserStartedSpeakingFrame(), UserStartedSpeakingFrame(), InterruptionFrame()]
    pause = SleepFrame(sleep=0.5)  # what is sent before has been sent then
    given = [SleepFrame(sleep=1), *begin, pause, *frames(SUM["file"], 24_000), pause, UserStoppedSpeakingFrame()]
    await through(Pipeline([realtime(False), ear]), chain(given, until(lambda: ear.answers)), rate=24_000)
    holds(ear.text, SUM["answer"])


logger.remove()
main()
