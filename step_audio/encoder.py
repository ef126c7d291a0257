"""The audio encoder and its adaptor: log-mel frames at 100 Hz -> decoder embeddings at 12.5 Hz.

Whisper's encoder (arXiv 2212.04356) with a learned positional embedding and an average pool behind it
(Qwen2-Audio, arXiv 2407.10759), then Step-Audio's adaptor: a strided convolution and two linear layers.
Module names are the checkpoint's tensor names.

A clip's result does not depend on the clips it is batched with: wherever an operation mixes neighbouring
positions, what lies behind the clip's own end is zero, as it is when the clip runs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step_audio.checkpoint import ADAPTER_WIDTH, Checkpoint, encoder_tensors, to_float32
from step_audio.config import AudioEncoderConfig

if TYPE_CHECKING:
    from step_audio.mel import LengthRule

ADAPTER_PADDING = 1  # of its convolution, whatever the kernel, as in the published implementation


class Attention(nn.Module):
    """Multi-head self-attention over the positions that a mask leaves visible."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, key_mask: Tensor) -> Tensor:
        """x [B, T, width], key_mask bool [B, 1, 1, T] -> [B, T, width]."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        # Half of 1/sqrt(d_head) on each side, so that q @ k stays within range in 16-bit engines.
        scale = q.shape[-1] ** -0.25
        out: Tensor = self.out(self.mix(q * scale, k * scale, v, key_mask).transpose(1, 2).flatten(2))
        return out

    def mix(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> Tensor:
        """Values [B, heads, T, d_head] by the softmax of q @ k, as it is, over the visible keys."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, scale=1.0)


class Block(nn.Module):
    """A pre-norm transformer layer: attention, then an MLP of four times the width. [B, T, width] in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, key_mask: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x), key_mask)
        x = x + self.mlp(self.mlp_ln(x))
        return x


class WhisperEncoder(nn.Module):
    """Whisper's encoder, masked for clips of different lengths in one batch: 100 frames a second in, 25 out."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        width = config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = nn.Embedding(config.n_audio_ctx, width)
        self.blocks = nn.ModuleList(Block(width, config.n_audio_head) for _ in range(config.n_audio_layer))
        self.after_norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor, frames: Tensor, masked_frames: int) -> Tensor:
        """mel [B, n_mels, T], frames int64 [B] -> [B, T'//2, width] with T' = ceil(T/2); zero past each clip's end.

        `masked_frames` at a clip's end are hidden from attention.
        """
        mel = mel.where(_within(frames, mel.shape[-1])[:, None], 0.0)
        x: Tensor = F.gelu(self.conv1(mel))
        x = x.where(_within(frames, x.shape[-1])[:, None], 0.0)
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positional_embedding.weight[: x.shape[1]]
        # The parity of the reference's mask, positions (T + 1) % 2, +2, ... of the frames, comes out as a ceiling.
        key_mask = _within((frames - masked_frames + 1) // 2, x.shape[1])[:, None, None]
        for block in self.blocks:
            x = block(x, key_mask)
        x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        x = self.after_norm(x)
        return x.where(_within((frames + 1) // 2 // 2, x.shape[1])[:, :, None], 0.0)


class Adapter(nn.Module):
    """25 Hz to the 12.5 Hz of the decoder, and to its width: [B, T, n_audio_state] to [B, about T/2, llm_dim]."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        width = config.n_audio_state
        self.conv = nn.Conv1d(width, width, config.kernel_size, config.adapter_stride, ADAPTER_PADDING)
        self.linear1 = nn.Linear(width, ADAPTER_WIDTH)
        self.linear2 = nn.Linear(ADAPTER_WIDTH, config.llm_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        x = self.linear2(F.relu(self.linear1(x)))
        return x


class AudioEncoder(nn.Module):
    """Encoder and adaptor.

    `length_rule` says how many frames of a clip count: all L ("L", the published vLLM fork) or L - 2 ("L-2", the
    published transformers code). The convolutions see all L frames either way; attention and the number of
    embeddings follow the rule.
    """

    def __init__(self, config: AudioEncoderConfig, length_rule: LengthRule) -> None:
        super().__init__()
        self.masked_frames = {"L": 0, "L-2": 2}[length_rule]
        self.encoder = WhisperEncoder(config)
        self.adapter = Adapter(config)

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel float32 [B, n_mels, T], frames int64 [B] of at least 3 -> float32 [B, tok, llm_dim].

        T is at most 2 * n_audio_ctx. tok is the number of embeddings of T frames under rule "L"; a clip's own are
        the first `token_count(frames, length_rule)`, the rest are zero. What `mel` holds past `frames` is ignored.
        """
        x: Tensor = self.adapter(self.encoder(mel, frames, self.masked_frames))
        pooled = (frames - self.masked_frames + 1) // 2 // 2
        kernel, stride = self.adapter.conv.kernel_size[0], self.adapter.conv.stride[0]
        tokens = (pooled + 2 * ADAPTER_PADDING - kernel + stride) // stride
        return x.where(_within(tokens, x.shape[1])[:, :, None], 0.0)


def _within(lengths: Tensor, size: int) -> Tensor:
    """lengths [B] -> bool [B, size], true at each row's first `lengths` positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def load_encoder(checkpoint: Checkpoint, config: AudioEncoderConfig, length_rule: LengthRule) -> AudioEncoder:
    """The checkpoint's encoder in float32, ready for inference. Raises CheckpointError."""
    with torch.device("meta"):
        model = AudioEncoder(config, length_rule)
    weights = {name: torch.from_numpy(to_float32(checkpoint.read(name))) for name in encoder_tensors(config)}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
