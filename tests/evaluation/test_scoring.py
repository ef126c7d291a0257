"""What an answer is worth."""

from fractions import Fraction

import pytest

from evaluation_fixture import item
from step_audio.chat_template import NO_THOUGHT
from step_audio_client import Reply, ToolCall
from step_audio_evaluation.numbers import stated_number
from step_audio_evaluation.scoring import (
    Score,
    chosen_option,
    is_call,
    is_json,
    is_number,
    is_word,
    normalised_words,
    score,
    word_errors,
)  # fmt: skip


def reply(content, *calls) -> Reply:
    return Reply("hm", content, tuple(ToolCall(n, "c", *call) for n, call in enumerate(calls)))


# -- scores


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("47 minus 38 is 9.", "9"), ("47-38=9", "9"), ("it is -4", "-4"), ("it is \N{MINUS SIGN}4", "-4"),
        ("1,234,567 apples", "1234567"), ("2.50", "2.5"), ("5, then 6", "6"), ("about 50 %", "50"), ("a1 b2", None),
        ("none", None), ("", None), ("(12)", "12"), ("the 3rd of 4.", "4"), ("$18.00.", "18"),
        ("1.5 million", "1500000"),
        (r"thus \boxed{42}, not 41", "42"), (r"\boxed{\frac{3}{4}}", "3/4"), (r"$$\boxed{\text{nine}}$$", "9"),
        (r"\boxed{", None), ("The answer is 12, since 5 + 7 = 12 and 3 are left", "12"), ("**Answer:** 18 of 20", "18"),
        ("The answer is 5 + 7 = 12.", "12"), ("The answer is 9. No: the answer is 12. Why? 3.", "12"),
        ("the answer is not 9 but 12", "12"), ("It is 12, not 9", "12"), ("answer = 7", "7"),
        ("The answer is twenty-one.", "21"), ("Nine.", "9"), ("There are nine apples.", "9"), ("forty two", "42"),
        ("one hundred and five", "105"), ("two thousand three hundred and forty two", "2342"), ("minus four", "-4"),
        ("the answer is two thirds", "2/3"), ("It is 3/4 of it", "3/4"), ("1 1/2", "3/2"), ("I get 12 / 4 = 3", "3"),
        ("No one knows.", None), ("I heard seven eight", None), ("Someone has two of them", None),
    ],
)  # fmt: skip
def test_stated_number(text, number):
    assert stated_number(text) == (None if number is None else Fraction(number))


def test_numbers_are_compared_by_value():
    assert is_number("9.0", "9") and is_number("1,000", "1000") and not is_number("90", "9")
    assert is_number("nine", "9") and is_number("0.75", "3/4") and not is_number("ninety", "9")
    assert not is_number("I do not know", "9")


def test_word():
    options = ("rising", "falling", "steady")
    assert is_word("The tone is Falling!", "falling", options)
    assert not is_word("rising or falling", "falling", options)
    assert not is_word("It falls", "falling", options)
    assert not is_word("", "falling", options)
    assert is_word("Monday.", "Monday", ("Monday", "Tuesday"))


def test_words_and_errors():
    assert normalised_words("Don\N{RIGHT SINGLE QUOTATION MARK}t -- STOP, me\nnow.") == ["don't", "stop", "me", "now"]
    for first, second, errors in [
        ("a b c", "a b c", 0), ("a b c", "", 3), ("", "a", 1), ("a b c d", "a x c", 2), ("a b", "b a", 2),
        ("a b c", "x a b c", 1),
    ]:  # fmt: skip
        assert word_errors(first.split(), second.split()) == errors == word_errors(second.split(), first.split())


def test_json():
    assert is_json('{"b": [1], "a": "x"}\n', {"a": "x", "b": [1]})
    for text in ('{"a": "x"}', '{"a": "x", "b": ["1"]}', 'Here: {"a": "x", "b": [1]}', "", "{"):
        assert not is_json(text, {"a": "x", "b": [1]})


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([("calculator", '{"expression": "519*455"}')], True),
        ([("calculator", '{"expression": " 519 * 455"}')], True),
        ([("calculator", '{"expression": "519*45"}')], False),
        ([("clock", '{"expression": "519*455"}')], False),
        ([("calculator", '{"expression": 519}')], False),
        ([("calculator", "[1]")], False),
        ([("calculator", "{")], False),
        ([], False),
        ([("calculator", '{"expression": "519*455"}')] * 2, False),
    ],
)
def test_call(calls, right):
    assert is_call(reply(None, *calls).tool_calls, "calculator", "519*455") is right


