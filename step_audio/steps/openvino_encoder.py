"""The exported encoder and adaptor on OpenVINO in bfloat16, which a large one takes half of float32's time for."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from step_audio.arrays import Float32Array, Int64Array
from step_audio.errors import ArtefactError
from step_audio.steps.memory import is_small

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would tell Intel of the import


class OpenVinoEncoderEngine:
    """An `EncoderEngine`. Not for several threads at once. A CPU without bfloat16 computes in float32."""

    max_clips = float("inf")

    def __init__(self, path: Path):
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16",
            "CPU_RUNTIME_CACHE_CAPACITY": 100,  # of kernels for clips' lengths: the default is 5000
        }
        try:
            self._compiled = openvino.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise ArtefactError(f"cannot load the encoder {path.name}: {error}") from None
        self._request = self._compiled.create_infer_request()

    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        self._request.infer({"mel": np.ascontiguousarray(features), "frames": frames}, share_inputs=True)
        embeddings: Float32Array = self._request.get_output_tensor(0).data.copy()
        if not is_small(features):
            self.give_back()  # else what the longest clips took is kept
        return embeddings

    def give_back(self) -> None:
        """As `KeepsMemory`."""
        self._compiled.release_memory()


def has_bfloat16() -> bool:
    """Whether this CPU computes in it."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
