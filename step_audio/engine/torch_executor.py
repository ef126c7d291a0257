"""The decoder in plain torch: the oracle the tests hold the OpenVINO graph against, and an engine of last resort.

One sequence at a time through attention, everything else batched. Nothing here is shared with the
OpenVINO graph but the weights and the seam.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from step_audio.arrays import AnyArray, Float32Array
from step_audio.engine.executor import Batch
from step_audio.engine.trtllm_checkpoint import EngineSpec, Weights
from step_audio.lora import Factors

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def tensor_of(array: AnyArray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """bfloat16's bits, as numpy has them, too."""
    raw = torch.from_numpy(np.array(array))  # a copy: the file's mapping is read-only, which torch cannot express
    return (raw.view(torch.bfloat16) if array.dtype == np.uint16 else raw).to(device, dtype)


class TorchExecutor:
    """`Executor` in torch; `precision` "f32" or "bf16", `threads` 0 for torch's own choice, `device` torch's name."""

    def __init__(
        self, spec: EngineSpec, weights: Weights, num_blocks: int, precision: str, threads: int, device: str = "cpu"
    ):
        if threads:
            torch.set_num_threads(threads)
        self.spec, self.num_blocks, self.dtype, self.device = spec, num_blocks, DTYPES[precision], torch.device(device)
        self.layers = [
            {name: self._tensor(getattr(layer, name)) for name in layer.__dataclass_fields__}
            for layer in weights.layers
        ]
        self.ln_f, self.lm_head = self._tensor(weights.ln_f), self._tensor(weights.lm_head)
        slots = num_blocks * spec.tokens_per_block
        shape = (spec.num_layers, 2, slots, spec.num_kv_heads, spec.head_size)
        self.cache = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.adapters: dict[int, dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]] = {}
        exponents = torch.arange(0, spec.head_size, 2, dtype=torch.float64) / spec.head_size
        self.frequencies = (1.0 / spec.rotary_base**exponents).float().to(self.device)

    def load_adapter(self, place: int, factors: Factors) -> None:
        self.adapters[place] = {key: (self._tensor(a), self._tensor(b)) for key, (a, b) in factors.items()}

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Float32Array:
        spec = self.spec
        angles = self._on_device(batch.position_ids).float()[:, None] * self.frequencies
        rotary = tuple(torch.cat((f(angles), f(angles)), -1)[:, None].to(self.dtype) for f in (torch.cos, torch.sin))
        slots = [self._slots(batch, index) for index in range(len(batch.past_lens))]
        hidden = self._on_device(batch.embeddings).to(self.dtype)

        def linear(x: torch.Tensor, matrix: str, *modules: str) -> torch.Tensor:
            """By a matrix of the layer, and what each sequence's adapter adds to it."""
            y = F.linear(x, weights[matrix], weights.get(f"{matrix}_bias"))
            for index, place in enumerate(() if batch.adapters is None else batch.adapters.tolist()):
                rows, column = slice(batch.subsequence_begins[index], batch.subsequence_begins[index + 1]), 0
                for module in modules:
                    width = spec.dimensions.widths[module][1]
                    if (pair := self.adapters.get(place, {}).get((layer, module))) is not None:
                        y[rows, column : column + width] += F.linear(F.linear(x[rows], pair[0]), pair[1])
                    column += width
            return y

        for layer, weights in enumerate(self.layers):
            normed = F.rms_norm(hidden, hidden.shape[-1:], weights["input_layernorm"], spec.norm_epsilon)
            qkv = linear(normed, "qkv", "attn_q", "attn_k", "attn_v").view(len(hidden), -1, spec.head_size)
            queries, keys, values = qkv.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
            queries, keys = rotate(queries, *rotary), rotate(keys, *rotary)
            attended = []
            for index, past in enumerate(batch.past_lens):
                rows = slice(batch.subsequence_begins[index], batch.subsequence_begins[index + 1])
                cached = self.cache[layer]
                cached[0, slots[index][past:]] = keys[rows]
                cached[1, slots[index][past:]] = values[rows]
                known = cached[:, slots[index]]
                attended.append(self._attend(queries[rows], known[0], known[1], int(past)))
            hidden = hidden + linear(torch.cat(attended), "dense", "attn_dense")
            normed = F.rms_norm(hidden, hidden.shape[-1:], weights["post_layernorm"], spec.norm_epsilon)
            gated = F.silu(linear(normed, "fc", "mlp_h_to_4h")) * linear(normed, "gate", "mlp_gate")
            hidden = hidden + linear(gated, "proj", "mlp_4h_to_h")
        wanted = hidden[self._on_device(batch.logit_indices).long()]
        normed = F.rms_norm(wanted, hidden.shape[-1:], self.ln_f, spec.norm_epsilon)
        return F.linear(normed, self.lm_head).float().cpu().numpy()

    def _tensor(self, array: AnyArray) -> torch.Tensor:
        return tensor_of(array, self.dtype, self.device)

    def _on_device(self, array: AnyArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _slots(self, batch: Batch, index: int) -> torch.Tensor:
        """Cache rows of one sequence's positions 0 .. past + new."""
        size = self.spec.tokens_per_block
        begins = batch.block_indices_begins
        blocks = self._on_device(batch.block_indices[begins[index] : begins[index + 1]]).long()
        new = batch.subsequence_begins[index + 1] - batch.subsequence_begins[index]
        return (blocks[:, None] * size + torch.arange(size, device=self.device)).flatten()[
            : int(batch.past_lens[index] + new)
        ]

    def _attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int) -> torch.Tensor:
        """[n, heads, size] over [past + n, kv_heads, size] -> [n, heads * size]."""
        places = torch.arange(len(keys), device=self.device)
        visible = places <= past + places[: len(queries), None]
        q, k, v = (part.transpose(0, 1)[None] for part in (queries, keys, values))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return attended[0].transpose(0, 1).flatten(1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