OPTIONS = ["a dog barks", "A cat", "no dog", "cat food"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("**B.** A cat", 1), ("B. A cat", 1), ("B) a cat", 1), ("[d]", 3),
        ("A cat", 1), ("a cat.", 1), ("The answer is (C).", 2), ("Answer: D", 3), ("The answer is B because", 1),
        ("I first thought option A, but the answer is B.", 1), ("I hear that a dog barks outside.", 0),
        ("It is cat food.", 3), ("a dog barks, a cat", None), ("E", None), ("The answer is A cat", 1), ("", None),
        ("A dog barks", 0), ("horse", None), ("There is no dog", 2), ("B.A cat", 1), ("The answer is A", 0),
        (r"So it is $\boxed{B}$.", 1), (r"\boxed{\text{(D) cat food}}", 3), ("It is not a cat. A dog barks.", 0),
        (r"\boxed{E}", None),
    ],
)  # fmt: skip
def test_chosen_option(text, index):
    assert chosen_option(text, OPTIONS) == index


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        ("C# major", ["C major", "C# major"], 1), ("c# Major.", ["C major", "C# major"], 1),
        ("**C# major**", ["C major", "C# major"], 1), ("C Major", ["C major", "C# major"], 0),
        ("It is C# major.", ["C major", "C# major"], None), ("B. C# major", ["C major", "C# major"], 1),
        ("The answer is C# major", ["C major", "C# major", "D major"], None),
        ("5", ["-5", "5"], 1), ("-5.", ["-5", "5"], 0), ("$50", ["50%", "$50"], 1), ("50", ["50%", "$50"], None),
        ("+", ["+", "-"], 0), ("-", ["+", "-"], 1), ("*", ["+", "*"], 1), ("!", ["+", "-"], None),
        ("", ["+", "-"], None), ("!", ["+", "plus"], None), ("(B)", ["+", "-"], 1), ("A", ["A+", "A-"], 0),
        ("mW", ["MW", "mW"], 1), ("mw", ["MW", "mW"], None), ("x", ["x", "x", "y"], None),
    ],
)  # fmt: skip
def test_options_that_differ_by_signs(text, options, index):
    assert chosen_option(text, options) == index


@pytest.mark.parametrize(
    ("kind", "expected", "options"),
    [
        ("number", "0", ()), ("word", "high", ("high", "low")), ("transcript", "!", ()), ("tool_call", "", ()),
        ("choice", "+", ("+", "-")), ("text", "!", ()), ("text", "", ()),
    ],
)  # fmt: skip
def test_a_failed_request_is_wrong_whatever_is_expected(kind, expected, options):
    assert not score(item(kind=kind, expected=expected, options=options), None).correct


def test_score_looks_at_the_kind():
    assert score(item(), reply("It is 5.")) == Score(True)
    assert score(item(), reply("It is 6.")) == score(item(), None) == score(item(), reply(None)) == Score(False)
    call = ("calculator", '{"expression": "2+3"}')
    assert score(item(), reply("5", call)) == Score(False)  # what was to be done by head was handed on
    assert score(item(kind="tool_call", expected="2+3"), reply(None, call)) == Score(True)
    said = item(kind="transcript", expected="two plus three")
    assert score(said, reply("Two plus tree")) == Score(False, 1, 3)
    assert score(said, reply("Two, plus three.")) == Score(True, 0, 3)
    assert score(said, None) == Score(False, 3, 3)
    assert score(item(kind="text", expected="Big Ben"), reply("big ben.")) == Score(True)
    sign = item(kind="text", expected="!")
    assert score(sign, reply(" ! ")) == Score(True)
    assert score(sign, reply("?")) == score(sign, reply(None)) == Score(False)
    assert score(item(kind="choice", expected="y", options=("x", "y")), reply("B")) == Score(True)
    assert score(item(kind="choice", expected="y", options=("x", "y")), reply("A")) == Score(False)


def test_only_what_stands_behind_the_thought_counts():
    assert score(item(), item().parse("It is 6.\n</think>\nFive: 5.")).correct
    assert not score(item(), item().parse("It is 5.\n</think>\nSix: 6.")).correct
    assert not score(item(), item().parse("It is 5.")).correct  # the thought never ended
    direct = item(prefix=NO_THOUGHT)
    assert score(direct, direct.parse("It is 5.")).correct


def test_a_call_counts_only_where_there_are_tools():
    text = '<tool_call>function\ncalculator\n{"expression": "2+3"}</tool_call>'
    tool = {"type": "function", "function": {"name": "calculator"}}
    assert item(kind="tool_call", expected="2+3", tools=(tool,)).parse(f"Hm.\n</think>\n{text}").tool_calls
    assert not item().parse(f"Hm.\n</think>\n{text}").tool_calls
