"""Tool calls out of an answer, and whole replies, however they are cut."""

import json
import random

import pytest

from cuts import cuts
from step_audio.tokenizer import IncrementalDecoder, Tokenizer
from step_audio_client import Reply, ReplyParser, ToolCallParser, parse_reply
from tokenizer_fixture import build_json

NAMES = {"f", "get_weather"}


def call(name: str, arguments: str) -> str:
    return f"<tool_call>function\n{name}\n{arguments}</tool_call>"


F = call("f", "{}")
NESTED = call("f", '{"a": "<tool_call>"}')
ENDED = call("f", r'{"</tool_call>": "\"</tool_call></tool_call>\\\"</tool_call>"}')
OPEN = '<tool_call>function\nf\n{"a": "x</tool_call>'
TOO_DEEP = call("f", '{"a": ' + "[" * 100_000 + "}")

ANSWERS = {  # content: (what stays, calls)
    "": ("", []),
    "no call": ("no call", []),
    F: ("", [("f", "{}")]),
    F + F: ("", [("f", "{}")] * 2),
    f"before {F}\nbetween\n{F} after": ("before \nbetween\n after", [("f", "{}")] * 2),
    call("get_weather", '{"city": "北京",\n "days": [1]}'): ("", [("get_weather", '{"city": "北京",\n "days": [1]}')]),
    call(" f ", '\n {"a": 1} \n'): ("", [("f", '{"a": 1}')]),
    NESTED: ("", [("f", '{"a": "<tool_call>"}')]),
    F + ENDED + F: ("", [("f", "{}"), ("f", ENDED.split("\n")[2].removesuffix("</tool_call>")), ("f", "{}")]),
    # Given back as they are:
    OPEN: (OPEN, []),
    f"{OPEN} and {F}": (f"{OPEN} and ", [("f", "{}")]),
    "<tool_call>": ("<tool_call>", []),
    "a <tool_call>function\nf\n{}": ("a <tool_call>function\nf\n{}", []),
    "a <tool_call>function\nf\n{}</tool_call": ("a <tool_call>function\nf\n{}</tool_call", []),
    "x</tool_call>y": ("x</tool_call>y", []),
    "<tool_ca": ("<tool_ca", []),
    "a<b <tool> <tool_call": ("a<b <tool> <tool_call", []),
    call("unknown", "{}") + F: (call("unknown", "{}"), [("f", "{}")]),
    call("f", "{'a': 1}") + F: (call("f", "{'a': 1}"), [("f", "{}")]),
    **{
        call("f", bad): (call("f", bad), []) for bad in ("", "{", "[]", "null", "1", '{"a": NaN}', "{} {}", '{"a": 1}}')
    },
    call(" ", "{}"): (call(" ", "{}"), []),
    "<tool_call>function\nf</tool_call>": ("<tool_call>function\nf</tool_call>", []),
    "<tool_call>other\nf\n{}</tool_call>": ("<tool_call>other\nf\n{}</tool_call>", []),
    "<tool_call></tool_call>": ("<tool_call></tool_call>", []),
    # A call that begins inside what turned out to be none:
    "<tool_call>function\nf\n{" + F: ("<tool_call>function\nf\n{", [("f", "{}")]),
    f"write <tool_call> so: {F}": ("write <tool_call> so: ", [("f", "{}")]),
    f"<tool_call><tool_call>{F}": ("<tool_call><tool_call>", [("f", "{}")]),
}


def parse(pieces, names=NAMES):
    """What stays and the calls, indices and ids checked."""
    parser = ToolCallParser(names)
    content, calls = "", []
    for text, ended in [*map(parser.push, pieces), parser.flush()]:
        content += text
        calls += ended
    assert [c.index for c in calls] == list(range(len(calls)))
    assert len({c.id for c in calls}) == len(calls) and all(c.id.startswith("call_") for c in calls)
    return content, [(c.name, c.arguments) for c in calls]


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_way_of_cutting_gives_the_same(answer):
    for pieces in cuts(answer, seed=1):
        assert parse(pieces) == ANSWERS[answer], pieces


