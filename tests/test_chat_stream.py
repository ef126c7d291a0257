"""Replies made of tokens: the same whatever the cuts; what is asked of the server, and when it is stopped."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import aclosing

import pytest

from fake_triton import EOT, TOKENIZER
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatDelta, ChatOptions, Guide, RequestError, Sampling, Thinking, TtsContent
from step_audio_client.chat_stream import ChatStream
from step_audio_client.tokens import Tokens

ADDED = TOKENIZER.added_tokens
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "title": name}}}
    for name in ("get_time", "get-weather")
)
QUESTION = [{"role": "user", "content": "What?"}]
OFF = Thinking("off")


def tokens(*parts: str, seed: int | None = None) -> list[int]:
    """Ids of the parts; a part that names an added token is it. `seed`: texts in random pieces, as no encoder does."""
    draw, ids = random.Random(seed), []
    for part in parts:
        if part in ADDED:
            ids.append(ADDED[part])
            continue
        cut = 0 if seed is None else draw.randint(0, len(part))
        ids += TOKENIZER.encode(part[:cut]) + TOKENIZER.encode(part[cut:])
    return ids


class Model:
    """Says its lines, one a generation, in pieces of random sizes; keeps what was asked of it."""

    def __init__(self, *lines: list[int], seed: int | None = None):
        self.lines = list(lines)
        self.draw = random.Random(seed)
        self.one_by_one = seed is None
        self.requests = []
        self.left_early: list[bool] = []

    async def __call__(self, request):
        self.requests.append(request)
        self.left_early.append(True)
        line, most = self.lines.pop(0), request.sampling.max_tokens
        reason = "stop" if most is None or len(line) < most or line[most - 1] == EOT else "length"
        line = line[:most]
        at = 0
        while at < len(line):
            size = 1 if self.one_by_one else self.draw.randint(0, 7)
            piece = line[at : at + size]
            at += size
            logprobs = [-token / 1000 for token in piece] if request.sampling.logprobs else []
            final = at >= len(line) and self.draw.random() < 0.5
            self.left_early[-1] = not final
            yield Tokens(piece, logprobs, 100 + len(self.requests), reason if final else None)
            if final:
                return
        self.left_early[-1] = False
        yield Tokens([], [], 100 + len(self.requests), reason)  # the end may come alone


def reply(
    model: Model, options: ChatOptions | None = None, messages=QUESTION, tokenizer: Tokenizer = TOKENIZER
) -> tuple[ChatDelta, list[ChatDelta]]:
    """The deltas, and all of them in one."""

    async def collect():
        return [d async for d in ChatStream(model, tokenizer, messages, options or ChatOptions()).deltas()]

    deltas = asyncio.run(collect())
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1) and deltas[-1].usage
    heard = [d.tts for d in deltas if d.tts]
    whole = ChatDelta(
        **{name: "".join(getattr(d, name) for d in deltas) for name in ("reasoning", "content", "raw")},
        **{
            name: tuple(x for d in deltas for x in getattr(d, name)) for name in ("tool_calls", "logprobs", "token_ids")
        },
        tts=TtsContent("".join(h.text for h in heard), "".join(h.audio for h in heard)) if heard else None,
        finish_reason=deltas[-1].finish_reason,
        usage=deltas[-1].usage,
    )
    return whole, deltas


def without_ids(whole: ChatDelta):
    return whole.__class__(**{**vars(whole), "tool_calls": tuple((c.name, c.arguments) for c in whole.tool_calls)})


CALL = ["<tool_call>", 'function\nget_time\n{"tz": "猫"}', "</tool_call>"]
SMILE = TOKENIZER.encode("🙂")
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


# Thinking


def test_thinking_off_is_a_prefill():
    model = Model(tokens("Yes"))
    reply(model, ChatOptions(thinking=OFF))
    (request,) = model.requests
    assert request.messages == [*QUESTION, {"role": "assistant", "content": "<think>\n\n</think>\n"}]
    assert request.continue_final_message


@pytest.mark.parametrize(
    "own, sent",
    [
        ("The", "<think>\n\n</think>\nThe"),
        ("<think>\n", "<think>\n\n</think>\n"),
        ("<think>\nWell,\n", "<think>\nWell,\n</think>\n"),
        ("<think>\nWell.\n</think>\nThe", "<think>\nWell.\n</think>\nThe"),
    ],
)
def test_thinking_off_closes_the_thought_of_a_prefill(own, sent):
    model = Model(tokens("Yes"))
    messages = [*QUESTION, {"role": "assistant", "content": own}]
    whole, _ = reply(model, ChatOptions(thinking=OFF, continue_final_message=True), messages)
    assert (whole.reasoning, whole.content) == ("", "Yes")
    assert model.requests[0].messages[-1]["content"] == sent


def test_a_prefill_with_a_recording_is_refused():
    messages = [*QUESTION, {"role": "assistant", "content": [{"type": "audio"}, {"type": "text", "text": "So"}]}]
    with pytest.raises(RequestError, match="holds more than text"):
        reply(Model(), ChatOptions(continue_final_message=True), messages)


def test_a_prefill_of_the_caller_decides():
    messages = [*QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "<think>\n"}], "eot": False}]
    model = Model(tokens("hm\n</think>\nYes"))
    whole, _ = reply(model, ChatOptions(continue_final_message=True), messages)
    assert (whole.reasoning, whole.content) == ("hm", "Yes")
    assert model.requests[0].messages[-1] == {"role": "assistant", "content": "<think>\n", "eot": False}


THOUGHT = tokens("one two three four")


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("own", [None, "<think>\nOkay,\n"])
def test_a_budget_closes_the_thought(seed, own):
    messages = QUESTION if own is None else [*QUESTION, {"role": "assistant", "content": own}]
    model = Model([*THOUGHT, *THOUGHT], tokens("Yes.", "<|EOT|>"), seed=seed)
    sampling = Sampling(max_tokens=50, min_tokens=5, seed=9)
    budget = len(THOUGHT) + 1
    options = ChatOptions(sampling, thinking=Thinking(budget=budget), continue_final_message=own is not None)
    whole, _ = reply(model, options, messages)
    thought = TOKENIZER.decode([*THOUGHT, THOUGHT[0]])
    assert (whole.reasoning, whole.content) == (thought, "Yes.")
    assert whole.raw == f"{thought}\n</think>\nYes."
    first, second = model.requests
    assert model.left_early == [True, False]
    assert second.messages == [
        *QUESTION, {"role": "assistant", "content": f"{own or '<think>' + chr(10)}{thought}\n</think>\n"},
    ]  # fmt: skip
    assert second.continue_final_message and (second.sampling.max_tokens, second.sampling.min_tokens) == (
        50 - budget,
        0,
    )
    assert first.sampling.max_tokens == 50 and second.sampling.seed == 9
    usage = whole.usage
    assert (usage.prompt_tokens, usage.reasoning_tokens) == (101, budget)
    assert usage.completion_tokens == budget + len(tokens("Yes.", "<|EOT|>")) == len(whole.token_ids)


def test_a_thought_within_its_budget_is_one_generation():
    model = Model(tokens("so\n</think>\nA long answer, longer than the budget"))
    whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=8)))
    assert len(model.requests) == 1 and whole.content.endswith("budget")


def test_a_budget_that_ends_inside_the_marker_or_a_character():
    for tail in ("\n</thi", "\n\n"):
        ids = [*THOUGHT, *tokens(tail)]
        model = Model([*ids, *THOUGHT], tokens("Yes"))
        whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=len(ids))))
        assert (whole.reasoning, whole.content) == ("one two three four", "Yes")
        assert model.requests[1].messages[-1]["content"] == "<think>\none two three four\n</think>\n"
    model = Model([*THOUGHT, *SMILE], tokens("Yes"))
    whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=len(THOUGHT) + 1)))
    assert (whole.reasoning, whole.content) == ("one two three four", "Yes")


def test_budgets_at_the_edges():
    model = Model(tokens("Yes"))
    assert reply(model, ChatOptions(thinking=Thinking(budget=0)))[0].content == "Yes"
    assert model.requests[0].messages[-1]["content"] == "<think>\n\n</think>\n"
    model = Model(list(THOUGHT))  # as many tokens as may be made at all: no answer will fit
    whole, _ = reply(model, ChatOptions(Sampling(max_tokens=4), thinking=Thinking(budget=4)))
    assert (len(model.requests), whole.finish_reason, whole.content) == (1, "length", "")
    assert "</think>" not in whole.raw
    model = Model([*THOUGHT[:3], EOT])  # the model itself gave up
    whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=20)))
    assert (len(model.requests), whole.finish_reason) == (1, "stop")


# Forms


@pytest.mark.parametrize("end", [["\n</think>\n"], ["</think>", '{"b"'], ["<|THINK_END|>"], ["<|EOT|>"]])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_guide_begins_after_the_thought(end, seed):
    """Whatever the first generation says of an answer is dropped; a thought without an end gets an answer too."""
    guide = Guide("json_schema", "{}")
    model = Model(tokens("so", *end), tokens('{"a": 1}', "<|EOT|>"), seed=seed)
    whole, _ = reply(model, ChatOptions(guide=guide, logprobs=True))
    assert (whole.reasoning, whole.content, whole.finish_reason) == ("so", '{"a": 1}', "stop")
    assert [request.guide for request in model.requests] == [None, guide]
    assert model.requests[1].messages[-1]["content"] == "<think>\nso\n</think>\n"
    assert whole.raw.endswith('\n{"a": 1}') and whole.raw.count("{") == 1


def test_a_token_of_thought_and_answer():
    """`>The`: what it has of the answer is shown where the answer goes on, and dropped where it is made anew."""
    merged = Tokenizer.from_json(TOKENIZER.to_json().replace("<|fim_pad|>", ">The"))
    ids = [*tokens("so\n</think"), merged.added_tokens[">The"]]
    assert reply(Model(list(ids)), tokenizer=merged)[0].content == "The"
    whole, _ = reply(Model(list(ids), tokens("{}")), ChatOptions(guide=Guide("json")), tokenizer=merged)
    assert (whole.content, whole.raw) == ("{}", "so\n</think>\n{}")


def test_a_guide_without_a_thought_is_one_generation():
    model = Model(tokens("{}"))
    assert reply(model, ChatOptions(guide=Guide("json"), thinking=OFF))[0].content == "{}"
    assert [request.guide for request in model.requests] == [Guide("json")]


def test_a_thought_that_took_all_room_has_no_answer():
    model = Model(tokens("so\n</think>\n{"))
    most = len(tokens("so\n</think>"))
    whole, _ = reply(model, ChatOptions(Sampling(max_tokens=most), guide=Guide("json")))
    assert (whole.finish_reason, whole.content, len(model.requests)) == ("length", "", 1)


HEAD = "<think>\nso\n</think>\n<tool_call>function\n"


def test_a_named_tool():
    model = Model(tokens("so\n</think>\nI"), tokens('{"tz": 1}', "<|EOT|>"))
    options = ChatOptions(tools=TOOLS, tool_choice="get-weather", stop=("tz",))
    whole, _ = reply(model, options)
    (call,) = whole.tool_calls
    assert (call.name, call.arguments, whole.content, whole.finish_reason) == (
        "get-weather", '{"tz": 1}', "", "tool_calls",
    )  # fmt: skip
    assert whole.raw == 'so\n</think>\n<tool_call>function\nget-weather\n{"tz": 1}</tool_call>'
    assert model.requests[1].messages[-1]["content"] == f"{HEAD}get-weather\n"
    assert json.loads(model.requests[1].guide.text) == TOOLS[1]["function"]["parameters"]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_required_tool_is_chosen_by_the_model(seed):
    model = Model(tokens("so\n</think>\n"), tokens("get_time", "<|EOT|>"), tokens("{}", "<|EOT|>"), seed=seed)
    whole, _ = reply(model, ChatOptions(tools=TOOLS, tool_choice="required"))
    assert [(c.name, c.arguments) for c in whole.tool_calls] == [("get_time", "{}")]
    assert model.requests[1].guide == Guide("regex", "(get_time|get-weather)")
    assert [r.messages[-1]["content"] for r in model.requests[1:]] == [HEAD, f"{HEAD}get_time\n"]
    assert whole.usage.completion_tokens == len(whole.token_ids)


def test_a_wanted_call_that_is_cut_short_is_handed_out_as_far_as_it_came():
    model = Model(tokens('{"tz": 1}'))
    whole, _ = reply(model, ChatOptions(Sampling(max_tokens=2), tools=TOOLS, tool_choice="get_time", thinking=OFF))
    (call,) = whole.tool_calls
    assert (call.name, whole.content, whole.finish_reason) == ("get_time", "", "length")
    assert '{"tz": 1}'.startswith(call.arguments) and call.arguments


def test_of_several_tools_one_may_have_no_name_yet():
    model = Model(tokens("get"))
    whole, _ = reply(model, ChatOptions(Sampling(max_tokens=1), tools=TOOLS, tool_choice="required", thinking=OFF))
    assert (whole.tool_calls, whole.content, whole.finish_reason) == ((), "", "length")


def test_one_call_at_a_time():
    """The server's work ends with the first."""
    parts = ["x\n</think>\n", *CALL, *CALL, "<|EOT|>"]
    for seed in (None, 1, 2, 3):
        whole, _ = reply(Model(tokens(*parts), seed=seed), ChatOptions(tools=TOOLS, parallel_tool_calls=False))
        assert (len(whole.tool_calls), whole.content, whole.finish_reason) == (1, "", "tool_calls")


