"""vLLM in the engine's place, as the stub sees it: a stand-in at the other end of the socket."""

import socket
from pathlib import Path

import numpy as np
import pytest

from step_audio.engine import GenerationRequest, GuideSpec, SamplingParams
from step_audio.errors import Code, InvalidGuide, InvalidRequest, NotServing, Overloaded, Unsupported
from step_audio.serving_info import HEARTBEAT
from step_audio.steps.trtllm.backend import TrtllmBackend
from step_audio.steps.trtllm.metrics import readings
from step_audio.steps.trtllm.vllm_engine import VllmEngine
from step_audio.vllm import options as vllm_options
from step_audio.vllm.options import VllmOptions
from step_audio.vllm.protocol import ProtocolError, pack, receive, unpack
from trtllm_fixture import Client
from vllm_stand_in import StandIn, tokens
from waiting import wait_until

HIDDEN = 4


def options(folder: Path, **others) -> VllmOptions:
    return VllmOptions(
        **dict(
            model="/model", socket=str(folder / "socket"), dtype="float32", vocab_size=100, hidden_size=HIDDEN,
            max_seq_len=64, max_batch_size=2, max_num_tokens=64, max_prompt_vocab_size=8, enable_prefix_caching=True,
            enable_chunked_prefill=True, tensor_parallel_size=1, kv_cache_bytes=None, cpu_kv_cache_bytes=1,
            gpu_memory_utilization=0.9, stop_ids=(90,),
        )
        | others
    )  # fmt: skip


