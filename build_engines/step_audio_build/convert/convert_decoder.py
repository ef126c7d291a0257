"""Published checkpoint -> TensorRT-LLM 1.2.1 checkpoint of the decoder: config.json and one file per rank.

The stock converter does not know `step_audio_2`, so the rank files are written here, in one streaming pass: memory
stays at a few blocks whatever the model's size. Names, fusing and slicing follow TensorRT-LLM 1.2.1's
`models/model_weights_loader.py` and `models/qwen/convert.py`. Mind the gated MLP: TensorRT-LLM applies SiLU to `fc`,
so `fc` is Hugging Face's gate_proj and `gate` its up_proj.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from step_audio.arrays import AnyArray
from step_audio.checkpoint import Checkpoint, decoder_tensors, from_float32, to_float32
from step_audio.config import DType, ModelConfig, TextConfig
from step_audio.errors import ArtefactError, CheckpointError
from step_audio.safetensors import STORAGE, byte_size
from step_audio_build.artefacts.manifest import (
    Identity,
    Manifest,
    OutputFile,
    combine_hashes,
    read_manifest,
    require_same,
    sha256_file,
    source_files,
    to_json,
    tool_versions,
    write_atomically,
)
from step_audio_build.convert.rank_files import RankFiles, invalidate, journal_exists

FORMAT = 1  # of the rank files; raise it when the same checkpoint would give other bytes
BLOCK = 8 << 20  # bytes read at a time; larger ones come from fresh pages each time and are slower
Report = Callable[[int, int], None]  # (bytes written, bytes in all)


@dataclass(frozen=True)
class Read:
    """Rows of a source tensor, and who gets them: every rank of `ranks`, in whole or its share of the columns.

    Without a `source` the rows are zeros.
    """

    source: str | None
    start: int
    stop: int
    ranks: range
    columns: bool = False


@dataclass(frozen=True)
class RankTensor:
    """A tensor of the rank files: its name, its shape within one rank, and the reads that fill it, in order."""

    name: str
    shape: tuple[int, ...]
    reads: tuple[Read, ...]


def rank_tensors(text: TextConfig, tp: int) -> list[RankTensor]:
    """Everything a rank file holds, in file order. Raises ArtefactError when the model cannot be split `tp` ways."""
    _require_divisible(text, tp)
    shapes = decoder_tensors(text)
    everyone = range(tp)

    def whole(name: str, source: str) -> RankTensor:
        return RankTensor(name, shapes[source], (Read(source, 0, shapes[source][0], everyone),))

    def rows(name: str, source: str) -> RankTensor:
        count, *rest = shapes[source]
        per = -(-count // tp)  # only lm_head may not divide, it is filled up with zero rows
        reads = []
        for rank in everyone:
            start, stop = (min(n * per, count) for n in (rank, rank + 1))
            reads.append(Read(source, start, stop, range(rank, rank + 1)))
            reads.append(Read(None, 0, per - (stop - start), range(rank, rank + 1)))
        return RankTensor(name, (per, *rest), tuple(read for read in reads if read.stop > read.start))

    def columns(name: str, source: str) -> RankTensor:
        count, width = shapes[source]
        return RankTensor(name, (count, width // tp), (Read(source, 0, count, everyone, columns=True),))

    def qkv(name: str, layer: str, kind: str) -> RankTensor:
        heads = {"q": text.num_attention_heads, "k": text.num_key_value_heads, "v": text.num_key_value_heads}
        reads = []
        for rank in everyone:
            for part, count in heads.items():
                # With fewer KV heads than ranks, neighbouring ranks hold copies of the same head.
                start = rank * count // tp * text.head_dim
                stop = start + max(count // tp, 1) * text.head_dim
                reads.append(Read(f"{layer}.self_attn.{part}_proj.{kind}", start, stop, range(rank, rank + 1)))
        height = sum(read.stop - read.start for read in reads) // tp
        return RankTensor(name, (height, *shapes[f"{layer}.self_attn.q_proj.{kind}"][1:]), tuple(reads))

    out = [whole("transformer.vocab_embedding.weight", "model.embed_tokens.weight")]
    for n in range(text.num_hidden_layers):
        ours, theirs = f"transformer.layers.{n}", f"model.layers.{n}"
        out += [
            whole(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight"),
            qkv(f"{ours}.attention.qkv.weight", theirs, "weight"),
            qkv(f"{ours}.attention.qkv.bias", theirs, "bias"),
            columns(f"{ours}.attention.dense.weight", f"{theirs}.self_attn.o_proj.weight"),
            whole(f"{ours}.post_layernorm.weight", f"{theirs}.post_attention_layernorm.weight"),
            rows(f"{ours}.mlp.fc.weight", f"{theirs}.mlp.gate_proj.weight"),
            rows(f"{ours}.mlp.gate.weight", f"{theirs}.mlp.up_proj.weight"),
            columns(f"{ours}.mlp.proj.weight", f"{theirs}.mlp.down_proj.weight"),
        ]
    return [*out, whole("transformer.ln_f.weight", "model.norm.weight"), rows("lm_head.weight", "lm_head.weight")]


def _require_divisible(text: TextConfig, tp: int) -> None:
    def fits(n: int) -> bool:
        kv = text.num_key_value_heads
        return not (text.num_attention_heads % n or text.intermediate_size % n or (kv % n and n % kv))

    if tp < 1 or not fits(tp):
        possible = ", ".join(str(n) for n in range(1, text.num_attention_heads + 1) if fits(n))
        raise ArtefactError(
            f"{text.num_attention_heads} heads, {text.num_key_value_heads} key-value heads and intermediate size "
            f"{text.intermediate_size} cannot be split over {tp} GPUs; possible numbers: {possible}"
        )


def trtllm_config(text: TextConfig, tp: int, dtype: DType) -> dict[str, Any]:
    """config.json of the TensorRT-LLM checkpoint (QWenConfig of 1.2.1). Left-out keys would take wrong defaults,
    rotary_base first of all; `moe` is left out because its fields change between releases."""
    return {
        "architecture": "Qwen2ForCausalLM",
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "head_size": text.head_dim,
        "qk_layernorm": False,
        "hidden_act": "silu",
        "intermediate_size": text.intermediate_size,
        "norm_epsilon": text.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": text.max_position_embeddings,
        "rotary_embedding_dim": text.head_dim,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "runtime_defaults": None,
        "mapping": {
            "world_size": tp,
            "gpus_per_node": 8,
            "cp_size": 1,
            "tp_size": tp,
            "pp_size": 1,
            "moe_tp_size": tp,
            "moe_cluster_size": 1,
            "moe_ep_size": 1,
            "attn_tp_size": tp,
            "attn_cp_size": 1,
        },
        "quantization": {
            "quant_algo": None,
            "kv_cache_quant_algo": None,
            "group_size": 128,
            "smoothquant_val": 0.5,
            "clamp_val": None,
            "use_meta_recipe": False,
            "has_zero_point": False,
            "pre_quant_scale": False,
            "exclude_modules": None,
        },
        "mlp_bias": False,
        "attn_bias": True,
        "rotary_base": text.rope_theta,
        "rotary_scaling": None,
        "disable_weight_only_quant_plugin": False,
        "use_logn_attn": False,
        "qwen_type": "qwen2",
        "num_labels": 1,
        "seq_length": 8192,
        "tie_word_embeddings": False,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
    }


def convert_decoder(
    checkpoint_dir: str | Path | Checkpoint,
    output_dir: str | Path,
    tp: int = 4,
    dtype: DType | None = None,
    progress: Report | None = None,
) -> Manifest:
    """Write the TensorRT-LLM checkpoint for `tp` GPUs; `dtype` None keeps the checkpoint's own.

    Does nothing when it is there already. A run that was stopped, by whatever, is taken up where it was by the next
    one. Raises CheckpointError, and ArtefactError when the directory is of another build, the disk is too small or
    the model cannot be split.
    """
    checkpoint = checkpoint_dir if isinstance(checkpoint_dir, Checkpoint) else Checkpoint(checkpoint_dir)
    config = ModelConfig.from_directory(checkpoint.directory)
    checkpoint.verify(config)
    layout = rank_tensors(config.text, tp)
    dtype = dtype or _own_dtype(checkpoint, config.text)
    identity = Identity(
        kind="decoder",
        format=FORMAT,
        source=source_files(checkpoint, decoder_tensors(config.text)),
        settings={"tp": tp, "dtype": dtype},
    )
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        if manifest := read_manifest(directory / "manifest.json"):
            require_same(manifest.identity, identity, directory)
            manifest.check(directory)
            invalidate(directory)
            return manifest
        if not journal_exists(directory) and any(directory.glob("rank*.safetensors")):
            raise ArtefactError(f"{directory} holds rank files of unknown origin; delete it or choose another output")
        with RankFiles(directory, identity, tp, dtype, [(tensor.name, tensor.shape) for tensor in layout]) as files:
            (directory / "config.json").unlink(missing_ok=True)
            _require_space(directory, files.total_bytes - files.done_bytes)
            _stream(checkpoint, layout, files, dtype, progress or (lambda done, total: None))
            outputs = files.finish()
        write_atomically(directory / "config.json", to_json(trtllm_config(config.text, tp, dtype)))
        path = directory / "config.json"
        manifest = Manifest(
            identity=identity,
            tensors_sha256=combine_hashes(pair for entry in files.written for pair in entry.sources.items()),
            tools=tool_versions(),
            outputs=[*outputs, OutputFile(name=path.name, size=path.stat().st_size, sha256=sha256_file(path))],
        )
        write_atomically(directory / "manifest.json", manifest.model_dump_json(indent=1) + "\n")
        invalidate(directory)
        return manifest


def _own_dtype(checkpoint: Checkpoint, text: TextConfig) -> DType:
    dtypes = {checkpoint.dtype(name) for name in decoder_tensors(text)}
    if len(dtypes) > 1:
        raise CheckpointError(f"the decoder's tensors are of several types ({', '.join(sorted(dtypes))}); name one")
    return dtypes.pop()


def _stream(checkpoint: Checkpoint, layout: list[RankTensor], files: RankFiles, dtype: DType, progress: Report) -> None:
    """Append what is missing in `files`, block by block. Hashing and writing go on in threads, outside the GIL."""
    total = files.total_bytes
    progress(files.done_bytes, total)
    with ThreadPoolExecutor(len(files.names) + 1) as pool:
        for tensor in layout[len(files.written) :]:
            hashes = {read.source: hashlib.sha256() for read in tensor.reads if read.source}
            hashed = dict.fromkeys(hashes, 0)  # rows; a KV head that several ranks hold is read more than once
            for read, start, stop in _blocks(tensor, dtype):
                jobs = []
                if read.source is None:
                    data: AnyArray = np.zeros((stop - start, *tensor.shape[1:]), STORAGE[dtype])
                else:
                    raw = checkpoint.read_rows(read.source, start, stop)
                    if start >= hashed[read.source]:
                        hashed[read.source] = stop
                        jobs.append(pool.submit(hashes[read.source].update, raw.reshape(-1).view(np.uint8).data))
                    data = _cast(raw, checkpoint.dtype(read.source), dtype)
                width = tensor.shape[-1]
                for rank in read.ranks:
                    part = data[:, rank * width : (rank + 1) * width] if read.columns else data
                    jobs.append(pool.submit(files.append, rank, part))
                for job in jobs:
                    job.result()
                progress(files.done_bytes, total)
            files.commit(tensor.name, {source: digest.hexdigest() for source, digest in hashes.items()})


def _blocks(tensor: RankTensor, dtype: DType) -> Iterator[tuple[Read, int, int]]:
    """Each read cut into runs of rows of at most BLOCK bytes."""
    for read in tensor.reads:
        width = int(np.prod(tensor.shape[1:])) * (len(read.ranks) if read.columns else 1)
        rows = max(BLOCK // byte_size(dtype, (width,)), 1)
        for start in range(read.start, read.stop, rows):
            yield read, start, min(start + rows, read.stop)


def _cast(array: AnyArray, have: DType, want: DType) -> AnyArray:
    return array if have == want else from_float32(to_float32(array), want)


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ArtefactError(
            f"the conversion writes {needed / 1e9:.1f} GB more, {directory} has {free / 1e9:.1f} GB free; "
            "free space or choose another output"
        )


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One conversion at a time in a directory; the lock goes with the process."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtefactError(f"another conversion is writing to {directory}; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)
