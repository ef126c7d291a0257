"""Prompts: golden renders, audio's places, and what is refused."""

import json

import numpy as np
import pytest

from prompt_fixture import AUDIO, TOOL, TOOL_JSON, VOCAB_SIZE, spell, text
from step_audio.chat import MARKS, ClipInfo, build_prompt, count_text
from step_audio.chat_template import TEMPLATES, Control, load_template, render
from step_audio.conversation import MAX_CHARACTERS, Text, parse_conversation
from step_audio.errors import CheckpointError, InvalidRequest


def rendered(messages, tools=None, template="default", generate=True, resume=False) -> str:
    return spell(render(parse_conversation(messages, tools), template, generate, resume))


# Golden renders, by hand from the format's description.

USER = {"role": "user", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "wetter", "arguments": {"stadt": "Köln", "n": 1}}}
DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]
HISTORY = [USER, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
GENERATE = "<|BOT|>assistant\n<think>\n"
SAME_IN_BOTH = [
    ([USER], "<|BOT|>human\na<|EOT|>"),
    ([{"role": "system", "content": "s"}, USER], "<|BOT|>system\ns<|EOT|><|BOT|>human\na<|EOT|>"),
    ([USER, {"role": "system", "content": "s"}], "<|BOT|>human\na<|EOT|><|BOT|>system\ns<|EOT|>"),
    ([{"role": "human", "content": "a"}], "<|BOT|>human\na<|EOT|>"),
    ([{"role": "input", "content": "a"}], "<|BOT|>input\na<|EOT|>"),
    ([{"role": "observer", "content": ""}], "<|BOT|>observer\n<|EOT|>"),
    ([{"role": "user", "content": [text("t"), AUDIO]}], "<|BOT|>human\nt\n<audio_patch><|EOT|>"),
    ([{"role": "user", "content": [AUDIO, text("t")]}], "<|BOT|>human\n<audio_patch>t<|EOT|>"),
    ([{"role": "user", "content": [AUDIO, AUDIO, text("t")]}], "<|BOT|>human\n<audio_patch><audio_patch>t<|EOT|>"),
    ([{"role": "user", "content": [text("t"), text("u")]}], "<|BOT|>human\nt\nu<|EOT|>"),
    ([{"role": "user", "content": [AUDIO, text("\nt")]}], "<|BOT|>human\n<audio_patch>\nt<|EOT|>"),
    ([{"role": "user", "content": {"type": "text", "text": "t"}}], "<|BOT|>human\nt<|EOT|>"),
    ([{"role": "user", "content": {"value": "v", "text": "t"}}], "<|BOT|>human\nv<|EOT|>"),
    ([{"role": "user", "content": [{"type": "text", "value": "v"}]}], "<|BOT|>human\nv<|EOT|>"),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("messages, expected", SAME_IN_BOTH)
def test_turns_that_both_templates_write_alike(template, messages, expected):
    assert rendered(messages, template=template) == expected + GENERATE
    assert rendered(messages, template=template, generate=False) == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_tools_with_a_system_message(template):
    expected = (
        f"<|BOT|>system\ns<|EOT|><|BOT|>tool_json_schemas\n[{TOOL_JSON}, {TOOL_JSON}]<|EOT|><|BOT|>human\na<|EOT|>"
    )
    messages = [{"role": "system", "content": "s"}, USER]
    assert rendered(messages, [TOOL, TOOL], template) == expected + GENERATE
    assert rendered(json.dumps(messages), json.dumps([TOOL, TOOL]).encode(), template) == expected + GENERATE


def test_fault_one_assistant_turns_are_closed():
    closed = "<|BOT|>human\na<|EOT|><|BOT|>assistant\nb<|EOT|><|BOT|>human\nc<|EOT|>"
    assert rendered(HISTORY) == closed + GENERATE
    assert rendered(HISTORY, template="published") == closed.replace("b<|EOT|>", "b") + GENERATE
    assert rendered(HISTORY[:2], generate=False) == "<|BOT|>human\na<|EOT|><|BOT|>assistant\nb<|EOT|>"
    assert rendered(HISTORY[:2]) == "<|BOT|>human\na<|EOT|><|BOT|>assistant\nb<|EOT|>" + GENERATE


def test_fault_two_tools_without_a_system_message_leave_nothing_open():
    schemas = f"<|BOT|>tool_json_schemas\n[{TOOL_JSON}]<|EOT|><|BOT|>human\na<|EOT|>{GENERATE}"
    assert rendered([USER], [TOOL]) == schemas
    assert rendered([USER], [TOOL], "published") == "<|BOT|>system\n" + schemas


def test_tool_calls_and_results():
    messages = [
        USER,
        {"role": "assistant", "content": "x", "tool_calls": [CALL, {"function": {"name": "f", "arguments": "{ }"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "12 °C"},
        {"role": "tool", "tool_call_id": "unknown", "content": "1"},
        {"role": "tool", "name": "g", "content": "2"},
        {"role": "function", "name": "h", "content": "3"},
        {"role": "function_output", "content": "4"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "bare"}}]},
    ]
    assert rendered(messages, generate=False) == (
        "<|BOT|>human\na<|EOT|>"
        '<|BOT|>assistant\nx<tool_call>function\nwetter\n{"stadt": "Köln", "n": 1}</tool_call>'
        "<tool_call>function\nf\n{ }</tool_call><|EOT|>"
        "<|BOT|>function_output\nwetter\n12 °C<|EOT|>"
        "<|BOT|>function_output\ntool\n1<|EOT|>"
        "<|BOT|>function_output\ng\n2<|EOT|>"
        "<|BOT|>function_output\nh\n3<|EOT|>"
        "<|BOT|>input\n4<|EOT|>"
        "<|BOT|>assistant\n<tool_call>function\nbare\n{}</tool_call><|EOT|>"
    )
    assert rendered(messages, template="published", generate=False) == (
        "<|BOT|>human\na<|EOT|><|BOT|>assistant\nx<|BOT|>tool\n12 °C<|EOT|><|BOT|>tool\n1<|EOT|><|BOT|>tool\n2<|EOT|>"
        "<|BOT|>function\n3<|EOT|><|BOT|>assistant\n"
    )
    segments = render(parse_conversation(messages), "default", False)
    assert segments.count(Control("<tool_call>")) == segments.count(Control("</tool_call>")) == 3


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("prefix", ["<think>\n", "", " Okay,\n\n", "<think>\n\n</think>\n", "<|EOT|>"])
def test_the_final_message_is_continued_exactly(template, prefix, tokenizer):
    conversation = parse_conversation([*HISTORY, {"role": "assistant", "content": prefix, "eot": False}])
    segments = render(conversation, template, False, True)
    assert segments[-1] == Text("assistant\n" + prefix)
    prompt = build_prompt(conversation, tokenizer, VOCAB_SIZE, [], template, False, True)
    assert prompt.input_ids.tolist()[-len(tokenizer.encode("assistant\n" + prefix)) :] == tokenizer.encode(
        "assistant\n" + prefix
    )


def test_continuing_a_think_tag_is_the_generation_prompt(tokenizer):
    generated = build_prompt(parse_conversation(HISTORY), tokenizer, VOCAB_SIZE, [])
    resumed = parse_conversation([*HISTORY, {"role": "assistant", "content": "<think>\n"}])
    resumed = build_prompt(resumed, tokenizer, VOCAB_SIZE, [], "default", False, True)
    assert generated.input_ids.tolist() == resumed.input_ids.tolist()


# Audio.


def test_clips_become_rows_of_one_table(tokenizer):
    conversation = parse_conversation([{"role": "user", "content": [text("t"), AUDIO, AUDIO, text("u")]}])
    assert conversation.audio_count == 2
    clips = [[ClipInfo(3, 2**64 - 1), ClipInfo(1, 7)], [ClipInfo(2, 8)]]
    prompt = build_prompt(conversation, tokenizer, VOCAB_SIZE, clips)
    special, encode = tokenizer.special, tokenizer.encode
    start, end = special.audio_start, special.audio_end
    v = VOCAB_SIZE
    head = [special.bot, *encode("human\nt\n")]
    tail = [*encode("u"), special.eot, special.bot, *encode("assistant\n<think>\n")]
    audio = [start, v, v + 1, v + 2, end, start, v + 3, end, start, v + 4, v + 5, end]
    hashes = [0, *[2**64 - 1] * 3, 0, 0, 7, 0, 0, 8, 8, 0]
    assert prompt.input_ids.dtype == np.int32 and prompt.input_ids.tolist() == head + audio + tail
    assert prompt.extra_ids.dtype == np.uint64
    assert prompt.extra_ids.tolist() == [0] * len(head) + hashes + [0] * len(tail)
    assert prompt.audio_tokens == 6


def test_audio_counts_must_agree(tokenizer):
    conversation = parse_conversation([{"role": "user", "content": [AUDIO, AUDIO]}])
    with pytest.raises(InvalidRequest, match="2 audio parts but the request brings 1 audios"):
        build_prompt(conversation, tokenizer, VOCAB_SIZE, [[ClipInfo(1, 1)]])
    dropped = parse_conversation([USER, {"role": "function_output", "content": [AUDIO]}])
    with pytest.raises(InvalidRequest, match="published shows 0 of 1 audio parts"):
        build_prompt(dropped, tokenizer, VOCAB_SIZE, [[ClipInfo(1, 1)]], "published")


def test_the_tokenizer_must_fit_the_embedding(tokenizer):
    with pytest.raises(CheckpointError, match="different checkpoints"):
        build_prompt(parse_conversation([USER]), tokenizer, tokenizer.max_id, [])


# Errors.


@pytest.mark.parametrize(
    "messages, message",
    [
        ("[", "messages is not valid JSON"),
        (b"\xff", "messages is not valid JSON"),
        ('[{"role": "user", "content": NaN}]', "NaN is not JSON"),
        ("[" * 100_000, "messages and tools are nested too deeply"),
        ([{"role": DEEP}], "messages and tools are nested too deeply"),
        ([{"role": "user", "content": [{"type": DEEP}]}], "messages and tools are nested too deeply"),
        ("{}", "messages must be a list"),
        (None, "messages must be a list"),
        ([], "messages is empty"),
        ([USER, 5], r"messages\[1\] must be an object"),
        ([{"content": "a"}], r"messages\[0\]: unknown role None; use one of system, user"),
        (
            [USER, USER, {"role": "<|EOT|>" * 99, "content": ""}],
            r"messages\[2\]: unknown role '<\|EOT\|>.{,60}\.\.\.; use",
        ),
        ([{"role": ["user"], "content": "a"}], r"messages\[0\]: unknown role \['user'\]"),
        ([{"role": "user"}], r"messages\[0\]\.content must be a string or a non-empty list"),
        ([{"role": "assistant", "content": None}], r"messages\[0\]\.content must be a string"),
        ([{"role": "user", "content": []}], r"messages\[0\]\.content must be a string or a non-empty list"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be"),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\]\.content\[0\]: unknown part type None"),
        (
            [{"role": "user", "content": [AUDIO, {"type": "video"}]}],
            r"content\[1\]: unknown part type 'video'; use text",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]\.content\[0\]\.text must be a string"),
        ([{"role": "user", "content": {"value": 1, "text": "a"}}], r"messages\[0\]\.content\.value must be a string"),
        ([{"role": "tool", "content": "a", "name": 5}], r"messages\[0\]\.name must be a string"),
        ([{"role": "tool", "content": "a", "tool_call_id": 5}], r"messages\[0\]\.tool_call_id must be a string"),
        ([{"role": "assistant", "tool_calls": 5}], r"messages\[0\]\.tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [5]}], r"messages\[0\]\.tool_calls\[0\] must be an object"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}],
            r"function\.name must be a non-empty string",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
            r"tool_calls\[0\]\.function\.arguments must be a JSON string or an object",
        ),
        (
            [{"role": "user", "content": "a" * (MAX_CHARACTERS + 1)}],
            "hold 1048577 characters, at most 1048576",
        ),
        ([USER] * 4097, "hold 4097 items, at most 4096"),
        ([{"role": "user", "content": [AUDIO] * 4096}], "hold 4097 items, at most 4096"),
        ([{"role": "assistant", "tool_calls": [CALL] * 4096}], "hold 4097 items, at most 4096"),
        ('"' + "a" * 8 * MAX_CHARACTERS + '"', "messages is too long"),
    ],
)
def test_malformed_messages(messages, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_conversation(messages)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tools, message",
    [
        ([{"a": DEEP}], "messages and tools are nested too deeply"),
        ("{", "tools is not valid JSON"),
        ({}, "tools must be a list"),
        ("null", "tools must be a list"),
        ([TOOL, "x"], r"tools\[1\] must be an object"),
        ([{"a": float("inf")}], r"tools\[0\] cannot be written as JSON"),
        ([{"a": b""}], r"tools\[0\] cannot be written as JSON"),
        ([{}] * 4096, "hold 4097 items, at most 4096"),
        ([{"description": "a" * MAX_CHARACTERS}], "at most 1048576"),
    ],
)
def test_malformed_tools(tools, message):
    with pytest.raises(InvalidRequest, match=message):
        parse_conversation([USER], tools)


@pytest.mark.parametrize("nothing", [None, "", b"", [], "[]"])
def test_no_tools(nothing):
    assert parse_conversation([USER], nothing).tools == ()


def test_what_cannot_be_continued():
    assistant = {"role": "assistant", "content": "b"}
    with pytest.raises(InvalidRequest, match="add_generation_prompt to be false"):
        render(parse_conversation([assistant]), "default", True, True)
    for last in (USER, {**assistant, "tool_calls": [CALL]}):
        with pytest.raises(InvalidRequest, match="last message to be an assistant's"):
            render(parse_conversation([assistant, last]), "default", False, True)


@pytest.mark.parametrize("template", ["default", "published"])
@pytest.mark.parametrize("proceed", [False, True])
def test_text_is_counted_without_knowing_the_clips(tokenizer, template, proceed):
    messages = [
        {"role": "user", "content": [AUDIO, {"type": "text", "text": "between"}, AUDIO]},
        {"role": "assistant", "content": "It is"},
    ]
    conversation = parse_conversation(messages, [{"type": "function", "function": {"name": "f"}}])
    clips = [[ClipInfo(3, 7), ClipInfo(2, 8)], [ClipInfo(5, 9)]]
    prompt = build_prompt(conversation, tokenizer, VOCAB_SIZE, clips, template, not proceed, proceed)
    counted = count_text(conversation, tokenizer, VOCAB_SIZE, load_template(template), not proceed, proceed)
    assert counted == len(prompt.input_ids) - prompt.audio_tokens - 3 * MARKS
