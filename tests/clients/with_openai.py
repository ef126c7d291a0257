"""openai, the package for Python."""

from __future__ import annotations

import json

import openai
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
    in_base64,
    main,
    recording,
    same,
    streamed,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=120)
ask = {"model": MODEL, "temperature": 0}
TOOL = {"type": "function", "function": CALCULATOR}
QUESTION = [{"role": "user", "content": WRITTEN["text"]}]


class Sum(BaseModel):
    first: int
    second: int
    result: int


@case("models.list")
def _() -> None:
    same([model.id for model in client.models.list()], [MODEL])


@case("chat")
def _() -> None:
    reply = client.chat.completions.create(messages=QUESTION, **ask)
    holds(reply.choices[0].message.content, WRITTEN["answer"])
    same(reply.choices[0].finish_reason, "stop")


@case("chat, audio")
def _() -> None:
    reply = client.chat.completions.create(messages=heard(SUM["file"]), **ask)
    holds(reply.choices[0].message.content, SUM["answer"])
    holds(reply.choices[0].message.reasoning_content, SUM["words"])
    assert reply.usage.prompt_tokens_details.audio_tokens > 12


@case("chat, stream")
def _() -> None:
    whole = client.chat.completions.create(messages=heard(SUM["file"]), **ask)
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(messages=heard(SUM["file"]), stream=True, stream_options=options, **ask)
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    same("".join(delta.content or "" for delta in deltas), whole.choices[0].message.content)
    thoughts = [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)]
    streamed(thoughts, whole.choices[0].message.reasoning_content, least=2)
    same(chunks[-1].usage, whole.usage)


@case("chat, stream helper")
def _() -> None:
    with client.chat.completions.stream(messages=heard(SUM["file"]), **ask) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        message = events.get_final_completion().choices[0].message
    streamed(pieces, message.content)
    holds(message.content, SUM["answer"])


@case("chat, parse()")
def _() -> None:
    completions = client.chat.completions
    reply = completions.parse(messages=QUESTION, response_format=Sum, max_tokens=MOST_TOKENS, **ask)
    assert isinstance(reply.choices[0].message.parsed, Sum)
    with completions.stream(messages=QUESTION, response_format=Sum, max_tokens=MOST_TOKENS, **ask) as events:
        same(events.get_final_completion().choices[0].message.parsed, reply.choices[0].message.parsed)


@case("chat, tool call and back")
def _() -> None:
    messages = heard(LARGE["file"])
    choice = client.chat.completions.create(messages=messages, tools=[TOOL], **ask).choices[0]
    same(choice.finish_reason, "tool_calls")
    (call,) = choice.message.tool_calls
    same(json.loads(call.function.arguments), {"expression": LARGE["expression"]})
    result = {"role": "tool", "tool_call_id": call.id, "content": "777"}
    reply = client.chat.completions.create(messages=[*messages, choice.message, result], tools=[TOOL], **ask)
    holds(reply.choices[0].message.content, "777")


@case("responses")
def _() -> None:
    reply = client.responses.create(input=WRITTEN["text"], **ask)
    holds(reply.output_text, WRITTEN["answer"])
    same([item.type for item in reply.output], ["reasoning", "message"])
    again = [{"role": "user", "content": WRITTEN["text"]}, *reply.output, {"role": "user", "content": WRITTEN["text"]}]
    same(client.responses.create(input=again, **ask).status, "completed")


@case("responses, audio, stream")
def _() -> None:
    file = {"type": "input_file", "file_data": f"data:audio/wav;base64,{in_base64(SUM['file'])}", "filename": "a.wav"}
    with client.responses.stream(input=[{"role": "user", "content": [file]}], **ask) as events:
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    streamed(pieces, final.output_text)
    holds(final.output_text, SUM["answer"])


@case("responses, parse()")
def _() -> None:
    reply = client.responses.parse(input=WRITTEN["text"], text_format=Sum, max_output_tokens=MOST_TOKENS, **ask)
    assert isinstance(reply.output_parsed, Sum)


@case("responses, tool call and back")
def _() -> None:
    tool = {"type": "function", **CALCULATOR}
    audio = {"data": in_base64(LARGE["file"]), "format": "wav"}
    messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}]
    reply = client.responses.create(input=messages, tools=[tool], store=False, **ask)
    (call,) = (item for item in reply.output if item.type == "function_call")
    same(json.loads(call.arguments), {"expression": LARGE["expression"]})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "777"}
    again = client.responses.create(input=[*messages, *reply.output, result], tools=[tool], store=False, **ask)
    holds(again.output_text, "777")


@case("transcriptions")
def _() -> None:
    for one in DICTATION:
        for language in ({}, {"language": "en"}):
            file = ("question.wav", recording(one["file"]), "audio/wav")
            reply = client.audio.transcriptions.create(model=MODEL, file=file, **language)
            same(reply.text, one["text"])


@case("transcriptions, stream")
def _() -> None:
    one = DICTATION[0]
    file = ("question.wav", recording(one["file"]), "audio/wav")
    events = list(client.audio.transcriptions.create(model=MODEL, file=file, language="en", stream=True))
    streamed([event.delta for event in events[:-1]], one["text"])
    same(events[-1].text, one["text"])


@case("errors")
def _() -> None:
    try:
        client.chat.completions.create(messages=QUESTION, model=MODEL, temperature=9)
    except openai.BadRequestError as error:
        same(error.param, "temperature")
    try:
        client.chat.completions.create(messages=QUESTION, model="another")
    except openai.NotFoundError as error:
        holds(error.message, "another")
    else:
        raise AssertionError("another model was answered")


main()