@pytest.fixture
def process(tmp_path):
    """Long names of folders, too: a socket's own may have 107 bytes."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    stand_in = StandIn(folder / "socket", answering=False)
    stand_in.folder = folder
    yield stand_in
    stand_in.close()


@pytest.fixture
def engine(process):
    engine = VllmEngine(options(process.folder), max_queue_size=2)
    wait_until(lambda: engine.stats().healthy)
    yield engine
    engine.shutdown()


class Asked:
    """A request, and what came of it."""

    def __init__(self, engine, name="a", **others):
        self.outputs = []
        values = {"input_ids": np.arange(5, dtype=np.int32), "max_new_tokens": 4} | others
        engine.submit(GenerationRequest(request_id=name, on_output=self.outputs.append, **values))

    def ended(self):
        wait_until(lambda: self.outputs and self.outputs[-1].final)
        assert [output.final for output in self.outputs].count(True) == 1
        return self.outputs[-1]


def say(process, *drawn, index=0, request="a", **others):
    process.send(do="tokens", request=request, index=index, tokens=list(drawn), **others)


def test_tokens_come_as_they_are_drawn(engine, process):
    asked = Asked(engine, return_log_probs=True, num_top_log_probs=2)
    process.wait_for(1)
    stats = {"output": 1, "cached": 16, "scheduled": 10, "first": 20, "last": 30}
    say(process, 7, log_probs=[-0.5], top=[[[7, -0.5], [8, -1.0]]], stats=stats)
    say(process, 8, 9, log_probs=[-1.0, -0.25], top=[[[8, -1.0]], [[9, -0.25]]], finished="length", stats=stats)
    assert asked.ended().finished == "length"
    assert [output.token_ids for output in asked.outputs] == [[7], [8, 9]]
    assert [output.cum_log_prob for output in asked.outputs] == [-0.5, -1.75]
    assert asked.outputs[0].top_log_probs == [[(7, -0.5), (8, -1.0)]]
    first = asked.outputs[0].stats
    assert (first.reused_blocks, first.num_input_tokens, first.first_token_ns) == (1, 5, 20)


def test_what_is_sent(engine, process):
    table = np.arange(8, dtype=np.float32).reshape(2, HIDDEN)
    Asked(
        engine,
        input_ids=np.array([1, 100, 101, 2], np.int32),
        prompt_table=table,
        extra_ids=np.array([0, 9, 9, 0], np.uint64),
        max_new_tokens=1000,
        end_id=90,
        stop_words=[[3, 4]],
        bad_words=[[5]],
        sampling=SamplingParams(temperature=0.5, top_k=5000, seed=2**64 - 1, min_tokens=99, repetition_penalty=1.5),
        guide=GuideSpec("regex", "a+"),
    )
    message, arrays = process.wait_for(1)
    assert np.frombuffer(arrays["ids"], np.int32).tolist() == [1, 100, 101, 2]
    assert arrays["table"] == table.tobytes()
    assert message["max_tokens"] == 60, "what max_seq_len leaves"
    assert (message["end_id"], message["stop_words"], message["bad_words"]) == (90, [[3, 4]], [[5]])
    assert (message["guide_kind"], message["guide"]) == ("regex", "a+")
    sampling = message["sampling"]
    assert (sampling["temperature"], sampling["top_k"], sampling["top_p"]) == (0.5, 1024, 1.0)
    assert (sampling["seed"], sampling["min_tokens"], sampling["repetition_penalty"]) == (2**64 - 1, 60, 1.5)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0, "top_k": 5, "top_p": 0.5, "min_p": 0.1}])
def test_greedy_as_with_tensorrt_llm(engine, process, sampling):
    """With neither top_k nor top_p, or at temperature 0."""
    Asked(engine, sampling=SamplingParams(**sampling))
    said = process.wait_for(1)[0]["sampling"]
    assert (said["temperature"], said["top_k"], said["top_p"], said["min_p"]) == (0, 0, 1, 0)


def test_bfloat16_rows_go_as_their_bits(process):
    engine = VllmEngine(options(process.folder, dtype="bfloat16"), max_queue_size=0)
    wait_until(lambda: engine.stats().healthy)
    rows = np.array([[1, 2, 3, 4]], np.uint16)
    Asked(engine, input_ids=np.array([100], np.int32), prompt_table=rows, extra_ids=np.ones(1, np.uint64))
    assert process.wait_for(1)[1]["table"] == rows.tobytes()
    engine.shutdown()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"sampling": SamplingParams(temperature=2.5)}, "temperature"),
        ({"sampling": SamplingParams(presence_penalty=3)}, "presence_penalty"),
        ({"sampling": SamplingParams(frequency_penalty=-3)}, "frequency_penalty"),
        ({"lora_task_id": 7}, "lora_task_id"),
    ],
)
def test_what_vllm_does_not_do_is_refused_by_name(engine, process, asked, param):
    with pytest.raises(Unsupported) as caught:
        Asked(engine, **asked)
    assert caught.value.param == param and caught.value.code is Code.UNSUPPORTED
    assert not process.came


def test_requests_are_held_to_the_same_bounds(engine, process):
    with pytest.raises(InvalidRequest, match="exceeds maximum input length"):
        Asked(engine, input_ids=np.zeros(64, np.int32))
    table = np.full((1, HIDDEN), np.inf, np.float32)
    with pytest.raises(InvalidRequest, match="NaN or infinity"):  # what stands where vLLM is given no row
        Asked(engine, input_ids=np.array([100], np.int32), prompt_table=table, extra_ids=np.ones(1, np.uint64))
    assert not process.came


def test_several_answers(engine, process):
    asked = Asked(engine, num_return_sequences=2)
    assert process.wait_for(1)[0]["answers"] == 2
    say(process, 1, index=1, finished="stop")
    say(process, 2, index=0)
    say(process, index=0, finished="length")
    assert asked.ended().sequence_index == 0
    assert [(output.sequence_index, output.token_ids, output.finished) for output in asked.outputs] == [
        (1, [1], "stop"), (0, [2], None), (0, [], "length"),
    ]  # fmt: skip


def test_a_cancelled_request_ends(engine, process):
    asked = Asked(engine)
    assert engine.cancel("a") and not engine.cancel("b")
    assert process.wait_for(2)[0] == {"do": "cancel", "request": "a"}
    say(process, finished="cancelled")
    assert asked.ended().finished == "cancelled"
    assert not engine.cancel("a")


def test_a_refusal_of_vllm_s_ends_the_request_and_its_other_answers(engine, process):
    asked = Asked(engine, num_return_sequences=2, guide=GuideSpec("regex", "("))
    process.wait_for(1)
    process.send(do="failed", request="a", index=1, text="Unclosed", by_request=True)
    error = asked.ended().error
    assert isinstance(error, InvalidGuide) and "Unclosed" in str(error)
    assert process.wait_for(2)[0]["do"] == "cancel"
    say(process, 1, index=0)  # too late
    other = Asked(engine, name="b")
    process.send(do="failed", request="b", index=0, text="secret", by_request=False)
    assert other.ended().error.code is Code.INTERNAL and "secret" not in str(other.outputs[-1].error)
    assert len(asked.outputs) == 1


def test_a_process_that_dies_is_waited_for(engine, process):
    """Who had something under way, and who comes while it is away, is told to try again."""
    asked = [Asked(engine, name) for name in "ab"]
    process.wait_for(2)
    say(process, 1, request="a")
    process.close()
    for one in asked:
        assert one.ended().error.code is Code.SERVER_LOST
    wait_until(lambda: not engine.stats().healthy)
    assert engine.alive and engine.stats().active_requests == 0
    with pytest.raises(NotServing):
        Asked(engine, "c")
    again = StandIn(process.folder / "socket")
    wait_until(lambda: engine.stats().healthy)
    asked = Asked(engine, "d")
    asked.ended()
    ids = np.arange(5, dtype=np.int32).tobytes()
    assert [token for output in asked.outputs for token in output.token_ids] == tokens(ids, b"", 4, 100)
    again.close()


def test_an_engine_that_makes_no_steps_is_as_good_as_gone(engine, process):
    """Its process greets and answers as ever."""
    asked = Asked(engine)
    process.wait_for(1)
    process.pulse.silent = engine.options.patience
    process.send(do="tokens", request="a", index=0, tokens=[1])
    wait_until(lambda: asked.outputs)
    assert engine.serving, "a step may take as long"
    process.pulse.silent += 0.1
    assert asked.ended().error.code is Code.SERVER_LOST
    greeted = len(process.connections)
    wait_until(lambda: len(process.connections) > greeted + 1)
    assert not engine.serving, "nor is it taken for another by its greeting"
    with pytest.raises(NotServing):
        Asked(engine, "b")
    process.pulse.silent = 0.0
    wait_until(lambda: engine.serving)


def test_a_process_that_says_nothing_is_given_up(process, monkeypatch):
    monkeypatch.setattr(vllm_options, "PATIENCE", 0.5)
    engine = VllmEngine(options(process.folder), max_queue_size=2)
    wait_until(lambda: engine.serving)
    asked = Asked(engine)
    process.telling = False
    assert asked.ended().error.code is Code.SERVER_LOST
    engine.shutdown()


def test_a_larger_step_may_take_longer(tmp_path):
    assert options(tmp_path, max_num_tokens=8192).patience == 8
    assert options(tmp_path, max_num_tokens=65_536).patience == 64


def test_the_queue_has_a_bound(engine, process):
    """Two slots, and two that wait for one."""
    asked = [Asked(engine, name) for name in "abcd"]
    process.wait_for(4)
    with pytest.raises(Overloaded, match="Maximum queue size of 2"):
        Asked(engine, "e")
    for name in "ab":
        say(process, 1, request=name, finished="stop")
    for one in asked[:2]:
        one.ended()
    Asked(engine, "e")


def test_figures_have_the_names_of_nvidia_s(engine, process):
    Asked(engine)
    process.wait_for(1)
    process.send(do="stats", running=1, waiting=0, usage=0.25, steps=7, context=1, blocks=40, reused=48)
    wait_until(lambda: engine.stats().iteration == 7)
    said = {(one.family.removeprefix("nv_trt_llm_"), one.value_of): one.value for one in readings(engine.stats())}
    assert said["request_metrics", "active"] == 1 and said["request_metrics", "max"] == 2
    assert said["kv_cache_block_metrics", "used"] == 10 and said["kv_cache_block_metrics", "reused"] == 3


def test_no_figures_before_it_is_there(tmp_path):
    engine = VllmEngine(options(tmp_path), max_queue_size=0)
    assert all(one.value == one.value for one in readings(engine.stats()))
    engine.shutdown()


def test_behind_the_model_s_inputs_and_outputs(process):
    """The whole stub: Triton's tensors in, its responses out, a stop by the request's id."""
    process.answering = True
    options(process.folder).write(process.folder / "options.json")
    backend = TrtllmBackend({"gpt_model_path": "/none", "vllm_options": str(process.folder / "options.json")})
    wait_until(lambda: backend.stats().healthy)

    def ask(name, count):
        client = Client()
        inputs = {
            "input_ids": np.arange(5, dtype=np.int32)[None],
            "input_lengths": np.array([5], np.int32),
            "request_output_len": np.array([count], np.int32),
            "streaming": np.array([True]),
            "exclude_input_in_output": np.array([True]),
        }
        backend.submit(name, inputs, {"output_ids", "sequence_length"}, client, lambda: False)
        return client

    ids = np.arange(5, dtype=np.int32).tobytes()
    assert ask("a", 6).wait().tokens() == tokens(ids, b"", 6, 100)
    process.pause = 0.1
    client = ask("b", 50)
    client.wait_for(1)
    backend.stop("b")
    assert client.wait().errors == ["the answer was stopped"]
    backend.stop(f"{HEARTBEAT}1")
    process.close()
    wait_until(lambda: not backend.engine.serving)
    with pytest.raises(NotServing):
        backend.stop(f"{HEARTBEAT}1")
    backend.stop("b")  # there is nothing of it
    backend.shutdown()


def test_messages_survive_the_socket():
    ours, theirs = socket.socketpair()
    rows = np.arange(6, dtype=np.float32)
    for part in pack({"do": "generate", "text": "ä"}, {"ids": rows.data, "none": memoryview(b"")}):
        ours.sendall(part)
    message, arrays = receive(theirs)
    assert message == {"do": "generate", "text": "ä"}
    assert np.frombuffer(arrays["ids"], np.float32).tolist() == rows.tolist() and not arrays["none"].nbytes
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"body": {"a": 9}}', b'{"body": 3}'])
def test_what_is_no_message_is_refused(header):
    with pytest.raises(ProtocolError):
        unpack(header, b"1234")
