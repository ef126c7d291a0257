"""The whole way: OpenAI's package, the gateway's process, client library, tritonserver, random weights."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from gateway_fixture import events
from paths import SHARED
from step_audio.audio import decode_audio, encode_wav
from step_audio.clips import CLIP_SAMPLES, SAMPLE_RATE
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports

SAMPLES = SHARED / "samples"
EOT = 151665


@dataclass(frozen=True)
class CardExample:
    """One of the model card's own: its recording, in which order it is sent, and its sampling."""

    recording: str  # of `SAMPLES`, where they are
    text: str
    audio_first: bool
    sampling: dict[str, float]


THOROUGH = {"max_tokens": 32000, "temperature": 0.7, "repetition_penalty": 1.0}
CHOICES = (
    "Please choose the answer from the following options, do not provide any additional explanations or content: \n"
    "A. Speech\nB. Music\n"
)
CARD = {
    "mmau": CardExample("mmar_test", f"What is heard?\n{CHOICES}", False, THOROUGH),
    "mmsu": CardExample("mmsu_test", f"Who speaks?\n{CHOICES}", False, THOROUGH),
    "spoken-mqa": CardExample("spoken_mqa_test", "Solve the given math question step by step.", False, THOROUGH),
    "big-bench-audio": CardExample("big_bench_audio_test", "请回答音频中的问题。", True, THOROUGH),
    "wild-speech": CardExample("mmsu_test", "Answer what is said.", True, THOROUGH),
    "mmar": CardExample("mmar_test", f"What is heard?\n{CHOICES}", False, THOROUGH | {"repetition_penalty": 1.07}),
    "caption": CardExample(
        "mmar_test", "Describe the recording.", True, {"max_tokens": 1024, "temperature": 0.5, "top_p": 0.9}
    ),
    "song": CardExample(
        "mmar_test", "Say what you think of the song.", True, {"max_tokens": 2048, "temperature": 0.7, "top_p": 0.9}
    ),
    "speaker-traits": CardExample(
        "mmsu_test", "What is this speaker like?", True, {"max_tokens": 2048, "temperature": 0.7, "top_p": 0.9}
    ),
    "step-audio-2": CardExample(
        "spoken_mqa_test", "What is said?", True,
        {"max_tokens": 2048, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.05},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def url(service) -> Iterator[str]:
    (port,) = free_ports(1)
    process = GatewayProcess(GatewaySettings.create(port=port, triton=[service.address], served_model_name=["R1"]))
    process.start()
    yield f"http://127.0.0.1:{port}"
    process.stop()


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(np.arange(round(seconds * SAMPLE_RATE)) / 9)).astype(np.float32)


def wav(samples: np.ndarray) -> str:
    """Base64 of a WAV file, as the card's client sends each piece of 25 s."""
    return base64.b64encode(encode_wav(samples)).decode()


def part(samples: np.ndarray) -> dict:
    return {"type": "input_audio", "input_audio": {"data": wav(samples), "format": "wav"}}


@pytest.mark.parametrize("example", CARD)
def test_the_cards_client(url, example):
    """25 s pieces, `human`, an opened thought with `eot`, special tokens shown; answers are cut short here."""
    card = CARD[example]
    file = SAMPLES / f"{card.recording}.wav"
    samples = decode_audio(file.read_bytes()) if file.is_file() else tone(30)
    pieces = [part(samples[start : start + CLIP_SAMPLES]) for start in range(0, len(samples), CLIP_SAMPLES)]
    text = [{"type": "text", "text": card.text}]
    body = {
        "model": "R1",
        "messages": [
            {"role": "system", "content": "You are an expert in audio analysis."},
            {"role": "human", "content": [*pieces, *text] if card.audio_first else [*text, *pieces]},
            {"role": "assistant", "content": "<think>\n", "eot": False},
        ],
        "stream": True,
        "skip_special_tokens": False,
        "stop_token_ids": [EOT],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "stream_options": {"include_usage": True},
        **card.sampling,
        "max_tokens": 8,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    chunks = events(response.text)
    assert chunks[-1]["usage"]["completion_tokens"] <= 8
    audio_tokens = chunks[-1]["usage"]["prompt_tokens_details"]["audio_tokens"]
    assert 12 * len(samples) / SAMPLE_RATE < audio_tokens < 13 * len(samples) / SAMPLE_RATE + len(pieces)
    for chunk in chunks[:-1]:
        delta = chunk["choices"][0]["delta"]
        assert isinstance(delta.get("content", ""), str) and delta.get("tts_content", {}) == {}


def test_streamed_is_whole_and_seeds_count(client):
    ask = {"model": "R1", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 1.0}

    def text(message) -> str:
        return (message.content or "") + (getattr(message, "reasoning_content", None) or "")

    two = client.chat.completions.create(**ask, seed=5, n=2)
    second = client.chat.completions.create(**ask, seed=6)
    streamed = "".join(text(c.choices[0].delta) for c in client.chat.completions.create(**ask, seed=5, stream=True))
    assert text(two.choices[0].message) == streamed and text(two.choices[1].message) == text(second.choices[0].message)
    assert second.usage.completion_tokens == 12 and second.choices[0].finish_reason == "length"


def test_a_raw_prompt_is_gone_on_with(client, url):
    """As if its template had been the server's."""
    messages = [{"role": "user", "content": "hello"}]
    how = {"model": "R1", "max_tokens": 20, "temperature": 0}
    raw = {"separate_reasoning": False, "skip_special_tokens": False}
    ids = httpx.post(f"{url}/tokenize", json={"messages": messages}).json()["tokens"]
    text = httpx.post(f"{url}/detokenize", json={"tokens": ids}).json()["prompt"]
    expected = client.chat.completions.create(messages=messages, **how, extra_body=raw)
    more = {"skip_special_tokens": False}
    replies = [client.completions.create(prompt=prompt, **how, extra_body=more) for prompt in (ids, text, [text, text])]
    for reply in replies:
        assert {choice.text for choice in reply.choices} == {expected.choices[0].message.content}
        assert reply.usage.prompt_tokens == len(ids) * len(reply.choices)
    streamed = client.completions.create(prompt=ids, **how, stream=True, logprobs=2, extra_body=more)
    choices = [chunk.choices[0] for chunk in streamed]
    assert "".join(choice.text for choice in choices) == expected.choices[0].message.content
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens]
    likeliest = [top for choice in choices if choice.logprobs for top in choice.logprobs.top_logprobs]
    assert all(max(top, key=top.get) == token for token, top in zip(tokens, likeliest, strict=True))
    form = {"structured_outputs": {"json": {"type": "integer"}}}
    reply = client.completions.create(prompt=text, **how | {"max_tokens": 40}, extra_body=form)
    assert re.fullmatch(r"-?\d{1,19}", reply.choices[0].text) and reply.choices[0].finish_reason == "stop"


def test_top_logprobs_reach_the_engine(client):
    ask = {"model": "R1", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9, "temperature": 0}
    for stream in (False, True):
        reply = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3, stream=stream)
        choices = [chunk.choices[0] for chunk in reply] if stream else reply.choices
        places = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
        assert places
        for one in places:
            values = [top.logprob for top in one.top_logprobs]
            assert len(values) == 3 and values == sorted(values, reverse=True)
            assert (one.bytes, one.logprob) == (one.top_logprobs[0].bytes, values[0])


