"""What vLLM takes of each GPU of a profile, and what fits. Computed: nothing of it has been measured.

vLLM takes `gpu_memory_utilization` of each GPU, and does not start where less is free. Of that its weights go off, and
what a full step takes at most, as it measures when it starts; the rest is the KV cache, which must hold one request of
max_model_len. What else is on the GPU has to live on what that share leaves: the driver, the context of vLLM's own
process, and on GPU 0 the audio encoder, unless that runs on the processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from step_audio.config import ModelConfig, TextConfig
from step_audio.errors import ArtefactError
from step_audio.markdown import markdown_table
from step_audio.settings import MIB
from step_audio.vllm.options import GPU_MEMORY_UTILIZATION
from step_audio_build.planning import memory_sizes as sizes
from step_audio_build.planning.profiles import Profile

TOKENS_PER_BLOCK = 16  # vLLM's on a GPU
SAMPLER_COPIES = 8  # float32 [max_num_seqs, vocabulary]: logits, two sorted with their ids, probabilities, penalties
GRAPHS = 1024 * MIB  # CUDA graphs of decoding: an assumption, generous


@dataclass(frozen=True)
class VllmPlan:
    """Bytes are of GPU 0, which has the audio encoder; the others have as much KV cache as it."""

    profile: Profile
    utilization: float  # gpu_memory_utilization
    weights: int
    step: int  # a full step's activations, the sampler and CUDA graphs
    communication: int  # NCCL and the all-reduce's buffers
    encoder: int  # 0: on the processor
    outside: int  # driver, and the context of vLLM's process
    kv_per_token: int
    reasons: tuple[str, ...]  # why it does not fit; one sentence each

    @property
    def fits(self) -> bool:
        return not self.reasons

    @property
    def share(self) -> int:
        """vLLM's, of the GPU."""
        return int(self.utilization * self.profile.gpu.memory_bytes)

    @property
    def kv_tokens(self) -> int:
        """Positions, in whole blocks."""
        left = self.share - self.weights - self.step - self.communication
        return max(left, 0) // (self.kv_per_token * TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK

    @property
    def kv_wanted(self) -> int:
        """Bytes: all max_num_seqs with max_model_len each."""
        return self.profile.max_batch_size * self.profile.max_seq_len * self.kv_per_token

    @property
    def full_requests(self) -> float:
        """Requests of max_model_len that the KV cache holds at once; vLLM puts what is beyond that off."""
        return self.kv_tokens / self.profile.max_seq_len

    @property
    def free(self) -> int:
        return self.profile.gpu.memory_bytes - self.share - self.encoder - self.outside

    @property
    def command(self) -> str:
        """Which shows it."""
        device = "" if self.encoder else " --encoder-device cpu"
        return f"step-audio plan --llm vllm --profile {self.profile.name}{device}"

    def table(self) -> str:
        """Markdown, whose columns also line up in a terminal."""
        whole = f"{self.profile.max_batch_size} x {self.profile.max_seq_len:,}"
        lines = [
            ("weights", self.weights),
            ("activations, sampler, CUDA graphs, at most", self.step),
            *([("NCCL (assumed)", self.communication)] if self.communication else []),
            ("KV cache", self.kv_tokens * self.kv_per_token),
            (f"vLLM's share, {self.utilization:g} of the GPU", self.share),
            *([("audio encoder, at most (GPU 0)", self.encoder)] if self.encoder else []),
            ("driver, CUDA (assumed)", self.outside),
            ("left over", self.free),
            ("total", self.profile.gpu.memory_bytes),
            (f"KV cache for {whole} would be", self.kv_wanted),
        ]
        return markdown_table([("of each GPU, computed", "GB"), *((name, f"{size / 1e9:.2f}") for name, size in lines)])

    def summary(self) -> str:
        """One line: what can be served."""
        if not self.fits:
            return "does not fit"
        profile = self.profile
        return (
            f"{profile.max_batch_size} sequences of up to {profile.max_seq_len:,} tokens; KV cache of "
            f"{self.kv_tokens:,} tokens, {self.full_requests:.2f} requests of full length at once"
        )


def plan_vllm(
    profile: Profile, model: ModelConfig, utilization: float | None = None, encoder_on_gpu: bool = True
) -> VllmPlan:
    """With `utilization`; without it 0.9, or less where the audio encoder needs more room. Raises nothing for what does
    not fit: `reasons` say so."""
    text, gpus, total = model.text, profile.gpus, profile.gpu.memory_bytes
    encoder = sizes.encoder_bytes(model.audio, profile.encoder_batch_clips) if encoder_on_gpu else 0
    outside = sizes.DRIVER_RESERVE + sizes.RANK_PROCESS
    highest = math.floor(100 * (total - encoder - outside) / total) / 100
    chosen = min(GPU_MEMORY_UTILIZATION, max(highest, 0.01)) if utilization is None else utilization
    reasons = []
    try:
        weights = weight_bytes(text, gpus)
    except ArtefactError as error:  # a model that cannot be split over so many GPUs
        weights, reasons = 0, [f"{error}."]
    found = VllmPlan(
        profile=profile,
        utilization=chosen,
        weights=weights,
        step=step_bytes(text, profile),
        communication=sizes.NCCL if gpus > 1 else 0,
        encoder=encoder,
        outside=outside,
        kv_per_token=sizes.kv_bytes_per_token(text, gpus, "bfloat16"),
        reasons=tuple(reasons),
    )
    return found if reasons else VllmPlan(**{**vars(found), "reasons": tuple(_reasons(found, text, highest))})


def _reasons(found: VllmPlan, text: TextConfig, highest: float) -> list[str]:
    profile, reasons = found.profile, []
    if profile.precision != "bfloat16":
        reasons.append(f"profile {profile.name} is of {profile.precision}, and vLLM is given bfloat16 here.")
    if profile.max_seq_len > (limit := text.max_position_embeddings):
        reasons.append(f"max_seq_len {profile.max_seq_len} is more than the model's {limit} positions: lower it.")
    if found.utilization > highest:
        others = "the audio encoder and the driver" if found.encoder else "the driver"
        reasons.append(
            f"gpu_memory_utilization {found.utilization:g} leaves {-found.free / 1e9:.1f} GB too little for {others}: "
            f"at most {max(highest, 0):g}."
        )
    if found.kv_tokens < profile.max_seq_len:
        reasons.append(
            f"the KV cache would hold {found.kv_tokens:,} tokens, less than one request of {profile.max_seq_len:,}: "
            "take more GPUs, or lower max_seq_len or max_num_tokens."
        )
    return reasons


def weight_bytes(text: TextConfig, tp: int) -> int:
    """Of one rank, in bfloat16: as TensorRT-LLM's, but that vLLM splits the embedding by rows, too. Raises
    ArtefactError when the model cannot be split `tp` ways."""
    embedding = sizes.BF16 * text.vocab_size * text.hidden_size
    return sizes.weight_bytes(text, tp, "bfloat16") - embedding + -(-embedding // tp)


def step_bytes(text: TextConfig, profile: Profile) -> int:
    """At most: one layer's tensors of a full step, the embeddings of its prompts, the sampler, CUDA graphs."""
    batch, tokens = profile.max_batch_size, profile.max_num_tokens
    layer = sizes.activation_bytes(text, profile.gpus, tokens, batch)
    sampler = SAMPLER_COPIES * sizes.FP32 * batch * text.vocab_size
    return layer + sizes.BF16 * tokens * text.hidden_size + sampler + GRAPHS
