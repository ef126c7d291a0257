"""OpenAI's own Python package, unmodified, against the gateway on a real port."""

from __future__ import annotations

import asyncio
import base64
import json

import httpx
import pydantic
import pytest

from gateway_fixture import ANSWER, REPLY, THOUGHT, wav
from step_audio_client import Audio, RequestTimeout, Sampling, ServerBusy, Thinking, Unavailable
from waiting import until

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def settings():
    return {"api_key": ["key"]}


def test_whole_and_streamed(client):
    reply = client.chat.completions.create(model="tiny", messages=HELLO)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].message.reasoning_content == THOUGHT
    assert reply.usage.prompt_tokens_details.audio_tokens == 13
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 4
    with client.chat.completions.stream(model="tiny", messages=HELLO) as events:
        assert events.get_final_completion().choices[0].message.content == ANSWER


def test_audio(client, fake):
    data = {"data": base64.b64encode(wav()).decode(), "format": "wav"}
    content = [{"type": "text", "text": "who?"}, {"type": "input_audio", "input_audio": data}]
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])
    assert fake.messages[0]["content"][1] == {"type": "audio", "audio": Audio(wav())}


def test_tools_round_trip(client, fake):
    with client.chat.completions.stream(model="tiny", messages=HELLO, tools=[TOOL]) as events:
        streamed = events.get_final_completion().choices[0]
    choice = client.chat.completions.create(model="tiny", messages=HELLO, tools=[TOOL]).choices[0]
    for got in (choice, streamed):
        assert got.finish_reason == "tool_calls"
        assert json.loads(got.message.tool_calls[0].function.arguments) == {"city": "Paris"}
    answer = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "sunny"}
    reply = client.chat.completions.create(model="tiny", messages=[*HELLO, choice.message, answer], tools=[TOOL])
    assert reply.choices[0].message.content == ANSWER
    assert fake.messages[1]["tool_calls"][0]["function"]["name"] == "weather" and fake.messages[2] == answer


def test_json_schema(client):
    class City(pydantic.BaseModel):
        city: str
        people: int

    reply = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=City)
    assert reply.choices[0].message.parsed == City(city="Paris", people=2)


def test_logprobs_and_n(client):
    reply = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, n=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    for choice in reply.choices:
        first = choice.logprobs.content[0]
        assert (first.token, first.logprob, first.bytes, first.top_logprobs) == ("Four", -0.25, list(b"Four"), [])
    reply = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=1)
    (other,) = reply.choices[0].logprobs.content[0].top_logprobs
    assert (other.token, other.logprob, other.bytes) == ("Five", -1.5, list(b"Five"))
    chunks = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, stream=True)
    assert [t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content] == ["Four", "."]


def test_vendor_parameters(client, fake):
    client.chat.completions.create(
        model="tiny", messages=HELLO, extra_body={"thinking": {"budget_tokens": 8}, "top_k": 3, "stop_token_ids": [1]}
    )
    assert fake.options.thinking == Thinking("on", 8) and fake.options.sampling.top_k == 3


