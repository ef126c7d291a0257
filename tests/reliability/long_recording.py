"""First tokens of text-only requests, 36 at once, without and with recordings of 40 minutes going through.

    python tests/reliability/long_recording.py [--container webm]

A small random model; the recordings come one after the other for as long as the second half lasts. Both halves are of
one run, in rounds that take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from audio_fixture import encode
from server_settings import settings_for
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio_benchmark.load import Asked, Level
from step_audio_benchmark.targets import Grpc
from step_audio_benchmark.workload import Workload
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_client import Audio, Sampling, StepAudioClient, user
from step_audio_server.serve import Service

WIDE, MINUTES, ROUNDS, REQUESTS = 36, 40, 3, 4 * 36


def recording(container: str) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, MINUTES * 60 * SAMPLE_RATE).astype(np.float32)
    if container == "wav":
        return encode_wav(samples)
    return encode(container, "libopus", np.repeat(samples[None], 3, 1)[:, : MINUTES * 60 * 48_000], 48_000)


async def measure(address: str, audio: Audio) -> None:
    workload = Workload((), (), 32)
    firsts: dict[bool, list[float]] = {False: [], True: []}
    heard = 0
    async with StepAudioClient(address) as client:

        async def talk() -> None:
            nonlocal heard
            while True:
                await client.complete([user(audio, f"How long? {heard}")], Sampling(max_tokens=1, temperature=0))
                heard += 1

        for _ in range(ROUNDS):
            for beside in (False, True):
                before, talking = heard, asyncio.create_task(talk()) if beside else None
                await asyncio.sleep(1)
                while True:  # until a recording has gone through all of it
                    questions = workload.questions(REQUESTS, len(firsts[False]) + len(firsts[True]))
                    run = await Asked(Grpc(client)).run(Level(concurrency=WIDE), questions, workload, lambda: None)
                    failed = [one.error for one in run.records if one.error]
                    assert not failed, failed[0]
                    firsts[beside] += [one.first_token for one in run.records if one.first_token is not None]
                    if talking is None or heard > before or talking.done():
                        break
                if talking is not None:
                    talking.cancel()
                    (outcome,) = await asyncio.gather(talking, return_exceptions=True)
                    if not isinstance(outcome, asyncio.CancelledError):
                        raise outcome
    print(f"load {os.getloadavg()[0]:.1f}; {heard} recordings of {MINUTES} minutes answered meanwhile")
    for beside, seconds in firsts.items():
        p50, p99 = statistics.median(seconds), float(np.percentile(seconds, 99))
        name = "beside" if beside else "without"
        print(f"{name}: {len(seconds)} first tokens, {p50:.3f} s median, {p99:.3f} s p99, {max(seconds):.3f} s largest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--container", default="wav", choices=["wav", "webm"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "model"
        make_tiny(checkpoint, dtype="float32", max_position_embeddings=32_768)
        settings = settings_for(checkpoint, Path(scratch) / "work", max_seq_len=None)
        with Service(settings) as service:
            asyncio.run(measure(service.address, Audio(recording(arguments.container))))


if __name__ == "__main__":
    main()
