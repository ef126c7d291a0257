"""The `audio_encoder` step: log-mel features of many requests through one engine.

Clips of all requests at hand are sorted by length and run in batches of bounded size, so that a request
with 72 clips neither takes unbounded memory nor pads short clips to 25 s. The engine's result for a clip
does not depend on its batch (`step_audio.encoder`), so it is cached: who asks again about a recording names
its clips by content hash, and neither features nor embeddings travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from step_audio import mel
from step_audio.arrays import AnyArray, Float32Array, Int64Array
from step_audio.checkpoint import from_float32
from step_audio.errors import ArtefactError, InvalidRequest, NotCached
from step_audio.steps.clip_cache import ClipCache, ClipKey
from step_audio.steps.lanes import BatchLane
from step_audio.steps.runtime import Runtime
from step_audio.steps.tensors import Bfloat16, Reply, Tensors, required, row

MAX_BATCH = 32  # requests whose clips are sorted together


class EncoderEngine(Protocol):
    """What computes the encoder: ONNX Runtime on a CPU, TensorRT on a GPU."""

    max_clips: float  # in one run

    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        """float32 [clips, n_mels, T], int64 [clips] -> float32 [clips, tokens of T, llm_dim]."""


class OnnxEncoderEngine:
    """The exported encoder on ONNX Runtime's CPU provider."""

    max_clips = float("inf")

    def __init__(self, path: Path, threads: int = 0):
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

    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        embeddings: Float32Array = self.session.run(["embeddings"], {"mel": features, "frames": frames})[0]
        return embeddings


def load_engine(path: Path) -> EncoderEngine:
    """What `path` says by its suffix: .plan is TensorRT's, for GPU 0. Raises ArtefactError."""
    if path.suffix != ".plan":
        return OnnxEncoderEngine(path)
    from step_audio.steps.tensorrt_encoder import TensorRTEncoderEngine

    return TensorRTEncoderEngine(path)


class ClipEncoder:
    """Log-mel of clips to their rows of the prompt table; clips of similar length share a run."""

    def __init__(self, runtime: Runtime, engine: EncoderEngine | None = None):
        self.runtime = runtime
        self.n_mels = runtime.model.audio.n_mels
        self.engine = engine or load_engine(runtime.encoder_file)

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
        self._cache = ClipCache(runtime.encoder_cache_bytes)
        self._dtype = runtime.table_dtype
        self._lane = BatchLane(self.work, MAX_BATCH)

    def submit(self, inputs: Tensors, reply: Reply) -> None:
        frames = inputs["frames"]
        assert isinstance(frames, np.ndarray)  # Triton has checked its type
        if frames.size:
            self._lane.put(inputs, reply)
        else:  # without audio there is no table
            reply({})

    def work(self, batch: Sequence[Tensors]) -> list[Tensors]:
        """Per request its table [1, rows, hidden]. Raises NotCached for clips of which only the hash is known."""
        requests = [_clips(inputs) for inputs in batch]
        rows: dict[ClipKey, AnyArray] = {}
        new: dict[ClipKey, Float32Array] = {}
        for key, features in (clip for clips in requests for clip in clips):
            if (cached := self._cache.get(key)) is not None:
                rows[key] = cached
            elif features is not None:
                new[key] = features
            elif key not in new:
                raise NotCached
        for key, encoded in zip(new, self._encoder.encode(list(new.values())), strict=True):
            rows[key] = from_float32(encoded.copy(), self._dtype)
            self._cache.put(key, rows[key])
        return [self._table([rows[key] for key, _ in clips]) for clips in requests]

    def _table(self, rows: Sequence[AnyArray]) -> Tensors:
        table = np.concatenate(rows)[None]
        return {
            "prompt_embedding_table": Bfloat16(table) if self._dtype == "bfloat16" else table,
            "prompt_vocab_size": np.array([[table.shape[1]]], np.int32),
        }


def _clips(inputs: Tensors) -> list[tuple[ClipKey, Float32Array | None]]:
    """A request's clips: what they are known by, and their features if these were sent."""
    frames, hashes = required(inputs, "frames").tolist(), required(inputs, "content_hash").tolist()
    features = row(inputs, "mel")
    if len(hashes) != len(frames) or (features is not None and len(features) != len(frames)):
        raise InvalidRequest("frames, content_hash and mel differ in their number of clips")
    if features is not None and not 1 <= min(frames) <= max(frames) <= features.shape[2]:
        raise InvalidRequest(f"frames: a clip has 1 to {features.shape[2]} of them, as mel says")
    return [
        ((digest, length), None if features is None else features[i, :, :length])
        for i, (digest, length) in enumerate(zip(hashes, frames, strict=True))
    ]
