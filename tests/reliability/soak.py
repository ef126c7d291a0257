"""Mixed traffic on a running `step-audio serve` for a while, and what it does to the server.

    python tests/reliability/soak.py PID --url http://127.0.0.1:9999 --grpc 127.0.0.1:8001 --minutes 30 --wide 36 \
        --busy 16 --memory-limit 1.05

PID is that of `step-audio serve`; without it, --url and --grpc one is started for the while. --busy: loops that take
processor time, each in a session of its own. --memory-limit: the server's processes are put into a control group whose
memory is limited to so many times what they hold when the traffic has warmed up, their files' pages included (cgroup
v1, as root). The last line is JSON: requests by kind and outcome, and the server's memory, descriptors, threads and
shared memory after the warm-up and at the end. Status 1: one of these has grown by more than 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from audio_fixture import wav
from busy import busy
from serve_process import ServeProcess
from server_settings import settings_for
from step_audio.clips import SAMPLE_RATE
from step_audio_client import Audio, RequestError, Sampling, StepAudioClient, user
from step_audio_server import processes
from step_audio_server.assets import embedded_checkpoint

WARM_UP = 0.15  # of the time
GROWTH = 1.05
# Each of the six models' regions grows by a MiB where it must, and that by chance late: of 10 MB 5 % are less than one.
SLACK = {"shared_mb": 6.3}
GROWING = ("memory_mb", "descriptors", "threads", "shared_mb")
TIMEOUT = 300.0  # seconds, for an answer on a machine that is much too busy
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 8}}},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


class Traffic:
    """One kind of request after the other, drawn by chance; `outcomes` counts (kind, outcome)."""

    def __init__(self, url: str, grpc: str, seed: int):
        self.url, self.random = url, random.Random(seed)
        self.http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=httpx.Limits(max_connections=None))
        self.client = StepAudioClient(grpc)
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.kinds: dict[str, Callable[[], Awaitable[str]]] = {
            "text": self.text, "audio": self.audio, "stream": self.stream, "mind_paced": self.mind_paced,
            "tools": self.tools, "schema": self.schema, "several": self.several, "error": self.error,
            "hang_up": self.hang_up, "grpc": self.grpc, "grpc_left": self.grpc_left,
        }  # fmt: skip

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            kind = self.random.choice(list(self.kinds))
            try:
                outcome = await self.kinds[kind]()
            except RequestError as error:
                outcome = type(error).__name__
            except httpx.HTTPError as error:
                outcome = type(error).__name__
                await asyncio.sleep(0.5)
            self.outcomes[kind, outcome] += 1

    def clip(self) -> bytes:
        samples = np.random.default_rng(self.random.getrandbits(32)).normal(0, 500, self.random.randint(1, 12) * 8000)
        return wav(samples.astype("<i2").tobytes(), rate=SAMPLE_RATE)

    def body(self, *parts: Any, **more: Any) -> dict[str, Any]:
        content = [{"type": "text", "text": f"question {self.random.getrandbits(32)}"}, *parts]
        tokens = self.random.randint(8, 96)
        return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "model": None} | more

    def recording(self) -> dict[str, Any]:
        data = base64.b64encode(self.clip()).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    async def post(self, body: dict[str, Any]) -> str:
        return str((await self.http.post("/v1/chat/completions", json=body)).status_code)

    async def text(self) -> str:
        return await self.post(self.body())

    async def audio(self) -> str:
        return await self.post(self.body(self.recording()))

    async def tools(self) -> str:
        return await self.post(self.body(tools=[TOOL], tool_choice="required"))

    async def schema(self) -> str:
        return await self.post(self.body(response_format=SCHEMA))

    async def several(self) -> str:
        return await self.post(self.body(n=3))

    async def error(self) -> str:
        broken = self.random.choice([{"max_tokens": -1}, {"messages": []}, {"response_format": {"type": "x"}}])
        return await self.post(self.body(**broken))

    async def mind_paced(self) -> str:
        return await self.post(self.body(self.recording(), mind_paced={"mode": "speak_first"}))

    async def stream(self, leave: bool = False) -> str:
        body = self.body(self.recording(), stream=True)
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            last = ""
            async for line in response.aiter_lines():
                last = line or last
                if leave:
                    return "left"
            return f"{response.status_code} {'whole' if last == 'data: [DONE]' else 'cut'}"

    async def hang_up(self) -> str:
        return await self.stream(leave=True)

    async def grpc(self) -> str:
        await self.client.complete([user(Audio(self.clip()), "what?")], Sampling(max_tokens=64), timeout=TIMEOUT)
        return "ok"

    async def grpc_left(self) -> str:
        async with contextlib.aclosing(self.client.generate([user("what?")], Sampling(max_tokens=64))) as deltas:
            async for _ in deltas:
                return "left"
        return "ended"


@dataclass(frozen=True)
class Footprint:
    """What the processes below `step-audio serve` hold."""

    memory_mb: float
    memory_mb_of: dict[str, float]  # by process
    descriptors: int
    threads: int
    shared_mb: float
    processes: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        family = processes.tree(pid)
        statuses = {one: text for one in family if (text := _read(f"/proc/{one}/status"))}
        status = list(statuses.values())
        memory = {one: _field(text, "RssAnon") / 1024 for one, text in statuses.items()}
        regions = [path for path in Path("/dev/shm").glob(f"step_audio_{pid}_*")]
        return cls(
            memory_mb=round(sum(memory.values()), 1),
            memory_mb_of={f"{processes.role(one)} {one}": round(value, 1) for one, value in memory.items()},
            descriptors=sum(_count(f"/proc/{one}/fd") for one in family),
            threads=sum(_field(text, "Threads") for text in status),
            shared_mb=round(sum(path.stat().st_size for path in regions) / 1e6, 1),
            processes=len(family),
        )


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""


def _field(status: str, name: str) -> int:
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")), 0)


def _count(folder: str) -> int:
    with contextlib.suppress(OSError):
        return len(list(Path(folder).iterdir()))
    return 0


class MemoryLimit:
    """A control group of the server's processes (cgroup v1)."""

    def __init__(self, pid: int, times: float):
        self.folder = Path(f"/sys/fs/cgroup/memory/step-audio-soak-{pid}")
        self.folder.mkdir()
        for one in processes.tree(pid):
            with contextlib.suppress(OSError):
                (self.folder / "cgroup.procs").write_text(str(one))
        held = sum(_field(_read(f"/proc/{one}/status"), "VmRSS") for one in processes.tree(pid)) * 1024
        self.limit = int(held * times)
        (self.folder / "memory.limit_in_bytes").write_text(str(self.limit))

    def end(self) -> None:
        for one in (self.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                Path("/sys/fs/cgroup/memory/cgroup.procs").write_text(one)
        self.folder.rmdir()


async def soak(pid: int, url: str, grpc: str, minutes: float, wide: int, memory_limit: float | None) -> dict[str, Any]:
    """Traffic `wide` at once; what is told in the end."""
    begin = time.monotonic()
    until = begin + minutes * 60
    traffics = [Traffic(url, grpc, seed) for seed in range(wide)]
    running = asyncio.gather(*(traffic.run(until) for traffic in traffics))
    warm: Footprint | None = None
    limit: MemoryLimit | None = None
    outcomes: Counter[tuple[str, str]] = Counter()
    while not running.done():
        await asyncio.wait([running], timeout=15)
        outcomes = sum((traffic.outcomes for traffic in traffics), Counter())
        passed = time.monotonic() - begin
        if warm is None and passed > WARM_UP * minutes * 60:
            warm = Footprint.of(pid)
            limit = MemoryLimit(pid, memory_limit) if memory_limit else None
        now = Footprint.of(pid)
        print(
            f"{passed:.0f} s: {outcomes.total()} requests, {now.memory_mb} MB, {now.descriptors} descriptors, "
            f"{now.threads} threads, {now.shared_mb} MB shared, {now.processes} processes",
            file=sys.stderr,
            flush=True,
        )
    await running
    for traffic in traffics:
        await traffic.http.aclose()
        await traffic.client.close()
    await asyncio.sleep(2)
    end = Footprint.of(pid)
    if limit is not None:
        limit.end()
    return {
        "minutes": minutes, "wide": wide, "requests": outcomes.total(),
        "outcomes": {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(outcomes.items())},
        "warm": None if warm is None else asdict(warm), "end": asdict(end),
        "memory_limit_mb": None if limit is None else limit.limit / 1e6,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pid", type=int, nargs="?")
    parser.add_argument("--url", default="http://127.0.0.1:9999")
    parser.add_argument("--grpc", default="127.0.0.1:8001")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--wide", type=int, default=36)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--memory-limit", type=float)
    given = parser.parse_args()
    with busy(given.busy), contextlib.ExitStack() as stack:
        pid, url, address = given.pid, given.url, given.grpc
        if pid is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # No two clips are alike: a cache that fills for half an hour would look like a leak.
            process = ServeProcess(settings_for(embedded_checkpoint(), folder, encoder_cache_bytes=16 << 20))
            stack.callback(process.end)
            process.wait_for("ready")
            pid, url = process.process.pid, f"http://127.0.0.1:{process.port}"
            address = f"127.0.0.1:{process.settings.grpc_port}"
        told = asyncio.run(soak(pid, url, address, given.minutes, given.wide, given.memory_limit))
    print(json.dumps(told))
    warm, end = told["warm"] or told["end"], told["end"]
    grown = [name for name in GROWING if end[name] > max(GROWTH * warm[name], warm[name] + SLACK.get(name, 0.0))]
    died = _stubs(warm) - _stubs(end)
    print(f"died: {sorted(died) or 'nothing'}; grown: {grown or 'nothing'}", file=sys.stderr)
    return int(bool(grown or died))


def _stubs(footprint: dict[str, Any]) -> set[str]:
    """Roles and process ids of what ends only by dying; workers may be replaced."""
    return {name for name in footprint["memory_mb_of"] if not name.startswith("worker")}


if __name__ == "__main__":
    sys.exit(main())
