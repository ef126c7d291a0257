"""A text in pieces, as a stream may bring it."""

import random


def cuts(text: str, seed: int, count: int = 40) -> list[list[str]]:
    """The whole, single characters, and random pieces, empty ones among them."""
    draw = random.Random(f"{seed} {text}")
    ways = [[text], list(text)]
    for _ in range(count):
        at = sorted(draw.choices(range(len(text) + 1), k=draw.randint(1, 12)))
        ways.append([text[i:j] for i, j in zip([0, *at], [*at, len(text)], strict=True)])
    return ways
