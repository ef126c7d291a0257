"""/v1/responses, asked by OpenAI's own Python package."""

from __future__ import annotations

import base64
import json

import pydantic
import pytest

from gateway_fixture import ANSWER, PLAIN, REPLY, THOUGHT, USAGE, wav
from step_audio_client import Audio, AudioReport, ChatDelta, ServerBusy, Thinking, TokenLogprob, ToolCall, Unavailable
from step_audio_gateway.published import IGNORED, IGNORED_RESPONSES, REFUSED, REFUSED_RESPONSES
from step_audio_gateway.response_request import ResponseRequest
from step_audio_gateway.schemas import ChatRequest

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
WAV64 = base64.b64encode(wav()).decode()


def test_whole_and_streamed(client, fake):
    reply = client.responses.create(model="tiny", input="hello", instructions="Be brief.", store=False)
    assert (reply.status, reply.output_text, reply.error, reply.store) == ("completed", ANSWER, None, False)
    thought, message = reply.output
    assert (thought.type, thought.content[0].text) == ("reasoning", THOUGHT) and message.status == "completed"
    assert fake.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    usage = reply.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (20, 6, 26)
    assert usage.output_tokens_details.reasoning_tokens == 4 and usage.input_tokens_details.cached_tokens == 16
    assert usage.input_tokens_details.cache_write_tokens == 0, "clients compute with it"
    with client.responses.stream(model="tiny", input="hello") as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == ANSWER
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == THOUGHT


def test_events_in_their_order(url):
    """With the names before the data, for clients that go by these."""
    text = PLAIN.post(f"{url}/v1/responses", json={"input": "hello", "stream": True}).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    data = [json.loads(lines[1].removeprefix("data: ")) for lines in blocks]
    assert [lines[0] for lines in blocks] == [f"event: {event['type']}" for event in data]
    assert [event["sequence_number"] for event in data] == list(range(len(data)))
    item = ["output_item.added", "content_part.added", "{}.delta", "{}.delta", "{}.done", "content_part.done"]
    item += ["output_item.done"]
    expected = ["created", "in_progress", *(one.format("reasoning_text") for one in item)]
    expected += [*(one.format("output_text") for one in item), "completed"]
    assert [event["type"] for event in data] == [f"response.{kind}" for kind in expected]
    done = [event["item"] for event in data if event["type"] == "response.output_item.done"]
    assert data[-1]["response"]["output"] == done


def test_tools_round_trip_with_the_replys_own_items(client, fake):
    reply = client.responses.create(model="tiny", input="hello", tools=[TOOL])
    thought, call = reply.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Paris"})
    with client.responses.stream(model="tiny", input="hello", tools=[TOOL]) as stream:
        assert stream.get_final_response().output[1].arguments == call.arguments
    asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    brought = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history = [asked, *(item.model_dump(exclude_none=True) for item in (thought, call)), brought]
    last = client.responses.create(model="tiny", input=history, tools=[TOOL], tool_choice="none")
    assert last.output_text == ANSWER
    _, calling, told = fake.messages
    assert calling["tool_calls"][0]["id"] == told["tool_call_id"] == call.call_id
    assert fake.options.tools[0]["function"]["name"] == "weather"
    again = [asked, *(item.model_dump(exclude_none=True) for item in last.output), {"role": "user", "content": "more"}]
    client.responses.create(model="tiny", input=again)
    assert [message["role"] for message in fake.messages] == ["user", "assistant", "user"]
    client.responses.create(
        model="tiny", input="hello", tools=[TOOL], tool_choice={"type": "function", "name": "weather"}
    )
    assert fake.options.tool_choice == "weather"


def test_parse(client):
    class City(pydantic.BaseModel):
        city: str
        people: int

    assert client.responses.parse(model="tiny", input="hello", text_format=City).output_parsed.city == "Paris"


def test_recordings(client, fake):
    for part in (
        {"type": "input_audio", "input_audio": {"data": WAV64, "format": "wav"}},
        {"type": "input_file", "filename": "a.wav", "file_data": f"data:audio/wav;base64,{WAV64}"},
    ):
        content = [{"type": "input_text", "text": "who?"}, part]
        client.responses.create(model="tiny", input=[{"role": "user", "content": content}])
        assert fake.messages[0]["content"][1] == {"type": "audio", "audio": Audio(wav())}
    one = [{"role": "user", "content": [part | {"channel": 1}]}]
    client.responses.create(model="tiny", input=one)
    assert fake.messages[0]["content"] == [{"type": "audio", "audio": Audio(wav(), 1)}]


def test_settings_of_the_answer(client, fake, play):
    reply = client.responses.create(
        model="tiny", input="hello", max_output_tokens=9, temperature=0.5,
        reasoning={"effort": "none", "summary": "auto"},
        include=["message.output_text.logprobs", "reasoning.encrypted_content"], metadata={"a": "b"},
        extra_body={"top_k": 3, "stop": "x"},
    )  # fmt: skip
    sampling = fake.options.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (9, 0.5, 3) and fake.options.stop == ("x",)
    assert fake.options.thinking == Thinking("off") and reply.metadata == {"a": "b"} and reply.temperature == 0.5
    assert [token.token for token in reply.output[0].content[0].logprobs] == ["Four", "."]
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    reply = client.responses.create(model="tiny", input="hello", **more)
    assert reply.output[0].content[0].logprobs[0].top_logprobs[0].token == "Five"
    report = AudioReport(0, 0.5, False)
    play(REPLY[2], ChatDelta(finish_reason="length", usage=USAGE, audio=(report,)))
    cut = client.responses.create(model="tiny", input="hello")
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete" and cut.audio_warnings[0]["lost_seconds"] == 0.5


