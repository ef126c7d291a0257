"""What vLLM's process asks of vLLM, and what it says of its answers: a stand-in of the package in its place.

What only vLLM itself can show, that it does what it is asked, is in tests/served/test_vllm_served.py.
"""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from lazy import Lazy
from step_audio.engine import GenerationRequest, GuideSpec, SamplingParams
from step_audio.sampling_parameters import MAX_TOP_LOGPROBS
from step_audio.steps.trtllm.vllm_engine import _message
from step_audio.vllm.options import VllmOptions
from vllm_package import ClientError, Engine, EngineDead, output, process_module

torch = Lazy("torch")

OPTIONS = VllmOptions(
    model="/model", socket="/socket", dtype="float32", vocab_size=100, hidden_size=4, max_seq_len=64, max_batch_size=2,
    max_num_tokens=32, max_prompt_vocab_size=8, enable_prefix_caching=False, enable_chunked_prefill=True,
    tensor_parallel_size=4, kv_cache_bytes=None, cpu_kv_cache_bytes=7, gpu_memory_utilization=0.89, stop_ids=(90, 91),
)  # fmt: skip


@pytest.fixture
def process(monkeypatch):
    return process_module(monkeypatch)


def message(**asked):
    """As the stub sends it."""
    values = {"input_ids": np.arange(5, dtype=np.int32), "max_new_tokens": 9, "end_id": 50} | asked
    return _message(GenerationRequest(request_id="a", on_output=lambda _: None, **values), 9, OPTIONS)


def answer(process, index=0, **asked):
    return process.VllmAnswer(message(**asked), index, OPTIONS)


def test_sampling_penalties_and_lengths_go_under_vllm_s_names(process):
    sampling = SamplingParams(
        temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, seed=5, min_tokens=3, repetition_penalty=1.2,
        presence_penalty=0.5, frequency_penalty=-0.5,
    )  # fmt: skip
    params = vars(answer(process, sampling=sampling, bad_words=[[5], [6, 7]]).params)
    asked = {name: params[name] for name in SamplingParams.__slots__}
    assert asked == {name: getattr(sampling, name) for name in SamplingParams.__slots__}
    assert (params["max_tokens"], params["stop_token_ids"], params["ignore_eos"]) == (9, [50], True)
    assert params["_bad_words_token_ids"] == [[5], [6, 7]] and params["logprobs"] is None
    assert params["structured_outputs"] is None and params["output_kind"] == "delta"


def test_each_of_several_answers_is_drawn_from_a_seed_of_its_own(process):
    seeds = [answer(process, index, sampling=SamplingParams(seed=2**64 - 2)).params.seed for index in range(4)]
    assert seeds == [2**64 - 2, 2**64 - 1, 0, 1], "none is beyond what torch takes"


@pytest.mark.parametrize(
    ("kind", "text", "asked"),
    [
        ("json", None, {"json": "{}"}),
        ("json_schema", '{"type": "object"}', {"json": '{"type": "object"}'}),
        ("regex", "a+", {"regex": "a+"}),
        ("ebnf_grammar", 'root ::= "a"', {"grammar": 'root ::= "a"'}),
    ],
)
def test_guides_are_vllm_s_structured_outputs(process, kind, text, asked):
    """A guided answer may end by the tokenizer's own stop tokens."""
    params = answer(process, guide=GuideSpec(kind, text)).params
    assert vars(params.structured_outputs) == asked and params.stop_token_ids == [50, 90, 91]


def test_log_probabilities(process):
    def place(*pairs):
        return {token: SimpleNamespace(logprob=-value, rank=rank) for token, value, rank in pairs}

    told = answer(process, return_log_probs=True, num_top_log_probs=2)
    assert told.params.logprobs == 2
    drawn = [place((7, 0.5, 1), (8, 1.0, 2)), place((9, 3.0, 40), (7, 0.25, 1), (8, 2.0, 2))]
    said = told.take(output(7, 9, logprobs=drawn))
    assert said["log_probs"] == [-0.5, -3.0]
    assert said["top"] == [[[7, -0.5], [8, -1.0]], [[7, -0.25], [8, -2.0]]], "what was drawn is no top one"
    assert answer(process, return_log_probs=True).params.logprobs == 0
    assert process.MAX_LOGPROBS == MAX_TOP_LOGPROBS


def test_an_end_is_no_part_of_the_answer_and_a_stop_word_is(process):
    said = answer(process).take(output(1, 2, 50, finished="stop"))
    assert (said["tokens"], said["finished"]) == ([1, 2], "stop")
    words = answer(process, stop_words=[[3, 4], [8]])
    assert words.take(output(1, 3))["tokens"] == [1, 3]
    said = words.take(output(4, 5))  # a word over two outputs, and what was drawn behind it
    assert (said["tokens"], said["finished"]) == ([4], "stop")
    said = answer(process).take(output(1, finished="length", cached=16))
    assert (said["finished"], said["stats"]["cached"], said["stats"]["first"]) == ("length", 16, 2_000_000_000)


