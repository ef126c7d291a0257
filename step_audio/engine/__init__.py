"""The in-flight-batching engine behind the CPU's `tensorrtllm` backend: no Triton, no GPU, no torch needed."""

import sys

from step_audio.engine.engine import Engine
from step_audio.engine.options import EngineOptions, EngineStats
from step_audio.engine.request import GenerationRequest, SamplingParams, SequenceOutput, SequenceStats
from step_audio.guides import GuideSpec

__all__ = [
    "Engine",
    "EngineOptions",
    "EngineStats",
    "GenerationRequest",
    "GuideSpec",
    "SamplingParams",
    "SequenceOutput",
    "SequenceStats",
]

# OpenVINO's package tells Intel that it is imported, and keeps an id for that in the home directory. Where this module
# of its own cannot be imported, it does neither.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
