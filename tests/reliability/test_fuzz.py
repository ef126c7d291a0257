"""Every model is asked what nobody should ask: an answer or one clear error, and the next request is answered as ever.

RELIABILITY_ROUNDS: `make reliability` sets it, for 100,000 tries in process and 6,000 through a server.
"""

from __future__ import annotations

import asyncio
import os
import queue
from collections import Counter
from uuid import uuid4

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import tokenizer_fixture
from encoder_stand_in import FirstFeature
from engine_fixture import HIDDEN, VOCAB, write_engine
from fuzz_fixture import Fuzz, check_text, ensembles, good_requests
from model_fixture import runtime
from raw_triton import scalar, texts
from step_audio.errors import StepAudioError
from step_audio.steps.encoder_engine import AudioEncoderStep
from step_audio.steps.featurizer import FeaturizerStep
from step_audio.steps.leases import Leases
from step_audio.steps.prompt_builder import PromptBuilderStep
from step_audio.steps.trtllm.backend import TrtllmBackend
from step_audio_client import calls, wire
from step_audio_server import processes
from waiting import SECONDS

pytestmark = pytest.mark.long

LONG = bool(os.environ.get("RELIABILITY_ROUNDS"))
STEPS = {"audio_featurizer": 20_000, "prompt_builder": 40_000, "audio_encoder": 25_000}
MODELS = STEPS | {"tensorrt_llm": 10_000, "lease": 5_000}
SHORT = 60
PART = 1000
LLM, LEASE = "tensorrt_llm", "lease"
ENSEMBLE, CONTINUE, TEXT = "step_audio_r1", "step_audio_continue", "step_audio_text"
PATIENCE = {LLM: 5.0, LEASE: 0.3, ENSEMBLE: 5.0, CONTINUE: 5.0, TEXT: 5.0}  # seconds, for what may last
IDS = ["lease:fuzz", "lease:", "", "fuzz", "lease:" + "x" * 300, "lease:\n/ü", "x" * 257]
GROWTH = 200 << 20  # bytes that a process may have more after the tries than after a tenth of them


def draw(requests, count: int, run) -> None:
    """In parts, for hypothesis keeps all that it has drawn in one go, and is ever slower."""
    for done in range(0, count, PART):
        several = settings(
            max_examples=min(PART, count - done),
            deadline=None,
            database=None,
            derandomize=not LONG,
            suppress_health_check=list(HealthCheck),
        )
        several(given(inputs=requests)(run))()


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return Fuzz(tmp_path_factory.mktemp("fuzz") / "work")


@pytest.fixture(scope="module")
def settings_of_steps(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(tokenizer_fixture.build_json(), encoding="utf-8")
    return runtime().model_copy(update={"tokenizer_file": file, "chat_template": "default"})


class Memory:
    """Of processes, looked at when a tenth of the tries is done, and at the end."""

    def __init__(self, count: int, pids: list[int]):
        self.warm, self.done, self.pids, self.before = count // 10, 0, pids, {}
        self.outcomes: Counter[str] = Counter()

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.done += 1
        if self.done == self.warm:
            self.before = self.now()

    def now(self) -> dict[int, int]:
        return {pid: 4096 * int(open(f"/proc/{pid}/statm").read().split()[1]) for pid in self.pids}

    def check(self, model: str) -> None:
        grown = {pid: size - self.before.get(pid, size) for pid, size in self.now().items()}
        print(f"{model}: {dict(self.outcomes)}, grown by {max(grown.values()) >> 20} MiB")
        assert max(grown.values()) < GROWTH


@pytest.mark.parametrize("model", STEPS)
def test_a_step_in_process(fuzz, settings_of_steps, model):
    """Beside a good request, whose answer is what it always is."""
    step = {
        "audio_featurizer": FeaturizerStep,
        "prompt_builder": PromptBuilderStep,
        "audio_encoder": lambda given: AudioEncoderStep(given, FirstFeature()),
    }[model](settings_of_steps)
    good = good_requests(settings_of_steps.model.text.vocab_size, HIDDEN)[model]

    def ask(*requests):
        """All at once, as the worker hands them over."""
        found: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in requests]
        for inputs, answer in zip(requests, found, strict=True):
            tensors = {n: list(a.reshape(-1)) if a.dtype == object else a for n, a in inputs.items()}
            try:
                step.submit(tensors, answer.put)
            except Exception as error:  # as in the worker
                answer.put(error)
        answers = [answer.get(timeout=SECONDS) for answer in found]
        assert all(answer.empty() for answer in found)
        return answers

    (expected,) = ask(good)
    memory = Memory(count := MODELS[model] if LONG else SHORT, [os.getpid()])

    def run(inputs):
        answer, control = ask(inputs, good)
        assert {name: repr(value) for name, value in control.items()} == {n: repr(v) for n, v in expected.items()}
        if isinstance(answer, Exception):
            assert isinstance(answer, StepAudioError), repr(answer)
            check_text(str(answer))
        memory.count("refused" if isinstance(answer, Exception) else "answered")

    draw(fuzz.requests(model, good), count, run)
    memory.check(model)


class Held:
    """A request of the model `lease`."""

    def __init__(self):
        self.answers = []

    def is_gone(self):
        return False

    def end(self, answer):
        self.answers.append(answer)


