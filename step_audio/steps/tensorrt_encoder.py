"""The encoder and adaptor as a TensorRT plan, on a GPU that it shares with a rank of the LLM.

TensorRT-LLM takes a share of the memory that is free for its KV cache, so the encoder must not grow afterwards: all its
memory is taken when it is loaded. TensorRT's own is its weights; its activations get one block of ours, as do inputs
and output, each of the largest shape that the plan was built for. Embeddings are handed over in the host's memory:
TensorRT-LLM failed with prompt tables on a GPU when blocks are reused and TP is above 1 (TensorRT-LLM #2417).

The calls are those of TensorRT 10.14's Python API, after the docstrings of tensorrt_cu13_bindings 10.14.1.48.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

from step_audio.arrays import AnyArray, Float32Array, Int64Array
from step_audio.errors import ArtefactError

INPUTS = ("mel", "frames")
OUTPUT = "embeddings"


class TensorRTEncoderEngine:
    """An `EncoderEngine`; `max_clips` and `max_frames` bound one run. Not for several threads at once."""

    def __init__(self, path: Path, device: str = "cuda:0"):
        """Raises ArtefactError for a plan that cannot be used here, or has no room."""
        import tensorrt
        import torch

        self.torch = torch
        self.device = torch.device(device)
        self.name = path.name
        with torch.cuda.device(self.device):  # TensorRT loads onto the current one
            runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
            self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
            if self.engine is None:
                raise ArtefactError(
                    f"TensorRT cannot load {path.name}: no room on the GPU, or it was built by another release of "
                    "TensorRT or for another GPU; run `step-audio build` here"
                )
            self._check_tensors(tensorrt)
            largest = {name: tuple(self.engine.get_tensor_profile_shape(name, 0)[2]) for name in INPUTS}
            self.max_clips, self.n_mels, self.max_frames = largest["mel"]
            self.context = self.engine.create_execution_context(
                tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            if self.context is None:
                raise ArtefactError(f"TensorRT cannot run {path.name}: no room on the GPU")
            self._allocate(tensorrt, largest)
            self.stream = torch.cuda.Stream(self.device)  # on the default one, TensorRT waits for the whole device

    def _check_tensors(self, tensorrt: ModuleType) -> None:
        """Those of the ONNX model that the plan is made from, and no others."""
        modes = {
            name: self.engine.get_tensor_mode(name)
            for name in map(self.engine.get_tensor_name, range(self.engine.num_io_tensors))
        }
        wanted = dict.fromkeys(INPUTS, tensorrt.TensorIOMode.INPUT) | {OUTPUT: tensorrt.TensorIOMode.OUTPUT}
        if modes != wanted:
            raise ArtefactError(
                f"{self.name} has tensors {', '.join(sorted(modes))} instead of {', '.join(sorted(wanted))}; "
                "run `step-audio build` again"
            )

    def _allocate(self, tensorrt: ModuleType, largest: dict[str, tuple[int, ...]]) -> None:
        torch = self.torch
        types = {
            tensorrt.float32: torch.float32,
            tensorrt.float16: torch.float16,
            tensorrt.bfloat16: torch.bfloat16,
            tensorrt.int64: torch.int64,
            tensorrt.int32: torch.int32,
        }
        self.types = {name: types[self.engine.get_tensor_dtype(name)] for name in (*INPUTS, OUTPUT)}
        for name, shape in largest.items():
            self._set_shape(name, shape)
        rows = self.context.get_tensor_shape(OUTPUT)  # with the largest inputs
        sizes = {name: int(np.prod(shape)) for name, shape in (*largest.items(), (OUTPUT, tuple(rows)))}
        try:
            self.scratch = torch.empty(self.engine.device_memory_size_v2, dtype=torch.uint8, device=self.device)
            self.buffers = {
                name: torch.empty(size, dtype=self.types[name], device=self.device) for name, size in sizes.items()
            }
        except torch.cuda.OutOfMemoryError:
            raise ArtefactError(f"no room on {self.device} for what {self.name} computes with") from None
        self.context.set_device_memory(self.scratch.data_ptr(), self.scratch.numel())
        for name, buffer in self.buffers.items():
            self.context.set_tensor_address(name, buffer.data_ptr())

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self.context.set_input_shape(name, shape):
            raise ValueError(f"{self.name} was not built for {name} of shape {list(shape)}")

    def run(self, features: Float32Array, frames: Int64Array) -> Float32Array:
        """float32 [clips, n_mels, T], int64 [clips] -> float32 [clips, tokens of T, llm_dim], in host memory.

        Raises ValueError for more clips or frames than the plan was built for.
        """
        torch = self.torch
        arrays: tuple[AnyArray, ...] = (features, frames)  # as INPUTS
        # TensorRT adds its own work to the stream's, in order: copies in, computation, copy out.
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            for name, array in zip(INPUTS, arrays, strict=True):
                self._set_shape(name, array.shape)
                values = torch.from_numpy(np.ascontiguousarray(array)).to(self.types[name])
                self.buffers[name][: values.numel()].copy_(values.view(-1))
            if not self.context.execute_async_v3(self.stream.cuda_stream):
                raise RuntimeError(f"TensorRT could not run {self.name}; its message is in the server's log")
            shape = tuple(self.context.get_tensor_shape(OUTPUT))
            embeddings = self.buffers[OUTPUT][: int(np.prod(shape))].view(shape).to("cpu", copy=True)
            self.stream.synchronize()
        found: Float32Array = embeddings.float().numpy()
        return found
