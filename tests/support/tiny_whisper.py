"""A CTranslate2 file with a Whisper encoder of a few weights, written as `ModelSpec._serialize` there writes it."""

from __future__ import annotations

import struct

import numpy as np

NUMBERS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def tiny_variables(n_mels: int = 8, width: int = 16, heads: int = 2, layers: int = 2, positions: int = 20) -> dict:
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (0.3 * random.standard_normal(shape)).astype(np.float16)

    out = {
        "encoder/num_heads": np.array(heads, np.int16),
        "encoder/position_encodings/encodings": draw(positions, width),
        "encoder/conv1/weight": draw(width, n_mels, 3),
        "encoder/conv2/weight": draw(width, width, 3),
    }
    out |= {f"encoder/conv{n}/bias": draw(width) for n in (1, 2)}
    names = ["encoder/layer_norm"]
    for n in range(layers):
        layer = f"encoder/layer_{n}"
        names += [f"{layer}/self_attention/layer_norm", f"{layer}/ffn/layer_norm"]
        shapes = {"self_attention/linear_0": (3 * width, width), "self_attention/linear_1": (width, width),
                  "ffn/linear_0": (4 * width, width), "ffn/linear_1": (width, 4 * width)}  # fmt: skip
        for name, shape in shapes.items():
            out |= {f"{layer}/{name}/weight": draw(*shape), f"{layer}/{name}/bias": draw(shape[0])}
        out[f"{layer}/self_attention/linear_0/bias"][width : 2 * width] = 0
    for name in names:
        out |= {f"{name}/gamma": 1 + draw(width), f"{name}/beta": draw(width)}
    return out


def ctranslate2_bytes(variables: dict, aliases: dict[str, str] | None = None) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        out += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", NUMBERS[value.dtype.name], value.nbytes) + value.tobytes()
    out += struct.pack("<I", len(aliases or {}))
    for alias, name in (aliases or {}).items():
        out += text(alias) + text(name)
    return out
