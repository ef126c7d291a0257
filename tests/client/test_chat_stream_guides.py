"""Answers in a form, calls of named tools, speech: what is asked of the server, and what becomes of its tokens."""

from __future__ import annotations

import json

import pytest

from chat_stream_fixture import ADDED, CALL, OFF, QUESTION, SMILE, TOOLS, Model, reply, tokens
from fake_triton import TOKENIZER
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatOptions, Guide, InvalidGuide, RequestError, Sampling, Thinking, TtsContent

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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("input 'guided_decoding_guide_type' needs what is not there", "input '{}' needs what is not there"),
        ("guided_decoding_guide cannot be used as json: x", "{} cannot be used as json: x"),
        ("the served LLM is not set up for guided decoding", "{}: the served LLM is not set up for guided decoding"),
    ],
)
def test_a_guide_that_is_refused_is_called_by_the_caller_s_name(said, told):
    class Poor(Model):
        async def __call__(self, request):
            raise InvalidGuide(said)
            yield

    for name, options in (
        ("guide", ChatOptions(guide=Guide("json"), thinking=OFF)),
        ("tool_choice", ChatOptions(tools=TOOLS, tool_choice="required", thinking=OFF)),
    ):
        with pytest.raises(InvalidGuide) as caught:
            reply(Poor(), options)
        assert (str(caught.value), caught.value.param) == (told.format(name), name)


@pytest.mark.parametrize(
    "options, words, param",
    [
        ({"tool_choice": "required"}, "needs tools", "tool_choice"),
        ({"tool_choice": "nobody", "tools": TOOLS}, "'nobody' is none of the tools", "tool_choice"),
        ({"tool_choice": "required", "tools": TOOLS, "guide": Guide("json")}, "contradict", "tool_choice"),
        ({"tools": ({"type": "function"},)}, r"tools\[0\] has no function with a name", "tools[0]"),
        ({"guide": Guide("regex")}, "guide: regex without a text", "guide"),
        ({"guide": Guide("regex", name="guided_regex")}, "guided_regex: regex without a text", "guided_regex"),
        ({"thinking": Thinking(budget=-1)}, "budget", "thinking"),
        ({"thinking": Thinking("off", budget=3)}, "budget", "thinking"),
        ({"stop": ("a", "")}, "stop", "stop"),
        ({"bad_words": ("",)}, "bad_words", "bad_words"),
        ({"ignore_eos": True, "guide": Guide("json")}, "ignore_eos", "ignore_eos"),
    ],
)
def test_options_that_do_not_fit(options, words, param):
    model = Model()
    with pytest.raises(RequestError, match=words) as caught:
        reply(model, ChatOptions(**options))
    assert caught.value.param == param
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
