"""Triton model `tokenizer`: hands the checkpoint's tokenizer and the served limits to clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from step_audio.steps.tensors import triton_error


class TritonPythonModel:
    """Hands the tokenizer's file and the server's limits to clients; takes no input."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.outputs = {
            output: np.array([Path(parameters[f"{output}_file"]["string_value"]).read_bytes()], object)
            for output in ("tokenizer_json", "serving_info")
        }

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._response(request) for request in requests]

    def _response(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            wanted = request.requested_output_names()
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, value) for name, value in self.outputs.items() if name in wanted]
            )
        except Exception as error:
            return pb_utils.InferenceResponse(error=triton_error(pb_utils, error))