def test_whole_is_what_the_stream_ends_with(url, play):
    call = ToolCall(0, "call_1", "weather", "{}")
    word = TokenLogprob("So", tuple(b"So"), -0.5)
    said = [ChatDelta(content="So", logprobs=(word,)), ChatDelta(content=" be it.")]
    early = ChatDelta(tool_calls=(call,), logprobs=(TokenLogprob("weather", tuple(b"weather"), -1.0),))
    play(*REPLY[:2], early, *said, ChatDelta(tool_calls=(call,)), ChatDelta(content="Then"), REPLY[-1])
    asked = {"input": "hello", "include": ["message.output_text.logprobs"]}
    whole = PLAIN.post(f"{url}/v1/responses", json=asked).json()
    text = PLAIN.post(f"{url}/v1/responses", json=asked | {"stream": True}).text
    last = json.loads(text.strip().split("\n")[-1].removeprefix("data: "))["response"]
    for reply in (whole, last):
        reply.pop("id"), reply.pop("created_at")
        for item in reply["output"]:
            item.pop("id")
    assert whole == last and [item["type"] for item in whole["output"]] == [
        "reasoning", "function_call", "message", "function_call", "message"
    ]  # fmt: skip
    assert [one["token"] for one in whole["output"][2]["content"][0]["logprobs"]] == ["So"], (
        "a call's own have no place"
    )


@pytest.mark.parametrize(
    "deltas",
    [
        [ChatDelta(reasoning="It says"), ChatDelta(finish_reason="length", usage=USAGE)],
        [ChatDelta(content="It"), ChatDelta(finish_reason="length", usage=USAGE)],
        [ChatDelta(tool_calls=(ToolCall(0, "call_1", "weather", '{"ci'),), finish_reason="length", usage=USAGE)],
        [ChatDelta(finish_reason="stop", usage=USAGE)],
    ],
    ids=["cut inside its thought", "cut inside its answer", "cut inside a call", "empty"],
)
def test_what_was_cut_may_come_back(client, play, deltas):
    play(*deltas)
    reply = client.responses.create(model="tiny", input="hello", tools=[TOOL])
    items = [item.model_dump() for item in reply.output]
    asked = {"role": "user", "content": "hello"}
    for history in ([asked, *items, asked], [asked, *items]):
        assert client.responses.create(model="tiny", input=history, tools=[TOOL]).status == reply.status


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "file_search_call", "id": "f", "queries": ["q"], "status": "completed", "results": None},
        {
            "type": "code_interpreter_call",
            "id": "c",
            "code": "1",
            "container_id": "x",
            "outputs": None,
            "status": "failed",
        },
        {"type": "image_generation_call", "id": "i", "result": "AAAA", "status": "completed"},
        {"type": "mcp_list_tools", "id": "m", "server_label": "s", "tools": []},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "AAAA"},
    ],
    ids=lambda item: item["type"],
)
def test_a_history_of_openai_s_goes_on_here(client, fake, item):
    """What was done by a tool that is not here is told by the message behind it."""
    asked = {"role": "user", "content": "hello"}
    said = {"type": "output_text", "text": "It is so.", "annotations": [], "logprobs": []}
    answered = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]}
    assert client.responses.create(model="tiny", input=[asked, item, answered, asked]).status == "completed"
    assert [message["role"] for message in fake.messages] == ["user", "assistant", "user"]


def test_its_tools_have_all_keys_of_openai_s(url):
    reply = PLAIN.post(f"{url}/v1/responses", json={"input": "x", "tools": [{"type": "function", "name": "f"}]}).json()
    assert reply["tools"] == [{"type": "function", "name": "f", "parameters": None, "strict": None}]


def test_a_fault_in_the_middle_is_the_last_event(client, play):
    play(REPLY[0], Unavailable("gone"))
    events = list(client.responses.create(model="tiny", input="hello", stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error.code == "server_error"
    play(REPLY[0], ServerBusy("full"))
    events = list(client.responses.create(model="tiny", input="hello", stream=True))
    assert events[-1].response.error.code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    "wrong, param",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["web_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "!"}}]}]}, "input"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 2**40}, "max_output_tokens"),
        ({"extra_body": {"top_k": "x"}}, "top_k"),
        ({"extra_body": {"cache_salt": "x"}}, "cache_salt"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"input": [{"type": "reasoning"}]}, "input"),
    ],
)
def test_refused_by_name(openai, client, wrong, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "tiny", "input": "hello"} | wrong)
    assert caught.value.param == param


def test_every_field_that_openai_publishes_has_one_place(openai):
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    ours = {*ResponseRequest.model_fields, *ChatRequest.model_fields}
    for name in {*ResponseCreateParamsBase.__annotations__, "stream"}:
        assert any(name in place for place in (ours, REFUSED, REFUSED_RESPONSES, IGNORED, IGNORED_RESPONSES)), name
