"""`step-audio bench`: load on a server, its figures, a results folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from step_audio.command_line import Echo
from step_audio.extras import install_for
from step_audio_benchmark.bare_engine import BareEngine
from step_audio_benchmark.load import OwnLoad, Way
from step_audio_benchmark.machine import machine
from step_audio_benchmark.perf_analyzer import PerfAnalyzer, find
from step_audio_benchmark.plot import plot
from step_audio_benchmark.report import tables, write
from step_audio_benchmark.run import Cell, Plan, measure
from step_audio_benchmark.sheet import Planned, sheet
from step_audio_benchmark.targets import connected
from step_audio_client import Tls
from step_audio_server import processes
from step_audio_server.commands.own_server import both_doors, own_server
from step_audio_server.serve import Service

CACHE = Path.home() / ".cache" / "step-audio"


@dataclass(frozen=True)
class Where:
    """The server to ask. Without an address one is started on free ports, for `checkpoint`."""

    grpc: str | None = None
    http: str | None = None
    triton_http: str | None = None
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    checkpoint: Path | None = None
    pid: int | None = None  # of a `step-audio serve` on this machine
    doors: Sequence[str] = ("grpc", "http")  # of the server that is started
    perf_analyzer: bool = False  # over gRPC, too
    engine: bool = False  # alone, too, of the server that is started
    engine_dir: Path | None = None


def bench(
    plan: Plan,
    where: Where,
    output: Path,
    echo: Echo,
    arguments: Sequence[str] = (),
    planned: Planned | None = None,
) -> int:
    """Returns the exit status: 1 where a request failed. `planned`: for the sheet. Raises StepAudioError."""
    about = machine(["step-audio", *arguments])
    with contextlib.ExitStack() as stack:
        if where.grpc is None and where.http is None:
            output.mkdir(parents=True, exist_ok=True)
            where = _started(where, stack, output, echo)
        engine = None if where.engine_dir is None else BareEngine(where.engine_dir)
        if engine is not None:
            stack.callback(engine.close)
        cells = asyncio.run(_measure(plan, where, engine))
    said = tables(cells)
    write(output, plan, about, cells, said)
    (output / "sheet.md").write_text(sheet(cells, about, planned), "utf-8")
    try:
        plot(cells, output / "latency.svg")
    except ModuleNotFoundError as error:
        echo(f"no plot without {error.name}: {install_for(error.name or '')}")
    print(said)
    echo(f"{output}: report.md, sheet.md, results.json, requests.jsonl")
    failed = [record.error for cell in cells for record in cell.run.records if record.error is not None]
    if failed:
        echo(f"{len(failed)} requests failed, the first with: {failed[0]}")
    return 1 if failed else 0


async def _measure(plan: Plan, where: Where, engine: BareEngine | None) -> list[Cell]:
    async with connected(where.grpc, where.http, tls=where.tls, model=where.model, key=where.key) as targets:
        ways: list[Way] = [OwnLoad(target) for target in targets]
        if engine is not None:
            ways.insert(0, engine)
        if where.perf_analyzer and where.grpc is not None:
            ways.append(PerfAnalyzer(*find(CACHE), where.grpc))
        return await measure(plan, ways, where.triton_http, _processor_time(where.pid), sys.stderr)


def _started(where: Where, stack: contextlib.ExitStack, output: Path, echo: Echo) -> Where:
    settings = own_server(where.checkpoint)
    if "http" in where.doors:
        log = stack.enter_context((output / "gateway.log").open("wb"))
        service, url = stack.enter_context(both_doors(settings, log, echo))
    else:
        service, url = stack.enter_context(Service(settings, echo)), None
    return Where(
        grpc=service.address if "grpc" in where.doors else None,
        http=url,
        triton_http=f"http://127.0.0.1:{settings.http_port}",
        pid=os.getpid(),
        perf_analyzer=where.perf_analyzer,
        engine_dir=settings.run_dir / "engine" if where.engine else None,
    )


def _processor_time(pid: int | None) -> Callable[[], dict[str, float]]:
    """Seconds by role, of the server's processes; this one is the client."""

    def spent() -> dict[str, float]:
        found: dict[str, float] = {}
        for one in processes.tree(pid) | {os.getpid()} if pid else {os.getpid()}:
            name = "this client" if one == os.getpid() else processes.role(one)
            found[name] = found.get(name, 0.0) + processes.processor_seconds(one)
        return found

    return spent
