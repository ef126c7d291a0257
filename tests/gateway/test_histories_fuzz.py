"""All that OpenAI's schema allows may stand in a conversation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_calls import WAV64, ask
from gateway_fixture import FakeClient
from step_audio.conversation import parse_conversation
from step_audio_client.messages import split_audio

texts = st.text(max_size=8)
optional = st.none()
arguments = st.sampled_from(["{}", '{"city": "Par', "", '{"a": [1, null]}'])
function = st.fixed_dictionaries({"name": st.sampled_from(["weather", "a b"]), "arguments": arguments})
calls = st.lists(
    st.one_of(
        st.fixed_dictionaries({"id": st.just("call_1"), "type": st.just("function"), "function": function}),
        st.fixed_dictionaries(
            {
                "id": st.just("call_2"),
                "type": st.just("custom"),
                "custom": st.fixed_dictionaries({"name": st.just("shell"), "input": texts}),
            }
        ),
    ),
    min_size=1,
    max_size=2,
)
text_parts = st.fixed_dictionaries(
    {"type": st.just("text"), "text": texts}, optional={"prompt_cache_breakpoint": optional}
)
refusals = st.fixed_dictionaries({"type": st.just("refusal"), "refusal": texts})
recordings = st.just({"type": "input_audio", "input_audio": {"data": WAV64, "format": "wav"}})
words = st.one_of(texts, st.lists(text_parts, min_size=1, max_size=2))
# What replies have besides, and OpenAI's clients write out.
rest = {name: optional for name in ("refusal", "audio", "function_call", "annotations", "name", "tool_calls")}


def with_its_words(message):
    """No recording is kept, so what was said aloud is told by its text."""
    alone = message.get("audio") and not message.get("content")
    return message | {"audio": {"id": "audio_1", "transcript": "Four."}} if alone else message


history = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": words}),
        st.fixed_dictionaries(
            {
                "role": st.just("user"),
                "content": st.one_of(words, st.tuples(text_parts, recordings).map(list)),
            },
            optional={"name": st.one_of(optional, st.just("me"))},
        ),
        st.fixed_dictionaries(
            {"role": st.just("assistant")},
            optional=rest
            | {
                "content": st.one_of(optional, words, st.lists(st.one_of(text_parts, refusals), max_size=2)),
                "tool_calls": st.one_of(optional, calls),
                "function_call": st.one_of(optional, function),
                "refusal": st.one_of(optional, texts),
                "audio": st.one_of(optional, st.just({"id": "audio_1"})),
                "reasoning_content": texts,
            },
        ).map(with_its_words),
        st.fixed_dictionaries({"role": st.just("tool"), "content": words, "tool_call_id": st.just("call_1")}),
        st.fixed_dictionaries(
            {"role": st.just("function"), "content": st.one_of(optional, texts), "name": st.just("f")}
        ),
    ),
    max_size=4,
)


@pytest.mark.long
@given(history)
@settings(max_examples=60, deadline=None)
async def test_what_openai_allows_is_accepted(messages):
    fake = FakeClient()
    messages = [*messages, {"role": "user", "content": "And now?"}]
    response = await ask(fake, messages=messages)
    assert response.status_code == 200, response.text
    parse_conversation(split_audio(fake.messages)[0])  # as the server does
