"""What one GPU tells of the decoder and the encoder at their true size, with weights that are made up.

Steps, each once: what it has found is kept in WORK/one_gpu.json, and a run that was stopped goes on behind it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from step_audio.arrays import Float32Array, Int32Array
from step_audio.command_line import Echo
from step_audio.config import ModelConfig
from step_audio.engine.executor import Batch, TokenEmbedding
from step_audio.engine.torch_executor import TorchExecutor
from step_audio.engine.trtllm_checkpoint import LayerWeights, open_engine
from step_audio.progress import Progress
from step_audio_benchmark.cuda_executor import CudaExecutor
from step_audio_benchmark.generated import GeneratedCheckpoint
from step_audio_build.artefacts.artefact import free_space
from step_audio_build.artefacts.manifest import to_json, write_atomically
from step_audio_build.convert.convert_decoder import convert_decoder
from step_audio_build.convert.engine_dir import BuildConfig, build_cpu_engine_dir
from step_audio_build.planning.host_memory import memory
from step_audio_build.planning.memory_sizes import kv_bytes_per_token, weight_bytes

TP = 4
BATCHES = (1, 8, 32)
CONTEXT = 255  # positions of each sequence before the one that is computed: with it, what a graph has room for
REPEATS = 50
BLOCK = 32

Found = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is measured, where. `device`: torch's name."""

    config: ModelConfig
    work: Path
    device: str
    echo: Echo

    @property
    def decoder(self) -> Path:
        return self.work / f"decoder-tp{TP}-{self.config.text.dtype}"

    @property
    def engine(self) -> Path:
        return self.work / "engine"

    @cached_property
    def checkpoint(self) -> GeneratedCheckpoint:
        return GeneratedCheckpoint(self.work / "generated", self.config)

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


def run(job: Job, steps: Mapping[str, Callable[[Job], Found]], about: Found) -> Found:
    """What all steps have found, by their names; `about`: machine and model, another of which begins anew."""
    path = job.work / "one_gpu.json"
    kept: Found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if kept.get("about") != about:
        kept = {"about": about}
    for name, step in steps.items():
        if name in kept:
            job.echo(f"{name}: done before")
            continue
        job.echo(f"{name}: begins")
        kept[name] = step(job)
        write_atomically(path, to_json(kept))
        job.echo(f"{name}: {', '.join(f'{key} {value}' for key, value in kept[name].items())}")
    return kept


