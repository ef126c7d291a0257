"""Part 4 of mind_paced.py: what it costs that every segment needs the recordings' embeddings."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bench import median_ms
from step_audio.audio import encode_wav
from step_audio.chat_template import OPEN_THOUGHT
from step_audio.clips import SAMPLE_RATE
from step_audio.markdown import markdown_table
from step_audio.progress import Progress
from step_audio_client import Audio, Sampling, StepAudioClient, user
from step_audio_client.pipeline import Pipeline
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.tokens import TokenRequest
from step_audio_client.wire import infer_request
from step_audio_server import processes
from step_audio_server.serve import Service

LENGTHS = (3, 25, 120)  # seconds of recording
PUBLISHED = {"25 s": 25, "10 min": 600}  # seconds of recording
WIDTH = 5120  # the published model's hidden size
WORDS = 100  # behind the prompt, new ones each time: about what the paper's first segment has
ONE = Sampling(max_tokens=1, temperature=0)

Way: TypeAlias = PreparedRequest | TokenRequest


class Asker:
    """Generations on a server and how long they take."""

    def __init__(self, address: str, client: StepAudioClient, seed: int):
        self.pipeline, self.client = Pipeline(address), client
        self.random = np.random.default_rng(seed)

    async def open(self) -> None:
        self.tokenizer, info = await self.client.tokenizer(), await self.client.serving_info()
        self.vocabulary, self.sizes = info["vocab_size"], (info["max_seq_len"], info["tokens_per_block"])

    def thought(self) -> str:
        return " ".join(str(n) for n in self.random.integers(10, 100, WORDS))

    async def prepare(self, request: TokenRequest) -> tuple[PreparedPrompt, float]:
        start = time.perf_counter()
        prompt = await self.pipeline.prepare(self.pipeline.run(), request)
        return prompt, time.perf_counter() - start

    async def first_token(self, request: Way) -> tuple[float, int]:
        """Seconds, inputs made and the whole answer read, and the prompt's positions."""
        start = time.perf_counter()
        stop_ids = self.tokenizer.special.stop_ids
        generation = self.pipeline.tokens(self.pipeline.run(), request, stop_ids, *self.sizes)
        *_, last = [tokens async for tokens in generation]
        return time.perf_counter() - start, last.prompt_tokens


def megabytes(request: Way) -> float:
    return len(infer_request(request.model, "0" * 32, request.inputs()).serialized()) / 1e6


async def ways_to_go_on(address: str, rounds: int, seed: int) -> str:
    """A segment from the prompt that was prepared once, and through the whole pipeline again, in turns."""
    rows = []
    async with StepAudioClient(address) as client:
        asker = Asker(address, client, seed)
        await asker.open()
        progress = Progress("table", unit="", total=len(LENGTHS) * rounds)
        for seconds in LENGTHS:
            noise = 0.1 * asker.random.standard_normal(seconds * SAMPLE_RATE).astype(np.float32).clip(-5, 5)
            messages = [user(Audio(encode_wav(noise)), "What do you hear?")]
            rows.append(await _two_ways(asker, f"{seconds} s", messages, rounds, progress))
        progress.close()
        await asker.pipeline.close()
    headings = (
        "recording", "positions", "prepared once", "prepared", "whole again", "prepared / whole", "sent prepared",
        "sent whole",
    )  # fmt: skip
    return markdown_table([headings, *rows])


