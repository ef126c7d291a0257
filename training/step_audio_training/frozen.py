"""What a listener's encoder makes of a recording, where it does not go on learning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from step_audio.arrays import Float32Array
from step_audio.encoder import WhisperEncoder
from step_audio.mel import log_mel, pad_batch, pooled_frames

Hear = Callable[[Float32Array], Float32Array]
"""Of samples float32 [n] at 16 kHz to float32 [T, width], at 25 Hz."""


def hearing_by(encoder: WhisperEncoder, n_mels: int) -> Hear:
    """By `encoder`, which does not learn from then on."""
    encoder.eval()

    @torch.no_grad()
    def hear(samples: Float32Array) -> Float32Array:
        mels, frames = pad_batch([log_mel(samples, n_mels)], n_mels)
        rows: Float32Array = encoder(torch.from_numpy(mels), torch.from_numpy(frames.astype(np.int64)), 0)[0].numpy()
        return rows[: pooled_frames(int(frames[0]))]

    return hear
