"""What may stand in a conversation: all that the gateway itself replies, and what OpenAI's clients make of it."""

from __future__ import annotations

import base64
import json

import pytest

from gateway_calls import HELLO, TOOL, WAV64, ask, asked, refusal
from gateway_fixture import REPLY, USAGE, FakeClient, wav
from step_audio.conversation import parse_conversation
from step_audio_client import Audio, ChatDelta, ToolCall
from step_audio_client.messages import split_audio
from step_audio_gateway import audio_parts


@pytest.mark.parametrize(
    "reply",
    [
        REPLY,
        [ChatDelta(reasoning="It says", raw="It says"), ChatDelta(finish_reason="length", usage=USAGE)],
        [ChatDelta(finish_reason="stop", usage=USAGE)],
        [
            ChatDelta(tool_calls=(ToolCall(0, "call_1", "weather", '{"city": "Par'),)),
            ChatDelta(finish_reason="length", usage=USAGE),
        ],
    ],
    ids=["whole", "cut inside its thought", "empty", "cut inside a call"],
)
@pytest.mark.parametrize("dump", [{}, {"nulls": True}])
async def test_our_own_replies_may_come_back(reply, dump):
    fake = FakeClient(lambda messages, options: reply)
    message = (await ask(fake, tools=[TOOL])).json()["choices"][0]["message"]
    if dump:
        message |= dict.fromkeys({"refusal", "annotations", "audio", "function_call", "tool_calls"} - message.keys())
    again = await ask(fake, messages=[*HELLO, message, *HELLO], tools=[TOOL])
    assert again.status_code == 200, again.text
    parse_conversation(split_audio(fake.messages)[0])


async def test_what_stands_for_content():
    message = {"role": "assistant", "content": None, "refusal": "No."}
    assert (await asked(messages=[*HELLO, message, *HELLO])).messages[1] == {"role": "assistant", "content": "No."}
    message = {"role": "assistant", "content": None}
    assert (await asked(messages=[*HELLO, message, *HELLO])).messages[1] == {"role": "assistant", "content": ""}
    message = {"role": "assistant", "content": [], "function_call": {"name": "f", "arguments": "{}"}}
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    sent = (await asked(messages=[*HELLO, message, *HELLO])).messages[1]
    assert sent == {"role": "assistant", "content": None, "tool_calls": [call]}
    custom = {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    (call,) = (await asked(messages=[*HELLO, {"role": "assistant", "tool_calls": [custom]}, *HELLO])).messages[1][
        "tool_calls"
    ]
    assert call == {"id": "c", "type": "function", "function": {"name": "shell", "arguments": {"input": "ls"}}}


async def test_nulls_one_level_down():
    fake = await asked(
        messages=[{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": None}], "name": None}],
        stream_options={"include_usage": None},
        thinking={"mode": None, "budget_tokens": None},
        chat_template_kwargs={"enable_thinking": None},
        tools=[{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}],
        response_format={"type": "json_schema", "json_schema": {"name": None, "strict": None, "schema": {"a": None}}},
    )
    assert json.loads(fake.options.guide.text) == {"a": None}


@pytest.mark.parametrize("kind", ["input_text", "output_text"])
async def test_text_by_the_names_of_the_responses_api(kind):
    part = {"type": kind, "text": "hi"}
    assert (await asked(messages=[{"role": "user", "content": [part]}])).messages[0]["content"] == [
        {"type": "text", "text": "hi"}
    ]


def clip(data: str) -> dict:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


EMPTY = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQAAAAA="


@pytest.mark.parametrize("last", [EMPTY, ""])
async def test_an_empty_last_clip_is_left_out(last):
    """The card's client cuts 50 s into two pieces and an empty one."""
    text = {"type": "text", "text": "What?"}
    content = [clip(WAV64), clip(WAV64), clip(last), text]
    parts = (await asked(messages=[{"role": "user", "content": content}])).messages[0]["content"]
    audio = {"type": "audio", "audio": Audio(wav())}
    assert parts == [audio, audio, text]


@pytest.mark.parametrize("content", [[EMPTY], [""], [EMPTY, WAV64]])
async def test_nothing_but_an_empty_clip_is_refused(content):
    message, param = await refusal(messages=[{"role": "user", "content": [clip(data) for data in content]}])
    assert "the audio is empty" in message and param == "messages[0].content[0]"


@pytest.mark.parametrize(
    "spell",
    [
        lambda d: d.replace("+", "-").replace("/", "_"),
        lambda d: d.rstrip("="),
        lambda d: "\r\n".join(d[i : i + 7] for i in range(0, len(d), 7)),
        lambda d: " ".join(d.rstrip("=")) + "\n",
    ],
)
async def test_other_spellings_of_base64(spell, monkeypatch):
    monkeypatch.setattr(audio_parts, "PIECE", 10)
    data = b"\xfb\xff\xfe\x00" * 50
    plain = base64.b64encode(data).decode()
    spelt = spell(plain)
    assert spelt != plain
    parts = (await asked(messages=[{"role": "user", "content": [clip(spelt)]}])).messages[0]["content"]
    assert parts == [{"type": "audio", "audio": Audio(data)}]
