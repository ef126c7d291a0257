"""`step-audio plan`: what a profile's server takes of each GPU, and what fits."""

from __future__ import annotations

import argparse
from pathlib import Path

from step_audio.command_line import Commands, add_command
from step_audio.config import AudioEncoderConfig, ModelConfig, TextConfig
from step_audio.errors import SettingsError
from step_audio_build.planning.memory_plan import MemoryPlan, decode_bound, plan
from step_audio_build.planning.profiles import load_profile, profile_names
from step_audio_build.planning.vllm_plan import plan_vllm

DESCRIPTION = "Memory of each GPU under a profile, the batch and the audio that fit. Needs no GPU."

PUBLISHED = ModelConfig(
    text=TextConfig(
        hidden_size=5120,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=158720,
        max_position_embeddings=65536,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        dtype="bfloat16",
    ),
    audio=AudioEncoderConfig(
        n_mels=128,
        n_audio_ctx=1500,
        n_audio_state=1280,
        n_audio_head=20,
        n_audio_layer=32,
        llm_dim=5120,
        kernel_size=3,
        adapter_stride=2,
    ),
)
"""Step-Audio-R1 and R1.1: config_origin.json of stepfun-ai/Step-Audio-R1.1 @8abb296. For planning without weights."""


def add_plan(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the subparsers of `step-audio`; `run` is set."""
    parser = add_command(commands, "plan", run, DESCRIPTION)
    parser.add_argument("--profile", metavar="NAME", help=f"or a .toml file (default: all of {len(profile_names())})")
    parser.add_argument(
        "--llm", choices=("tensorrtllm", "vllm"), default="tensorrtllm", help="what computes the language model"
    )
    parser.add_argument(
        "--gpu-memory-utilization", type=float, metavar="SHARE", help="of --llm vllm (default: 0.9, or what fits)"
    )
    parser.add_argument(
        "--encoder-device", choices=("cpu", "cuda"), help="of --llm vllm: where the audio encoder runs (default: cuda)"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: Step-Audio-R1.1, as published")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Prints; returns 1 where the one profile asked for does not fit. Raises StepAudioError."""
    model = ModelConfig.from_directory(arguments.checkpoint) if arguments.checkpoint else PUBLISHED
    if arguments.llm == "vllm":
        return _run_vllm(arguments, model)
    for flag in ("--gpu-memory-utilization", "--encoder-device"):
        if getattr(arguments, flag.lstrip("-").replace("-", "_")) is not None:
            raise SettingsError(f"{flag} is for --llm vllm alone; leave it out")
    if arguments.profile is None:
        for name in profile_names():
            print(f"{name:<15}{plan(load_profile(name), model).summary()}")
        return 0
    found = plan(load_profile(arguments.profile), model)
    print("\n".join(report(found, model)))
    return 0 if found.fits else 1


def _run_vllm(arguments: argparse.Namespace, model: ModelConfig) -> int:
    share: float | None = arguments.gpu_memory_utilization
    on_gpu = arguments.encoder_device != "cpu"
    if share is not None and not 0 < share <= 1:
        raise SettingsError("--gpu-memory-utilization is above 0 and at most 1")
    if arguments.profile is None:
        for name in profile_names():
            print(f"{name:<15}{plan_vllm(load_profile(name), model, share, on_gpu).summary()}")
        return 0
    found = plan_vllm(load_profile(arguments.profile), model, share, on_gpu)
    card = f"{found.profile.gpus} x {found.profile.gpu.name}, bfloat16, vLLM"
    lines = [f"{found.profile.name}: {card}: {found.summary()}", *found.reasons]
    print("\n".join([*lines, "", found.table()] if found.weights else lines))
    return 0 if found.fits else 1


def report(found: MemoryPlan, model: ModelConfig) -> list[str]:
    """Everything about one plan, in lines."""
    profile = found.profile
    card = f"{profile.gpus} x {profile.gpu.name}, {profile.precision}"
    lines = [f"{profile.name}: {card}: {found.summary()}", *found.reasons, *profile.warnings()]
    if found.weights:
        short, long = decode_bound(found, model), decode_bound(found, model, profile.max_seq_len)
        batch, rows = found.build.max_batch_size, found.table_rows
        steps = [1000 / decode_bound(found, model, sequences=batch, rows=count) for count in (0, rows)]
        lines.append(
            f"Memory bandwidth bounds a single sequence to {short:.0f} tokens/s, and to {long:.0f} when it is "
            f"{profile.max_seq_len:,} tokens long."
        )
        lines.append(
            "Each step clears the prompt table and copies those of running requests into it: at least "
            f"{steps[1]:.1f} ms when all {batch} have {found.audio_seconds:,} s of audio, {steps[0]:.1f} ms without."
        )
        lines += ["", found.table()]
    return lines
