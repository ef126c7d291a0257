"""Triton step `audio_encoder`: moves tensors, the work is `step_audio.steps.encoder_engine`."""

import torch
import triton_python_backend_utils as pb_utils

from step_audio.steps.encoder_engine import AudioEncoderStep
from step_audio.steps.runtime import Runtime
from step_audio.steps.triton_io import failed, optional


class TritonPythonModel:
    """Triton's entry to `AudioEncoderStep`."""

    def initialize(self, args):
        runtime = Runtime.from_triton(args)
        self.step = AudioEncoderStep(runtime)
        self.dtype = getattr(torch, runtime.table_dtype)

    def execute(self, requests):
        """All clips of all requests go through the engine together."""
        with_audio, features = [], []
        for index, request in enumerate(requests):
            mel = optional(pb_utils, request, "mel")
            if mel is not None:
                with_audio.append(index)
                features.append((mel[0], optional(pb_utils, request, "frames")[0]))
        responses = [pb_utils.InferenceResponse([]) for _ in requests]
        try:
            tables = self.step.encode(features)
        except Exception as error:
            refusal = failed(pb_utils, error)
            return [refusal if index in with_audio else response for index, response in enumerate(responses)]
        for index, table in zip(with_audio, tables, strict=True):
            tensor = torch.from_numpy(table)[None].to(self.dtype)
            responses[index] = pb_utils.InferenceResponse(
                [pb_utils.Tensor.from_dlpack("prompt_embedding_table", tensor)]
            )
        return responses
