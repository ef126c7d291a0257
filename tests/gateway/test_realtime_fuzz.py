"""Events in any order, right and wrong: each gets what it is due, nothing hangs, and nothing stays."""

from __future__ import annotations

import asyncio
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from gateway_fixture import REPLY, FakeClient
from realtime_fixture import pcm
from session_fixture import talking
from waiting import SECONDS

IDS = st.sampled_from(["a", "b", "c", "root", "", "x" * 65])
SCALARS = st.none() | st.booleans() | st.integers(-5, 5000) | st.floats(allow_nan=False) | st.text(max_size=8) | IDS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
AUDIO = st.sampled_from([pcm(0.05), pcm(0.5), pcm(0.0001), "AAAA", "AA", "", "%", "A" * 7])
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "input_audio", "output_text", "text", "input_image"])},
    optional={"text": st.text(max_size=8), "audio": AUDIO},
)
ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "function_call_output", "item_reference", "mcp_call"])},
    optional={
        "id": IDS, "role": st.sampled_from(["user", "assistant", "system", "tool"]),
        "content": st.lists(PART, max_size=2), "call_id": IDS, "name": IDS,
        "output": st.text(max_size=4), "arguments": st.text(max_size=4),
    },
)  # fmt: skip
DETECTION = [None, {"type": "server_vad"}, {"type": "semantic_vad"}, {"type": "x"}]
INPUT = st.fixed_dictionaries(
    {},
    optional={
        "turn_detection": st.sampled_from(DETECTION),
        "format": st.sampled_from([{"type": "audio/pcmu"}, {"type": "audio/pcm", "rate": 16_000}, {"type": "x"}]),
        "transcription": st.sampled_from([None, {"model": "m"}, {"language": "zz"}]),
    },
)
SESSION = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("realtime"),
        "instructions": st.text(max_size=8),
        "audio": st.builds(lambda given: {"input": given}, INPUT),
        "thinking": st.sampled_from([{"mode": "off"}, {"type": "disabled", "mode": "on"}, {"budget_tokens": 3}]),
        "truncation": st.sampled_from(["auto", "disabled", {"type": "retention_ratio", "retention_ratio": 0.8}]),
        "mind_paced_speaking": st.sampled_from([None, {"mode": "speak_first"}]),
        "tool_choice": st.sampled_from(["auto", "required", {"type": "function", "name": "f"}]),
    },
)
PLAIN = [
    "input_audio_buffer.commit", "input_audio_buffer.clear", "output_audio_buffer.clear", "response.cancel",
    "response.create", "session.update", "no.such",
]  # fmt: skip


def placed(item: dict, behind: str | None) -> dict:
    return {"type": "conversation.item.create", "item": item, "previous_item_id": behind}


def about(what: str, item_id: str) -> dict:
    return {"type": f"conversation.item.{what}", "item_id": item_id, "content_index": 0, "audio_end_ms": 5}


def answer(session: dict, items: list | None, where: str) -> dict:
    given = {} if items is None else {"input": items}
    return {"type": "response.create", "response": session | {"conversation": where} | given}


EVENT = st.one_of(
    AUDIO.map(lambda audio: {"type": "input_audio_buffer.append", "audio": audio}),
    st.sampled_from(PLAIN).map(lambda kind: {"type": kind}),
    SESSION.map(lambda session: {"type": "session.update", "session": session}),
    st.builds(placed, ITEM, IDS | st.none()),
    st.builds(about, st.sampled_from(["retrieve", "delete", "truncate"]), IDS),
    st.builds(answer, SESSION, st.none() | st.lists(ITEM, max_size=2), st.sampled_from(["auto", "none", "x"])),
    st.dictionaries(st.sampled_from(["type", "event_id", "item", "audio", "session"]), JSON, max_size=3),
)
MESSAGE = EVENT.map(json.dumps) | st.text(max_size=12) | st.just("[" * 2000)


async def converse(messages: list[str]) -> None:
    async with talking(FakeClient(lambda messages, options: [0.001, *REPLY]), by_hand=False) as talk:
        for message in messages:
            await talk.say(message)
        await asyncio.wait_for(talk.session.finish(), SECONDS)


@pytest.mark.long
@hypothesis.given(st.lists(MESSAGE, max_size=12))
@hypothesis.settings(
    max_examples=500, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
def test_event_sequences(messages):
    asyncio.run(converse(messages))
