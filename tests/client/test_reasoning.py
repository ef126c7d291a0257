"""Thought and answer apart, however the reply is cut."""

import random

import pytest

from cuts import cuts
from step_audio.tokenizer import IncrementalDecoder, Tokenizer
from step_audio_client import ReasoningSplitter, reasoning_ended
from tokenizer_fixture import build_json

REPLIES = {  # reply: (thought, content)
    "thought\n</think>\nanswer": ("thought", "answer"),
    "thought\n</think>\n\nanswer": ("thought", "answer"),
    "thought</think>answer": ("thought", "answer"),
    "thought.\n\n\n</think>\n\n\nanswer\n": ("thought.", "answer\n"),
    "<think>\nthought\n</think>\nanswer": ("thought", "answer"),
    "\n<think>\n\n\nthought\n<|THINK_END|>\nanswer": ("thought", "answer"),
    "<|THINK_START|>\nthought\n<|THINK_END|>answer": ("thought", "answer"),
    "a\n\nb\n</think>\nc\n\nd": ("a\n\nb", "c\n\nd"),
    "no end\n": ("no end\n", ""),  # cut short: a caller may have it continued just there
    "no end\n\n</think": ("no end\n\n</think", ""),
    "<thi": ("<thi", ""),
    "<think>\n": ("", ""),
    "": ("", ""),
    "\n</think>\nanswer": ("", "answer"),
    "<think>\n\n</think>\n": ("", ""),
    "a < b, </b>, </thin>, <|THINK|>\n</think>\nx < y </th": ("a < b, </b>, </thin>, <|THINK|>", "x < y </th"),
    "<think><think>a</think>b": ("<think>a", "b"),  # one marker opens the thought, the next is text
    "<\n<think>a</think>b": ("<\n<think>a", "b"),
    "a<think>b</think>c</think>\n<|THINK_END|>d": ("a<think>b", "c</think>\n<|THINK_END|>d"),
    "a\n<</think>\n<b": ("a\n<", "<b"),
    "它是猫。\n</think>\n猫🙂": ("它是猫。", "猫🙂"),
}


def split(pieces: list[str], starts_in_content: bool = False) -> list[tuple[str, str]]:
    splitter = ReasoningSplitter(starts_in_content)
    return [*map(splitter.push, pieces), splitter.flush()]


@pytest.mark.parametrize("reply", REPLIES)
def test_every_way_of_cutting_gives_the_same(reply):
    for pieces in cuts(reply, seed=1):
        assert tuple(map("".join, zip(*split(pieces), strict=True))) == REPLIES[reply], pieces


def test_random_mixtures_of_markers_and_their_parts():
    """Against the definition, by one partition of the whole text."""
    draw = random.Random(2)
    words = ["<think>", "</think>", "<|THINK_END|>", "\n", "\n", "<", "</", "thi", "nk>", "a", "THINK_END|>", "🙂"]
    for _ in range(400):
        reply = "".join(draw.choices(words, k=draw.randint(0, 12)))
        ends = [(reply.index(end), end) for end in ("</think>", "<|THINK_END|>") if end in reply]
        head, end, tail = reply.partition(min(ends)[1] if ends else "\0")
        head = head.lstrip("\n")
        thought = head.removeprefix("<think>").lstrip("\n")
        expected = (thought.rstrip("\n") if end else thought, tail.lstrip("\n"))
        for pieces in cuts(reply, seed=3, count=8):
            assert tuple(map("".join, zip(*split(pieces), strict=True))) == expected, pieces


def test_nothing_is_held_that_can_be_shown():
    """And nothing shown that may be a marker's."""
    splitter = ReasoningSplitter()
    steps = [
        ("Hm", ("Hm", "")),
        (". <", (". ", "")),
        ("b>\n", ("<b>", "")),
        ("\n</thi", ("", "")),
        ("s>", ("\n\n</this>", "")),
        ("ok\n<", ("ok", "")),
        ("/think", ("", "")),
        (">\n", ("", "")),
        ("\n", ("", "")),
        ("yes\n", ("", "yes\n")),
        ("\n</think", ("", "\n</think")),
    ]
    for piece, expected in steps:
        assert not splitter.ended or piece.strip("\n") in ("", "yes", "</think")
        assert splitter.push(piece) == expected, piece
    assert splitter.ended and splitter.flush() == ("", "")


@pytest.mark.parametrize("reply", ["answer", "\nsecond line", "a</think>\nb", "</thi", ""])
def test_all_is_content_when_the_prompt_closed_the_thought(reply):
    for pieces in cuts(reply, seed=4, count=10):
        assert "".join(content for thought, content in split(pieces, True) if not thought) == reply


@pytest.mark.parametrize(
    "tail, ended",
    [
        ("<think>\n", False),
        ("<think>\nOkay,\n", False),
        ("<think>\n\n</think>\n", True),
        ("<think>\nhalf a thought\n</think>\nThe answer", True),
        ("<|THINK_START|>a<|THINK_END|>", True),
        ("<think>\na\n</think>\nb<think>\n", False),
        ("", False),
        ("The answer", False),
        ("</think", False),
    ],
)
def test_the_last_marker_of_the_prompt_decides(tail, ended):
    assert reasoning_ended(tail) is ended


@pytest.mark.parametrize("before", [".", " ", "。", "\n", ">"])
@pytest.mark.parametrize("behind", ["\n", "\n\n", "The"])
def test_markers_that_share_tokens_with_their_neighbours(before, behind):
    tokenizer = Tokenizer.from_json(build_json())
    decoder, splitter = IncrementalDecoder(tokenizer), ReasoningSplitter()
    pieces = [decoder.push([id_]) for id_ in tokenizer.encode(f"so猫{before}</think>{behind}B")]
    thought, content = map("".join, zip(*map(splitter.push, [*pieces, decoder.flush()]), strict=True))
    assert (thought, content) == (f"so猫{before}".rstrip("\n"), f"{behind}B".lstrip("\n"))
