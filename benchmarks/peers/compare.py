"""Ours beside other engines: the same weights, the same questions, in interleaved rounds; ratios with their spread.
With --tokens: whether they draw the same tokens.

    python benchmarks/peers/compare.py --output figures --checkpoint h256 --peer vllm openvino-genai

vLLM is asked over HTTP, with recordings, beside a server of ours. The others have the decoder alone and are asked
beside the CPU's engine. Each gets an environment of its own on first use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import httpx

from peers.agreement import TokenAgreement, agreement_table, answers
from peers.decoders import PEERS, Decoder, Peer, Size
from peers.environments import Environment
from peers.vllm_server import ENVIRONMENT as VLLM
from peers.vllm_server import MODEL, NAME, VERSION, VllmServer
from step_audio.command_line import count, echo
from step_audio.config import ModelConfig
from step_audio.errors import StepAudioError
from step_audio_benchmark.bare_engine import BareEngine
from step_audio_benchmark.load import Level, OwnLoad, Way
from step_audio_benchmark.machine import machine
from step_audio_benchmark.report import tables, write
from step_audio_benchmark.run import Plan, measure
from step_audio_benchmark.targets import TIMEOUT, Http, connected
from step_audio_benchmark.workload import Workload
from step_audio_server.assets import example_recordings
from step_audio_server.commands.bench import CACHE
from step_audio_server.commands.bench_arguments import SAMPLED
from step_audio_server.commands.own_server import both_doors, own_server
from step_audio_server.prepare import build_for_cpu
from step_audio_server.settings import ServeSettings

ENVIRONMENTS = CACHE / "peers"


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="tables, figures and every request")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="in the published layout")
    parser.add_argument("--peer", nargs="+", required=True, choices=[VLLM, *PEERS])
    parser.add_argument("--concurrency", nargs="+", type=count, default=[1, 8, 32], metavar="N")
    parser.add_argument("--rounds", type=count, default=3, help="interleaved (default %(default)s)")
    parser.add_argument(
        "--requests", type=count, metavar="N", help="of each round and load (default 4 for each at once)"
    )
    parser.add_argument("--output-tokens", type=count, default=128, help="of each answer (default %(default)s)")
    parser.add_argument("--clip-seconds", type=float, default=6.6, metavar="S", help="default %(default)s")
    parser.add_argument("--sampled", action="store_true", help="temperature 0.7, top_p 0.9, top_k 50; default: greedy")
    parser.add_argument("--tokens", action="store_true", help="compare greedy answers in float32, instead of speeds")
    parser.add_argument(
        "--environments", type=Path, default=ENVIRONMENTS, metavar="DIR", help="default: ~/.cache/step-audio/peers"
    )
    return parser.parse_args(given)


def plan_of(given: argparse.Namespace) -> Plan:
    workload = Workload(
        recordings=example_recordings(),
        clip_seconds=(given.clip_seconds,),
        output_tokens=given.output_tokens,
        sampling=SAMPLED if given.sampled else {"temperature": 0.0},
    )
    return Plan(workload, [Level(concurrency=width) for width in given.concurrency], given.rounds, given.requests)


class Setting:
    """All that is asked, from its start to its end. exact: everything computes in float32, so that tokens can be
    compared; else each in what it takes by itself."""

    def __init__(self, given: argparse.Namespace, plan: Plan, log: IO[bytes]):
        self.given, self.plan, self.log, self.exact = given, plan, log, given.tokens
        self.ways: list[Way] = []
        self.pairs: list[tuple[str, str]] = []  # ours, theirs
        self.versions: dict[str, str] = {}
        self._addresses: tuple[str, str, str] | None = None  # of our gRPC and HTTP, and of vLLM

    def start(self, stack: contextlib.ExitStack) -> None:
        """Raises StepAudioError."""
        settings = own_server(self.given.checkpoint)
        if self.exact:
            settings = settings.model_copy(update={"dtype": "float32"})
        chosen = list(dict.fromkeys(self.given.peer))
        if VLLM in chosen:
            self._served(stack, settings)
        if decoders := [PEERS[name] for name in chosen if name in PEERS]:
            self._alone(stack, settings, decoders)

    def _served(self, stack: contextlib.ExitStack, settings: ServeSettings) -> None:
        service, url = stack.enter_context(both_doors(settings, self.log, echo))
        environment = Environment(self.given.environments, VLLM)
        echo(f"{NAME}: starting, which takes a minute or two")
        server = VllmServer(environment, self.given.checkpoint, self.log, "float32" if self.exact else "auto")
        stack.callback(server.close)
        self.versions[VLLM] = VERSION
        self._addresses = service.address, url, server.url

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """To the servers, whose clients live in an event loop."""
        if self._addresses is None:
            return
        grpc, http, other = self._addresses
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT))
        theirs = Http(client, other, MODEL, NAME, {"return_token_ids": True} if self.exact else {})
        # Our HTTP door tells text alone, so tokens are those of the client library.
        ours = await stack.enter_async_context(connected(grpc, None if self.exact else http))
        self.ways = [*map(OwnLoad, [*ours, theirs]), *self.ways]
        self.pairs = [*((target.name, NAME) for target in ours), *self.pairs]

    def _alone(self, stack: contextlib.ExitStack, settings: ServeSettings, decoders: Sequence[Peer]) -> None:
        _, artefacts = build_for_cpu(settings, echo)
        engine = BareEngine(artefacts.engine_dir)
        stack.callback(engine.close)
        self.ways.append(engine)
        exports = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vocab_size = ModelConfig.from_directory(self.given.checkpoint).text.vocab_size
        size = Size.of(vocab_size, self.plan.workload, self.plan.levels)
        for peer in decoders:
            weights = peer.export(self.given.checkpoint, exports)
            environment = Environment(self.given.environments, peer.environment)
            way = Decoder(peer, environment, weights, size, self.exact, self.log)
            stack.callback(way.close)
            self.versions |= way.versions
            self.ways.append(way)
            self.pairs.append((engine.name, way.name))


async def speeds(setting: Setting) -> str:
    """Tables; results in the folder."""
    about = machine(["python", *sys.argv])
    cells = await measure(setting.plan, setting.ways, stream=sys.stderr)
    about["packages"] |= setting.versions
    said = tables(cells, setting.pairs)
    write(setting.given.output, setting.plan, about, cells, said)
    return said


async def tokens(setting: Setting) -> str:
    """A table, in tokens.md."""
    drawn = {way.name: await answers(way, setting.plan.workload) for way in setting.ways}
    agreed = [
        TokenAgreement.of(ours, theirs, list(zip(drawn[ours], drawn[theirs], strict=True)))
        for ours, theirs in setting.pairs
    ]
    said = agreement_table(agreed)
    (setting.given.output / "tokens.md").write_text(said + "\n", "utf-8")
    return said


async def ask(setting: Setting) -> str:
    async with contextlib.AsyncExitStack() as stack:
        await setting.connect(stack)
        return await (tokens if setting.exact else speeds)(setting)


def compare(given: argparse.Namespace) -> str:
    """Tables. Raises StepAudioError."""
    for name in dict.fromkeys(PEERS[name].environment if name in PEERS else name for name in given.peer):
        Environment(given.environments, name).install(echo)
    given.output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((given.output / "peers.log").open("wb"))
        setting = Setting(given, plan_of(given), log)
        setting.start(stack)
        return asyncio.run(ask(setting))


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are stopped
    try:
        print(compare(given))
    except StepAudioError as error:
        echo(f"error: {error}")
        return 1
    echo(f"{given.output}: tables and every request")
    return 0


if __name__ == "__main__":
    sys.exit(main())