def test_a_server_without_guides_is_named():
    class Poor(Model):
        async def __call__(self, request):
            raise RequestError("input 'guided_decoding_guide_type' needs what is not there")
            yield

    for name, options in (
        ("guide", ChatOptions(guide=Guide("json"), thinking=OFF)),
        ("tool_choice", ChatOptions(tools=TOOLS, tool_choice="required", thinking=OFF)),
    ):
        with pytest.raises(RequestError, match=f"^{name}: input 'guided_decoding_guide_type' needs"):
            reply(Poor(), options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tool_choice": "required"}, "needs tools"),
        ({"tool_choice": "nobody", "tools": TOOLS}, "'nobody' is none of the tools"),
        ({"tool_choice": "required", "tools": TOOLS, "guide": Guide("json")}, "contradict"),
        ({"tools": ({"type": "function"},)}, r"tools\[0\] has no function with a name"),
        ({"guide": Guide("regex")}, "guide: regex without a text"),
        ({"thinking": Thinking(budget=-1)}, "budget"),
        ({"thinking": Thinking("off", budget=3)}, "budget"),
        ({"stop": ("a", "")}, "stop"),
    ],
)
def test_options_that_do_not_fit(options, words):
    model = Model()
    with pytest.raises(RequestError, match=words):
        reply(model, ChatOptions(**options))
    assert not model.requests


