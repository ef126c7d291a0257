"""The `audio_encoder` step: log-mel features of many requests through one engine.

Clips are sorted by length and run in batches of bounded size, so that a request with 72 clips neither takes unbounded
memory nor pads short clips to 25 s. No more requests are taken at once than fill a batch, for they are answered
together. The engine's result for a clip does not depend on its batch (`step_audio.encoder`), so it is cached: who asks
again about a recording names its clips by content hash, and neither features nor embeddings travel.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from step_audio import mel
from step_audio.arrays import AnyArray, Float32Array, Int64Array, all_finite
from step_audio.checkpoint import from_float32
from step_audio.clips import content_hash
from step_audio.config import DType
from step_audio.errors import ArtefactError, InvalidRequest, NotCached
from step_audio.steps.clip_cache import ClipCache, ClipKey
from step_audio.steps.clip_limits import check_hashes, clip_tokens
from step_audio.steps.lanes import BatchLane, attempt
from step_audio.steps.memory import is_small
from step_audio.steps.runtime import Runtime
from step_audio.steps.tensors import Bfloat16, Reply, Tensors, required, row

LARGE = 1024  # of the encoder's width: a small one is as quick in float32

LARGEST: dict[DType, float] = {"float16": 65_504.0, "bfloat16": 3.38e38, "float32": 3.4e38}  # that stay finite

Clip = tuple[ClipKey, Float32Array | None]  # what it is known by, and its features if they were sent


class EncoderEngine(Protocol):
    """What computes the encoder: ONNX Runtime or OpenVINO on a CPU, TensorRT or, beside vLLM, torch on a GPU."""

    max_clips: float  # in one run

    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        """float32 [clips, n_mels, T], int64 [clips] -> float32 [clips, tokens of T, llm_dim]."""


@runtime_checkable
class KeepsMemory(Protocol):
    """An engine whose runs leave memory for the next ones, what a clip of 25 s takes at most: see `is_small`."""

    def give_back(self) -> None:
        """All of it. Not during a run."""


class OnnxEncoderEngine:
    """The exported encoder on ONNX Runtime's CPU provider."""

    max_clips = float("inf")

    def __init__(self, path: Path, threads: int = 0):
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else it writes to the home directory, and to Microsoft
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Spinning worker threads would take the cores away from the LLM between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtefactError(f"cannot load the encoder {path.name}: {error}") from None
        self.n_mels, self.width = self.session.get_inputs()[0].shape[1], self.session.get_outputs()[0].shape[-1]
        self.giving_back = onnxruntime.RunOptions()  # working memory: else the longest clips' is kept
        self.giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        if is_small(features):
            embeddings: Float32Array = self.session.run(["embeddings"], {"mel": features, "frames": frames})[0]
            return embeddings
        # Into memory of ours: of its own it gives back, at a run's end, only parts in which no result of any run lies.
        embeddings = np.empty((len(features), mel.token_count(features.shape[2]), self.width), np.float32)
        binding = self.session.io_binding()
        binding.bind_cpu_input("mel", features)
        binding.bind_cpu_input("frames", frames)
        binding.bind_output("embeddings", "cpu", 0, np.float32, embeddings.shape, embeddings.ctypes.data)
        self.session.run_with_iobinding(binding, self.giving_back)
        return embeddings

    def give_back(self) -> None:
        """It is done only at the end of a run: of next to nothing."""
        features = np.zeros((1, self.n_mels, mel.LEAST_FRAMES), np.float32)
        nothing = {"mel": features, "frames": np.array([mel.LEAST_FRAMES])}
        self.session.run(["embeddings"], nothing, self.giving_back)


def load_engine(path: Path, large: bool = False) -> EncoderEngine:
    """What `path` says by its suffix: .plan is TensorRT's, for GPU 0. `large`: in bfloat16, where the CPU has it.

    Raises ArtefactError.
    """
    if path.suffix == ".plan":
        from step_audio.steps.tensorrt_encoder import TensorRTEncoderEngine

        return TensorRTEncoderEngine(path)
    if large:
        from step_audio.steps.openvino_encoder import OpenVinoEncoderEngine, has_bfloat16

        if has_bfloat16():
            return OpenVinoEncoderEngine(path)
    return OnnxEncoderEngine(path)


def _engine_of(runtime: Runtime) -> EncoderEngine:
    audio = runtime.model.audio
    if runtime.encoder_gpu is not None:
        from step_audio.steps.torch_encoder import TorchEncoderEngine

        return TorchEncoderEngine(
            runtime.encoder_file, audio, runtime.length_rule, runtime.table_dtype, runtime.encoder_batch_clips,
            runtime.encoder_gpu,
        )  # fmt: skip
    large = audio.n_audio_state >= LARGE and runtime.table_dtype == "bfloat16"
    return load_engine(runtime.encoder_file, large)


