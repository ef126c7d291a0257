"""What a profile's server takes of each GPU, and the largest batch with which it fits.

TensorRT-LLM first loads the engine, then makes its buffers and the prompt table, then gives `kv_fraction` of what is
left to the KV cache (batch_manager/trtGptModelInflightBatching.cpp); where it serves adapters, their cache comes
between these two, as a fraction of what is left, too. All ranks make it as large as the smallest one's:
GPU 0's, which has the audio encoder too. What comes after that lives on the rest: the prompt tables of running
requests, and the encoder where it loads last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from step_audio.config import ModelConfig, TextConfig
from step_audio.errors import ArtefactError
from step_audio.markdown import markdown_table
from step_audio_build.convert.engine_dir import BuildConfig
from step_audio_build.planning import memory_sizes as sizes
from step_audio_build.planning.profiles import Profile, audio_rows, audio_seconds

TOKENS_PER_BLOCK = 32  # TensorRT-LLM's default, and the granularity of KV reuse


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes are of one GPU; `encoder` is on GPU 0 only, whose share of KV cache all others take, too."""

    profile: Profile
    weights: int
    prompt_table: int
    table_copies: int  # the prompt tables of running requests, full ones of all of them
    activations: int  # TensorRT's context memory, and TensorRT-LLM's buffers for the batch
    encoder: int
    runtime: int
    lora: int  # the cache of adapters
    lora_fraction: float  # of what is left before it: lora_cache_gpu_memory_fraction
    kv_fraction: float  # for TensorRT-LLM: the profile's, or less
    kv_cache: int
    kv_tokens: int
    build: BuildConfig  # the limits that `trtllm-build` is given
    fits: bool
    reasons: tuple[str, ...]  # why it does not fit, or what was changed so that it does; one sentence each

    @property
    def table_rows(self) -> int:
        """Audio tokens that one request may have."""
        return self.build.max_prompt_embedding_table_size // self.build.max_batch_size

    @property
    def audio_seconds(self) -> int:
        """The longest recording of one request, or the length of its recordings together, in whole seconds."""
        return audio_seconds(self.table_rows)

    @property
    def full_requests(self) -> float:
        """Requests of max_seq_len that the KV cache holds at once."""
        return self.kv_tokens / self.build.max_seq_len

    @property
    def free(self) -> int:
        """What is left of GPU 0; below zero when it does not fit."""
        before = self.weights + self.prompt_table + self.activations + self.encoder + self.runtime + self.lora
        return self.profile.gpu.memory_bytes - before - self.kv_cache - self.table_copies

    def table(self) -> str:
        """Markdown, whose columns also line up in a terminal."""
        lines = [
            ("weights", self.weights),
            ("prompt table", self.prompt_table),
            ("prompt tables of running requests, at most", self.table_copies),
            ("activations and buffers, at most", self.activations),
            ("audio encoder, at most (GPU 0)", self.encoder),
            ("driver, CUDA, NCCL (assumed)", self.runtime),
            *([("adapters", self.lora)] if self.lora else []),
            ("KV cache", self.kv_cache),
            ("left over", self.free),
            ("total", self.profile.gpu.memory_bytes),
        ]
        return markdown_table([("of each GPU", "GB"), *((name, f"{size / 1e9:.2f}") for name, size in lines)])

    def summary(self) -> str:
        """One line: what can be served."""
        if not self.fits:
            return "does not fit"
        return (
            f"{_sequences(self.build.max_batch_size)} of up to {self.build.max_seq_len:,} tokens, "
            f"{self.audio_seconds:,} s of audio each; KV cache of {self.kv_tokens:,} tokens, "
            f"{self.full_requests:.2f} requests of full length at once"
        )


