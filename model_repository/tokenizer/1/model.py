"""Triton model `tokenizer`: hands the checkpoint's tokenizer and the served limits to clients."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

from step_audio.steps.runtime import Runtime


class TritonPythonModel:
    """Hands the tokenizer's file and the server's limits to clients; takes no input."""

    def initialize(self, args):
        runtime = Runtime.from_triton(args)
        self.outputs = {
            "tokenizer_json": runtime.tokenizer_file.read_bytes(),
            "serving_info": json.dumps(runtime.serving_info()).encode(),
        }

    def execute(self, requests):
        tensors = [pb_utils.Tensor(name, np.array([value], object)) for name, value in self.outputs.items()]
        return [pb_utils.InferenceResponse(tensors) for _ in requests]
