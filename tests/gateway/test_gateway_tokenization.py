"""/tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from typing import Any

import pytest

import tokenizer_fixture
from gateway_fixture import FakeClient, shared

HELLO = [{"role": "user", "content": "hello <|EOT|>"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def reply(path: str, **body: Any) -> dict[str, Any]:
    async with shared(FakeClient()) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    values: dict[str, Any] = response.json()
    return values


async def refused(path: str, **body: Any) -> dict[str, Any]:
    async with shared(FakeClient()) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def text(**body: Any) -> str:
    said: str = (await reply("/detokenize", tokens=(await reply("/tokenize", **body))["tokens"]))["prompt"]
    return said


@pytest.mark.parametrize("prompt", ["", "Hello 猫 🙂", "<|BOT|>human\nhi<|EOT|><tool_call>", "<audio_1><audio_10>"])
async def test_a_raw_prompt_is_tokenized_as_the_library_does(prompt):
    library = tokenizer_fixture.build_reference().encode(prompt)
    body = await reply("/tokenize", model="tiny", prompt=prompt, add_special_tokens=True, return_token_strs=True)
    assert body == {
        "count": len(library.ids), "max_model_len": 4096, "tokens": library.ids, "token_strs": library.tokens
    }  # fmt: skip
    assert (await reply("/detokenize", model="tiny", tokens=library.ids))["prompt"] == prompt
    assert (await reply("/tokenize", prompt=prompt))["token_strs"] is None


async def test_messages():
    """What a user types is text: its control tokens are none."""
    opened = await text(messages=HELLO)
    closed = await text(messages=HELLO, add_generation_prompt=False)
    assert opened == closed + "<|BOT|>assistant\n<think>\n" and "hello <|EOT|><|EOT|>" in closed
    tokens = (await reply("/tokenize", messages=HELLO))["tokens"]
    eot = tokenizer_fixture.build_reference().token_to_id("<|EOT|>")
    assert tokens.count(eot) == opened.count("<|EOT|>") - 1
    turns = [*HELLO, {"role": "assistant", "content": "The ans"}]
    assert (await text(messages=turns)).endswith("The ans")
    assert (await text(messages=turns, continue_final_message=True)).endswith("The ans")
    assert (await text(messages=turns, add_generation_prompt=True)).endswith("<|BOT|>assistant\n<think>\n")
    assert "weather" in await text(messages=HELLO, tools=[TOOL])


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": "a b" * 100_000}, "prompt"),
        ("/tokenize", {"messages": HELLO, "chat_template": "{{ messages }}"}, "chat_template"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "AAAA"}]}]}, "messages"),
        ("/detokenize", {"tokens": [1, 100_000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[1]"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_refused_by_name(path, body, param):
    assert (await refused(path, **body))["param"].split("[")[0] == param.split("[")[0]


async def test_the_same_door_as_all_that_computes():
    async with shared(FakeClient(), api_key=["key"]) as client:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            assert (await client.post(path, json=body)).status_code == 401
            assert (await client.post(path, json=body, headers={"Authorization": "Bearer key"})).status_code == 200
            assert "security" in (await client.get("/openapi.json")).json()["paths"][path]["post"]
        wrong = await client.post(
            "/tokenize", json={"model": "x", "prompt": "a"}, headers={"Authorization": "Bearer key"}
        )
        assert wrong.status_code == 404
