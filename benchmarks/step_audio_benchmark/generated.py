"""A checkpoint of any size that is nowhere: its weights are made while they are read, the same each time."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np

from step_audio.arrays import AnyArray
from step_audio.checkpoint import Checkpoint, expected_tensors, from_float32
from step_audio.config import ModelConfig
from step_audio.safetensors import SAFETENSORS_NAME, SafetensorsFile, TensorInfo, byte_size
from step_audio_build.convert.write_checkpoint import write_config

POOL = (1 << 24) + 1  # numbers, of which each row is a stretch: 16 M, so that rows differ


class GeneratedCheckpoint(Checkpoint):
    """Of `config`, whose config.json is written to `directory`; activations stay near 1 from layer to layer."""

    def __init__(self, directory: Path, config: ModelConfig):
        directory.mkdir(parents=True, exist_ok=True)
        write_config(directory, config, nested=True)
        self.directory, self._dtype = directory, config.text.dtype
        path, dtype = directory / "generated", SAFETENSORS_NAME[config.text.dtype]
        shapes = expected_tensors(config)
        self.tensors = {
            name: TensorInfo(path, dtype, shape, 0, byte_size(config.text.dtype, shape))
            for name, shape in shapes.items()
        }
        recipe = hashlib.sha256(repr((POOL, shapes, dtype)).encode()).hexdigest()
        self.files = {path.name: SafetensorsFile(path, 0, 0, recipe, self.tensors)}
        self._pool = np.random.default_rng(0).standard_normal(POOL, np.float32)

    def read_rows(self, name: str, start: int, stop: int) -> AnyArray:
        """As of a file."""
        shape = self.tensors[name].shape
        width = int(np.prod(shape[1:]))
        begins = (zlib.crc32(name.encode()) + np.arange(start, stop) * 7_919) % (POOL - width)
        rows = np.lib.stride_tricks.sliding_window_view(self._pool, width)[begins]
        if name.endswith("bias"):
            rows = rows * np.float32(0.1)
        elif len(shape) == 1:  # a norm's weight
            rows = 1 + rows * np.float32(0.1)
        elif "embed" not in name:
            rows = rows * np.float32(width**-0.5)
        return from_float32(np.ascontiguousarray(rows, np.float32), self._dtype).reshape(stop - start, *shape[1:])