def test_what_was_cached_is_told(client):
    """To who is answered to the end, and to who has it stopped."""
    text = f"{uuid.uuid4()} " * 8
    ask = {"model": "R1", "messages": [{"role": "user", "content": text}], "max_tokens": 40, "temperature": 0}
    first = client.chat.completions.create(**ask, extra_body={"ignore_eos": True})
    positions = first.usage.prompt_tokens
    assert first.usage.prompt_tokens_details.cached_tokens == 0 and positions > 100
    known = (positions - 1) // 32 * 32
    for more in ({}, {"stop": first.choices[0].message.reasoning_content[:2]}, {"max_tokens": 1}):
        usage = client.chat.completions.create(**ask | more, extra_body={"separate_reasoning": False}).usage
        assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (positions, known)
    item = client.responses.create(model="R1", input=text, max_output_tokens=1)
    assert item.usage.input_tokens_details.cached_tokens == known


@pytest.fixture
def bad_request():
    from openai import BadRequestError

    return BadRequestError


def test_min_p_reaches_the_engine(client, bad_request):
    ask = {"model": "R1", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "seed": 3}

    def text(**options) -> str:
        return client.chat.completions.create(**ask, **options).choices[0].message.reasoning_content

    hot = {"temperature": 2.0}
    assert text(**hot, extra_body={"min_p": 1}) == text(temperature=0) != text(**hot)
    assert text(**hot, extra_body={"min_p": 0}) == text(**hot)
    with pytest.raises(bad_request, match=r"min_p: .*less than or equal to 1"):
        text(extra_body={"min_p": 1.5})


