"""Replies made of tokens: the same whatever the cuts; what is asked of the server, and when it is stopped."""

from __future__ import annotations

import random
from contextlib import aclosing

import pytest

from chat_stream_fixture import ADDED, CALL, OFF, QUESTION, SMILE, TOOLS, Model, reply, tokens
from fake_triton import EOT, TOKENIZER
from step_audio.word_list import unpack_word_list
from step_audio_client import ChatDelta, ChatOptions, Guide, RequestError, Sampling, Thinking
from step_audio_client.chat_stream import ChatStream


def without_ids(whole: ChatDelta):
    return whole.__class__(**{**vars(whole), "tool_calls": tuple((c.name, c.arguments) for c in whole.tool_calls)})


REPLIES = [  # parts, options, reasoning, content, calls, finish
    (["so\n</think>\n", "Four.", "<|EOT|>"], {}, "so", "Four.", 0, "stop"),
    (["so.</think>", "\n\n猫🙂!"], {}, "so.", "猫🙂!", 0, "stop"),
    (["<think>\nso", "<|THINK_END|>", "\nFour."], {}, "so", "Four.", 0, "stop"),
    (["<think>\nso", "<|THINK_END|>", "\nFour."], {"skip_special_tokens": False}, "so", "Four.", 0, "stop"),
    (["a < b, </thin"], {}, "a < b, </thin", "", 0, "stop"),
    (["x\n</think>\na", "<|SC|>", "b"], {}, "x", "ab", 0, "stop"),
    (["x\n</think>\na", "<|SC|>", "b"], {"skip_special_tokens": False}, "x", "a<|SC|>b", 0, "stop"),
    (["x\n</think>\n", "I ask.", *CALL, *CALL, "<|EOT|>"], {"tools": TOOLS}, "x", "I ask.", 2, "tool_calls"),
    (["x\n</think>\n<tool_call>function\nget_time\n{}</tool_call>"], {"tools": TOOLS}, "x", "", 1, "tool_calls"),
    (["x\n</think>\n", *CALL[:2]], {"tools": TOOLS}, "x", "".join(CALL[:2]), 0, "stop"),
    (["x\n</think>\n", *CALL], {}, "x", "".join(CALL), 0, "stop"),
    (["x\n</think>\n", *CALL], {"tools": TOOLS, "tool_choice": "none"}, "x", "".join(CALL), 0, "stop"),
    (["STOP\n</think>\nA 猫 STO", "P STOP", " more"], {"stop": ("STOP",)}, "STOP", "A 猫 ", 0, "stop"),
    (["x\n</think>\nA STO"], {"stop": ("STOP",)}, "x", "A STO", 0, "stop"),
    (["x STOP.\n</th", "ink>\nFour."], {"stop": ("</think>", "STOP")}, "x STOP.\n", "", 0, "stop"),
    (["two STO", "P three\n</think>\nA"], {"stop": ("STOP",), "stop_in_thought": True}, "two ", "", 0, "stop"),
    (["two STO\n</think>\nA STO", "P b"], {"stop": ("STOP",), "stop_in_thought": True}, "two STO", "A ", 0, "stop"),
    (["two\n</think>\nA STO"], {"stop": ("STOP",), "stop_in_thought": True}, "two", "A STO", 0, "stop"),
    (["x\n</think>\n", *CALL, "b STOP", *CALL], {"tools": TOOLS, "stop": ("STOP",)}, "x", "b ", 1, "tool_calls"),
    (["x\n</think>\n", "I ask.", CALL[0], 'function\nget_time\n{"tz": "STO', 'P"}', CALL[2]],
     {"tools": TOOLS, "stop": ("STOP",)}, "x", "I ask.", 1, "stop"),
    (["x\n</think>\n", "I ask.", CALL[0], "function\nget_STO", "P"], {"tools": TOOLS, "stop": ("STOP",)},
     "x", "I ask.", 0, "stop"),
    (["x\n</think>\n", *CALL, CALL[0], 'function\nget_time\n{"tz": "STO', 'P"}'], {"tools": TOOLS, "stop": ("STOP",)},
     "x", "", 2, "tool_calls"),
    (["Yes\n</think>\n"], {"thinking": OFF}, "", "Yes\n</think>\n", 0, "stop"),
    (["Yes", "<|im_end|>"], {"thinking": OFF, "stop_token_ids": (ADDED["<|SC|>"],)}, "", "Yes", 0, "stop"),
    (["Yes", "<|SC|>"], {"thinking": OFF, "stop_token_ids": (ADDED["<|SC|>"],), "skip_special_tokens": False},
     "", "Yes", 0, "stop"),
    ([], {}, "", "", 0, "stop"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REPLIES)))
def test_every_way_of_cutting(case):
    """Of tokenizing the same text differently, too; thought, content, calls and ends are those of the whole."""
    parts, options, reasoning, content, calls, finish = REPLIES[case]
    for spelling in range(4):
        ids = tokens(*parts, seed=spelling)
        first = None
        for seed in range(6):
            model = Model(ids, seed=seed)
            whole, deltas = reply(model, ChatOptions(logprobs=True, **options))
            assert (whole.reasoning, whole.content, len(whole.tool_calls), whole.finish_reason) == (
                reasoning, content, calls, finish,
            )  # fmt: skip
            assert all("\ufffd" not in d.reasoning + d.content + d.raw for d in deltas)
            if calls:
                assert (whole.tool_calls[0].name, [c.index for c in whole.tool_calls]) == ("get_time", [*range(calls)])
            first = first or without_ids(whole)
            assert without_ids(whole) == first, "log-probabilities, ids and usage too"


