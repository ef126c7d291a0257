"""How likely it is that a frame is speech: Silero's network, out of its own wheel, run by ONNX Runtime.

The wheel's code is not imported: it would load torch.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio.extras import install_for

CONTEXT = 64  # samples of the frame before, which the network sees again


def missing() -> str | None:
    """What to install for it; None where all is there."""
    names = (name for name in ("onnxruntime", "silero_vad") if importlib.util.find_spec(name) is None)
    return next((install_for(name) for name in names), None)


class VoiceActivity:
    """Of one stream. Needs what `missing` names."""

    def __init__(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context: Float32Array = np.zeros(CONTEXT, np.float32)

    def probability(self, frame: Float32Array) -> float:
        """`frame`: float32 [512], 16 kHz, the next one of the stream."""
        inputs = {"input": np.concatenate([self._context, frame])[None], "state": self._state, "sr": _RATE}
        probability, self._state = _network().run(None, inputs)
        self._context = frame[-CONTEXT:]
        return float(probability[0, 0])


_RATE = np.array(SAMPLE_RATE, np.int64)


@cache
def _network() -> Any:
    """One for all streams: it has no state of its own. One thread: a frame takes 0.2 ms."""
    import onnxruntime

    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None and spec.origin is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = Path(spec.origin).with_name("data") / "silero_vad_16k_op15.onnx"
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
