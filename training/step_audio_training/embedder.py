"""What a listener's encoder and adaptor make of a recording, where only its decoder goes on learning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from step_audio.arrays import Float32Array
from step_audio.encoder import AudioEncoder
from step_audio.mel import log_mel, pad_batch

Embed = Callable[[Float32Array], Float32Array]
"""Of samples float32 [n] at 16 kHz to float32 [tok, hidden]."""


def embedder(audio: AudioEncoder, n_mels: int) -> Embed:
    """By `audio`, which does not learn from then on."""
    audio.eval()

    @torch.no_grad()
    def embed(samples: Float32Array) -> Float32Array:
        mels, frames = pad_batch([log_mel(samples, n_mels)], n_mels)
        rows: Float32Array = audio(torch.from_numpy(mels), torch.from_numpy(frames.astype(np.int64)))[0].numpy()
        return rows

    return embed