class ClipEncoder:
    """Log-mel of clips to their rows of the prompt table; clips of similar length share a run."""

    def __init__(self, runtime: Runtime, engine: EncoderEngine | None = None):
        self.runtime = runtime
        self.n_mels = runtime.model.audio.n_mels
        self.engine = engine or _engine_of(runtime)

    def encode(self, clips: Sequence[Float32Array]) -> list[Float32Array]:
        """Per clip float32 [n_mels, frames] -> float32 [rows, llm_dim]."""
        order = sorted(range(len(clips)), key=lambda i: clips[i].shape[1], reverse=True)
        rows: dict[int, Float32Array] = {}
        size = int(min(self.runtime.encoder_batch_clips, self.engine.max_clips))
        for start in range(0, len(clips), size):
            group = order[start : start + size]
            features, frames = mel.pad_batch([clips[i] for i in group], self.n_mels)
            embeddings = self.engine.run(features, frames.astype(np.int64))
            for i, length, embedding in zip(group, frames, embeddings, strict=True):
                rows[i] = embedding[: mel.token_count(int(length), self.runtime.length_rule)]
        return [rows[i] for i in range(len(clips))]


class AudioEncoderStep:
    """The step in its worker."""

    def __init__(self, runtime: Runtime, engine: EncoderEngine | None = None):
        self._encoder = ClipEncoder(runtime, engine)
        self._runtime = runtime
        self._cache = ClipCache(runtime.encoder_cache_bytes)
        self._dtype = runtime.table_dtype
        engine = self._encoder.engine
        rest = (engine.give_back,) if isinstance(engine, KeepsMemory) else ()
        self._lane = BatchLane(self.work, runtime.encoder_batch_clips, *rest)

    def submit(self, inputs: Tensors, reply: Reply) -> None:
        sent = required(inputs, "frames"), required(inputs, "content_hash"), row(inputs, "mel")
        if any(tensor is not None and len(tensor) for tensor in sent):
            self._lane.put(inputs, reply)
        else:  # without audio there is no table
            reply({})

    def work(self, batch: Sequence[Tensors]) -> list[Tensors | Exception]:
        """Per request its table [1, rows, hidden], none for no rows, or what is wrong with it. The engine's own faults,
        which may be anybody's, are raised."""
        requests = [attempt(_clips, inputs, self._runtime) for inputs in batch]
        rows: dict[ClipKey, AnyArray] = {}
        new: dict[ClipKey, Float32Array] = {}
        for key, features in (clip for clips in requests if not isinstance(clips, Exception) for clip in clips):
            if (cached := self._cache.get(key)) is not None:
                rows[key] = cached
            elif features is not None:
                new.setdefault(key, features)
        for key, encoded in zip(new, self._encoder.encode(list(new.values())), strict=True):
            if (np.abs(encoded) <= LARGEST[self._dtype]).all():  # NaN is not
                rows[key] = from_float32(encoded.copy(), self._dtype)
                self._cache.put(key, rows[key])
        return [clips if isinstance(clips, Exception) else attempt(self._table, clips, rows) for clips in requests]

    def _table(self, clips: Sequence[Clip], rows: Mapping[ClipKey, AnyArray]) -> Tensors:
        for key, features in clips:
            if key not in rows and features is None:
                raise NotCached
            if key not in rows:
                raise InvalidRequest(f"mel: the encoder's embeddings of it are beyond {self._dtype}", "mel")
        if not clips:
            return {}
        table = np.concatenate([rows[key] for key, _ in clips])[None]
        return {
            "prompt_embedding_table": Bfloat16(table) if self._dtype == "bfloat16" else table,
            "prompt_vocab_size": np.array([[table.shape[1]]], np.int32),
        }


def _clips(inputs: Tensors, runtime: Runtime) -> list[Clip]:
    """Those of a request's clips that have rows: rule "L-2" leaves the shortest without. Raises InvalidRequest."""
    frames, hashes, features = required(inputs, "frames"), required(inputs, "content_hash"), row(inputs, "mel")
    index = row(inputs, "mel_index")
    if index is None:
        index = np.arange(len(frames))
    if len(hashes) != len(frames) or (features is not None and len(features) != len(index)):
        raise InvalidRequest("frames, content_hash and mel differ in their number of clips", "frames")
    rows = {} if features is None else dict(zip(index.tolist(), features, strict=True))
    if not rows.keys() <= {*range(len(frames))} or len(rows) < (0 if features is None else len(features)):
        raise InvalidRequest("mel_index: each of mel's clips is another one of the request's", "mel_index")
    tokens = clip_tokens(frames, runtime)
    check_hashes(hashes)
    if features is not None and (longest := max((frames[i] for i in rows), default=0)) > features.shape[2]:
        raise InvalidRequest(f"frames: a clip has {longest}, but mel {features.shape[2]}", "frames")
    clips: list[Clip] = []
    for i, (digest, length) in enumerate(zip(hashes.tolist(), frames.tolist(), strict=True)):
        mine = rows[i][:, :length] if i in rows else None
        if mine is not None and not all_finite(mine):
            raise InvalidRequest("mel holds NaN or infinity", "mel")
        if tokens[i]:  # by what it is, not by what it is said to be: nobody puts another's clip under this hash
            clips.append(((digest if mine is None else content_hash(mine), length), mine))
    return clips
