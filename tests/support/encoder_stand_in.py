"""In place of the encoder's engine."""

import numpy as np

from step_audio.mel import token_count

DIM = 64


class FirstFeature:
    """A clip's rows have its first feature's value. It counts the clips, and is asked for nothing that it cannot do."""

    max_clips = 3

    def __init__(self):
        self.clips = 0

    def run(self, features, frames):
        assert np.isfinite(features).all() and 3 <= frames.min() <= frames.max() <= features.shape[2] <= 3000
        self.clips += len(features)
        rows = token_count(int(frames.max()), "L-2")
        return np.broadcast_to(features[:, :1, :1], (len(features), rows, DIM)).astype(np.float32)
