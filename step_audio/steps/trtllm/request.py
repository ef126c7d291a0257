"""Inputs of the `tensorrt_llm` model to generation requests, under the rules of TensorRT-LLM 1.2.1's backend.

What our engine cannot do is refused by the input's name; the C++ backend would do it or fail, never ignore it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from step_audio.arrays import AnyArray
from step_audio.engine.request import GenerationRequest, SamplingParams, SequenceOutput
from step_audio.errors import InvalidRequest, Unsupported
from step_audio.guides import GuideSpec
from step_audio.lora import LoraTensors
from step_audio.sampling_parameters import PARAMETERS
from step_audio.word_list import unpack_word_list

REQUIRED = ("input_ids", "input_lengths", "request_output_len")

FLAGS = (
    "stop",
    "streaming",
    "exclude_input_in_output",
    "return_log_probs",
    "return_perf_metrics",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
OTHERS = (
    "end_id",
    "stop_words_list",
    "bad_words_list",
    "num_return_sequences",
    "prompt_embedding_table",
    "prompt_table_extra_ids",
    # The C++ backend takes the table's size from its shape, and pads nothing that is packed.
    "prompt_vocab_size",
    "pad_id",
    "guided_decoding_guide_type",
    "guided_decoding_guide",
    "num_top_log_probs",
    "lora_task_id",
    "lora_weights",
    "lora_config",
)
# Input name -> field of SamplingParams.
SAMPLING = {one.input: one.name for one in PARAMETERS if one.input not in (*REQUIRED, *FLAGS, *OTHERS)}
SUPPORTED = frozenset((*REQUIRED, *SAMPLING, *FLAGS, *OTHERS))

# Of those that are not one value a row.
NDIM = {
    "input_ids": 2,
    "stop_words_list": 3,
    "bad_words_list": 3,
    "prompt_embedding_table": 3,
    "prompt_table_extra_ids": 2,
    "lora_weights": 3,
    "lora_config": 3,
}

# Of the unsupported ones these may be sent with the one value that asks for nothing.
NEUTRAL = {
    "beam_width": 1,
    "return_context_logits": False,
    "return_generation_logits": False,
    "early_stopping": False,
}

_serial = count()


@dataclass(frozen=True)
class ResponseOptions:
    """What shapes a request's responses, not its tokens."""

    streaming: bool
    exclude_input: bool
    log_probs: bool
    perf_metrics: bool
    num_input_tokens: bool
    num_output_tokens: bool
    several_answers: bool


@dataclass(frozen=True)
class TritonRequest:
    """One Triton request: `rows` independent generations, its batch."""

    options: ResponseOptions
    rows: list[GenerationRequest]


def is_stop(tensors: Mapping[str, AnyArray]) -> bool:
    """Whether this request is only to end another; then none of its other inputs is looked at."""
    return "stop" in tensors and bool(tensors["stop"].any())


def parse(
    tensors: Mapping[str, AnyArray],
    exclude_input_default: bool,
    on_output: Callable[[int, SequenceOutput], None],
) -> TritonRequest:
    """`tensors`: every input that was sent, with its batch dimension. `on_output` gets the row's index too.

    Raises InvalidRequest.
    """
    for name, tensor in tensors.items():
        if name in SUPPORTED or (name in NEUTRAL and (tensor == NEUTRAL[name]).all()):
            continue
        if name in NEUTRAL:
            raise Unsupported(
                f"input '{name}' is supported only as {str(NEUTRAL[name]).lower()} by the CPU backend", name
            )
        raise Unsupported(f"input '{name}' is not supported by the CPU backend", name)

    for name in REQUIRED:
        if name not in tensors:
            raise InvalidRequest(f"missing required input '{name}'", name)
    _check_shapes(tensors)

    def flag(name: str, default: bool = False) -> bool:
        if name not in tensors:
            return default
        values = tensors[name].reshape(-1)
        if (values != values[0]).any():  # the rows of a batch are answered on one stream
            raise InvalidRequest(f"input '{name}' must be the same for all rows of a batch", name)
        return bool(values[0])

    several = tensors.get("num_return_sequences")
    options = ResponseOptions(
        streaming=flag("streaming"),
        exclude_input=flag("exclude_input_in_output", exclude_input_default),
        log_probs=flag("return_log_probs"),
        perf_metrics=flag("return_perf_metrics"),
        num_input_tokens=flag("return_num_input_tokens"),
        num_output_tokens=flag("return_num_output_tokens"),
        several_answers=several is not None and bool((several > 1).any()),
    )
    rows = [_row(tensors, row, options, on_output) for row in range(tensors["input_ids"].shape[0])]
    return TritonRequest(options, rows)


