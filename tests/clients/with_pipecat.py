"""Pipecat: its LLM and STT service classes in a pipeline."""

from __future__ import annotations

from cases import CALCULATOR, DICTATION, KEY, LARGE, MODEL, MOST_TOKENS, SUM, URL, WRITTEN, case, holds, main, same
from loguru import logger
from pipecat.frames.frames import (
    LLMContextFrame,
    LLMTextFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.responses.llm import OpenAIResponsesHttpLLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.tests.utils import SleepFrame
from pipecat_pipeline import TOOLS, frames, through

ADDRESS = {"base_url": URL, "api_key": KEY}


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


logger.remove()
main()
