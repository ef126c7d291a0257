"""The parts of `config.pbtxt` that follow from the list of sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from step_audio.sampling_parameters import PARAMETERS, Output, Parameter
from step_audio_server.repository.template import Pbtxt

TYPES: dict[type[np.generic], str] = {
    np.float32: "TYPE_FP32", np.int32: "TYPE_INT32", np.uint64: "TYPE_UINT64", np.bool_: "TYPE_BOOL",
}  # fmt: skip
STEPS = {"request_output_len"}  # goes through prompt_builder, which has a default and a bound for it


def taken(nvidia: bool) -> tuple[Parameter, ...]:
    """The parameters that the LLM's backend takes: NVIDIA's, or ours."""
    return tuple(one for one in PARAMETERS if one.nvidia or not nvidia)


def ensemble_values(parameters: Sequence[Parameter]) -> dict[str, object]:
    """Placeholders of step_audio_r1: the inputs, how they reach tensorrt_llm, and what comes back for them."""
    passed = [one for one in parameters if one.input not in STEPS]
    return {
        "sampling_inputs": Pbtxt(",\n  ".join(f"{{ {_tensor(one)}, optional: true }}" for one in passed)),
        "sampling_input_map": Pbtxt(
            "\n      ".join(f'input_map {{ key: "{one.input}", value: "{one.input}" }}' for one in passed)
        ),
        "further_outputs": _outputs(parameters),
        "further_output_map": Pbtxt(
            "\n      ".join(
                f'output_map {{ key: "{output.name}", value: "{output.name}" }}' for output in _brought(parameters)
            )
        ),
    }


def llm_values(parameters: Sequence[Parameter]) -> dict[str, object]:
    """Placeholders of tensorrt_llm: what NVIDIA's backend has not; the template has all of its own."""
    further = [one for one in parameters if not one.nvidia]
    entries = [f"{{ {_tensor(one)}, reshape: {{ shape: [ ] }}, optional: true }}," for one in further]
    return {"further_sampling_inputs": Pbtxt("\n  ".join(entries)), "further_outputs": _outputs(parameters)}


def _brought(parameters: Sequence[Parameter]) -> list[Output]:
    return [output for one in parameters for output in one.outputs]


def _outputs(parameters: Sequence[Parameter]) -> Pbtxt:
    def entry(output: Output) -> str:
        dims = ", ".join(["-1"] * output.rank)
        return f'{{ name: "{output.name}", data_type: {TYPES[output.dtype]}, dims: [ {dims} ] }},'

    return Pbtxt("\n  ".join(map(entry, _brought(parameters))))


def _tensor(one: Parameter) -> str:
    return f'name: "{one.input}", data_type: {TYPES[one.dtype]}, dims: [ 1 ]'
