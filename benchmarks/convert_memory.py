"""How much memory and time a conversion of the decoder takes, at the published model's widths.

Writes sparse checkpoints (all weights zero, no disk space) of a few depths, converts each in a process of its own and
prints the process's peak resident memory and its speed beside a plain copy of the same rank files. Memory should not
grow with the depth. Needs disk space for the largest conversion twice: about 40 GB for 16 layers.

    python benchmarks/convert_memory.py SCRATCH_DIRECTORY [--layers 4 16] [--tp 4]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from step_audio.config import ModelConfig
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.convert.write_checkpoint import make_sparse

CONVERT = """
import sys
from step_audio_build.convert.convert_decoder import convert_decoder
convert_decoder(*sys.argv[1:3], int(sys.argv[3]))
"""


def published_widths(layers: int) -> ModelConfig:
    """Step-Audio-R1.1 with `layers` decoder layers and a token encoder, which the conversion does not read."""
    text = PUBLISHED.text.model_copy(update={"num_hidden_layers": layers})
    audio = PUBLISHED.audio.model_copy(update={"n_audio_state": 64, "n_audio_head": 1, "n_audio_layer": 1})
    return ModelConfig(text=text, audio=audio)


def timed(command: list[str]) -> tuple[float, float]:
    """Run to the end -> seconds, with its data on the disk, and peak resident MB."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    if status:
        sys.exit(f"{command[0]} failed")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--tp", type=int, default=4)
    args = parser.parse_args()
    print(f"{'layers':>6} {'written':>9} {'convert':>16} {'peak memory':>12} {'cp':>16}")
    for layers in args.layers:
        source, target, copy = (args.scratch / f"{name}-{layers}" for name in ("sparse", "trtllm", "copy"))
        try:
            make_sparse(source, published_widths(layers))
            seconds, peak = timed([sys.executable, "-c", CONVERT, str(source), str(target), str(args.tp)])
            size = sum(path.stat().st_size for path in target.iterdir()) / 1e6
            copy_seconds, _ = timed(["cp", "-r", "--sparse=never", str(target), str(copy)])
            print(
                f"{layers:>6} {size / 1e3:>6.1f} GB {seconds:>5.0f} s {size / seconds:>5.0f} MB/s {peak:>9.0f} MB "
                f"{copy_seconds:>5.0f} s {size / copy_seconds:>5.0f} MB/s",
                flush=True,
            )
        finally:
            for directory in (source, target, copy):
                shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