def _check_shapes(tensors: Mapping[str, AnyArray]) -> None:
    ids = tensors["input_ids"]
    if not len(ids):
        raise InvalidRequest("input_ids has no rows", "input_ids")
    for name, tensor in tensors.items():
        fits = tensor.ndim == NDIM[name] if name in NDIM else tensor.size == len(ids)
        if not fits or len(tensor) != len(ids):
            raise InvalidRequest(
                f"input '{name}' of shape {list(tensor.shape)} does not fit input_ids {list(ids.shape)}", name
            )


def _row(
    tensors: Mapping[str, AnyArray],
    row: int,
    options: ResponseOptions,
    on_output: Callable[[int, SequenceOutput], None],
) -> GenerationRequest:
    def scalar(name: str) -> Any:
        return tensors[name].reshape(len(tensors["input_ids"]), -1)[row, 0].item() if name in tensors else None

    def words(name: str) -> list[list[int]]:
        return unpack_word_list(tensors[name][row], name) if name in tensors else []

    def text(name: str) -> str | None:
        if name not in tensors:
            return None
        try:
            value: bytes = tensors[name].reshape(len(tensors["input_ids"]), -1)[row, 0]
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"input '{name}' is not UTF-8", name) from None

    input_ids, length = tensors["input_ids"][row], scalar("input_lengths")
    if len(tensors["input_ids"]) == 1:
        length = len(input_ids)  # a batch of one is not padded: the C++ backend does not look at input_lengths
    if not 1 <= length <= len(input_ids):
        raise InvalidRequest(f"input_lengths is {length}, but input_ids has {len(input_ids)} ids", "input_lengths")
    extra_ids = tensors.get("prompt_table_extra_ids")
    # The C++ backend drops extra ids of another length than the prompt; the engine then refuses a table with reuse.
    if extra_ids is not None and extra_ids.shape[1] != length:
        extra_ids = None
    sampling = {field: value for name, field in SAMPLING.items() if (value := scalar(name)) is not None}
    table = tensors.get("prompt_embedding_table")
    return GenerationRequest(
        request_id=f"{next(_serial)}",
        input_ids=np.ascontiguousarray(input_ids[:length]),
        max_new_tokens=scalar("request_output_len"),
        sampling=SamplingParams(**sampling),
        end_id=scalar("end_id"),
        stop_words=words("stop_words_list"),
        bad_words=words("bad_words_list"),
        prompt_table=None if table is None else table[row],
        extra_ids=None if extra_ids is None else np.ascontiguousarray(extra_ids[row]),
        num_return_sequences=1 if (answers := scalar("num_return_sequences")) is None else answers,
        return_log_probs=options.log_probs,
        num_top_log_probs=scalar("num_top_log_probs") or 0,
        lora_task_id=scalar("lora_task_id"),
        lora=_lora(tensors, row),
        guide=_guide(text("guided_decoding_guide_type"), text("guided_decoding_guide")),
        on_output=lambda output: on_output(row, output),
    )


def _lora(tensors: Mapping[str, AnyArray], row: int) -> LoraTensors | None:
    """The adapter that a request brings."""
    weights, config = tensors.get("lora_weights"), tensors.get("lora_config")
    if (weights is None) != (config is None):
        said = "Request for LoRA inference must have both lora_weights and lora_keys"  # NVIDIA's words
        raise InvalidRequest(said, "lora_weights" if weights is None else "lora_config")
    return None if weights is None or config is None else LoraTensors(weights[row], config[row])


def _guide(kind: str | None, text: str | None) -> GuideSpec | None:
    """The C++ backend answers without a guide if it does not know the type, the empty one for instance, which
    `prompt_builder` sends where there is none; any other our engine refuses."""
    if not kind:
        if text:
            said = "input 'guided_decoding_guide' needs 'guided_decoding_guide_type' beside it"
            raise InvalidRequest(said, "guided_decoding_guide")
        return None
    return GuideSpec.of(kind, text or "")
