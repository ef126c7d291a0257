"""The stub's side of a step, with stand-ins of Triton and of the worker: what cannot be read or sent fails alone."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np

from lazy import Lazy
from step_audio.errors import Code, InvalidRequest, Overloaded, StepAudioError
from step_audio.steps.stub import LARGE, StepStub, strings
from step_audio.steps.tensors import INTERNAL_ERROR, Bfloat16

torch = Lazy("torch")
to_dlpack = Lazy("torch.utils.dlpack:to_dlpack")


class Sender:
    def __init__(self, gone=False):
        self.sent, self.gone = [], gone

    def send(self, response, flags):
        if self.gone:
            raise RuntimeError("the client is gone")
        self.sent.append((response, flags))


class Input:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        if self._array is None:
            raise RuntimeError("/dev/shm/region_of_ours")
        return self._array

    def to_dlpack(self):
        return to_dlpack(torch.from_numpy(self._array))


class Outputs(list):
    def output_tensors(self):
        return [Output(name, array) for name, array in self]


given_back: list[str] = []


class Output:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def to_dlpack(self):
        if self._array.dtype == object:
            raise RuntimeError("DLPack does not have support for string tensors")
        given_back.append(self._name)
        return to_dlpack(torch.from_numpy(self._array))


class Refusal(tuple):
    def output_tensors(self):
        return []


class Tensor:
    def __new__(cls, name, array):
        return name, array

    @staticmethod
    def from_dlpack(name, capsule):
        raise RuntimeError("DLPack of nothing in triton_python_backend_shm_region_7")


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE = range(3)

    def __new__(cls, text, code):
        text.encode()  # as the C++ side does
        return text, code


FAULT = (Code.INTERNAL.put_before(INTERNAL_ERROR), TritonError.INTERNAL)


PB = SimpleNamespace(
    InferenceResponse=lambda outputs=(), error=None: Refusal(error) if error else Outputs(outputs),
    TritonError=TritonError,
    Tensor=Tensor,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
)


class Worker:
    """Answers at once with what `answers` has for the request's number."""

    def __init__(self, answers):
        self.answers = answers

    def submit(self, inputs, answer):
        found = self.answers[int(inputs["n"][0])]
        answer(found)


def sent(answers, arrays, gone=(), tracer=None, sender_of=None):
    stub = StepStub.__new__(StepStub)
    stub._large = ThreadPoolExecutor(1)
    stub._pb_utils, stub._worker, stub._name, stub._tracer = PB, Worker(answers), "a_step", tracer
    senders = [Sender(n in gone) if sender_of is None else sender_of(n) for n in range(len(arrays))]
    requests = [
        SimpleNamespace(
            get_response_sender=lambda s=sender: s,
            inputs=lambda a=array: [Input("n", a)],
            parameters=lambda n=n: json.dumps({"traceparent": f"context {n}"}),
        )
        for n, (sender, array) in enumerate(zip(senders, arrays, strict=True))
    ]
    assert stub.execute(requests) == [None] * len(requests)
    stub._large.shutdown()
    return [sender.sent for sender in senders]


def test_inputs_that_cannot_be_read_are_their_request_s_fault():
    good = {"out": np.ones(1)}
    first, bad, last = sent([good, good, good], [np.array([0]), None, np.array([2])])
    assert first == last == [([("out", good["out"])], 1)] and bad == [(FAULT, 1)]


def test_outputs_that_cannot_be_sent_are_their_request_s_fault():
    answers = [
        {"table": Bfloat16(np.zeros((1, 0, 4), np.uint16))},
        InvalidRequest("no \ud800", "messages"),
        {"out": np.ones(1)},
        {},
    ]
    table, text, good, gone = sent(answers, [np.array([n]) for n in range(4)], gone={3})
    assert table == [(FAULT, 1)] and len(good) == 1 and gone == []
    assert text == [(("[INVALID_REQUEST messages] no", TritonError.INVALID_ARG), 1)]


def test_outputs_are_given_back_and_strings_left_alone(caplog):
    texts, numbers = np.array([b"json"], object), np.ones(1)
    given_back.clear()
    (answer,) = sent([{"kind": texts, "out": numbers}], [np.array([0])])
    assert answer == [([("kind", texts), ("out", numbers)], 1)]
    assert given_back == ["out"] and not caplog.text


def test_a_large_answer_holds_no_other_up():
    done = threading.Event()

    class Slow(Sender):
        def send(self, response, flags):
            assert done.wait(60), "what was to come meanwhile has not come"
            super().send(response, flags)

    class Quick(Sender):
        def send(self, response, flags):
            super().send(response, flags)
            done.set()

    answers = [{"mel": np.zeros(LARGE // 4, np.float32)}, {"out": np.ones(1)}]
    large, small = sent(answers, [np.array([0]), np.array([1])], sender_of=lambda n: Quick() if n else Slow())
    assert len(large) == len(small) == 1


def test_errors_carry_their_code_and_faults_say_nothing(caplog):
    errors = [Overloaded("7 wait"), StepAudioError("/srv/engine is not there"), KeyError("/srv/x.py")]
    busy, ours, python = sent(errors, [np.array([n]) for n in range(3)])
    assert busy == [(("[QUEUE_FULL] 7 wait", TritonError.UNAVAILABLE), 1)] and ours == python == [(FAULT, 1)]
    assert "/srv/engine is not there" in caplog.text and "/srv/x.py" in caplog.text


def test_each_request_has_a_span_with_the_type_of_its_error():
    spans = []

    class Tracer:
        def done(self, name, within, start, end, error=None):
            assert name == "a_step" and 0 < start <= end
            spans.append((within, type(error)))

    answers = [{"out": np.ones(1)}, InvalidRequest("what was asked")]
    sent(answers, [np.array([0]), np.array([1]), None], tracer=Tracer())
    assert [span[0] for span in spans] == ["context 0", "context 1", "context 2"]
    assert [span[1] for span in spans[:2]] == [type(None), InvalidRequest] and issubclass(spans[2][1], Exception)


def test_no_more_strings_than_are_read():
    """Triton's backend asks the outcome for nothing but `reshape`, then gives it to us."""
    encoded = b"".join(len(word).to_bytes(4, "little") + word for word in (b"a", b"", b"RIFF\x00" * 300))
    found = strings(np.frombuffer(encoded, np.uint8)).reshape((1, 3))
    assert found.tolist() == [[b"a", b"", b"RIFF\x00" * 300]]
    long = b"RIFF" * (LARGE // 4)
    (one,) = strings(np.frombuffer(len(long).to_bytes(4, "little") + long, np.uint8)).reshape(-1)
    assert one == long
    assert strings(np.zeros(0, np.uint8)).reshape((1, 0)).shape == (1, 0)
    many = strings(np.zeros(4 * 10_000_000, np.uint8)).reshape([1, 10_000_000])
    good = {"out": np.ones(1)}
    refused, answered = sent([good], [many, np.array([0])])
    said = "[INVALID_REQUEST n] n: 10000000 elements, at most 4096 are accepted"
    assert refused == [((said, TritonError.INVALID_ARG), 1)] and answered == [([("out", good["out"])], 1)]
