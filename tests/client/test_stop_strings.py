"""Stop strings, however the text is cut."""

import random

import pytest

from step_audio_client.stop_strings import StopStrings

CASES = [  # text, stop strings, what passes, which one ended it
    ("one two", (), "one two", None),
    ("one two", ("three",), "one two", None),
    ("one two", ("two",), "one ", "two"),
    ("one two", ("one",), "", "one"),
    ("abc", ("abc", "b"), "a", "b"),  # "b" is complete first
    ("xab", ("b", "ab"), "x", "ab"),  # both at once: the longer one
    ("aab", ("ab",), "a", "ab"),
    ("ababac", ("abac",), "ab", "abac"),
    ("end\n\nObs", ("\nObservation",), "end\n\nObs", None),
    ("猫🙂狗", ("🙂",), "猫", "🙂"),
    ("", ("a",), "", None),
]


def run(pieces, stop):
    filter_ = StopStrings(stop)
    shown = "".join(map(filter_.push, pieces)) + filter_.flush()
    assert filter_.passed == len(shown)
    return shown, filter_.found


@pytest.mark.parametrize("text, stop, shown, found", CASES)
def test_every_way_of_cutting(text, stop, shown, found):
    draw = random.Random(text)
    for _ in range(60):
        at = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 6)))
        pieces = [text[i:j] for i, j in zip([0, *at], [*at, len(text)], strict=True)]
        assert run(pieces, stop) == (shown, found), pieces


def test_against_the_definition():
    """Character by character: the first place where the text so far ends with a stop string."""
    draw = random.Random(5)
    for _ in range(2000):
        text = "".join(draw.choices("abc", k=draw.randint(0, 12)))
        stop = tuple("".join(draw.choices("abc", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3)))
        expected = (text, None)
        for end in range(1, len(text) + 1):
            if hits := [each for each in stop if text[:end].endswith(each)]:
                expected = (text[: end - len(max(hits, key=len))], max(hits, key=len))
                break
        cut = draw.randint(0, len(text))
        assert run([text], stop) == run(text, stop) == run([text[:cut], text[cut:]], stop) == expected, (text, stop)


def test_nothing_is_held_that_can_be_shown():
    stop = StopStrings(["STOP"])
    assert [stop.push(piece) for piece in ("a S", "T", "x", "ST", "OP", "more")] == ["a ", "", "STx", "", "", ""]
    assert (stop.flush(), stop.found) == ("", "STOP")