def test_random_mixtures_of_markers_and_their_parts():
    """One cutting against another, and the parts of the text against the whole of it."""
    draw = random.Random(2)
    words = ["<tool_call>", "</tool_call>", "function\n", "f\n", "{}", F, NESTED, "<", "tool_call>", "\n", "a", "{"]
    found = 0
    for _ in range(400):
        answer = "".join(draw.choices(words, k=draw.randint(0, 12)))
        content, calls = parse([answer])
        assert len(content) + sum(len(call(*each)) for each in calls) == len(answer)
        assert F not in content and NESTED not in content
        found += len(calls)
        for pieces in cuts(answer, seed=3, count=8):
            assert parse(pieces) == (content, calls), pieces
    assert found > 100


def test_any_name_passes_without_a_list_and_none_with_an_empty_one():
    assert parse([call("g", "{}")], None) == ("", [("g", "{}")])
    assert parse([call("g", "{}")], []) == (call("g", "{}"), [])
    assert parse([call(" ", "{}")], None) == (call(" ", "{}"), [])


def test_absurd_nesting_is_text():
    assert parse([TOO_DEEP]) == (TOO_DEEP, [])


def test_a_call_is_handed_out_with_its_last_character_and_other_text_at_once():
    parser = ToolCallParser()
    assert parser.push("so <b> <") == ("so <b> ", [])
    assert parser.push("tool_call>function\nf\n{}</tool_call") == ("", [])
    content, calls = parser.push("> and <tool_call>fun")
    assert (content, [c.name for c in calls]) == (" and ", ["f"])
    assert parser.push("ny") == ("<tool_call>funny", [])


def test_a_reply_with_everything():
    text = f"Sum: <tool_call>.\n</think>\n\nLet me see.\n{F}{call('get_weather', '{}')}\n"
    for pieces in cuts(text, seed=4):
        parser = ReplyParser(tool_names=NAMES)
        deltas = [*map(parser.push, pieces), parser.flush()]
        assert "".join(d.reasoning for d in deltas) == "Sum: <tool_call>."
        assert "".join(d.content for d in deltas) == "Let me see.\n\n"
        calls = [c for d in deltas for c in d.tool_calls]
        assert [(c.index, c.name, c.arguments) for c in calls] == [(0, "f", "{}"), (1, "get_weather", "{}")]
    reply = parse_reply(text, tool_names=NAMES)
    assert (reply.reasoning, reply.content) == ("Sum: <tool_call>.", "Let me see.\n\n")
    assert [c.name for c in reply.tool_calls] == ["f", "get_weather"]


@pytest.mark.parametrize(
    "text, starts_in_content, reply",
    [
        ("a\n</think>\nb", False, Reply("a", "b", ())),
        ("cut short\n<", False, Reply("cut short\n<", None, ())),
        ("\n</think>\nb", False, Reply(None, "b", ())),
        ("b", True, Reply(None, "b", ())),
        ("a\n</think>\n<tool_call>fun", False, Reply("a", "<tool_call>fun", ())),
        ("", False, Reply(None, None, ())),
    ],
)
def test_whole_replies(text, starts_in_content, reply):
    assert parse_reply(text, starts_in_content) == reply


def test_only_calls_leave_no_content():
    reply = parse_reply(f"a\n</think>\n{F}")
    assert reply.content is None and len(reply.tool_calls) == 1


def test_the_markers_survive_decoding():
    tokenizer = Tokenizer.from_json(build_json())
    arguments = json.dumps({"city": "北京 🙂"}, ensure_ascii=False)
    ids = [tokenizer.special.tool_call, *tokenizer.encode(f"function\nget_weather\n{arguments}")]
    ids += [tokenizer.special.tool_call_end]
    decoder = IncrementalDecoder(tokenizer)
    assert parse([decoder.push([id_]) for id_ in ids * 2]) == ("", [("get_weather", arguments)] * 2)
