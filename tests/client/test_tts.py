"""Speech of the ta4 format, taken apart on ids."""

import random

import pytest

from fake_triton import TOKENIZER
from step_audio_client import TtsContent, TtsParser


def ids(*parts) -> list[int]:
    """Texts, names of added tokens, and numbers for audio codes."""
    out = []
    for part in parts:
        name = f"<audio_{part}>" if isinstance(part, int) else part
        out += [TOKENIZER.added_tokens[name]] if name in TOKENIZER.added_tokens else TOKENIZER.encode(part)
    return out


def audio(*codes: int) -> str:
    return "".join(f"<audio_{code}>" for code in codes)


def parse(pieces, **options):
    parser = TtsParser(TOKENIZER, **options)
    text, sound, rest = "", "", []
    for piece in pieces:
        heard, behind = parser.push(piece)
        text, sound, rest = text + heard.text, sound + heard.audio, rest + behind
    return TtsContent(text, sound), rest


SMILE = TOKENIZER.encode("🙂")
CASES = {
    "plain": (ids("Hi", 1, 2, 3, 4, " you", 5, 6, 7, 8, "<tts_end>", "bye"), "Hi you", audio(*range(1, 9)), "bye"),
    "pads are silent": (ids("Hi", 1, 6561, 6561, "<tts_pad>", 6560, "<tts_end>"), "Hi", audio(1, 6560), ""),
    "nothing but the marks": (ids("<tts_start>", "<tts_end>"), "", "", ""),
    "only pads": (ids("<tts_pad>", 6561, 6561), "", "", ""),
    "no end": (ids("Hi", 1), "Hi", audio(1), ""),
    "a character on both sides of sound": ([SMILE[0], *ids(1, 2), *SMILE[1:], *ids(3)], "🙂", audio(1, 2, 3), ""),
    "a character that does not end": ([*ids("Hi", 1), SMILE[0], *ids("<tts_end>", "bye")], "Hi", audio(1), "bye"),
    "sound behind the end is not speech": (ids(1, "<tts_end>", "x", 2), "", audio(1), "x<audio_2>"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_way_of_cutting(case):
    """All at once, where an end and text behind it share a delta; one by one; and at random."""
    tokens, text, sound, behind = CASES[case]
    draw = random.Random(case)
    ways = [[tokens], [[token] for token in tokens]]
    for _ in range(40):
        at = sorted(draw.choices(range(len(tokens) + 1), k=draw.randint(1, 6)))
        ways.append([tokens[i:j] for i, j in zip([0, *at], [*at, len(tokens)], strict=True)])
    for pieces in ways:
        heard, rest = parse(pieces)
        assert (heard.text, heard.audio, TOKENIZER.decode(rest)) == (text, sound, behind), pieces


def test_other_special_tokens():
    tokens = ids("a", "<|SC|>", "b")
    assert parse([tokens])[0].text == "ab"
    assert parse([tokens], skip_special_tokens=False)[0].text == "a<|SC|>b"