def plan(profile: Profile, model: ModelConfig) -> MemoryPlan:
    """The largest batch up to the profile's for which all of this holds, with a prompt table of the size asked for:

    - each sequence has room in the table for the profile's `max_audio_seconds`;
    - the KV cache holds one request of `max_seq_len`: with less, TensorRT-LLM would shorten the attention window;
    - the KV cache has a position for each row of the table, without which the row is of no use;
    - the table is a tensor that TensorRT takes;
    - beside the KV cache there is room for the tables of as many running requests, all of them full.

    Raises nothing for what does not fit: `fits` and `reasons` say so.
    """
    try:
        space = _Space(profile, model)
    except ArtefactError as error:  # a model that cannot be split over so many GPUs
        return _nothing(profile, str(error))
    reasons = []
    if profile.max_seq_len > (limit := model.text.max_position_embeddings):
        reasons.append(f"max_seq_len {profile.max_seq_len} is more than the model's {limit} positions: lower it.")
    rows = audio_rows(profile.max_audio_seconds)
    batch = profile.max_batch_size
    while batch > 1 and space.missing(batch, rows):
        batch -= 1
    if missing := space.missing(batch, rows):
        return space.plan(batch, rows, [*reasons, missing], fits=False)
    fits = not reasons
    if batch < profile.max_batch_size:
        cause = space.missing(batch + 1, rows)
        reasons.append(
            f"{_sequences(batch)} instead of {profile.max_batch_size}: {cause} Shorter audio makes room for more."
        )
    if (fraction := space.kv_fraction(batch, rows)) < profile.kv_fraction:
        reasons.append(
            f"kv_fraction {fraction:g} instead of {profile.kv_fraction:g}: the rest is for the prompt tables of "
            "running requests, and for the audio encoder when it loads last."
        )
    return space.plan(batch, rows, reasons, fits)


def kv_fraction(profile: Profile, model: ModelConfig, batch: int, rows: int) -> float:
    """Of an engine for so many sequences with so many rows each. Raises ArtefactError for a model that is no split."""
    return _Space(profile, model).kv_fraction(batch, rows)


def lora_fraction(profile: Profile, model: ModelConfig, batch: int, rows: int) -> float:
    """The same of adapters' cache: `lora_cache_gpu_memory_fraction`."""
    return _Space(profile, model).lora_fraction(batch, rows)


