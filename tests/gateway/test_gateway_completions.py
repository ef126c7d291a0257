"""/v1/completions: raw prompts in, raw text out, in OpenAI's legacy shape."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from chat_stream_fixture import Model, tokens
from fake_triton import EOT, TOKENIZER
from gateway_fixture import FakeClient, events, http, listening, shared
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatDelta, Guide, RawOptions, RawPrompt, Sampling, Unavailable
from step_audio_client.raw import RawStream

PATH = "/v1/completions"
SAID = "so\n</think>\n🙂 two STOP three"
LINE = [*tokens(SAID), EOT]


class Raw(FakeClient):
    """The client library itself, on lines of tokens, which come one by one or, with a seed, in random pieces."""

    def __init__(self, *lines: list[int], seed: int | None = None):
        super().__init__()
        self.lines, self.seed = lines, seed
        self.parameters: list[str] | None = None

    async def continue_raw(
        self, prompt: RawPrompt, options: RawOptions, *, request_id: str | None = None
    ) -> AsyncGenerator[ChatDelta]:
        line = self.lines[self.begun % len(self.lines)]
        self.asked.append((prompt.ids.tolist(), options))
        self.begun += 1
        async for delta in RawStream(Model(line, seed=self.seed), TOKENIZER, prompt, options, 4096).deltas():
            yield delta

    async def tokenizer(self) -> Tokenizer:
        return TOKENIZER

    async def serving_info(self) -> dict[str, Any]:
        info = await super().serving_info() | {"vocab_size": TOKENIZER.max_id + 1}
        return info | ({"sampling_parameters": self.parameters} if self.parameters is not None else {})


async def post(fake: Raw, **body: Any) -> httpx.Response:
    async with shared(fake) as client:
        return await client.post(PATH, json={"prompt": "a", "max_tokens": 99} | body)


async def reply(fake: Raw, **body: Any) -> dict[str, Any]:
    response = await post(fake, **body)
    assert response.status_code == 200, response.text
    values: dict[str, Any] = response.json()
    return values


async def refusal(**body: Any) -> dict[str, Any]:
    fake = Raw(LINE)
    response = await post(fake, **body)
    error: dict[str, Any] = response.json()["error"]
    assert response.status_code == 400 and not fake.begun
    return error


@pytest.fixture(scope="module")
def client(openai):
    with listening(Raw(LINE)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_by_openai_s_own_package(client):
    """The thought is not parted, nor is anything left out around it."""
    whole = client.completions.create(model="tiny", prompt="<|BOT|>human\nhello<|EOT|>", max_tokens=99)
    assert (whole.object, whole.model, whole.choices[0].text) == ("text_completion", "tiny", SAID)
    assert (whole.choices[0].finish_reason, whole.choices[0].logprobs) == ("stop", None)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (101, len(LINE))
    stream = client.completions.create(
        model="tiny", prompt="a", max_tokens=99, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == SAID and chunks[-1].choices[0].finish_reason == "stop"
    assert not last.choices and last.usage.total_tokens == 101 + len(LINE)


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_and_texts(stream):
    """Each prompt counts once, whatever it is followed by; a seed is that of its first text."""
    fake = Raw(*([*tokens(text), EOT] for text in ("one", "one two", "one two three", "four")))
    body = {"prompt": [[1, 2], [3]], "n": 2, "seed": 7, "stream": stream}
    if stream:
        response = await post(fake, **body, stream_options={"include_usage": True})
        *chunks, last = events(response.text)
        choices = [chunk["choices"][0] for chunk in chunks]
        texts = ["".join(one["text"] for one in choices if one["index"] == i) for i in range(4)]
    else:
        last = await reply(fake, **body)
        texts = [one["text"] for one in sorted(last["choices"], key=lambda one: one["index"])]
    assert texts == ["one", "one two", "one two three", "four"]
    assert [(ids, options.sampling.seed) for ids, options in fake.asked] == [
        ([1, 2], 7), ([1, 2], 8), ([3], 7), ([3], 8)
    ]  # fmt: skip
    assert last["usage"]["prompt_tokens"] == 2 * 101
    assert last["usage"]["completion_tokens"] == sum(map(len, fake.lines))


async def test_the_guide_of_all_texts_is_asked_for_once():
    fake, given = Raw(LINE), []

    async def bounded(options: RawOptions) -> RawOptions:
        given.append(options.guide)
        return dataclasses.replace(options, guide=Guide("ebnf_grammar", 'root ::= "a"', bounded=True))

    fake.bounded = bounded  # type: ignore[method-assign]
    await reply(fake, prompt=["a", "b"], n=2, seed=7, response_format={"type": "json_object"})
    assert given == [Guide("json")]
    assert [options.guide.bounded for _, options in fake.asked] == [True] * 4
    assert [options.sampling.seed for _, options in fake.asked] == [7, 8, 7, 8]


@pytest.mark.parametrize(
    "prompt",
    ["Hello 🙂", "<|BOT|>human\nhi<|EOT|><|BOT|>assistant\n<think>\n", "<audio_7>", ["a", "b"], [5, 6], [[5], [6]]],
)
async def test_prompts(prompt):
    """A text's control tokens are those tokens."""
    fake = Raw(LINE)
    await reply(fake, prompt=prompt)
    one_of = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    assert [ids for ids, _ in fake.asked] == [TOKENIZER.encode_raw(p) if isinstance(p, str) else p for p in one_of]


