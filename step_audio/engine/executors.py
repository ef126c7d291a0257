"""The executor that the options ask for."""

from __future__ import annotations

from step_audio.engine.executor import Executor
from step_audio.engine.options import EngineOptions
from step_audio.engine.trtllm_checkpoint import EngineSpec, Weights
from step_audio.errors import ArtefactError


def make_executor(spec: EngineSpec, weights: Weights, num_blocks: int, options: EngineOptions) -> Executor:
    precision = options.precision_for(spec)
    if options.executor == "torch":
        if options.matrices != "stored":
            raise ArtefactError(f"torch computes with matrices as they are stored, not {options.matrices}")
        from step_audio.engine.torch_executor import TorchExecutor  # torch takes seconds to import

        return TorchExecutor(spec, weights, num_blocks, precision, options.threads)
    from step_audio.engine.openvino_executor import OpenVinoExecutor

    int8, adapters = options.matrices == "int8", options.max_loras if spec.max_lora_rank else 0
    return OpenVinoExecutor(spec, weights, num_blocks, precision, options.threads, int8, adapters)
