"""First tokens of text-only requests, 36 at once, without and with recordings of 40 minutes going through.

    python tests/reliability/long_recording.py [--container webm]

A small random model; the recordings come one after the other, from a process of their own, for as long as the second
half lasts. Both halves are of one run, in rounds that take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from audio_fixture import encode
from server_settings import settings_for
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio_benchmark.load import Level, OwnLoad
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


async def talk(address: str, audio: Audio) -> None:
    """Says a line when a recording has been answered, and sends the next one."""
    async with StepAudioClient(address) as client:
        for number in itertools.count():
            await client.complete([user(audio, f"How long? {number}")], Sampling(max_tokens=1, temperature=0))
            print(number, flush=True)


class Talker:
    """A process that talks."""

    def __init__(self, address: str, container: str):
        command = [sys.executable, __file__, "--container", container, "--talk-to", address]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.heard = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        assert self.process.stdout is not None
        for _ in self.process.stdout:
            self.heard += 1

    def end(self) -> None:
        assert self.process.poll() is None, "a recording was not answered"
        self.process.terminate()
        self.process.wait()


async def measure(address: str, container: str) -> None:
    workload = Workload((), (), 32)
    firsts: dict[bool, list[float]] = {False: [], True: []}
    heard = 0
    gc.freeze()  # what is imported: looking through it for garbage takes as long as a first token
    async with StepAudioClient(address) as client:
        for _ in range(ROUNDS):
            for beside in (False, True):
                talker = Talker(address, container) if beside else None
                await asyncio.sleep(1)
                while True:  # until a recording has gone through all of it
                    questions = workload.questions(REQUESTS, len(firsts[False]) + len(firsts[True]))
                    run = await OwnLoad(Grpc(client)).run(Level(concurrency=WIDE), questions, workload, lambda: None)
                    failed = [one.error for one in run.records if one.error]
                    assert not failed, failed[0]
                    firsts[beside] += [one.first_token for one in run.records if one.first_token is not None]
                    if talker is None or talker.heard or talker.process.poll() is not None:
                        break
                if talker is not None:
                    talker.end()
                    heard += talker.heard
    print(f"load {os.getloadavg()[0]:.1f}; {heard} recordings of {MINUTES} minutes answered meanwhile")
    for beside, seconds in firsts.items():
        p50, p99 = statistics.median(seconds), float(np.percentile(seconds, 99))
        name = "beside" if beside else "without"
        print(f"{name}: {len(seconds)} first tokens, {p50:.3f} s median, {p99:.3f} s p99, {max(seconds):.3f} s largest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--container", default="wav", choices=["wav", "webm"])
    parser.add_argument("--talk-to", metavar="ADDRESS", help="send recordings to this server, and nothing else")
    arguments = parser.parse_args()
    if arguments.talk_to:
        return asyncio.run(talk(arguments.talk_to, Audio(recording(arguments.container))))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "model"
        make_tiny(checkpoint, dtype="float32", max_position_embeddings=32_768)
        settings = settings_for(checkpoint, Path(scratch) / "work", max_seq_len=None)
        with Service(settings) as service:
            asyncio.run(measure(service.address, arguments.container))


if __name__ == "__main__":
    main()