def test_logprobs_and_no_thinking(client):
    reply = client.chat.completions.create(
        model="R1",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=6,
        temperature=0,
        logprobs=True,
        extra_body={"thinking": {"mode": "off"}},
    )
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == 6 and all(token.logprob <= 0 for token in tokens)
    assert (
        b"".join(bytes(token.bytes) for token in tokens).decode("utf-8", "replace") == reply.choices[0].message.content
    )
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


def test_json_schema_after_the_thought(client):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    reply = client.chat.completions.create(
        model="R1",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=256,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        extra_body={"thinking": {"budget_tokens": 4}},
    )
    assert json.loads(reply.choices[0].message.content)["n"] in (1, 2)
    assert reply.choices[0].message.reasoning_content


def test_responses_are_the_same_answer(client):
    content = [{"type": "input_text", "text": "hello"}, part(tone(1))]
    ask = {"model": "R1", "temperature": 0}
    reply = client.responses.create(input=[{"role": "user", "content": content}], max_output_tokens=8, **ask)
    chat = [{"role": "user", "content": [{"type": "text", "text": "hello"}, part(tone(1))]}]
    same = client.chat.completions.create(messages=chat, max_tokens=8, **ask)
    assert reply.output[0].content[0].text == same.choices[0].message.reasoning_content
    assert (reply.status, reply.usage.input_tokens) == ("incomplete", same.usage.prompt_tokens)
    with client.responses.stream(input=[{"role": "user", "content": content}], max_output_tokens=8, **ask) as stream:
        last = list(stream)[-1]
    assert last.type == "response.incomplete" and last.response.output[0].content == reply.output[0].content


def test_transcription(client):
    recording = ("a.wav", base64.b64decode(wav(tone(1))), "audio/wav")
    reply = client.with_options(timeout=300).audio.transcriptions.create(
        model="R1", file=recording, response_format="verbose_json"
    )
    assert reply.duration == 1.0 and isinstance(reply.text, str)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI is giving the route up
def test_translation(client):
    recording = ("a.wav", base64.b64decode(wav(tone(1))), "audio/wav")
    ask = client.with_options(timeout=300).audio.translations.create
    reply = ask(model="R1", file=recording, response_format="verbose_json", extra_body={"max_completion_tokens": 8})
    assert (reply.duration, reply.language) == (1.0, "english") and isinstance(reply.text, str)


def test_tokens_are_those_of_the_answer(client, url):
    messages = [{"role": "user", "content": "hello"}]
    usage = client.chat.completions.create(model="R1", messages=messages, max_tokens=1).usage
    counted = httpx.post(f"{url}/tokenize", json={"messages": messages}).json()
    assert counted["count"] == len(counted["tokens"]) == usage.prompt_tokens
    prompt = httpx.post(f"{url}/detokenize", json={"tokens": counted["tokens"]}).json()["prompt"]
    assert httpx.post(f"{url}/tokenize", json={"prompt": prompt}).json()["tokens"] == counted["tokens"]


def test_what_the_served_model_refuses(client, bad_request):
    with pytest.raises(bad_request) as caught:
        client.chat.completions.create(model="R1", messages=[{"role": "user", "content": [part(tone(0.0))]}])
    assert "the audio is empty" in caught.value.message
    with pytest.raises(bad_request):
        client.chat.completions.create(model="R1", messages=[{"role": "tool"}])
