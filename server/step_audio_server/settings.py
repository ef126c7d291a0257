"""The one configuration object: what is served, within which limits. What of it the running models read is their
`Runtime` (`step_audio.steps.runtime`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    FilePath,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from step_audio.chat_template import TEMPLATES
from step_audio.config import DType, ModelConfig
from step_audio.errors import SettingsError
from step_audio.lora import task_id
from step_audio.mel import LengthRule
from step_audio.settings import Settings
from step_audio.steps.runtime import Limits

IPv4 = Annotated[str, Field(pattern=r"^\d{1,3}(\.\d{1,3}){3}$")]

# Settings that an engine is built for: a profile has decided them.
DECIDED_BY_PROFILE = (
    "tp", "dtype", "max_batch_size", "max_seq_len", "max_num_tokens", "max_prompt_table_rows", "kv_cache_tokens",
    "decoder_matrices",
)  # fmt: skip
NOT_WITH_VLLM = {"decoder_matrices", "batch_scheduler_policy", "lora_modules"}
ONLY_WITH_VLLM = {"llm_python", "gpu_memory_utilization", "encoder_device"}


def _words(value: Any) -> Any:
    """The environment has no lists: commas stand between them."""
    return tuple(word for word in value.split(",") if word) if isinstance(value, str) else value


def _modules(values: tuple[str, ...]) -> tuple[str, ...]:
    names = [value.partition("=")[0] for value in values]
    for value, name in zip(values, names, strict=True):
        if not re.fullmatch(r"[^=\s]+=.+", value):
            raise ValueError(f"{value!r} is not NAME=DIR")
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice")
    if len({task_id(name) for name in names}) < len(names):
        raise ValueError("two names have the same lora_task_id: rename one of them")
    return values


@dataclass(frozen=True)
class Certificates:
    """Of the gRPC port, PEM files. `root`: of those who sign clients' certificates; None: clients need none."""

    cert: Path
    key: Path
    root: Path | None = None

    def shown_to_itself(self) -> dict[str, Path]:
        return {} if self.root is None else {"cert": self.cert, "key": self.key}


