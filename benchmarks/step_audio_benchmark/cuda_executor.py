"""The decoder on one GPU in torch, behind the engine's seam: steps of decoding alone are CUDA graphs.

Prompts are computed as by `TorchExecutor`. A graph is captured for each number of sequences and each power of two of
their longest context; on a CPU the same step runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from step_audio.arrays import Float32Array
from step_audio.engine.executor import Batch
from step_audio.engine.torch_executor import TorchExecutor, rotate
from step_audio.engine.trtllm_checkpoint import EngineSpec, Weights

LEAST_CONTEXT = 256  # positions of the smallest graph


@dataclass
class _Step:
    """Where a step of decoding finds its inputs and leaves its logits, and what computes it."""

    embeddings: torch.Tensor  # [S, hidden]
    positions: torch.Tensor  # [S]
    slots: torch.Tensor  # [S, context] of the cache; those behind a sequence's end are read and not looked at
    run: Callable[[], None]
    logits: torch.Tensor  # [S, vocab]


class CudaExecutor(TorchExecutor):
    """`Executor` on `device`."""

    def __init__(self, spec: EngineSpec, weights: Weights, num_blocks: int, precision: str, device: str):
        super().__init__(spec, weights, num_blocks, precision, 0, device)
        self._steps: dict[tuple[int, int], _Step] = {}

    def forward(self, batch: Batch) -> Float32Array:
        if (np.diff(batch.subsequence_begins) != 1).any() or not batch.past_lens.all():
            return super().forward(batch)
        step = self.load(batch)
        step.run()
        return step.logits.cpu().numpy()

    @torch.inference_mode()
    def load(self, batch: Batch) -> _Step:
        """The step, its inputs in place: `run` may be called again and again, and computes the same."""
        size, block = len(batch.past_lens), self.spec.tokens_per_block
        context = max(LEAST_CONTEXT, 1 << (batch.max_context_len - 1).bit_length())
        step = self._steps.get((size, context)) or self._make(size, context)
        table = np.zeros((size, context // block), np.int64)
        for row, (begin, end) in enumerate(
            zip(batch.block_indices_begins[:-1], batch.block_indices_begins[1:], strict=True)
        ):
            table[row, : end - begin] = batch.block_indices[begin:end]
        slots = (table[:, :, None] * block + np.arange(block)).reshape(size, -1)
        step.embeddings.copy_(self._on_device(batch.embeddings))
        step.positions.copy_(self._on_device(batch.past_lens.astype(np.int64)))
        step.slots.copy_(self._on_device(slots))
        return step

    def _make(self, size: int, context: int) -> _Step:
        embeddings = torch.zeros(size, self.spec.hidden_size, device=self.device)
        positions = torch.ones(size, dtype=torch.long, device=self.device)
        slots = torch.zeros(size, context, dtype=torch.long, device=self.device)
        logits = torch.empty(size, len(self.lm_head), device=self.device)

        @torch.inference_mode()
        def compute() -> None:
            logits.copy_(self._decode(embeddings, positions, slots))

        made = self._steps[size, context] = _Step(embeddings, positions, slots, self._captured(compute), logits)
        return made

    def _captured(self, compute: Callable[[], None]) -> Callable[[], None]:
        if self.device.type != "cuda":
            return compute
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is allocated and chosen at first is not to be in the graph
            for _ in range(3):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compute()
        replay: Callable[[], None] = graph.replay
        return replay

    def _decode(self, embeddings: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        spec, size = self.spec, len(positions)
        angles = positions.float()[:, None] * self.frequencies
        cos, sin = (torch.cat((f(angles), f(angles)), -1)[:, None].to(self.dtype) for f in (torch.cos, torch.sin))
        own = slots.gather(1, positions[:, None])[:, 0]
        places = torch.arange(slots.shape[1], device=self.device)
        visible = (places <= positions[:, None])[:, None, None]
        hidden = embeddings.to(self.dtype)
        for layer, weights in enumerate(self.layers):
            normed = F.rms_norm(hidden, hidden.shape[-1:], weights["input_layernorm"], spec.norm_epsilon)
            qkv = F.linear(normed, weights["qkv"], weights["qkv_bias"]).view(size, -1, spec.head_size)
            queries, keys, values = qkv.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
            cached = self.cache[layer]
            cached[0, own], cached[1, own] = rotate(keys, cos, sin), values
            known = cached[:, slots].transpose(2, 3)  # [2, S, kv_heads, context, size]
            # The heads that share keys stand for positions of one that has its own: nothing is repeated in memory.
            asked = rotate(queries, cos, sin).view(size, spec.num_kv_heads, -1, spec.head_size)
            attended = F.scaled_dot_product_attention(asked, known[0], known[1], attn_mask=visible)
            hidden = hidden + F.linear(attended.reshape(size, -1), weights["dense"])
            normed = F.rms_norm(hidden, hidden.shape[-1:], weights["post_layernorm"], spec.norm_epsilon)
            gated = F.silu(F.linear(normed, weights["fc"])) * F.linear(normed, weights["gate"])
            hidden = hidden + F.linear(gated, weights["proj"])
        return F.linear(F.rms_norm(hidden, hidden.shape[-1:], self.ln_f, spec.norm_epsilon), self.lm_head).float()
