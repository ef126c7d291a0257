"""How long a running `step-audio serve` is away after a fault, by what was hit, and when `/ready` tells of it.

    python tests/reliability/recovery.py --rounds 5 --starts 50

Each model's process and the server itself are killed, and each step's process is stopped for 2.6 seconds with requests
at hand; `--starts` starts the server so often and counts those that fail, and those whose server crashed while loading
and was tried again. `--busy` processes, each in a session of its own, take the processors meanwhile. With the small
trained model, if no other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx

sys.path.append(str(Path(__file__).parents[1] / "support"))
from busy import busy
from serve_process import ServeProcess
from server_settings import settings_for
from step_audio.errors import StepAudioError
from step_audio.markdown import markdown_table
from step_audio_client import RequestError, Sampling, StepAudioClient, user
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.serve import Service

KILLED = ("tensorrt_llm", "audio_encoder", "audio_featurizer", "prompt_builder", "lease", "tokenizer", "tritonserver")
STOPPED = ("audio_featurizer", "prompt_builder", "audio_encoder")
STOP = 2.6  # seconds
ONE = Sampling(max_tokens=1, temperature=0)


async def answered(address: str) -> bool:
    async with StepAudioClient(address, patience=0) as client:
        try:
            await client.complete([user("hello")], ONE, timeout=5)
        except RequestError:
            return False
    return True


async def told(url: str) -> float:
    """When `/ready` says that nothing is."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while (await http.get("/ready")).status_code == 200:
            await asyncio.sleep(0.02)
    return time.monotonic()


async def away(process: ServeProcess, fault: Callable[[], None]) -> tuple[float, float]:
    """Seconds from the fault to an answer, and until it was told."""
    client = StepAudioClient(process.address)
    long = Sampling(max_tokens=400, min_tokens=400, temperature=0)
    running = [asyncio.create_task(client.complete([user(f"{n}")], long, timeout=600)) for n in range(4)]
    await asyncio.sleep(0.9)
    telling = asyncio.create_task(told(f"http://127.0.0.1:{process.port}"))
    begin = time.monotonic()
    await asyncio.to_thread(fault)
    while not await answered(process.address):
        await asyncio.sleep(0.05)
    took = time.monotonic() - begin
    await asyncio.gather(*running)  # all of them whole
    await client.close()
    return took, await telling - begin


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop_for_a_while(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOP)
    with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile, with its server
        os.kill(pid, signal.SIGCONT)


def measure(process: ServeProcess, rounds: int) -> dict[str, list[float]]:
    """Of each fault: seconds away, median and longest, and until it was told, the same."""
    found: dict[str, list[float]] = {}
    faults = [(f"{name} killed", name, False) for name in KILLED]
    faults += [(f"{name} stopped for {STOP} s", name, True) for name in STOPPED]
    for label, name, stopped in faults:
        taken = []
        for _ in range(rounds):
            pid = process.pids()[name]
            fault = (
                (lambda pid=pid: stop_for_a_while(pid)) if stopped else (lambda pid=pid: os.kill(pid, signal.SIGKILL))
            )
            taken.append(asyncio.run(away(process, fault)))
            time.sleep(2)
        found[label] = [f(each) for each in zip(*taken, strict=True) for f in (statistics.median, max)]
        print(label, *seconds(found[label]), sep=": ", file=sys.stderr, flush=True)
    return found


def seconds(figures: Iterable[float]) -> list[str]:
    return [f"{figure:.2f} s" for figure in figures]


def starts(settings, count: int) -> tuple[int, str]:
    """How many of `count` starts failed, or came to pass only by trying again, and what the others took."""
    failed, crashes, taken = 0, [], []
    for number in range(1, count + 1):
        begin = time.monotonic()
        said: list[str] = []
        service = Service(settings, said.append)
        try:
            service.start()
            taken.append(time.monotonic() - begin)
        except StepAudioError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
        service.stop()
        crashes.append(sum("trying again" in line for line in said))
        print(f"start {number}: {time.monotonic() - begin:.1f} s, {crashes[-1]} crashes", file=sys.stderr, flush=True)
    retried = sum(n > 0 for n in crashes)
    took = f"median {statistics.median(taken or [0.0]):.1f} s, longest {max(taken, default=0.0):.1f} s"
    return failed, f"{failed} failed, {retried} tried again ({sum(crashes)} crashes), {took}"


def load() -> str:
    return f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint())
    parser.add_argument("--rounds", type=int, default=5, help="of each fault; 5, if not given")
    parser.add_argument(
        "--starts", type=int, default=0, help="how often the server is started before that; 0, if not given"
    )
    parser.add_argument(
        "--busy", type=int, default=0, help="processes that take the processors meanwhile; none, if not given"
    )
    parser.add_argument(
        "--back", type=float, default=math.inf, metavar="S", help="fail where the median of a fault is away for longer"
    )
    parser.add_argument(
        "--told", type=float, default=math.inf, metavar="S", help="fail where the median of a death is told later"
    )
    given = parser.parse_args()
    failed, late = 0, []
    with tempfile.TemporaryDirectory() as folder, busy(given.busy):
        settings = settings_for(given.checkpoint, Path(folder), max_seq_len=4096)
        if given.starts:
            failed, told = starts(settings, given.starts)
            print(f"{given.starts} starts: {told}; {load()}")
        if given.rounds:
            process = ServeProcess(settings)
            try:
                process.wait_for("ready")
                found = measure(process, given.rounds)
            finally:
                process.end()
            rows = [(label, *seconds(figures)) for label, figures in found.items()]
            print(markdown_table([("fault", "away, median", "longest", "told, median", "longest"), *rows]))
            print(load())
            for label, (away_for, _, told_after, _) in found.items():
                if away_for > given.back:
                    late.append(f"{label}: away for {away_for:.2f} s")
                if label.endswith("killed") and told_after > given.told:  # a stop must last to be one
                    late.append(f"{label}: told after {told_after:.2f} s")
    for one in late:
        print(one)
    return int(failed > 0 or bool(late))


if __name__ == "__main__":
    sys.exit(main())
