"""Inputs of the `tensorrt_llm` model: each one taken at its word, or refused by its name."""

import numpy as np
import pytest

from step_audio.engine.request import GuideSpec
from step_audio.errors import ArtefactError, InvalidRequest
from step_audio.sampling_parameters import PARAMETERS
from step_audio.steps.trtllm.backend import TrtllmBackend
from step_audio.steps.trtllm.request import NEUTRAL, SUPPORTED, is_stop, parse
from trtllm_interface import INPUTS, table

KINDS = {
    "TYPE_INT32": np.int32, "TYPE_INT64": np.int64, "TYPE_UINT8": np.uint8, "TYPE_UINT64": np.uint64,
    "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_BF16": np.float32, "TYPE_BOOL": np.bool_,
    "TYPE_STRING": object,
}  # fmt: skip


def scalars(*values, kind=np.int32) -> np.ndarray:
    """As Triton hands over dims [1] with reshape []: one value a row, no dimension but the batch."""
    return np.array(values, kind)


def tensors(*rows: list[int], length: int | None = None, **others: np.ndarray) -> dict[str, np.ndarray]:
    ids = np.array(rows or [[5, 6, 7]], np.int32)
    return {
        "input_ids": ids,
        "input_lengths": scalars(*[length or ids.shape[1]] * len(ids)),
        "request_output_len": scalars(*[9] * len(ids)),
    } | others


def parsed(inputs: dict[str, np.ndarray], exclude: bool = True):
    return parse(inputs, exclude, lambda row, output: None)


def row(**others: np.ndarray):
    return parsed(tensors(**others)).rows[0]


def test_adapters():
    weights, config = np.ones((1, 2, 9), np.float32), np.array([[[1, 0, 4], [2, 0, 4]]], np.int32)
    assert row().lora_task_id is None and row().lora is None
    named = row(lora_task_id=scalars(2**40, kind=np.uint64))
    assert named.lora_task_id == 2**40 and named.lora is None
    brought = row(lora_task_id=scalars(7, kind=np.uint64), lora_weights=weights, lora_config=config)
    assert np.array_equal(brought.lora.weights, weights[0]) and np.array_equal(brought.lora.config, config[0])
    with pytest.raises(InvalidRequest, match="must have both lora_weights and lora_keys"):
        row(lora_task_id=scalars(7, kind=np.uint64), lora_weights=weights)


def test_the_least_request():
    request = parsed(tensors([5, 6, 7]))
    assert len(request.rows) == 1
    (one,) = request.rows
    assert (one.input_ids.tolist(), one.max_new_tokens, one.num_return_sequences) == ([5, 6, 7], 9, 1)
    assert (one.end_id, one.stop_words, one.bad_words, one.prompt_table, one.extra_ids) == (None, [], [], None, None)
    sampling = one.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (1.0, 0, 0.0, 0)
    options = request.options
    assert options.exclude_input and not parsed(tensors(), exclude=False).options.exclude_input
    assert not any((options.streaming, options.log_probs, options.perf_metrics, options.num_input_tokens))


@pytest.mark.parametrize(
    ("name", "value", "kind", "field"),
    [
        ("temperature", 0.5, np.float32, "temperature"),
        ("runtime_top_k", 40, np.int32, "top_k"),
        ("runtime_top_p", 0.25, np.float32, "top_p"),
        ("min_p", 0.125, np.float32, "min_p"),
        ("min_tokens", 3, np.int32, "min_tokens"),
        ("repetition_penalty", 1.5, np.float32, "repetition_penalty"),
        ("presence_penalty", -0.5, np.float32, "presence_penalty"),
        ("frequency_penalty", 0.75, np.float32, "frequency_penalty"),
        ("seed", 2**64 - 1, np.uint64, "seed"),
    ],
)
def test_sampling_controls(name, value, kind, field):
    assert getattr(row(**{name: scalars(value, kind=kind)}).sampling, field) == value


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("streaming", "streaming"),
        ("exclude_input_in_output", "exclude_input"),
        ("return_log_probs", "log_probs"),
        ("return_perf_metrics", "perf_metrics"),
        ("return_num_input_tokens", "num_input_tokens"),
        ("return_num_output_tokens", "num_output_tokens"),
    ],
)
def test_flags(name, field):
    for value in (True, False):
        request = parsed(tensors(**{name: scalars(value, kind=np.bool_)}))
        assert getattr(request.options, field) is value
        if name == "return_log_probs":
            assert request.rows[0].return_log_probs is value


