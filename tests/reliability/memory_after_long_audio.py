"""What each process of a server holds before long recordings, right after them, and a while later.

    python tests/reliability/memory_after_long_audio.py --minutes 20 --recordings 4 --settle 60

A small random model behind `step-audio serve`. "Before" is after requests that fill what is to stay full: short ones
the encoder's cache of embeddings, long raw prompts the LLM's of keys and values. The recordings are asked all at once,
over HTTP. Memory is a process's share of what is resident (PSS); shared memory is what the server's regions take of
/dev/shm.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from held import SHARED, held
from serve_process import ServeProcess
from server_settings import settings_for
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.markdown import markdown_table
from step_audio_build.convert.make_tiny import make_tiny

SHORT_REQUESTS, SHORT_SECONDS = 16, 5
EMBEDDINGS = 400_000  # bytes, of which each short request takes 35,000
POSITIONS, PROMPT = 65_536, 30_000  # of the LLM's cache, and of a raw prompt


async def ask(url: str, seconds: Iterable[float]) -> None:
    """One request for each recording, all at once."""
    async with httpx.AsyncClient(base_url=url, timeout=900) as http:

        async def one(number: int, length: float) -> None:
            samples = np.random.default_rng(number).uniform(-0.1, 0.1, int(length * SAMPLE_RATE)).astype(np.float32)
            audio = {"data": base64.b64encode(encode_wav(samples)).decode(), "format": "wav"}
            content = [{"type": "input_audio", "input_audio": audio}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
            reply = await http.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text

        await asyncio.gather(*(one(number, length) for number, length in enumerate(seconds)))


def fill(url: str) -> None:
    """The LLM's cache, with prompts that have nothing in common."""
    for number in range(-(-POSITIONS // PROMPT)):
        ids = np.random.default_rng(number).integers(10, 500, PROMPT).tolist()
        reply = httpx.post(f"{url}/v1/completions", json={"prompt": ids, "max_tokens": 1}, timeout=900)
        assert reply.status_code == 200, reply.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--recordings", type=int, default=4)
    parser.add_argument("--settle", type=float, default=60, help="seconds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "model"
        make_tiny(
            checkpoint,
            hidden_size=256,
            intermediate_size=512,
            layers=1,
            audio_state=128,
            audio_layers=2,
            max_position_embeddings=32_768,
            dtype="bfloat16",
        )
        settings = settings_for(checkpoint, Path(scratch) / "work", max_seq_len=None)
        caches = ("--encoder-cache-bytes", str(EMBEDDINGS), "--kv-cache-tokens", str(POSITIONS))
        process = ServeProcess(settings, "--max-seq-len", "32768", *caches)
        try:
            process.wait_for("ready:", 120)
            url = f"http://127.0.0.1:{process.port}"

            def now() -> dict[str, float]:
                return held(process.process.pid, f"step_audio_{process.process.pid}_")

            for number in range(SHORT_REQUESTS):
                asyncio.run(ask(url, [SHORT_SECONDS + number / 10]))
            fill(url)
            before, begin = now(), time.monotonic()
            asyncio.run(ask(url, [arguments.minutes * 60 - number for number in range(arguments.recordings)]))
            after, took = now(), time.monotonic() - begin
            time.sleep(arguments.settle)
            later = now()
        finally:
            process.process.terminate()
            process.process.wait()
    rows = [
        (name, *(f"{m.get(name, 0):.0f}" for m in (before, after, later)), f"{later.get(name, 0) / was:.2f}")
        for name, was in before.items()
    ]
    rows.append(("all processes", *(f"{sum(m.values()) - m[SHARED]:.0f}" for m in (before, after, later)), ""))
    print(
        f"{arguments.recordings} recordings of {arguments.minutes:g} minutes at once, answered in {took:.0f} s; ",
        end="",
    )
    print(f"load {os.getloadavg()[0]:.1f}; MiB")
    heading = ("", "before", "right after", f"{arguments.settle:g} s later", "later / before")
    print(markdown_table([heading, *rows]))


if __name__ == "__main__":
    main()
