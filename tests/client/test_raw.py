"""Raw prompts: what the LLM is asked, and the text that comes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from chat_stream_fixture import tokens
from fake_triton import EOT, TOKENIZER, Fake, message, refusal, script, served, serving
from step_audio.errors import Code
from step_audio.word_list import unpack_word_list
from step_audio_client import (
    ContextTooLong,
    Guide,
    InvalidGuide,
    RawOptions,
    RawPrompt,
    RequestError,
    RequestTimeout,
    Sampling,
    StepAudioClient,
    UnsupportedParameter,
)
from step_audio_client.pipeline import Pipeline

PROMPT = "<|BOT|>human\nhi<|EOT|><|BOT|>assistant\n"
SPECIAL = TOKENIZER.special
SAID = tokens("so\n</think>\nyes")


async def said(client: StepAudioClient, prompt=PROMPT, options: RawOptions | None = None):
    deltas = [delta async for delta in client.continue_raw(prompt, options)]
    return "".join(delta.content for delta in deltas), deltas[-1]


def asked(fake):
    (inputs,) = [entry[2] for entry in fake.seen if entry[0] == "generate"]
    return inputs


async def test_the_llm_gets_the_prompt_as_it_is():
    async with served(script(message(*SAID), message(EOT, final=True))) as (fake, client):
        text, last = await said(client)
    assert text == "so\n</think>\nyes" and (last.finish_reason, last.usage.completion_tokens) == ("stop", len(SAID) + 1)
    inputs = asked(fake)
    assert inputs["input_ids"].tolist() == [TOKENIZER.encode_raw(PROMPT)]
    size = inputs["input_ids"].size
    assert inputs["input_lengths"].item() == size and inputs["request_output_len"].item() == fake.max_seq_len - size
    first, *others = SPECIAL.stop_ids
    assert inputs["end_id"].item() == first
    assert unpack_word_list(inputs["stop_words_list"][0]) == [[token] for token in others]
    assert "messages" not in inputs


@pytest.mark.parametrize("prompt", [TOKENIZER.encode_raw(PROMPT), np.array(TOKENIZER.encode_raw(PROMPT), np.int32)])
async def test_as_token_ids(prompt):
    async with served(script(message(EOT, final=True))) as (fake, client):
        await said(client, RawPrompt(prompt) if isinstance(prompt, np.ndarray) else prompt)
    assert asked(fake)["input_ids"].tolist() == [TOKENIZER.encode_raw(PROMPT)]


async def test_options_travel():
    options = RawOptions(
        Sampling(9, temperature=0), stop_token_ids=(5,), bad_words=("no",), ignore_eos=True, logprobs=True
    )
    async with served(script(message(*SAID, final=True))) as (fake, client):
        await said(client, options=options)
    inputs = asked(fake)
    assert inputs["request_output_len"].item() == 9 and inputs["return_log_probs"].item()
    assert unpack_word_list(inputs["stop_words_list"][0])[-1] == [5]
    words = unpack_word_list(inputs["bad_words_list"][0])
    assert [TOKENIZER.encode("no"), TOKENIZER.encode(" no")] == words[:2] and [EOT] in words


async def test_stop_strings_end_the_work():
    async with served(script(message(*tokens("one STOP two")), message(*SAID, final=True))) as (fake, client):
        text, last = await said(client, options=RawOptions(stop=("STOP",)))
        assert (text, last.finish_reason) == ("one ", "stop")
    assert [entry[0] for entry in fake.seen if entry[0] == "stop"]


async def test_a_guide_is_as_the_prompt_builder_makes_it():
    options = RawOptions(guide=Guide("json_schema", "{}", "response_format"))
    async with served(script(message(*SAID, final=True))) as (fake, client):
        await said(client, options=options)
    kind, text = (asked(fake)[name].item() for name in ("guided_decoding_guide_type", "guided_decoding_guide"))
    assert (kind, text) == (b"ebnf_grammar", b"json_schema {}")
    async with served(script(refusal(Code.INVALID_GUIDE, "guided_decoding_guide is wrong"))) as (_, client):
        with pytest.raises(InvalidGuide, match=r"^response_format is wrong$") as caught:
            await said(client, options=options)
    assert caught.value.param == "response_format"


async def test_a_guide_may_take_its_time_but_not_the_callers(monkeypatch):
    """For the first one the server loads a library, which takes long where it is busy."""
    monkeypatch.setitem(Pipeline.ask.__kwdefaults__, "patience", 0.05)
    options = RawOptions(guide=Guide("json_schema", "{}", "response_format"))

    async def late(fake, request, context):
        if request.model_name == "prompt_builder":
            await asyncio.sleep(0.5)
        return await infer(fake, request, context)

    infer = Fake.ModelInfer
    monkeypatch.setattr(Fake, "ModelInfer", late)
    async with served(script(message(*SAID, final=True))) as (_, client):
        await client.tokenizer()
        assert (await said(client, options=options))[1].finish_reason
        with pytest.raises(RequestTimeout):
            await said(client, options=replace(options, timeout=0.1))


async def test_several_texts_ask_for_their_guide_once():
    options = RawOptions(guide=Guide("json_schema", "{}", "response_format"))
    async with served(script(message(*SAID, final=True))) as (fake, client):
        options = await client.bounded(options)
        for _ in range(2):
            await said(client, options=options)
    assert len([entry for entry in fake.seen if entry == ("asked", "guided_decoding_guide_type")]) == 1
    texts = [entry[2]["guided_decoding_guide"].item() for entry in fake.seen if entry[0] == "generate"]
    assert texts == [b"json_schema {}"] * 2


async def test_another_server_goes_on_behind_what_has_come():
    dead = message(error="in ensemble 'x', Stub process 'tensorrt_llm_0_0' is not healthy.")
    runs = script(message(*SAID[:2]), dead), script(message(*SAID[2:]), message(EOT, final=True))
    async with serving(*runs) as servers, StepAudioClient([one[1] for one in servers], TOKENIZER) as client:
        await client.serving_info()
        route = list(client._pipeline._servers.all)
        client._pipeline._servers.route = lambda first: list(route)
        text, _ = await said(client)
    assert text == "so\n</think>\nyes"
    (inputs,) = [entry[2] for entry in servers[1][0].seen if entry[0] == "generate"]
    assert inputs["input_ids"].tolist() == [TOKENIZER.encode_raw(PROMPT) + SAID[:2]]
    assert inputs["request_output_len"].item() == 100 - len(TOKENIZER.encode_raw(PROMPT)) - 2


@pytest.mark.parametrize(
    ("prompt", "options", "error", "text"),
    [
        ("", None, RequestError, "prompt: it is empty"),
        (
            "<audio_patch>",
            None,
            RequestError,
            "prompt: <audio_patch> belongs to a recording, and a raw prompt has none",
        ),
        ([SPECIAL.audio_start], None, RequestError, "prompt: <audio_start> belongs to"),
        ([TOKENIZER.max_id + 1], None, RequestError, "prompt: .* is not in the vocabulary"),
        ([-1], None, RequestError, "prompt: -1 is not in the vocabulary"),
        ([5] * 100, None, ContextTooLong, "prompt: it has at least 100 tokens and max_seq_len is 100"),
        ("x y " * 50, None, ContextTooLong, "prompt: it has"),
        ("x", RawOptions(stop=("",)), RequestError, "stop: an empty string"),
        ("x", RawOptions(guide=Guide("regex", "a"), ignore_eos=True), RequestError, "ignore_eos: "),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_generated(prompt, options, error, text):
    async with served(script(message(EOT, final=True))) as (fake, client):
        with pytest.raises(error, match=f"^{text}") as caught:
            await said(client, prompt, options)
        assert caught.value.param == text.partition(":")[0]
        assert not [entry for entry in fake.seen if entry[0] == "generate" or "guide" in str(entry[1])]


async def test_likeliest_tokens_where_the_llm_tells_them():
    async with served(script(message(EOT, final=True))) as (fake, client):
        fake.parameters.remove("top_logprobs")
        with pytest.raises(UnsupportedParameter) as caught:
            await said(client, options=RawOptions(Sampling(top_logprobs=2)))
    assert caught.value.param == "top_logprobs"
