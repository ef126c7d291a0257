"""The `audio_encoder` step: log-mel features of many requests through one engine.

Clips of all requests at hand are sorted by length and run in batches of bounded size, so that a request
with 72 clips neither takes unbounded memory nor pads short clips to 25 s. The engine's result for a clip
does not depend on its batch (`step_audio.encoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from step_audio import mel
from step_audio.arrays import Float32Array, Int32Array, Int64Array
from step_audio.checkpoint import from_float32
from step_audio.errors import ArtefactError
from step_audio.steps.lanes import BatchLane
from step_audio.steps.runtime import Runtime
from step_audio.steps.tensors import Bfloat16, Reply, Tensor, Tensors, required

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
    """Log-mel of the clips of many requests to one prompt table each; clips of similar length share a run."""

    def __init__(self, runtime: Runtime, engine: EncoderEngine | None = None):
        self.runtime = runtime
        self.n_mels = runtime.model.audio.n_mels
        self.engine = engine or load_engine(runtime.encoder_file)

    def encode(self, requests: Sequence[tuple[Float32Array, Int32Array]]) -> list[Float32Array]:
        """Per request (mel float32 [clips, n_mels, T], frames int [clips]) -> its table, float32 [rows, llm_dim]."""
        clips = [(int(length), r, c) for r, (_, frames) in enumerate(requests) for c, length in enumerate(frames)]
        clips.sort(reverse=True)
        rows: dict[tuple[int, int], Float32Array] = {}
        size = int(min(self.runtime.encoder_batch_clips, self.engine.max_clips))
        for start in range(0, len(clips), size):
            group = clips[start : start + size]
            features, frames = mel.pad_batch([requests[r][0][c, :, :length] for length, r, c in group], self.n_mels)
            embeddings = self.engine.run(features, frames.astype(np.int64))
            for (length, r, c), embedding in zip(group, embeddings, strict=True):
                rows[r, c] = embedding[: mel.token_count(length, self.runtime.length_rule)]
        return [np.concatenate([rows[r, c] for c in range(len(frames))]) for r, (_, frames) in enumerate(requests)]


class AudioEncoderStep:
    """The step in its worker."""

    def __init__(self, runtime: Runtime):
        self._encoder = ClipEncoder(runtime)
        self._dtype = runtime.table_dtype
        self._lane = BatchLane(self._work, MAX_BATCH)

    def submit(self, inputs: Tensors, reply: Reply) -> None:
        if "mel" in inputs:
            self._lane.put(inputs, reply)
        else:  # without audio there is no table
            reply({})

    def _work(self, batch: Sequence[Tensors]) -> list[Tensors]:
        tables = self._encoder.encode([(required(inputs, "mel"), required(inputs, "frames")) for inputs in batch])
        return [{"prompt_embedding_table": self._stored(table[None])} for table in tables]

    def _stored(self, table: Float32Array) -> Tensor:
        stored = from_float32(table, self._dtype)
        return Bfloat16(stored) if self._dtype == "bfloat16" else stored
