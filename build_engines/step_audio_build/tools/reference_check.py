"""What the published checkpoint says of an engine's tokens: one pass of plain torch, a layer in memory at a time.

An engine's greedy tokens are put behind their prompt, and the decoder is computed over all of it at once, in float32,
straight from the checkpoint's files. Where the engine took the token that this pass puts first, they agree. So the
33B model is checked in the memory of its head's block and one layer, with no second engine and nothing of the
conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from step_audio.arrays import Float32Array, Int32Array
from step_audio.checkpoint import Checkpoint, to_float32
from step_audio.config import ModelConfig, TextConfig

HEAD_ROWS = 16_384  # of the vocabulary at a time

Rotary = tuple[torch.Tensor, torch.Tensor]  # cos and sin [n, head_dim]


@dataclass(frozen=True)
class CheckedToken:
    """An engine's token, and what the checkpoint says of it."""

    token: int
    best: int  # the checkpoint's own choice
    shortfall: float  # logits between the two; 0 where they agree


@torch.inference_mode()
def check_tokens(
    checkpoint_dir: Path,
    prompt: Int32Array,
    table: Float32Array,
    tokens: list[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[CheckedToken]:
    """`prompt` int32 [n], ids of `vocab_size + k` standing for row k of `table` float32 [rows, hidden]; `tokens` what
    an engine answered greedily. `progress` is told layers done and in all. Raises CheckpointError."""
    checkpoint = Checkpoint(checkpoint_dir)
    text = ModelConfig.from_directory(checkpoint_dir).text
    ids = np.concatenate([prompt, np.array(tokens[:-1], prompt.dtype)])  # the last one is followed by nothing
    x = _embed(checkpoint, text, ids, table)
    rotary = _rotary(text, len(ids))
    for n in range(text.num_hidden_layers):
        progress(n, text.num_hidden_layers)
        x = _layer(checkpoint, text, f"model.layers.{n}", x, rotary)
    progress(text.num_hidden_layers, text.num_hidden_layers)
    x = _norm(x[len(prompt) - 1 :], _tensor(checkpoint, "model.norm.weight"), text)
    return _choose(checkpoint, text, x, torch.tensor(tokens))


def _tensor(checkpoint: Checkpoint, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
    raw = checkpoint.read(name) if rows is None else checkpoint.read_rows(name, *rows)
    return torch.from_numpy(to_float32(raw))


def _embed(checkpoint: Checkpoint, text: TextConfig, ids: Int32Array, table: Float32Array) -> torch.Tensor:
    """[n, hidden]"""
    name = "model.embed_tokens.weight"
    words = {int(i): _tensor(checkpoint, name, (int(i), int(i) + 1))[0] for i in set(ids[ids < text.vocab_size])}
    rows = torch.from_numpy(np.ascontiguousarray(table, np.float32))
    return torch.stack([words[int(i)] if i < text.vocab_size else rows[int(i) - text.vocab_size] for i in ids])


def _layer(checkpoint: Checkpoint, text: TextConfig, layer: str, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """x [n, hidden] -> [n, hidden], every position seeing those before it."""

    def linear(values: torch.Tensor, name: str, bias: bool = False) -> torch.Tensor:
        weight = _tensor(checkpoint, f"{layer}.{name}.weight")
        return F.linear(values, weight, _tensor(checkpoint, f"{layer}.{name}.bias") if bias else None)

    y = _norm(x, _tensor(checkpoint, f"{layer}.input_layernorm.weight"), text)
    q, k, v = (
        linear(y, f"self_attn.{part}_proj", bias=True).unflatten(-1, (-1, text.head_dim)).transpose(0, 1)
        for part in "qkv"
    )
    copies = text.num_attention_heads // text.num_key_value_heads
    k, v = (part.repeat_interleave(copies, dim=0) for part in (_rotate(k, rotary), v))
    mixed = F.scaled_dot_product_attention(_rotate(q, rotary)[None], k[None], v[None], is_causal=True)[0]
    x = x + linear(mixed.transpose(0, 1).flatten(1), "self_attn.o_proj")
    y = _norm(x, _tensor(checkpoint, f"{layer}.post_attention_layernorm.weight"), text)
    return x + linear(F.silu(linear(y, "mlp.gate_proj")) * linear(y, "mlp.up_proj"), "mlp.down_proj")


def _norm(x: torch.Tensor, weight: torch.Tensor, text: TextConfig) -> torch.Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + text.rms_norm_eps)


def _rotary(text: TextConfig, length: int) -> Rotary:
    """GPT-NeoX style: the two halves of a head turn together."""
    steps = torch.arange(0, text.head_dim, 2, dtype=torch.float64) / text.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float64), text.rope_theta**-steps)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def _rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """x [heads, n, head_dim]"""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _choose(checkpoint: Checkpoint, text: TextConfig, x: torch.Tensor, tokens: torch.Tensor) -> list[CheckedToken]:
    """x [tokens, hidden], normed. The head is as large as several layers: a block of its rows at a time."""
    best = torch.full((len(tokens),), -torch.inf)
    chosen = torch.zeros(len(tokens), dtype=torch.long)
    own = torch.full((len(tokens),), -torch.inf)
    for start in range(0, text.vocab_size, HEAD_ROWS):
        stop = min(start + HEAD_ROWS, text.vocab_size)
        logits = x @ _tensor(checkpoint, "lm_head.weight", (start, stop)).T
        values, indices = logits.max(dim=-1)
        chosen = torch.where(values > best, indices + start, chosen)
        best = torch.maximum(best, values)
        inside = (tokens >= start) & (tokens < stop)
        own = torch.where(inside, logits.gather(1, (tokens - start).clamp(0, stop - start - 1)[:, None])[:, 0], own)
    return [
        CheckedToken(int(token), int(top), float(lead))
        for token, top, lead in zip(tokens, chosen, best - own, strict=True)
    ]