class _Space:
    """A GPU's memory, as a function of batch and table."""

    def __init__(self, profile: Profile, model: ModelConfig) -> None:
        self.profile = profile
        self.text: TextConfig = model.text
        self.weights = sizes.weight_bytes(self.text, profile.gpus, profile.precision, profile.kv_cache_dtype)
        self.encoder = sizes.encoder_bytes(model.audio, profile.encoder_batch_clips)
        self.runtime = sizes.runtime_bytes(profile.gpus)
        self.per_token = sizes.kv_bytes_per_token(self.text, profile.gpus, profile.kv_cache_dtype)
        rank = profile.max_lora_rank
        self.adapter = sizes.lora_bytes(self.text, profile.gpus, rank)
        self.adapters = profile.max_loras + 1 if rank else 0  # a page begun is a page more
        self.lora_activations = (
            sizes.lora_activation_bytes(self.text, profile.gpus, profile.max_num_tokens) if rank else 0
        )

    def activations(self, batch: int) -> int:
        return (
            sizes.activation_bytes(self.text, self.profile.gpus, self.profile.max_num_tokens, batch)
            + sizes.buffer_bytes(self.text, batch, self.profile.max_seq_len)
            + self.lora_activations
        )

    def tables(self, batch: int, rows: int) -> int:
        """The prompt table, and once more the tables of all requests that run at once."""
        return sizes.prompt_table_bytes(self.text, batch * rows)

    def left(self, batch: int, rows: int) -> int:
        """Free on GPU 0 before there is a KV cache; below zero when there is not enough."""
        taken = self.weights + self.activations(batch) + self.encoder + self.runtime + self.adapters * self.adapter
        return self.profile.gpu.memory_bytes - taken - self.tables(batch, rows)

    def kv_fraction(self, batch: int, rows: int) -> float:
        """The profile's, or the largest that leaves enough when the encoder is not loaded yet; at least 0.

        Triton loads its models at once. What is left without the encoder becomes KV cache by this share; the encoder
        and the tables of running requests need the rest.
        """
        left = self.left(batch, rows)
        highest = (left - self.tables(batch, rows)) / (left + self.encoder)
        return min(self.profile.kv_fraction, max(int(100 * highest), 0) / 100) if left > 0 else 0.0

    def kv_tokens(self, batch: int, rows: int) -> int:
        share = self.kv_fraction(batch, rows) * max(self.left(batch, rows), 0)
        return int(share / (self.per_token * TOKENS_PER_BLOCK)) * TOKENS_PER_BLOCK

    def lora_fraction(self, batch: int, rows: int) -> float:
        """Of the memory before the adapters' cache, that it gets for `max_loras`."""
        before = self.left(batch, rows) + self.adapters * self.adapter
        return math.ceil(1e4 * self.profile.max_loras * self.adapter / before) / 1e4 if before > 0 else 0.0

    def missing(self, batch: int, rows: int) -> str | None:
        """What stands against this batch with so many rows each, in a sentence."""
        table, longest = batch * rows, sizes.MAX_TENSOR_ELEMENTS // self.text.hidden_size
        if table > longest:
            return (
                f"{batch} times {audio_seconds(rows):,} s of audio are a prompt table of {table:,} rows, and TensorRT "
                f"takes {longest:,}."
            )
        if (left := self.left(batch, rows)) <= 0:
            return f"with {_sequences(batch)} {-left / 1e9:.1f} GB are missing before there is a KV cache."
        tokens = self.kv_tokens(batch, rows)
        if tokens < self.profile.max_seq_len:
            return (
                f"with {_sequences(batch)} the KV cache would hold {tokens:,} tokens, less than one request of "
                f"{self.profile.max_seq_len:,}."
            )
        if tokens < table:
            return (
                f"{batch} times {audio_seconds(rows):,} s of audio are a prompt table of {table:,} rows, and beside it "
                f"the KV cache would hold {tokens:,} tokens only."
            )
        return None

    def plan(self, batch: int, rows: int, reasons: list[str], fits: bool) -> MemoryPlan:
        tokens = self.kv_tokens(batch, rows)
        return MemoryPlan(
            profile=self.profile,
            weights=self.weights,
            prompt_table=self.tables(batch, rows),
            table_copies=self.tables(batch, rows),
            activations=self.activations(batch),
            encoder=self.encoder,
            runtime=self.runtime,
            kv_fraction=self.kv_fraction(batch, rows),
            lora=self.adapters * self.adapter,
            lora_fraction=self.lora_fraction(batch, rows),
            kv_cache=tokens * self.per_token,
            kv_tokens=tokens,
            build=_build(self.profile, batch, rows),
            fits=fits,
            reasons=tuple(reasons),
        )


def decode_bound(found: MemoryPlan, model: ModelConfig, context: int = 0, sequences: int = 1, rows: int = 0) -> float:
    """Decoding steps a second, a token for each sequence in each, that this memory bandwidth does not let exceed.

    Each step reads all weights of a rank, of the embedding one row, and keys and values of `context` positions of each
    sequence. It clears the whole prompt table, and copies the `rows` of each sequence into it: TensorRT-LLM does so in
    every step, also when all prompts have been computed (batch_manager/promptTuningBuffers.cpp @2868d79, `fill`;
    https://github.com/NVIDIA/TensorRT-LLM/issues/5889). What the GPUs say to each other comes on top.
    """
    text, profile = model.text, found.profile
    unread = sizes.BF16 * (text.vocab_size - 1) * text.hidden_size
    keys_and_values = context * sizes.kv_bytes_per_token(text, profile.gpus, profile.kv_cache_dtype)
    copied = 2 * sizes.prompt_table_bytes(text, rows)  # read and written
    moved = found.weights - unread + found.prompt_table + sequences * (keys_and_values + copied)
    return profile.gpu.bandwidth / moved


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count} sequences"


def _build(profile: Profile, batch: int, rows: int) -> BuildConfig:
    return BuildConfig(
        max_batch_size=batch,
        max_seq_len=profile.max_seq_len,
        max_num_tokens=profile.max_num_tokens,
        max_prompt_embedding_table_size=batch * rows,
        max_lora_rank=profile.max_lora_rank,
        tokens_per_block=TOKENS_PER_BLOCK,
    )


def _nothing(profile: Profile, reason: str) -> MemoryPlan:
    build = _build(profile, profile.max_batch_size, audio_rows(profile.max_audio_seconds))
    return MemoryPlan(profile, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, build, False, (f"{reason}.",))
