"""Triton step `prompt_builder`: hands requests to a worker, whose work is `step_audio.steps.prompt_builder`."""

from __future__ import annotations

from collections.abc import Sequence

import triton_python_backend_utils as pb_utils

from step_audio.steps.stub import StepStub


class TritonPythonModel:
    """Triton's name for it."""

    def initialize(self, args: dict[str, str]) -> None:
        self.stub = StepStub(pb_utils, args)

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[None]:
        return self.stub.execute(requests)

    def finalize(self) -> None:
        self.stub.close()