def test_the_rest_of_what_is_supported():
    words = np.array([[[1, 2, 3], [1, 3, -1]]], np.int32)
    hidden = np.ones((1, 2, 4), np.float32)
    extra = np.array([[0, 8, 0]], np.uint64)
    one = row(
        end_id=scalars(77), stop_words_list=words, bad_words_list=words, num_return_sequences=scalars(4),
        prompt_embedding_table=hidden, prompt_table_extra_ids=extra, prompt_vocab_size=scalars(2), pad_id=scalars(0),
        num_top_log_probs=scalars(3),
    )  # fmt: skip
    assert (one.end_id, one.num_return_sequences, one.num_top_log_probs) == (77, 4, 3)
    assert one.stop_words == one.bad_words == [[1], [2, 3]]
    assert one.prompt_table.shape == (2, 4) and one.extra_ids.tolist() == [0, 8, 0]


@pytest.mark.parametrize("name", sorted(set(table(INPUTS)) - SUPPORTED))
def test_what_is_not_supported_is_refused_by_name(name):
    kind, dims, _ = table(INPUTS)[name]
    value = np.full([1, *(2 if n == -1 else n for n in dims)], 2, KINDS[kind])
    with pytest.raises(InvalidRequest, match=f"^input '{name}' is (not )?supported .*by the CPU backend$"):
        parsed(tensors(**{name: value}))


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_value_that_asks_for_nothing_passes(name):
    kind = KINDS[table(INPUTS)[name][0]]
    assert parsed(tensors(**{name: scalars(NEUTRAL[name], kind=kind)})).rows
    with pytest.raises(InvalidRequest, match=f"'{name}' is supported only as {str(NEUTRAL[name]).lower()}"):
        parsed(tensors([1], [2], **{name: scalars(NEUTRAL[name], NEUTRAL[name] + 1, kind=kind)}))


def test_every_input_of_the_model_is_known():
    ours = {one.input for one in PARAMETERS if not one.nvidia}
    assert {*table(INPUTS), *ours} >= SUPPORTED | set(NEUTRAL)
    assert not SUPPORTED & set(NEUTRAL)


def test_rows_of_a_batch():
    """Ragged rows are padded by the client; each has its own lengths and controls."""
    heard = []
    request = parse(
        {
            "input_ids": np.array([[1, 2, 3], [4, 5, 0]], np.int32),
            "input_lengths": np.array([[3], [2]], np.int32),
            "request_output_len": np.array([[8], [9]], np.int32),
            "temperature": np.array([[0.5], [2.0]], np.float32),
            "end_id": np.array([[-1], [6]], np.int32),
            "stop_words_list": np.array([[[7, 0], [1, -1]], [[8, 9], [1, 2]]], np.int32),
            "prompt_embedding_table": np.arange(2, dtype=np.float32).reshape(2, 1, 1),
            "prompt_table_extra_ids": np.array([[1, 2, 3], [4, 5, 0]], np.uint64),
        },
        True,
        lambda row, output: heard.append((row, output)),
    )
    first, second = request.rows
    assert (first.input_ids.tolist(), second.input_ids.tolist()) == ([1, 2, 3], [4, 5])
    assert (first.max_new_tokens, second.max_new_tokens) == (8, 9)
    assert (first.sampling.temperature, second.sampling.temperature) == (0.5, 2.0)
    assert (first.end_id, second.end_id) == (-1, 6)  # the engine takes -1 for none
    assert (first.stop_words, second.stop_words) == ([[7]], [[8], [9]])
    assert (first.prompt_table.item(), second.prompt_table.item()) == (0, 1)
    assert (first.extra_ids.tolist(), second.extra_ids) == ([1, 2, 3], None)  # as long as the row, or dropped
    assert first.request_id != second.request_id
    second.on_output("second's")
    first.on_output("first's")
    assert heard == [(1, "second's"), (0, "first's")]


