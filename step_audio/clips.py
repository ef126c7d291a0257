"""Clips: the pieces of a recording that the encoder takes, one by one. What needs no decoder."""

from __future__ import annotations

import hashlib

import numpy as np

from step_audio.arrays import Float32Array

SAMPLE_RATE = 16_000  # Hz, the only rate that the model knows
CLIP_SECONDS = 25  # the model was served with clips of 25 s; its positions end at 30 s
CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE


def split_clips(samples: Float32Array, clip_samples: int = CLIP_SAMPLES) -> list[Float32Array]:
    """Cut [n] into consecutive views of `clip_samples`, the last one shorter but never empty."""
    return [samples[start : start + clip_samples] for start in range(0, len(samples), clip_samples)]


def content_hash(clip: Float32Array) -> int:
    """A clip's identity: the same numbers, its log-mel features in the server, give the same id, 1 <= id < 2**63.

    Whoever has the numbers can check it, and nobody finds others with the same one.
    """
    digest = hashlib.sha256(np.ascontiguousarray(clip, "<f4").data).digest()
    return int.from_bytes(digest[:8], "little") >> 1 or 1