async def _two_ways(
    asker: Asker, label: str, messages: list[dict[str, Any]], rounds: int, progress: Progress
) -> tuple[str, ...]:
    asked = TokenRequest(messages, ONE)
    prompt, _ = await asker.prepare(asked)
    prepared_in: list[float] = []
    taken: dict[type[Way], list[float]] = {PreparedRequest: [], TokenRequest: []}
    for turn in range(-1, rounds):  # the first puts the prompt into the KV cache and does not count
        text = [asker.thought() for _ in range(2)]
        table = PreparedRequest(prompt, ONE, tuple(asker.tokenizer.encode(text[0])))
        turns = [*messages, {"role": "assistant", "content": OPEN_THOUGHT + text[1]}]
        whole = TokenRequest(turns, ONE, continue_final_message=True)
        found = {}
        for way in (table, whole) if turn % 2 else (whole, table):
            found[type(way)] = await asker.first_token(way)
        assert abs(found[PreparedRequest][1] - found[TokenRequest][1]) <= 8, found
        _, seconds = await asker.prepare(asked)
        if turn >= 0:
            prepared_in.append(seconds)
            for kind, (took, _) in found.items():
                taken[kind].append(took)
            progress.step()
    ratio = statistics.median(a / b for a, b in zip(taken[PreparedRequest], taken[TokenRequest], strict=True))
    return (
        label, str(len(table)), median_ms(prepared_in), median_ms(taken[PreparedRequest]),
        median_ms(taken[TokenRequest]), f"{ratio:.2f}", f"{megabytes(table):.2f} MB", f"{megabytes(whole):.2f} MB",
    )  # fmt: skip


async def published_tables(service: Service, rounds: int, seed: int) -> str:
    """A segment of the model with WIDTH, from a recording's prompt and from as many positions of text, in turns."""
    rows = []
    async with StepAudioClient(service.address) as client:
        asker = Asker(service.address, client, seed)
        await asker.open()
        progress = Progress("published width", unit="", total=len(PUBLISHED) * (rounds + 1))
        for label, seconds in PUBLISHED.items():
            noise = 0.1 * asker.random.standard_normal(seconds * SAMPLE_RATE).astype(np.float32).clip(-5, 5)
            prompt, _ = await asker.prepare(TokenRequest([user(Audio(encode_wav(noise)), "What do you hear?")], ONE))
            bare, _ = await asker.prepare(TokenRequest([user("What do you hear?")], ONE))
            prompts = (prompt, _as_text(bare, len(prompt), asker))
            taken: list[list[float]] = [[], []]
            worked: list[list[float]] = [[], []]
            for turn in range(-1, rounds):
                ids = tuple(asker.tokenizer.encode(asker.thought()))
                for n in (0, 1) if turn % 2 else (1, 0):
                    before = cpu_seconds(service)
                    took, _ = await asker.first_token(PreparedRequest(prompts[n], ONE, ids))
                    if turn >= 0:
                        taken[n].append(took)
                        worked[n].append(cpu_seconds(service) - before)
                progress.step()
            height = np.count_nonzero(prompt.extra_ids)
            sent = [megabytes(PreparedRequest(prompt, ONE, ids)) for prompt in prompts]
            rows.append((
                label, f"{height:,} x {WIDTH}", f"{2 * height * WIDTH / 1e6:.1f} MB", f"{sent[0]:.2f} MB",
                median_ms(taken[0]), median_ms(taken[1]), median_ms(worked[0]), median_ms(worked[1]),
            ))  # fmt: skip
        progress.close()
        await asker.pipeline.close()
    headings = (
        "recording", "table", "its size", "sent", "first token", "of text", "CPU time", "of text",
    )  # fmt: skip
    return markdown_table([headings, *rows])


def cpu_seconds(service: Service) -> float:
    """That the server, its steps and this process have worked; unlike time, it hardly hangs on who else does."""
    total = time.process_time()
    assert service.server is not None
    for pid in processes.session(service.server.process.pid):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _as_text(bare: PreparedPrompt, positions: int, asker: Asker) -> PreparedPrompt:
    """`bare` behind so much text that it has `positions`."""
    ids = asker.random.integers(0, 500, (1, positions - len(bare))).astype(np.int32)  # that every vocabulary has
    return bare.with_input_ids(np.concatenate([ids, bare.input_ids], axis=1), np.zeros((1, positions), np.uint64))