def test_a_flag_that_differs_between_rows():
    """One stream answers all rows: it cannot stream one and not the other."""
    with pytest.raises(InvalidRequest, match="'streaming' must be the same for all rows"):
        parsed(tensors([1], [2], streaming=scalars(True, False, kind=np.bool_)))


@pytest.mark.parametrize("length", [-1, 4])
def test_lengths_beyond_the_ids(length):
    with pytest.raises(InvalidRequest, match=f"input_lengths is {length}, but input_ids has 3 ids"):
        parsed(tensors([1, 2, 3], [1, 2, 3], length=length))


def test_a_batch_of_one_is_not_cut():
    """As in C++, which looks at input_lengths only where rows are padded."""
    assert len(row(input_lengths=scalars(1)).input_ids) == 3


def test_extra_ids_of_another_length_are_dropped():
    """As in C++; the engine then refuses a table that has none, if blocks are reused."""
    assert row(prompt_table_extra_ids=np.array([[1, 2]], np.uint64)).extra_ids is None


@pytest.mark.parametrize("name", ["input_ids", "input_lengths", "request_output_len"])
def test_a_missing_input_is_named(name):
    inputs = tensors()
    del inputs[name]
    with pytest.raises(InvalidRequest, match=f"missing required input '{name}'"):
        parsed(inputs)


def test_stop_needs_nothing_else():
    assert is_stop({"stop": scalars(True, kind=np.bool_)})
    assert not is_stop({"stop": scalars(False, kind=np.bool_)}) and not is_stop({})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("temperature", -1, np.float32), ("runtime_top_p", 1.5, np.float32), ("runtime_top_k", -1, np.int32)],
)
def test_values_out_of_range(name, value, kind):
    with pytest.raises(InvalidRequest, match=name.removeprefix("runtime_")):
        row(**{name: scalars(value, kind=kind)})


def strings(*values: bytes) -> np.ndarray:
    return np.array([[value] for value in values], object)


def test_guides():
    assert row().guide is None
    kind, schema = strings(b"json_schema"), strings('{"title": "é"}'.encode())
    assert row(guided_decoding_guide_type=kind, guided_decoding_guide=schema).guide == GuideSpec(
        "json_schema", '{"title": "é"}'
    )
    assert row(guided_decoding_guide_type=strings(b"json")).guide == GuideSpec("json", "")
    both = parsed(
        tensors(
            [1], [2], guided_decoding_guide_type=strings(b"regex", b"json"), guided_decoding_guide=strings(b"a", b"")
        )
    )
    assert [one.guide for one in both.rows] == [GuideSpec("regex", "a"), GuideSpec("json", "")]


def test_a_guide_without_its_type():
    """The C++ backend would answer without a guide."""
    with pytest.raises(InvalidRequest, match="'guided_decoding_guide' needs 'guided_decoding_guide_type'"):
        row(guided_decoding_guide=strings(b"a"))


@pytest.mark.parametrize("name", ["guided_decoding_guide_type", "guided_decoding_guide"])
def test_a_guide_that_is_no_text(name):
    texts = {"guided_decoding_guide_type": strings(b"regex"), "guided_decoding_guide": strings(b"a")}
    with pytest.raises(InvalidRequest, match=f"input '{name}' is not UTF-8"):
        row(**texts | {name: strings(b"\xff")})


def test_another_guided_decoding_backend_is_refused():
    with pytest.raises(ArtefactError, match="guided_decoding_backend must be xgrammar or empty, got 'llguidance'"):
        TrtllmBackend({"guided_decoding_backend": "llguidance"})