def test_nothing_leaks_while_it_is_under_way():
    """At every delta, what was shown so far is a beginning of what is shown in the end."""
    for parts, options, reasoning, content, *_ in REPLIES:
        _, deltas = reply(Model(tokens(*parts)), ChatOptions(**options))
        thought = answer = ""
        for delta in deltas:
            thought, answer = thought + delta.reasoning, answer + delta.content
            assert reasoning.startswith(thought) and content.startswith(answer)


def test_random_mixtures():
    """Against a parse of the whole: no order of markers, halves of characters and calls depends on the cuts."""
    draw = random.Random(7)
    words = ["</think>", "<|THINK_END|>", "\n", "<", "</", "a", "🙂", "STOP", "ST", *CALL, "<tool_call>", "<|SC|>"]
    for _ in range(100):
        ids = [i for part in draw.choices(words, k=draw.randint(0, 14)) for i in tokens(part)]
        ids = [i for i in ids if draw.random() > 0.1]  # breaks characters
        options = ChatOptions(tools=TOOLS, stop=("STOP", "a<"), logprobs=True)
        one, *others = (without_ids(reply(Model(list(ids), seed=seed), options)[0]) for seed in (None, 1, 2, 3, 4))
        assert all(other == one for other in others), TOKENIZER.decode(ids)


def test_raw_is_the_reply_as_the_model_wrote_it():
    parts = ["so\n</think>\n", "I ask.", *CALL, "<|EOT|>"]
    assert reply(Model(tokens(*parts)), ChatOptions(tools=TOOLS))[0].raw == "".join(parts[:-1])
    assert reply(Model(tokens("so</think>\nA STOP")), ChatOptions(stop=("STOP",)))[0].raw == "so</think>\nA "


def test_a_length_is_said_even_behind_a_call():
    ids = tokens("x\n</think>\n", *CALL, "and so on")
    whole, _ = reply(Model(ids), ChatOptions(Sampling(max_tokens=len(ids) - 1), tools=TOOLS))
    assert (len(whole.tool_calls), whole.finish_reason) == (1, "length")


def test_half_a_character_at_the_end_is_left_out():
    whole, _ = reply(Model([*tokens("a\n</think>\nb"), SMILE[0]]), ChatOptions(logprobs=True))
    assert (whole.content, whole.raw) == ("b", "a\n</think>\nb")
    assert whole.logprobs[-1].bytes == tuple(TOKENIZER.token_bytes([SMILE[0]]))


def test_logprobs():
    """Of every token with a text; the bytes of halves join up."""
    ids = [*tokens("a\n</think>"), *SMILE, *tokens("b", "<|SC|>", "STOP"), EOT]
    whole, _ = reply(Model(list(ids)), ChatOptions(logprobs=True))
    assert b"".join(map(bytes, (lp.bytes for lp in whole.logprobs))).decode() == "a\n</think>🙂bSTOP"
    assert [lp.logprob for lp in whole.logprobs] == [-i / 1000 for i in ids if i not in (EOT, ADDED["<|SC|>"])]
    assert "".join(lp.token for lp in whole.logprobs if lp.reasoning) == "a\n</think>"
    assert any("\ufffd" in lp.token for lp in whole.logprobs)
    stopped, _ = reply(Model(list(ids)), ChatOptions(logprobs=True, stop=("STOP",)))
    assert b"".join(map(bytes, (lp.bytes for lp in stopped.logprobs))).decode() == "a\n</think>🙂b"
    assert not reply(Model(list(ids)))[0].logprobs


def test_a_stop_string_ends_the_server_s_work():
    model = Model(tokens("a\n</think>\nb STOP and so on"))
    whole, _ = reply(model, ChatOptions(stop=("STOP",)))
    assert model.left_early == [True] and whole.finish_reason == "stop"
    assert whole.usage.completion_tokens == len(whole.token_ids) == len(tokens("a\n</think>\nb STOP"))


def test_usage():
    ids = tokens("so, so\n</think>\nFour.", "<|EOT|>")
    usage = reply(Model(ids))[0].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.audio_tokens) == (101, len(ids), 0)
    assert TOKENIZER.decode(ids[: usage.reasoning_tokens]).rstrip("\n") == "so, so\n</think>"
    assert reply(Model(tokens("Four.")), ChatOptions(thinking=OFF))[0].usage.reasoning_tokens == 0


# Leaving


async def test_leaving_ends_the_generation_at_once():
    model = Model(tokens("one two three four five six"))
    ended = []

    async def generate(request):
        try:
            async for each in model(request):
                yield each
        finally:
            ended.append(True)

    stream = ChatStream(generate, TOKENIZER, QUESTION, ChatOptions()).deltas()
    async with aclosing(stream):
        await anext(stream)
    assert ended == [True]


def test_words_that_are_not_to_be_drawn():
    """In every generation of the answer; the model's own ends are among them where it is not to end it."""
    ids = tokens("x\n</think>\n", "Four.")
    model = Model(ids[:1], ids[1:])
    reply(model, ChatOptions(bad_words=("猫",), ignore_eos=True, thinking=Thinking("on", 1)))
    words = [TOKENIZER.encode("猫"), TOKENIZER.encode(" 猫"), *([token] for token in TOKENIZER.special.stop_ids)]
    assert [request.bad_words for request in model.requests] == [words] * 2
    assert unpack_word_list(model.requests[0].inputs()["bad_words_list"][0]) == words
    model = Model(ids)
    reply(model)
    assert "bad_words_list" not in model.requests[0].inputs()


@pytest.mark.parametrize("form", [{"guide": Guide("json")}, {"tools": TOOLS, "tool_choice": "required"}])
def test_an_answer_in_a_form_ends_with_it(form):
    with pytest.raises(RequestError, match="ignore_eos: an answer"):
        reply(Model(), ChatOptions(ignore_eos=True, **form))
