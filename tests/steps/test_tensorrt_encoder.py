"""The encoder on TensorRT up to the GPU: what is asked of TensorRT, in which order, with which shapes and addresses.

`tensorrt` is a stand-in that computes on the addresses it is given; torch is the real one, on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from lazy import Lazy
from model_fixture import runtime
from step_audio.errors import ArtefactError
from step_audio.mel import token_count
from step_audio.steps import openvino_encoder
from step_audio.steps.encoder_engine import ClipEncoder, OnnxEncoderEngine, load_engine
from step_audio.steps.openvino_encoder import OpenVinoEncoderEngine
from step_audio.steps.tensorrt_encoder import TensorRTEncoderEngine

torch = Lazy("torch")

N_MELS, DIM, CLIPS, FRAMES = 128, 6, 3, 40
SCRATCH = 1000
TYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32}


def expected(features: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """What the stand-in computes: mean over mels of every 4th frame, times the clip's length."""
    mean = features.mean(axis=1)[:, ::4] * frames[:, None]
    return np.repeat(mean[:, :, None], DIM, axis=2).astype(np.float32)


class Engine:
    """As TensorRT 10.14's ICudaEngine, of one optimisation profile."""

    def __init__(self, output_type: str = "float32", frames_type: str = "int64", names=("mel", "frames", "embeddings")):
        self.names = names
        self.types = dict(zip(names, ("float32", frames_type, output_type), strict=True))
        self.num_io_tensors = len(names)
        self.device_memory_size_v2 = SCRATCH
        self.context: Context | None = Context(self)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return "OUTPUT" if name == self.names[2] else "INPUT"

    def get_tensor_dtype(self, name):
        return self.types[name]

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        return {
            "mel": [(1, N_MELS, 3), (CLIPS, N_MELS, 25), (CLIPS, N_MELS, FRAMES)],
            "frames": [(1,), (CLIPS,), (CLIPS,)],
        }[name]

    def create_execution_context(self, strategy):
        assert strategy == "USER_MANAGED"
        return self.context


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.scratch, self.runs = engine, {}, {}, None, 0

    def set_input_shape(self, name, shape):
        least, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        fits = all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True))
        if fits:
            self.shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name):
        assert name == "embeddings"
        clips, _, frames = self.shapes["mel"]
        return (clips, len(range(0, frames, 4)), DIM)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def set_device_memory(self, address, size):
        self.scratch = (address, size)

    def execute_async_v3(self, stream):
        assert stream == 77 and self.scratch[1] == SCRATCH
        self.runs += 1
        if self.runs == getattr(self.engine, "fails_at", 0):
            return False
        features, frames = (self._array(name, self.shapes[name]) for name in ("mel", "frames"))
        assert self.shapes["mel"][0] == self.shapes["frames"][0]
        output = self._array("embeddings", self.get_tensor_shape("embeddings"))
        result = expected(features.astype(np.float32), frames)
        if self.engine.types["embeddings"] == "bfloat16":
            result = (result.view(np.uint32) >> 16).astype(np.uint16)
        output[...] = result
        return True

    def _array(self, name, shape):
        kind = np.dtype(TYPES.get(self.engine.types[name], np.uint16))
        size = int(np.prod(shape)) * kind.itemsize
        buffer = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(buffer, kind).reshape(shape)


class Stream:
    cuda_stream = 77
    synchronized = 0

    def __init__(self, device):
        pass

    def synchronize(self):
        Stream.synchronized += 1


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Give it an engine, and it gives the plan's path, for a `TensorRTEncoderEngine(path, "cpu")`."""
    module = ModuleType("tensorrt")
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module.TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    for name in ("float32", "float16", "bfloat16", "int64", "int32"):
        setattr(module, name, name)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    path = tmp_path / "encoder.plan"
    path.write_bytes(b"a plan")

    def give(engine: Engine | None) -> Path:
        class Runtime:
            def __init__(self, logger):
                pass

            def deserialize_cuda_engine(self, data):
                assert data == b"a plan"
                return engine

        module.Runtime = Runtime
        return path

    return give


def clips(count: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal((count, N_MELS, frames)).astype(np.float32), np.arange(count, dtype=np.int64) + 1


@pytest.mark.parametrize(("output", "frames_type"), [("float32", "int64"), ("float16", "int64"), ("bfloat16", "int32")])
def test_embeddings_of_any_shape_within_the_plan(plan, output, frames_type):
    engine = TensorRTEncoderEngine(plan(Engine(output, frames_type)), "cpu")
    assert (engine.max_clips, engine.n_mels, engine.max_frames) == (CLIPS, N_MELS, FRAMES)
    for count, frames in ((3, 40), (1, 3), (2, 17), (3, 40)):
        features, lengths = clips(count, frames)
        embeddings = engine.run(features, lengths)
        assert embeddings.dtype == np.float32
        rounding = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 2e-2}[output]
        np.testing.assert_allclose(embeddings, expected(features, lengths), rtol=rounding, atol=rounding)


def test_a_result_is_not_overwritten_by_the_next(plan):
    engine = TensorRTEncoderEngine(plan(Engine()), "cpu")
    features, lengths = clips(2, 12)
    first = engine.run(features, lengths)
    kept = first.copy()
    engine.run(features + 1, lengths)
    np.testing.assert_array_equal(first, kept)


