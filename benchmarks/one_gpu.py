"""The decoder and the audio encoder at their true size on one GPU of 80 GB, with weights that are made up.

The rank files of four GPUs are written by our converter (66 GB), put together again rank by rank on the card, and the
decoder is run behind the engine's seam, in torch, its steps as CUDA graphs: milliseconds of a step at batch 1, 8 and
32, beside the bound that the measured bandwidth sets. The encoder is compared with ONNX Runtime row by row, in torch
and, where TensorRT's wheel is installed, as the plan that a build makes. What is missing is said first; a run that was
stopped goes on where it was.

    python benchmarks/one_gpu.py --work /data/one-gpu
    python benchmarks/one_gpu.py --work /tmp/one-gpu --device cpu --size small
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from step_audio.command_line import echo
from step_audio.config import AudioEncoderConfig, ModelConfig, TextConfig
from step_audio_benchmark import one_gpu, one_gpu_encoder
from step_audio_benchmark.machine import machine
from step_audio_benchmark.one_gpu import Found, Job
from step_audio_benchmark.one_gpu_report import write
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.gpus import NUMBERED, visible_gpus

SMALL = ModelConfig(
    text=TextConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
        head_dim=16, vocab_size=1000, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=1e6, dtype="bfloat16",
    ),
    audio=AudioEncoderConfig(
        n_mels=128, n_audio_ctx=1500, n_audio_state=64, n_audio_head=4, n_audio_layer=1, llm_dim=128, kernel_size=3,
        adapter_stride=2,
    ),
)  # fmt: skip
PARTS = {
    "decoder": {
        "bandwidth": one_gpu.bandwidth,
        "convert": one_gpu.convert,
        "ranks": one_gpu.ranks,
        "decode": one_gpu.decode,
    },
    "encoder": {"encoder": one_gpu_encoder.encoder, "tensorrt": one_gpu_encoder.tensorrt},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is written, some 70 GB")
    parser.add_argument("--device", default="cuda:0", help="torch's name of it (default %(default)s)")
    parser.add_argument("--size", default="true", choices=["true", "small"], help="of the model (default %(default)s)")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: both")
    for name, value in NUMBERED.items():  # so that the card that is told of is the one that computes
        os.environ.setdefault(name, value)
    arguments = parser.parse_args()

    config = PUBLISHED if arguments.size == "true" else SMALL
    job = Job(config, arguments.work, arguments.device, echo)
    steps = {name: step for part in arguments.part for name, step in PARTS[part].items()}
    if lacking := one_gpu.missing(job, steps):
        for line in lacking:
            echo(line)
        return 1
    job.work.mkdir(parents=True, exist_ok=True)
    found = one_gpu.run(job, steps, _about(job, arguments.size))
    echo(f"report: {write(job.work, found, machine(sys.argv))}")
    return 0


def _about(job: Job, size: str) -> Found:
    about: Found = {"size": size, "device": job.device, "torch": torch.__version__}
    if job.cuda:
        gpu = visible_gpus()[torch.device(job.device).index or 0]
        about |= {"card": gpu.name, "driver": gpu.driver, "memory_gb": round(gpu.memory_bytes / 1e9, 1)}
    return about


if __name__ == "__main__":
    sys.exit(main())