def test_errors_are_its_own(openai, client, url, play):
    def ask(**more):
        return client.chat.completions.create(**{"model": "tiny", "messages": HELLO} | more)

    with pytest.raises(openai.BadRequestError) as caught:
        ask(temperature=9)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-4o")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    for error, status in ((Unavailable("gone"), 503), (RequestTimeout("late"), 504), (ValueError("ours"), 500)):
        play(error)
        with pytest.raises(openai.InternalServerError) as caught:
            ask()
        assert caught.value.status_code == status
    play(ServerBusy("full"))
    with pytest.raises(openai.RateLimitError) as caught:
        ask(stream=True)
    assert caught.value.response.headers["retry-after"] and caught.value.request_id
    play(REPLY[0], Unavailable("gone"))
    with pytest.raises(openai.APIError, match="not available"):
        list(ask(stream=True))


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_transcriptions(openai, client, fake):
    recording = ("a.wav", wav(), "audio/wav")
    ask = client.audio.transcriptions.create
    assert ask(model="tiny", file=recording).text == ANSWER
    assert fake.options.thinking == Thinking("off")
    assert fake.options.sampling == Sampling(temperature=0, max_tokens=130)
    assert fake.messages[0]["content"] == [
        {"type": "audio", "audio": Audio(wav())}, {"type": "text", "text": "Write down what you hear."},
    ]  # fmt: skip
    assert ask(model="tiny", file=recording, response_format="text", language="de", prompt="Bahn") == f"{ANSWER}\n"
    assert fake.messages[0]["content"][1]["text"].splitlines()[1:] == ["The language is German.", "For context: Bahn"]
    for english in ("en", "en-US", "EN", "english"):
        ask(model="tiny", file=recording, language=english)
        assert fake.messages[0]["content"][1]["text"] == "Write down what you hear."
    for anything in ("auto", "multi", "und", ""):
        ask(model="tiny", file=recording, language=anything)
        assert fake.messages[0]["content"][1]["text"] == "Write down what you hear."
    for code, name in {"zu": "Zulu", "nb-NO": "Norwegian", "fil": "Filipino", "ky_KG": "Kyrgyz"}.items():
        ask(model="tiny", file=recording, language=code)
        assert fake.messages[0]["content"][1]["text"].splitlines()[1:] == [f"The language is {name}."]
    usage = ask(model="tiny", file=recording).usage
    assert (usage.type, usage.input_tokens, usage.output_tokens, usage.total_tokens) == ("tokens", 20, 6, 26)
    assert (usage.input_token_details.audio_tokens, usage.input_token_details.text_tokens) == (13, 7)
    ask(model="tiny", file=recording, temperature=0.5, extra_body={"seed": 3, "max_completion_tokens": 9, "top_p": 0.5})
    assert fake.options.sampling == Sampling(temperature=0.5, seed=3, max_tokens=9, top_p=0.5)
    verbose = ask(model="tiny", file=recording, response_format="verbose_json", language="en")
    assert (verbose.duration, verbose.language, verbose.text) == (0.1, "english", ANSWER)
    events = list(ask(model="tiny", file=recording, stream=True))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == ANSWER
    assert events[-1].usage.total_tokens == 26
    for wrong in (
        {"response_format": "srt"},
        {"timestamp_granularities": ["word"]},
        {"include": ["logprobs"]},
        {"language": "xx"},
        {"temperature": 3},
        {"chunking_strategy": {"type": "server_vad"}},
        {"known_speaker_names": ["Ada"]},
        {"extra_body": {"hotwords": "Ada"}},
        {"file": ("a.wav", b"")},
    ):
        with pytest.raises(openai.BadRequestError):
            ask(**{"model": "tiny", "file": recording} | wrong)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI is giving the route up
def test_translations(openai, client, fake):
    recording = ("a.wav", wav(), "audio/wav")
    ask = client.audio.translations.create
    assert ask(model="tiny", file=recording).text == ANSWER
    assert fake.options.thinking == Thinking("off") and fake.options.sampling.temperature == 0
    assert fake.messages[0]["content"][1]["text"] == "Translate what you hear into English."
    assert ask(model="tiny", file=recording, response_format="text", prompt="Bahn") == f"{ANSWER}\n"
    assert fake.messages[0]["content"][1]["text"].splitlines()[1:] == ["For context: Bahn"]
    ask(model="tiny", file=recording, extra_body={"language": "de", "to_language": "en", "stream": False})
    assert fake.messages[0]["content"][1]["text"].splitlines()[1:] == ["The language is German."]
    verbose = ask(model="tiny", file=recording, response_format="verbose_json", extra_body={"language": "de"})
    assert (verbose.duration, verbose.language, verbose.text) == (0.1, "english", ANSWER)
    for wrong, param in (
        ({"response_format": "srt"}, "response_format"),
        ({"extra_body": {"stream": True}}, "stream"),
        ({"extra_body": {"to_language": "fr"}}, "to_language"),
        ({"extra_body": {"timestamp_granularities": ["word"]}}, "timestamp_granularities"),
        ({"temperature": 3}, "temperature"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(**{"model": "tiny", "file": recording} | wrong)
        assert caught.value.param == param


async def test_hanging_up_frees_the_slot(url, fake, play):
    play(REPLY[0], 60.0)
    headers = {"Authorization": "Bearer key"}
    for stream in (True, False):
        begun, closed = fake.begun, fake.closed
        async with httpx.AsyncClient(headers=headers) as http:
            request = http.build_request(
                "POST", f"{url}/v1/chat/completions", json={"messages": HELLO, "stream": stream}
            )
            sending = asyncio.create_task(http.send(request, stream=True))
            await until(lambda begun=begun: fake.begun > begun)
            if stream:
                assert (await sending).status_code == 200
            else:
                sending.cancel()
        await until(lambda closed=closed: fake.closed > closed)