def test_memory_is_taken_once(plan, monkeypatch):
    engine = TensorRTEncoderEngine(plan(Engine()), "cpu")
    context = engine.context
    addresses = dict(context.addresses)
    assert context.scratch == (engine.scratch.data_ptr(), SCRATCH)
    assert {name: buffer.numel() for name, buffer in engine.buffers.items()} == {
        "mel": CLIPS * N_MELS * FRAMES, "frames": CLIPS, "embeddings": CLIPS * 10 * DIM,
    }  # fmt: skip
    monkeypatch.setattr("torch.empty", None)  # any use would raise
    before = Stream.synchronized
    for _ in range(3):
        engine.run(*clips(3, 40))
    assert context.addresses == addresses and Stream.synchronized == before + 3


@pytest.mark.parametrize(("count", "frames"), [(4, 40), (1, 41), (1, 2)])
def test_more_than_the_plan_was_built_for(plan, count, frames):
    engine = TensorRTEncoderEngine(plan(Engine()), "cpu")
    with pytest.raises(ValueError, match=rf"encoder\.plan was not built for mel of shape \[{count}, 128, {frames}\]"):
        engine.run(*clips(count, frames))


def test_plans_that_cannot_be_used(plan):
    with pytest.raises(ArtefactError, match=r"cannot load encoder\.plan: .*another release of TensorRT.*step-audio b"):
        TensorRTEncoderEngine(plan(None), "cpu")
    other = Engine(names=("audio", "frames", "embeddings"))
    with pytest.raises(ArtefactError, match="tensors audio, embeddings, frames instead of embeddings, frames, mel"):
        TensorRTEncoderEngine(plan(other), "cpu")
    no_context = Engine()
    no_context.context = None
    with pytest.raises(ArtefactError, match=r"cannot run encoder\.plan: no room on the GPU"):
        TensorRTEncoderEngine(plan(no_context), "cpu")


def test_no_room_for_the_buffers(plan, monkeypatch):
    def empty(*_, **__):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr("torch.empty", empty)
    with pytest.raises(ArtefactError, match=r"no room on cpu for what encoder\.plan computes with"):
        TensorRTEncoderEngine(plan(Engine()), "cpu")


def test_a_run_that_fails(plan):
    failing = Engine()
    failing.fails_at = 1
    engine = TensorRTEncoderEngine(plan(failing), "cpu")
    with pytest.raises(RuntimeError, match=r"TensorRT could not run encoder\.plan"):
        engine.run(*clips(1, 8))
    assert engine.run(*clips(1, 8)).shape == (1, 2, DIM)  # the next one is not touched


def test_the_engine_is_chosen_by_suffix(plan, monkeypatch):
    path = plan(Engine())
    made = []
    monkeypatch.setattr(OnnxEncoderEngine, "__init__", lambda self, path: made.append(path))
    monkeypatch.setattr(TensorRTEncoderEngine, "__init__", lambda self, path: made.append(path))
    assert isinstance(load_engine(path), TensorRTEncoderEngine)
    assert isinstance(load_engine(path.with_suffix(".onnx")), OnnxEncoderEngine)
    assert made == [path, path.with_suffix(".onnx")]


@pytest.mark.parametrize("bfloat16", [True, False])
def test_large_encoders_compute_in_bfloat16_where_the_cpu_does(tmp_path, monkeypatch, bfloat16):
    monkeypatch.setattr(openvino_encoder, "has_bfloat16", lambda: bfloat16)
    for engine in (OnnxEncoderEngine, OpenVinoEncoderEngine):
        monkeypatch.setattr(engine, "__init__", lambda self, path: None)
    assert type(load_engine(tmp_path / "e.onnx", large=True)) is (
        OpenVinoEncoderEngine if bfloat16 else OnnxEncoderEngine
    )
    assert type(load_engine(tmp_path / "e.onnx")) is OnnxEncoderEngine


@pytest.mark.parametrize(("allowed", "batches"), [(8, [3, 3, 1]), (2, [2, 2, 2, 1])])
def test_batches_are_those_of_plan_and_settings(plan, allowed, batches):
    """The smaller of the two; what a request gets does not depend on it."""
    engine = TensorRTEncoderEngine(plan(Engine()), "cpu")
    seen = []

    class Counting:
        max_clips = engine.max_clips

        def run(self, features, frames):
            seen.append(len(features))
            rows = [np.full((token_count(int(n), "L-2"), DIM), n, np.float32) for n in frames]
            longest = max(map(len, rows))
            return np.stack([np.pad(row, ((0, longest - len(row)), (0, 0))) for row in rows])

    encoder = ClipEncoder(runtime().model_copy(update={"encoder_batch_clips": allowed}), Counting())
    lengths = [40, 16, 24, 8, 32, 40, 12]
    clips = encoder.encode([np.zeros((N_MELS, length), np.float32) for length in lengths])
    assert seen == batches
    for rows, length in zip(clips, lengths, strict=True):
        assert rows[:, 0].tolist() == [length] * token_count(length, "L-2")