async def test_echo():
    prompt = "<|BOT|>human\nhi 🙂"
    for asked in (prompt, TOKENIZER.encode_raw(prompt)):
        assert (await reply(Raw(LINE), prompt=asked, echo=True))["choices"][0]["text"] == prompt + SAID
    chunks = events((await post(Raw(LINE, seed=1), prompt=[prompt, "b"], echo=True, stream=True)).text)
    texts = ["".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == i) for i in (0, 1)]
    assert texts == [prompt + SAID, "b" + SAID]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
async def test_logprobs(seed):
    """By their texts, with where they begin; a part of a character is told by its bytes."""
    body = {"logprobs": 2, "stop": "STOP"}
    said = SAID[: SAID.index("STOP")]
    choice = (await reply(Raw(LINE, seed=seed), **body))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (said, "stop")
    told = choice["logprobs"]
    shown = [t.removeprefix("bytes:").encode().decode("unicode_escape").encode("latin-1") if t.startswith("bytes:")
             else t.encode() for t in told["tokens"]]  # fmt: skip
    assert b"".join(shown).decode().startswith(said) and any(t.startswith("bytes:\\x") for t in told["tokens"])
    for i, place in enumerate(told["text_offset"]):
        assert place == len(b"".join(shown[:i]).decode("utf-8", "ignore"))
    for token, value, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == value and top["<|EOT|>"] == -9.0
    chunks = events((await post(Raw(LINE, seed=seed), **body, stream=True)).text)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert {key: [one for part in parts for one in part[key]] for key in told} == told
    alone = (await reply(Raw(LINE), logprobs=0))["choices"][0]["logprobs"]
    assert all(list(top) == [token] for top, token in zip(alone["top_logprobs"], alone["tokens"], strict=True))


async def test_where_the_llm_has_no_likeliest_tokens():
    fake = Raw(LINE)
    fake.parameters = ["logprobs"]
    response = await post(fake, logprobs=1)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "logprobs", "unsupported_parameter")
    await reply(fake, logprobs=0)