def test_a_prompt_with_recordings_has_their_rows_and_infinity_elsewhere(process):
    """So a block is known again by its rows alone: no table has infinity."""
    table = np.arange(8, dtype=np.float32).reshape(2, 4)
    ids = np.array([1, 101, 100, 2], np.int32)
    prompt = process.prompt_of({"ids": memoryview(bytearray(ids)), "table": memoryview(bytearray(table))}, OPTIONS)
    assert prompt.is_token_ids == [True, False, False, True] and prompt.prompt_token_ids == [1, 99, 99, 2]
    assert torch.equal(prompt.rows[1:3], torch.from_numpy(table[[1, 0]])) and prompt.rows[[0, 3]].isinf().all()
    assert process.prompt_of({"ids": memoryview(bytearray(ids[:1]))}, OPTIONS).ids == [1]


@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_engine_s_options(monkeypatch, on_cpu):
    args = vars(process_module(monkeypatch, on_cpu).engine_args(OPTIONS))
    assert (args["tensor_parallel_size"], args["gpu_memory_utilization"]) == (4, 0.89)
    assert (args["max_model_len"], args["max_num_seqs"], args["max_num_batched_tokens"]) == (64, 2, 32)
    assert args["kv_cache_memory_bytes"] == (7 if on_cpu else None) and args["enforce_eager"] is on_cpu
    assert args["enable_prompt_embeds"] and not args["enable_prefix_caching"]


class Asked:
    """A connection of the stub's to vLLM's process, and what came over it."""

    def __init__(self, process, monkeypatch):
        self.engine, self.dead, self.said = Engine(), asyncio.Event(), []
        writer = SimpleNamespace(is_closing=lambda: False, writelines=lambda parts: None)
        self.client = process.Client(self.engine, OPTIONS, writer, self.dead)
        monkeypatch.setattr(process.Client, "send", lambda _, message: self.said.append(message))

    def take(self, **asked):
        ids = {"ids": memoryview(bytearray(np.arange(5, dtype=np.int32)))}
        self.client.take(message(**asked) if asked.get("do") is None else asked, ids)

    async def give(self, request: str, what) -> None:
        await asyncio.sleep(0)
        self.engine.queues[request].put_nowait(what)
        for _ in range(5):
            await asyncio.sleep(0)


def asked(process, monkeypatch, steps) -> Asked:
    async def run() -> Asked:
        one = Asked(process, monkeypatch)
        await steps(one)
        return one

    return asyncio.run(run())


def test_a_cancelled_request_is_taken_from_vllm_with_all_its_answers(process, monkeypatch):
    async def steps(one):
        one.take(num_return_sequences=2)
        await one.give("a.0", output(1))
        one.take(do="cancel", request="a")
        one.take(do="cancel", request="nobody's")
        for _ in range(5):
            await asyncio.sleep(0)

    one = asked(process, monkeypatch, steps)
    assert sorted(one.engine.left) == ["a.0", "a.1"]
    ends = [said for said in one.said if said.get("finished")]
    assert sorted((said["index"], said["finished"]) for said in ends) == [(0, "cancelled"), (1, "cancelled")]


@pytest.mark.parametrize(
    ("raised", "by_request", "text"),
    [
        (ClientError("Unclosed"), True, "Unclosed"),
        (ValueError("too hot"), True, "too hot"),
        (OSError("disk"), False, ""),
    ],
)
def test_what_vllm_refuses_is_told_and_a_fault_of_its_own_is_not(process, monkeypatch, raised, by_request, text):
    async def steps(one):
        one.take()
        await one.give("a.0", raised)

    (said,) = asked(process, monkeypatch, steps).said
    assert (said["do"], said["by_request"], said["text"]) == ("failed", by_request, text)


def test_a_dead_engine_ends_the_process(process, monkeypatch):
    async def steps(one):
        one.take()
        await one.give("a.0", EngineDead())

    one = asked(process, monkeypatch, steps)
    assert one.dead.is_set() and not one.said, "the stub hears of it when the connection ends"


def test_steps_are_counted_that_bring_no_token(process):
    """Of a long prompt: they are how it is told from a hang."""
    logger = process.Stats(SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks=4)))
    told = SimpleNamespace(
        prefix_cache_stats=SimpleNamespace(hits=0), num_running_reqs=1, num_waiting_reqs=0, kv_cache_usage=0.5
    )
    before = process.Stats.made
    for _ in range(3):
        logger.record(told, None)
    assert process.Stats.made == before + 3