class ServeSettings(Settings):
    """Everything `step-audio serve` can be told."""

    checkpoint: Path = Field(
        validation_alias=AliasChoices("checkpoint", "model"),
        description="directory of a Step-Audio checkpoint (required)",
    )
    work_dir: Path = Field(description="for what is built (default: CHECKPOINT.step-audio beside it)")
    profile: str | None = Field(
        None, description="on GPUs: what `step-audio build` made for them; with --llm vllm: the ranks and limits alone"
    )
    llm: Literal["tensorrtllm", "vllm"] = Field(
        "tensorrtllm", description="what computes the language model; without a GPU tensorrtllm is our engine"
    )
    llm_python: Path | None = Field(None, description="of --llm vllm: Python of an environment that has vLLM")
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of --llm vllm: share of each GPU's memory, weights and all (default: 0.9, or what `plan` says)",
    )
    encoder_device: Literal["cpu", "cuda"] | None = Field(
        None, description="of --llm vllm: where the audio encoder runs (default: where vLLM does, on GPU 0)"
    )
    tp: PositiveInt = Field(
        4,
        validation_alias=AliasChoices("tp", "tensor_parallel_size"),
        description="ranks of the decoder (default with --llm vllm: 1)",
    )
    dtype: DType | None = Field(None, description="of weights and activations (default: the checkpoint's own)")
    max_batch_size: PositiveInt = Field(
        32, validation_alias=AliasChoices("max_batch_size", "max_num_seqs"), description="sequences in flight"
    )
    max_seq_len: PositiveInt | None = Field(
        None,
        validation_alias=AliasChoices("max_seq_len", "max_model_len"),
        description="positions of prompt and answer (default: the checkpoint's, up to 32768)",
    )
    max_num_tokens: PositiveInt = Field(
        2048,
        validation_alias=AliasChoices("max_num_tokens", "max_num_batched_tokens"),
        description="positions computed in one step, all requests together",
    )
    max_prompt_table_rows: PositiveInt | None = Field(
        None, description="audio tokens of a request (default: max-seq-len)"
    )
    max_queue_size: NonNegativeInt = Field(256, description="requests waiting for a slot; 0: no bound")
    max_seconds_without_lease: NonNegativeFloat = Field(
        600.0, description="of an answer whose client may be gone: docs/triton.md, Stopping; 0: no bound"
    )
    kv_cache_tokens: PositiveInt | None = Field(
        None, description="positions in the KV cache (default and least: 4 and 1 x max-seq-len)"
    )
    decoder_matrices: Literal["stored", "int8"] = Field(
        "stored", description="on a CPU: as they are stored, or rounded to 8 bits when the server starts"
    )
    kv_cache_reuse: bool = Field(
        True,
        validation_alias=AliasChoices("kv_cache_reuse", "enable_prefix_caching"),
        description="keep the blocks of earlier prompts for later ones (default: yes)",
    )
    chunked_context: bool = Field(
        True,
        validation_alias=AliasChoices("chunked_context", "enable_chunked_prefill"),
        description="compute long prompts in parts (default: yes)",
    )
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = Field(
        "max_utilization",
        description="which requests start: those that fit now, or only those whose longest possible answer does",
    )
    length_rule: LengthRule = Field("L", description="audio tokens of a clip")
    chat_template: str = Field("default", description="default, published (as on the model card), or a Jinja file")
    encoder_batch_clips: PositiveInt = Field(  # on a CPU more are no faster, only larger
        1, description="clips in one run of the audio encoder (on GPUs by default as many as the profile says)"
    )
    encoder_cache_bytes: NonNegativeInt = Field(
        1 << 30, description="of memory for recordings' embeddings, so that a recording is encoded once"
    )
    preprocessing_batch_size: PositiveInt = Field(16, description="requests in one call of featurizer or encoder")
    lora_modules: Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_modules)] = Field(
        (), description="LoRA adapters, each as NAME=DIR, a folder that PEFT has saved"
    )
    limits: Limits = Limits()
    triton_host: IPv4 = Field(
        "127.0.0.1", description="IPv4 address for Triton's own ports, which have no password; 0.0.0.0: all interfaces"
    )
    grpc_port: int = Field(8001, ge=1, le=65535, description="Triton's own")
    http_port: int = Field(8000, ge=1, le=65535, description="Triton's own")
    metrics_port: int = Field(8002, ge=1, le=65535, description="Triton's own")
    grpc_server_cert: FilePath | None = Field(None, description="PEM certificate: TLS on the gRPC port")
    grpc_server_key: FilePath | None = Field(None, description="PEM key of the certificate")
    grpc_root_cert: FilePath | None = Field(
        None,
        description="PEM certificates of those who sign clients' (mutual TLS) and the server's own",
    )
    grpc_server_name: str = Field("localhost", description="a name in the certificate")
    startup_timeout: PositiveFloat | None = Field(None, description="seconds to load in (default: 600, on GPUs 1800)")
    drain_timeout: NonNegativeInt = Field(5, description="seconds for running requests at the end")

    @model_validator(mode="after")
    def _profile_decides(self) -> ServeSettings:
        if self.profile is not None and (said := sorted(self.model_fields_set.intersection(DECIDED_BY_PROFILE))):
            raise ValueError(f"{said[0]} is decided by the profile the engine was built for; leave it out")
        return self

    @model_validator(mode="after")
    def _of_its_llm(self) -> ServeSettings:
        said = self.model_fields_set
        if self.llm == "vllm":
            if self.llm_python is None:
                raise ValueError("--llm vllm needs --llm-python, of an environment that has vLLM: docs/engines.md")
            if unknown := sorted(said & NOT_WITH_VLLM):
                raise ValueError(f"{unknown[0]} is not for --llm vllm; leave it out")
        elif only := sorted(said & ONLY_WITH_VLLM):
            raise ValueError(f"{only[0]} is for --llm vllm alone; leave it out")
        return self

    @property
    def vllm_ranks(self) -> int:
        return self.tp if "tp" in self.model_fields_set else 1

    @model_validator(mode="after")
    def _certificates_together(self) -> ServeSettings:
        if (self.grpc_server_cert is None) != (self.grpc_server_key is None):
            raise ValueError("--grpc-server-cert and --grpc-server-key belong together: give both or none")
        if self.grpc_root_cert is not None and self.grpc_server_cert is None:
            raise ValueError("--grpc-root-cert needs --grpc-server-cert")
        return self

    @property
    def adapters(self) -> dict[str, Path]:
        """Their folders, by name."""
        return {name: Path(folder).resolve() for name, _, folder in (one.partition("=") for one in self.lora_modules)}

    def certificates(self) -> Certificates | None:
        if self.grpc_server_cert is None or self.grpc_server_key is None:
            return None
        return Certificates(self.grpc_server_cert, self.grpc_server_key, self.grpc_root_cert)

    @property
    def run_dir(self) -> Path:
        """What belongs to one running server; the artefacts beside it are shared by all on this work directory."""
        return self.work_dir / f"server-{self.grpc_port}"

    @property
    def vllm_dir(self) -> Path:
        """What vLLM's process of this server is given, and where it listens."""
        return self.run_dir / "vllm"

    @field_validator("chat_template")
    @classmethod
    def _template_exists(cls, value: str) -> str:
        """Said now and not after a conversion of an hour; resolved, for the models run elsewhere."""
        if value in TEMPLATES:
            return value
        if not Path(value).is_file():
            raise ValueError(f"neither {' nor '.join(TEMPLATES)} nor a file")
        return str(Path(value).resolve())

    def for_engine(
        self, max_batch_size: int, max_seq_len: int, encoder_batch_clips: int, max_audio_seconds: float
    ) -> ServeSettings:
        """With what a built engine has decided, and no more audio than its prompt table holds."""
        seconds = min(self.limits.max_audio_seconds, max_audio_seconds)
        decided = {
            "max_batch_size": max_batch_size,
            "max_seq_len": max_seq_len,
            "limits": self.limits.model_copy(update={"max_audio_seconds": seconds}),
        }
        if "encoder_batch_clips" not in self.model_fields_set:  # the default is for a CPU
            decided["encoder_batch_clips"] = encoder_batch_clips
        return self.model_copy(update=decided)

    def resolved_startup_timeout(self) -> float:
        """Seconds. On GPUs, tens of GB of engines are read, possibly from a network's disk."""
        return self.startup_timeout or (600.0 if self.profile is None else 1800.0)

    def resolved_max_seq_len(self, model: ModelConfig) -> int:
        limit = model.text.max_position_embeddings
        length = min(limit, 32_768) if self.max_seq_len is None else self.max_seq_len
        if length > limit:
            raise SettingsError(f"max_seq_len {length} is more than the checkpoint's {limit} positions")
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < length:
            # The engine would cut answers shorter than clients are told they may be.
            raise SettingsError(
                f"kv_cache_tokens {self.kv_cache_tokens} is less than one request of {length} (max_seq_len)"
            )
        return length