# Speech


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("skip", [True, False])
def test_speech(seed, skip):
    messages = [*QUESTION, {"role": "assistant", "content": "<think>\nso\n</think>\n\n<tts_start>"}]
    sound = [ADDED["<audio_1>"], ADDED["<audio_2>"]]
    ids = [
        *tokens("Hi"),
        *sound,
        SMILE[0],
        *sound,
        *SMILE[1:],
        *tokens("<tts_pad>", "<audio_6561>", "<tts_end>", "bye"),
    ]
    model = Model(ids, seed=seed)
    options = ChatOptions(continue_final_message=True, skip_special_tokens=skip, logprobs=True)
    whole, deltas = reply(model, options, messages)
    assert whole.tts == TtsContent("Hi🙂", "<audio_1><audio_2>" * 2)
    assert (whole.content, whole.reasoning, whole.usage.reasoning_tokens) == ("bye", "", 0)
    assert ("<tts_pad>" in whole.raw) is not skip and all("\ufffd" not in d.raw for d in deltas)
    assert not [d for d in deltas if "<" in d.content]


def test_speech_only_behind_its_mark():
    whole, _ = reply(Model(tokens("so\n</think>\n", "<tts_start>", "Hi", "<audio_1>")))
    assert (whole.tts, whole.content) == (None, "Hi")


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
