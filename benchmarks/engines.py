"""Speed of one pipeline with two engines behind it: ours, and vLLM (docs/engines.md).

    python benchmarks/engines.py --llm-python FILE [--concurrency 1 8 32] [--rounds 3] [--dtype bfloat16]

Both servers run, the same checkpoint behind each, and take turns: each round asks new questions of the same lengths, a
recording of 6.6 s in each, over gRPC, greedy. Nobody waits on the other server meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import get_args

from bench import serving
from step_audio.command_line import count
from step_audio.config import DType
from step_audio_benchmark.load import Level, OwnLoad
from step_audio_benchmark.machine import machine
from step_audio_benchmark.report import tables
from step_audio_benchmark.run import Cell, Plan, measure
from step_audio_benchmark.targets import Grpc
from step_audio_benchmark.workload import Workload
from step_audio_client import StepAudioClient
from step_audio_server.assets import embedded_checkpoint, example_recordings

CLIP = 6.6  # seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm-python", type=Path, required=True, metavar="FILE", help="as for `step-audio serve`")
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint(), help="default: %(default)s")
    parser.add_argument("--concurrency", type=count, nargs="+", default=[1, 8, 32], help="default: %(default)s")
    parser.add_argument("--rounds", type=count, default=3, help="default: %(default)s")
    parser.add_argument("--output-tokens", type=count, default=128, help="of each answer (default %(default)s)")
    parser.add_argument("--dtype", choices=get_args(DType), default="bfloat16", help="of both (default: %(default)s)")
    return parser.parse_args()


async def compare(addresses: dict[str, str], plan: Plan) -> list[Cell]:
    """addresses: by the engine's name. Raises StepAudioError where a server cannot do what is asked."""
    async with contextlib.AsyncExitStack() as stack:
        ways = []
        for name, address in addresses.items():
            target = Grpc(await stack.enter_async_context(StepAudioClient(address)))
            target.name = name
            ways.append(OwnLoad(target))
        return await measure(plan, ways, stream=sys.stderr)


def main() -> None:
    options = arguments()
    workload = Workload(example_recordings(), clip_seconds=(CLIP,), output_tokens=options.output_tokens)
    plan = Plan(workload, [Level(concurrency=one) for one in options.concurrency], options.rounds)
    with (
        serving(options.checkpoint, dtype=options.dtype) as ours,
        serving(options.checkpoint, dtype=options.dtype, llm="vllm", llm_python=options.llm_python) as theirs,
    ):
        cells = asyncio.run(compare({"vLLM": theirs.address, "ours": ours.address}, plan))
    print("\n".join(f"{name}: {value}" for name, value in machine(["python", *sys.argv]).items()))
    print(f"\n{tables(cells)}")


if __name__ == "__main__":
    main()