def bandwidth(job: Job) -> Found:
    """Bytes a second that the device reads of its memory: the best of ten sums over a gigabyte, or 64 MB on a CPU."""
    values = torch.ones((1 << 30 if job.cuda else 1 << 26) // 2, dtype=torch.bfloat16, device=job.device)
    seconds = min(_timed(job, lambda: values.view(torch.int32).max(), 10))
    return {"gb_per_s": round(values.nbytes / seconds / 1e9, 1)}


def convert(job: Job) -> Found:
    """The rank files of four GPUs, by the converter that a build uses."""
    begin = time.monotonic()
    convert_decoder(job.checkpoint, job.decoder, TP, job.config.text.dtype, progress=Progress("decoder"))
    limits = BuildConfig(
        max_batch_size=max(BATCHES),
        max_seq_len=4 * (CONTEXT + 1),
        max_num_tokens=max(BATCHES) * (CONTEXT + 1),
        max_prompt_embedding_table_size=max(BATCHES),
    )
    build_cpu_engine_dir(job.decoder, job.engine, limits)
    size = sum(path.stat().st_size for path in job.decoder.glob("rank*.safetensors"))
    return {"gb": round(size / 1e9, 3), "seconds": round(time.monotonic() - begin, 1)}


def ranks(job: Job) -> Found:
    """Matrices of the first and the last layer, put together again from the ranks, are those that were made."""
    _, weights = open_engine(job.engine)
    compared = 0
    for index in (0, len(weights.layers) - 1):
        layer, theirs = weights.layers[index], f"model.layers.{index}"
        qkv = [job.checkpoint.read(f"{theirs}.self_attn.{part}_proj.weight") for part in "qkv"]
        pairs = [
            (layer.qkv, np.concatenate(qkv)),
            (layer.dense, job.checkpoint.read(f"{theirs}.self_attn.o_proj.weight")),
            (layer.fc, job.checkpoint.read(f"{theirs}.mlp.gate_proj.weight")),
            (layer.gate, job.checkpoint.read(f"{theirs}.mlp.up_proj.weight")),
            (layer.proj, job.checkpoint.read(f"{theirs}.mlp.down_proj.weight")),
        ]
        for ours, made in pairs:
            if not np.array_equal(ours, made):
                raise AssertionError(f"layer {index}: a matrix of the rank files is not the one that was converted")
        compared += len(pairs)
    return {"matrices": compared}


def decode(job: Job) -> Found:
    """Milliseconds of a step at each batch, on the device and with the logits' way to the host; the bound that the
    memory's bandwidth sets, and its share of the step; how far the step's logits are from the prompts' way."""
    gb_per_s = json.loads((job.work / "one_gpu.json").read_text("utf-8"))["bandwidth"]["gb_per_s"]
    spec, weights = open_engine(job.engine)
    blocks = -(-(CONTEXT + 1) // BLOCK)
    embed = TokenEmbedding(weights)
    precision = "bf16" if spec.dtype == "bfloat16" else "f32"
    told = replace(weights, layers=_Told(weights.layers, Progress("decode: layers read rank by rank", unit="")))
    executor = CudaExecutor(spec, told, max(BATCHES) * blocks, precision, job.device)
    read = sum(tensor.nbytes for layer in executor.layers for tensor in layer.values()) + executor.lm_head.nbytes
    per_position = 2 * spec.num_layers * spec.num_kv_heads * spec.head_size * executor.cache.element_size()
    found: Found = {}
    ids = np.random.default_rng(0).integers(0, spec.vocab_size, (max(BATCHES), CONTEXT + 1)).astype(np.int32)
    for size in BATCHES:
        prompts = uniform_batch(embed, ids[:size, :CONTEXT], 0, blocks)
        executor.forward(prompts)
        last = uniform_batch(embed, ids[:size, CONTEXT:], CONTEXT, blocks)
        step = executor.load(last)
        on_device = statistics.median(_timed(job, step.run, REPEATS))
        whole = statistics.median(_timed(job, partial(executor.forward, last), REPEATS))
        logits = executor.forward(last).copy()
        slow = TorchExecutor.forward(executor, last)
        bound = (read + size * (CONTEXT + 1) * per_position) / gb_per_s / 1e9
        found[f"batch {size}"] = {
            "ms": round(1000 * on_device, 3),
            "ms with logits": round(1000 * whole, 3),
            "bound ms": round(1000 * bound, 3),
            "share of bound": round(bound / on_device, 3),
            "tokens/s": round(size / on_device, 1),
            "cosine": round(_cosine(logits, slow), 5),
        }
    return found


class _Told(Sequence[LayerWeights]):
    """Layers, and how many have been asked for."""

    def __init__(self, layers: Sequence[LayerWeights], progress: Progress):
        self._layers, self._progress = layers, progress

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: Any) -> Any:
        self._progress(min(index + 1, len(self)), len(self))
        return self._layers[index]


def uniform_batch(embed: TokenEmbedding, ids: Int32Array, past: int, blocks: int) -> Batch:
    """Positions past .. past + n of S sequences, ids [S, n]; each has its own `blocks` blocks, one behind the other."""
    size, new = ids.shape
    used = -(-(past + new) // BLOCK)
    begins = np.arange(size + 1, dtype=np.int32)
    table = (np.arange(size)[:, None] * blocks + np.arange(used)).astype(np.int32)
    return Batch(
        embeddings=embed(ids.reshape(-1)),
        position_ids=np.tile(np.arange(past, past + new, dtype=np.int32), size),
        past_lens=np.full(size, past, np.int32),
        subsequence_begins=begins * new,
        block_indices=table.reshape(-1),
        block_indices_begins=begins * used,
        max_context_len=past + new,
        logit_indices=begins[1:] * new - 1,
    )


def missing(job: Job, parts: Mapping[str, Any]) -> list[str]:
    """What stands against a run, in sentences."""
    lines = []
    text = job.config.text
    if "decode" in parts:
        ranks_bytes = TP * weight_bytes(text, TP, "bfloat16")
        there = sum(path.stat().st_size for path in job.decoder.glob("rank*.safetensors"))
        free = free_space(job.work)
        if free < ranks_bytes - there:
            lines.append(f"{job.work} needs {(ranks_bytes - there) / 1e9:.0f} GB and has {free / 1e9:.0f} GB free")
        if memory()[1] < (needed := 4 * ranks_bytes // max(text.num_hidden_layers, 1)):
            lines.append(f"{needed / 1e9:.0f} GB of the host's memory are needed, {memory()[1] / 1e9:.0f} GB are free")
    if job.cuda and not torch.cuda.is_available():
        lines.append("torch finds no CUDA device: install a build of torch for CUDA, and NVIDIA's driver")
    elif job.cuda and "decode" in parts:
        cache = max(BATCHES) * 2 * CONTEXT * kv_bytes_per_token(text, 1, "bfloat16")
        needed, free = weight_bytes(text, 1, "bfloat16") + cache + (2 << 30), torch.cuda.mem_get_info(job.device)[0]
        if free < needed:
            lines.append(f"{needed / 1e9:.0f} GB of the card's memory are needed, {free / 1e9:.0f} GB are free")
    if "encoder" in parts:
        lines += [f"{name} is not installed" for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    return lines


def _timed(job: Job, work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs, after three."""
    seconds = []
    for index in range(repeats + 3):
        _wait(job)
        begin = time.perf_counter()
        work()
        _wait(job)
        if index >= 3:
            seconds.append(time.perf_counter() - begin)
    return seconds


def _wait(job: Job) -> None:
    if job.cuda:
        torch.cuda.synchronize(job.device)


def _cosine(ours: Float32Array, theirs: Float32Array) -> float:
    """The least of a row."""
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / norms).min())
