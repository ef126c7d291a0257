"""LiteLLM, which calls an address of one's own as the provider `openai`."""

from __future__ import annotations

import io
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches a list of prices
import litellm
from cases import (
    CALCULATOR,
    DICTATION,
    KEY,
    LARGE,
    MODEL,
    MOST_TOKENS,
    SUM,
    URL,
    WRITTEN,
    case,
    heard,
    holds,
    main,
    recording,
    same,
    streamed,
)
from pydantic import BaseModel

ask = {"api_base": URL, "api_key": KEY, "temperature": 0, "num_retries": 0, "timeout": 120}
chat = {"model": f"openai/{MODEL}", "max_tokens": MOST_TOKENS, **ask}
QUESTION = [{"role": "user", "content": WRITTEN["text"]}]
TOOL = {"type": "function", "function": CALCULATOR}


class Sum(BaseModel):
    first: int
    second: int
    result: int


@case("completion")
def _() -> None:
    reply = litellm.completion(messages=QUESTION, **chat)
    holds(reply.choices[0].message.content, WRITTEN["answer"])
    assert reply.choices[0].message.reasoning_content


@case("completion, audio, stream")
def _() -> None:
    whole = litellm.completion(messages=heard(SUM["file"]), **chat)
    holds(whole.choices[0].message.content, SUM["answer"])
    chunks = list(
        litellm.completion(messages=heard(SUM["file"]), stream=True, stream_options={"include_usage": True}, **chat)
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    streamed([delta.content for delta in deltas if delta.content], whole.choices[0].message.content)
    thoughts = [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)]
    streamed(thoughts, whole.choices[0].message.reasoning_content, least=2)
    rebuilt = litellm.stream_chunk_builder(chunks)
    same(rebuilt.choices[0].message.content, whole.choices[0].message.content)
    same(rebuilt.usage.completion_tokens, whole.usage.completion_tokens)


@case("completion, async")
async def _() -> None:
    reply = await litellm.acompletion(messages=QUESTION, **chat)
    holds(reply.choices[0].message.content, WRITTEN["answer"])


@case("completion, structured output")
def _() -> None:
    reply = litellm.completion(messages=QUESTION, response_format=Sum, **chat)
    Sum.model_validate_json(reply.choices[0].message.content)


@case("completion, tool call and back")
def _() -> None:
    messages = heard(LARGE["file"])
    choice = litellm.completion(messages=messages, tools=[TOOL], **chat).choices[0]
    (call,) = choice.message.tool_calls
    same(json.loads(call.function.arguments), {"expression": LARGE["expression"]})
    result = {"role": "tool", "tool_call_id": call.id, "content": "777"}
    reply = litellm.completion(messages=[*messages, choice.message, result], tools=[TOOL], **chat)
    holds(reply.choices[0].message.content, "777")


@case("completion, reasoning_effort")
def _() -> None:
    reply = litellm.completion(
        messages=QUESTION, reasoning_effort="none", allowed_openai_params=["reasoning_effort"], **chat
    )
    assert reply.choices[0].message.content and not getattr(reply.choices[0].message, "reasoning_content", None)


@case("responses")
def _() -> None:
    more = {"model": f"openai/{MODEL}", "max_output_tokens": MOST_TOKENS, **ask}
    reply = litellm.responses(input=WRITTEN["text"], **more)
    holds(reply.output_text, WRITTEN["answer"])
    events = list(litellm.responses(input=WRITTEN["text"], stream=True, **more))
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    streamed(pieces, reply.output_text)


@case("transcription")
def _() -> None:
    for one in DICTATION:
        for language in ({}, {"language": "en"}):
            file = io.BytesIO(recording(one["file"]))
            file.name = "question.wav"
            reply = litellm.transcription(
                model=f"openai/{MODEL}", file=file, api_base=URL, api_key=KEY, timeout=120, **language
            )
            same(reply.text, one["text"])


@case("errors")
def _() -> None:
    for wrong, kind in (({"temperature": 9}, litellm.BadRequestError), ({"model": "openai/no"}, litellm.NotFoundError)):
        try:
            litellm.completion(messages=QUESTION, **chat | wrong)
        except kind:
            continue
        raise AssertionError(f"{wrong} was answered")


main()
