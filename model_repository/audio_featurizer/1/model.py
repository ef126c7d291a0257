"""Triton step `audio_featurizer`: moves tensors, the work is `step_audio.steps.featurizer`."""

import os
from concurrent.futures import ThreadPoolExecutor

import triton_python_backend_utils as pb_utils

from step_audio.steps.featurizer import Featurizer
from step_audio.steps.runtime import Runtime
from step_audio.steps.triton_io import guarded, optional


class TritonPythonModel:
    """Triton's entry to `Featurizer`: as many requests at once as there are cores."""

    def initialize(self, args):
        self.featurizer = Featurizer(Runtime.from_triton(args))
        self.pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))

    def execute(self, requests):
        return list(self.pool.map(lambda request: guarded(pb_utils, self._featurize, request), requests))

    def _featurize(self, request):
        messages = optional(pb_utils, request, "messages")
        audio = optional(pb_utils, request, "audio")
        features = self.featurizer.featurize(
            None if messages is None else messages.reshape(-1)[0],
            [] if audio is None else audio.reshape(-1).tolist(),
        )
        outputs = [
            pb_utils.Tensor("frames", features.frames[None]),
            pb_utils.Tensor("audio_index", features.audio_index[None]),
            pb_utils.Tensor("content_hash", features.content_hash[None]),
        ]
        if len(features.frames):
            outputs.append(pb_utils.Tensor("mel", features.mel[None]))
        return outputs
