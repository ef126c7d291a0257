"""What the cases of all clients share: what is asked, and how they tell what came of it. Needs nothing but Python.

A script of cases is run in its client's environment, with the questions as a file of JSON, and prints a line of JSON
for each case: its name, and what failed or null.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import sys
import time
import traceback
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES: dict[str, Callable[[], Any]] = {}
ASKED = json.loads(Path(sys.argv[1]).read_text("utf-8"))  # see material.py
URL, MODEL, KEY = f"{ASKED['url']}/v1", ASKED["model"], ASKED["key"]
SUM, WRITTEN, LARGE, DICTATION = (ASKED[name] for name in ("sum", "written", "large", "dictation"))
CALCULATOR = ASKED["calculator"]  # a function: name, description, parameters
MOST_TOKENS = 300
MOST_SAID = 200  # characters of what failed


def case(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A function, a coroutine function too, that raises where a user would be disappointed."""

    def keep(function: Callable[[], Any]) -> Callable[[], Any]:
        CASES[name] = function
        return function

    return keep


def recording(path: str) -> bytes:
    return Path(path).read_bytes()


def in_base64(path: str) -> str:
    return base64.b64encode(recording(path)).decode()


def heard(path: str, text: str = "") -> list[dict[str, Any]]:
    """A user's turn with a recording, in OpenAI's form."""
    audio = {"type": "input_audio", "input_audio": {"data": in_base64(path), "format": "wav"}}
    return [{"role": "user", "content": [audio, *([{"type": "text", "text": text}] if text else [])]}]


def same(found: Any, wanted: Any) -> None:
    assert found == wanted, f"{found!r} instead of {wanted!r}"


def holds(text: str | None, part: str) -> None:
    assert part in (text or ""), f"{part!r} is not in {text!r}"


def sounds(pieces: list[bytes], rate: int = 24_000) -> None:
    """PCM16 of a second and more, in which somebody speaks."""
    samples = array("h", b"".join(pieces))
    assert len(samples) > rate, f"{len(samples)} samples"
    assert max(samples) > 3000, "it is silent"


def streamed(pieces: list[str], whole: str, least: int = 1) -> None:
    """All of it, in some pieces: a short answer may come in one."""
    assert len(pieces) >= least, f"{len(pieces)} pieces: {pieces}"
    same("".join(pieces), whole)


def main() -> None:
    with asyncio.Runner() as runner:  # one loop, which clients' connections belong to
        for name, function in CASES.items():
            begin, error = time.monotonic(), None
            try:
                result = function()
                if inspect.iscoroutine(result):
                    runner.run(asyncio.wait_for(result, 120))
            except Exception as caught:
                traceback.print_exc()
                error = f"{type(caught).__name__}: {' '.join(str(caught).split())}"[:MOST_SAID]
            print(json.dumps({"case": name, "error": error, "seconds": time.monotonic() - begin}), flush=True)
