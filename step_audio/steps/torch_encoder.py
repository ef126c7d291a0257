"""The encoder and adaptor in torch on a GPU, beside vLLM, where there is no TensorRT.

It reads the checkpoint itself. vLLM has its share of the GPU's memory by then, so the largest run is made once while
the encoder loads: what it takes stays taken, and where there is no room that is said then and not in a request.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from step_audio.arrays import Float32Array, Int64Array
from step_audio.checkpoint import Checkpoint
from step_audio.config import AudioEncoderConfig, DType
from step_audio.errors import ArtefactError
from step_audio.mel import LengthRule


class TorchEncoderEngine:
    """An `EncoderEngine`; `max_clips` bounds one run. Not for several threads at once.

    `gpu`: as CUDA_VISIBLE_DEVICES names it, for a process that is to see no other; None: on the CPU. `dtype`: of
    weights and activations.
    """

    def __init__(
        self,
        checkpoint: Path,
        config: AudioEncoderConfig,
        length_rule: LengthRule,
        dtype: DType,
        max_clips: int,
        gpu: str | None,
    ):
        """Raises ArtefactError where there is no such GPU, no torch for it, or no room."""
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when torch looks for GPUs for the first time
        import torch

        from step_audio.encoder import load_encoder

        if gpu is not None and not torch.cuda.is_available():
            raise ArtefactError(f"the audio encoder is to run on GPU {gpu}, and torch {torch.__version__} finds none")
        self.torch = torch
        self.max_clips: float = max_clips
        self.device = torch.device("cpu" if gpu is None else "cuda:0")
        self.dtype: torch.dtype = getattr(torch, dtype)
        try:
            model = load_encoder(Checkpoint(checkpoint), config, length_rule)
            self.model = model.to(device=self.device, dtype=self.dtype)
            if gpu is not None:
                frames = 2 * config.n_audio_ctx
                largest = np.zeros((max_clips, config.n_mels, frames), np.float32)
                self.run(largest, np.full(max_clips, frames, np.int64))
        except torch.cuda.OutOfMemoryError:
            raise ArtefactError(
                f"no room for the audio encoder on GPU {gpu}: lower --gpu-memory-utilization or --encoder-batch-clips"
            ) from None

    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        """float32 [clips, n_mels, T], int64 [clips] -> float32 [clips, tokens of T, llm_dim], in host memory."""
        torch = self.torch
        with torch.inference_mode():
            mel = torch.from_numpy(np.ascontiguousarray(features)).to(self.device, self.dtype)
            rows = self.model(mel, torch.from_numpy(frames).to(self.device))
            found: Float32Array = rows.float().cpu().numpy()
        return found
