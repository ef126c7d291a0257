"""The in-flight-batching engine behind the CPU's `tensorrtllm` backend: no Triton, no GPU, no torch needed."""

from step_audio.engine.engine import Engine
from step_audio.engine.options import EngineOptions, EngineStats
from step_audio.engine.request import GenerationRequest, Guide, SamplingParams, SequenceOutput, SequenceStats

__all__ = [
    "Engine",
    "EngineOptions",
    "EngineStats",
    "GenerationRequest",
    "Guide",
    "SamplingParams",
    "SequenceOutput",
    "SequenceStats",
]