def test_leases_in_process(fuzz):
    leases = Leases(lambda answer: None, unleased_seconds=60)
    memory = Memory(count := MODELS[LEASE] if LONG else SHORT, [os.getpid()])

    def run(inputs):
        found = Held()
        try:
            leases.handle(IDS[memory.done % len(IDS)], inputs, found)
        except Exception as error:
            assert isinstance(error, StepAudioError), repr(error)
            check_text(str(error))
            assert not found.answers
            memory.count("refused")
        else:
            memory.count("answered")
        leases.handle("lease:fuzz", {"open": scalar(False, np.bool_)}, closer := Held())
        assert len(found.answers) <= 1 and list(closer.answers[0]) == ["ended"]

    draw(fuzz.requests(LEASE, good_requests(VOCAB, HIDDEN)[LEASE]), count, run)
    leases.close()
    memory.check(LEASE)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    build = {"max_seq_len": 64, "max_num_tokens": 64}
    engine = write_engine(tmp_path_factory.mktemp("engine") / "tiny", build=build)
    backend = TrtllmBackend({"gpt_model_path": str(engine), "enable_chunked_context": "true"})
    yield backend
    backend.shutdown()


def test_the_llm_in_process(fuzz, backend):
    good = good_requests(VOCAB, HIDDEN)[LLM]

    def begin(inputs):
        sent: queue.SimpleQueue = queue.SimpleQueue()
        backend.submit("", inputs, {"output_ids", "sequence_length"}, lambda *response: sent.put(response), bool)
        return sent

    def end(sent):
        """The tokens, or the error."""
        tokens = []
        while True:
            tensors, error, final = sent.get(timeout=SECONDS)
            if tensors:
                tokens += tensors["output_ids"].reshape(-1).tolist()
            if final:
                assert sent.empty()
                return error or tokens

    expected = end(begin(good))
    memory = Memory(count := MODELS[LLM] if LONG else SHORT // 3, [os.getpid()])

    def run(inputs):
        fuzzed, control = begin(inputs), begin(good)
        assert end(control) == expected
        outcome = end(fuzzed)
        if isinstance(outcome, Exception):
            assert isinstance(outcome, StepAudioError), repr(outcome)
            check_text(str(outcome))
        memory.count("refused" if isinstance(outcome, Exception) else "answered")

    draw(fuzz.requests(LLM, good), count, run)
    memory.check(LLM)
    assert backend.engine.alive and backend.stats().kv_blocks_used == 0


def patience_with(model: str, inputs) -> float:
    """Seconds. To a batch of none Triton's Python backend says nothing, and its model never hears of it."""
    return 0.5 if any(not len(each) for each in inputs.values()) else PATIENCE.get(model, SECONDS)


def test_through_a_server(fuzz, service):
    """Every model that has inputs, the ensembles too; each try is followed by a request through the whole pipeline."""
    good = good_requests(700, 64)
    good |= ensembles(good)
    whole = {
        "messages": good["audio_featurizer"]["messages"],
        "audio": good["audio_featurizer"]["audio"],
        "request_output_len": scalar(4, np.int32),
        "temperature": scalar(0, np.float32),
        "streaming": scalar(True, np.bool_),
    }
    pids = [service.server.process.pid, *processes.session(service.server.process.pid)]
    each = 750 if LONG else 10
    memory = Memory(len(good) * each, sorted({*pids}))

    async def ask(stub, model, inputs, patience=SECONDS):
        """The tokens, the error, or None where there was none in time."""
        id_ = IDS[memory.done % len(IDS)] if model == LEASE else uuid4().hex
        request = wire.infer_request(model, id_, {n: a[:, None] if a.ndim == 1 else a for n, a in inputs.items()})
        try:
            responses = [response async for response in calls.stream(stub, request, patience)]
        except calls.StreamError as error:
            return str(error).replace(f"[request id: {id_}]", "")  # tritonserver quotes it, whatever it is
        except TimeoutError:  # as long an answer as it takes: hanging up ends it
            assert patience < SECONDS, [(name, value.dtype, value.shape) for name, value in inputs.items()]
            return None
        return [token for one in responses if "output_ids" in one.outputs for token in one.outputs["output_ids"].flat]

    async def with_stub(model, *requests):
        async with wire.channel(service.address) as channel:
            stub = wire.Stub(channel)
            first = await ask(stub, model, *requests, patience_with(model, *requests)) if requests else None
            return first, await ask(stub, ENSEMBLE, whole)

    _, expected = asyncio.run(with_stub(ENSEMBLE))
    assert len(expected) == 4

    def compared(model):
        def run(inputs):
            outcome, control = asyncio.run(with_stub(model, inputs))
            if isinstance(outcome, str):
                check_text(outcome)
            assert control == expected and service.server.fault() is None
            memory.count(f"{model} {'refused' if isinstance(outcome, str) else 'answered'}")

        return run

    for model, usual in good.items():
        draw(fuzz.requests(model, usual), each, compared(model))
        print(f"{model}: {memory.done} tries so far", flush=True)
    memory.check("the server")


def test_millions_of_strings_cost_nothing(service):
    """Of the one input that takes any number of them: read as Triton does it they hold everybody up for a minute."""
    count = 4_000_000
    request = wire.infer_request("audio_featurizer", uuid4().hex, {"messages": texts("[]")})
    request.message.inputs.add(name="audio", shape=[1, count], datatype="BYTES")
    request.contents.append([bytes(4 * count)])

    async def ask():
        async with wire.channel(service.address) as channel:
            stub = wire.Stub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ModelInfer(request)
            return refused.value.details()

    assert "audio: 4000000 elements, at most 4096 are accepted" in asyncio.run(ask())