async def test_options():
    fake = Raw(LINE)
    await reply(
        fake, max_tokens=None, temperature=0, top_k=3, stop=["x"], stop_token_ids=[1], bad_words=["y"], ignore_eos=True,
        skip_special_tokens=False,
    )  # fmt: skip
    options = fake.options
    assert options.sampling == Sampling(max_tokens=16, temperature=0, top_k=3)
    assert (options.stop, options.stop_token_ids, options.bad_words) == (("x",), (1,), ("y",))
    assert options.ignore_eos and not options.skip_special_tokens
    await reply(fake, structured_outputs={"regex": "[0-9]+"})
    assert fake.options.guide == Guide("regex", "[0-9]+") and fake.options.sampling.temperature == 0.7
    async with shared(fake, default_sampling=["max_tokens=5"]) as client:
        await client.post(PATH, json={"prompt": "a"})
    assert fake.options.sampling.max_tokens == 5


@pytest.mark.parametrize(
    "body, param",
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [5, "a"]}, "prompt[1]"),
        ({"prompt": [5, -1]}, "prompt[1]"),
        ({"prompt": [5, 5.0]}, "prompt[1]"),
        ({"prompt": [5, 100_000]}, "prompt"),
        ({"prompt": ["a", "<audio_patch>"]}, "prompt[1]"),
        ({"prompt": "<audio_start>"}, "prompt"),
        ({"prompt": "a b" * 100_000}, "prompt"),
        ({"prompt": [5] * 4096}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"ignore_eos": True, "guided_regex": "a"}, "ignore_eos"),
    ],
)
async def test_refused_by_name(body, param):
    if body.get("ignore_eos"):  # by the client library, which has begun
        assert (await post(Raw(LINE), **body)).json()["error"]["param"] == param
    else:
        error = await refusal(**body)
        assert error["param"] == param and len(error["message"]) < 400
        assert (error["code"] == "context_length_exceeded") == (body["prompt"] in ("a b" * 100_000, [5] * 4096)
                                                                if "prompt" in body else False)  # fmt: skip


async def test_the_same_door_as_chat(caplog):
    """Key, model, log, metrics, a fault in the middle."""
    fake = Raw([*tokens("one"), EOT], [*tokens("two"), EOT])
    headers = {"Authorization": "Bearer key"}
    async with http(fake, api_key=["key"], log_content=True) as client:
        assert (await client.post(PATH, json={"prompt": "a"})).status_code == 401
        assert (await client.post(PATH, json={"prompt": "a", "model": "x"}, headers=headers)).status_code == 404
        with caplog.at_level("INFO"):
            await client.post(PATH, json={"prompt": ["a", "b"]}, headers=headers)
        lines = (await client.get("/metrics")).text.splitlines()
    count = len(fake.lines[0]) + len(fake.lines[1])
    assert {f'step_audio_tokens_total{{kind="{k}"}} {v}.0' for k, v in (("prompt", 202), ("completion", count))} <= {
        *lines
    }
    assert f'step_audio_http_requests_total{{route="{PATH}",status="200"}} 1.0' in lines
    logged = next(f for f in (vars(record).get("fields", {}) for record in caplog.records) if "finish" in f)
    assert logged["prompts"] == ["a", "b"] and logged["replies"] == ["one", "two"]
    assert (logged["prompt_tokens"], logged["completion_tokens"]) == (202, count)

    async def broken(*_: Any) -> AsyncGenerator[ChatDelta]:
        yield ChatDelta(content="on", raw="on")
        raise Unavailable("gone")

    fake.continue_raw = broken  # type: ignore[method-assign]
    response = await post(fake, stream=True)
    *_, error = events(response.text)
    assert response.status_code == 200 and error["error"]["code"] == "unavailable"
    assert (await post(fake)).status_code == 503


async def test_long_prompts_of_ids_are_checked_soon():
    """And told as one fault, however many there are."""
    async with shared(Raw(LINE)) as client:
        for ids in ([-1] * 20_000, ["a"] * 20_000, [[-1] * 1000] * 80, [0] + ["x"] * 20_000):
            body = json.dumps({"prompt": ids})
            response = await client.post(PATH, content=body, headers={"content-type": "application/json"})
            assert response.status_code == 400 and len(response.text) < 1000
