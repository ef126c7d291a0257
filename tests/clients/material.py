"""What all clients are asked: questions that the served model answers rightly when asked by plain HTTP.

So what fails afterwards is a client's way, and not the small model.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from step_audio_evaluation.held_out import end_speakers, held_out
from step_audio_server.assets import asset
from step_audio_training.examples import CALCULATOR

SEED = 11
CANDIDATES = 12
WANTED = 3  # recordings to write down
WRITTEN = {"text": "What is 48 plus 34?", "answer": "82"}
SUM = {"answer": "82", "words": "forty eight plus thirty four"}  # in examples/sum.wav


class NoMaterial(Exception):
    """The served model answers nothing rightly."""


def material(url: str, folder: Path) -> dict[str, Any]:
    """As `cases.py` and `cases.mjs` read it; recordings are put into `folder`. Raises NoMaterial."""
    with httpx.Client(base_url=f"{url}/v1", timeout=120) as http:
        model = http.get("/models").json()["data"][0]["id"]
        shutil.copy(asset("examples") / "sum.wav", folder / "sum.wav")
        dictation = [
            {"file": str(file), "text": text}
            for file, text in _recordings("transcription", folder)
            if _heard(http, file) == text
        ]
        large = [
            {"file": str(file), "expression": text}
            for file, text in _recordings("tool_call", folder)
            if _called(http, file) == text
        ]
    end_speakers()
    if len(dictation) < WANTED or not large:
        raise NoMaterial(f"{len(dictation)} transcripts and {len(large)} calls of {CANDIDATES} each are right")
    return {
        "url": url,
        "model": model,
        "key": "none",
        "sum": SUM | {"file": str(folder / "sum.wav")},
        "written": WRITTEN,
        "large": large[0],
        "dictation": dictation[:WANTED],
        "calculator": CALCULATOR["function"],
    }


def _recordings(task: Any, folder: Path) -> Iterator[tuple[Path, str]]:
    for item in held_out([task], CANDIDATES, SEED):
        if item.kind in ("transcript", "tool_call"):
            file = folder / f"{item.id}.wav"
            file.write_bytes(bytes(item.audio[0]))  # type: ignore[arg-type]
            yield file, item.expected


def _heard(http: httpx.Client, file: Path) -> str:
    reply = http.post("/audio/transcriptions", files={"file": (file.name, file.read_bytes(), "audio/wav")})
    return str(reply.json()["text"])


def _called(http: httpx.Client, file: Path) -> str:
    """The expression that is given to the calculator, with and without a text beside the recording."""
    data = base64.b64encode(file.read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    said = set()
    for text in ([], [{"type": "text", "text": "Answer the question."}]):
        body = {"temperature": 0, "tools": [CALCULATOR], "messages": [{"role": "user", "content": [*text, audio]}]}
        message = http.post("/chat/completions", json=body).json()["choices"][0]["message"]
        said |= {call["function"]["arguments"] for call in message.get("tool_calls") or ()}
    expressions = {json.loads(one).get("expression") for one in said if re.match(r"\{", one)}
    return str(expressions.pop()) if len(expressions) == 1 else ""
