"""A LoRA adapter as PEFT saves it, checked, and in the form that the LLM takes it in (`step_audio.lora`).

What would change the answers and is not served is refused, not left out: DoRA, biases, modules trained whole, and what
is adapted outside the decoder's linear layers, the audio encoder for one.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_audio.arrays import Float32Array
from step_audio.checkpoint import Checkpoint, from_float32, to_float32
from step_audio.config import DType, TextConfig
from step_audio.errors import ArtefactError, CheckpointError
from step_audio.lora import MODULES, Dimensions, Factors, LoraTensors, pack
from step_audio.safetensors import DTYPES, SafetensorsFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight, with or without an adapter's name before `weight`.
_TENSOR = re.compile(r"(?:.*\.)?layers\.(\d+)\.((?:self_attn|mlp)\.\w+)\.lora_([AB])(?:\.\w+)?\.weight")
_NAMES = {module.theirs: module.name for module in MODULES}
_SERVED = ", ".join(module.theirs.partition(".")[2] for module in MODULES)


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter whose files fit the model; of its tensors only the headers have been read."""

    folder: Path
    rank: int  # of its matrices
    scale: float  # of what it adds
    tensors: dict[tuple[int, str, str], str]  # (layer, module's name, "A" or "B") -> the tensor's name in the file

    @classmethod
    def open(cls, folder: str | Path, text: TextConfig) -> PeftAdapter:
        """Raises ArtefactError that says what does not fit."""
        folder = Path(folder)
        rank, scale = _rank_and_scale(folder)
        path = folder / WEIGHTS
        if not path.is_file():
            raise ArtefactError(f"{folder} has no {WEIGHTS}: save the adapter with PEFT's save_pretrained")
        try:
            infos = SafetensorsFile.open(path, "save it again").tensors
        except CheckpointError as error:
            raise ArtefactError(f"{folder.name}: {error}") from None
        sizes, layers = Dimensions.of(text).widths, text.num_hidden_layers
        tensors: dict[tuple[int, str, str], str] = {}
        for name, info in infos.items():
            match = _TENSOR.fullmatch(name)
            if match is None or (module := _NAMES.get(match[2])) is None:
                raise ArtefactError(f"{folder.name} adapts {name}: served are {_SERVED} of the decoder's layers")
            layer, side = int(match[1]), match[3]
            if layer >= layers:
                raise ArtefactError(f"{folder.name} adapts layer {layer} ({name}), and the model has {layers} layers")
            inputs, outputs = sizes[module]
            expected = (rank, inputs) if side == "A" else (outputs, rank)
            if info.shape != expected:
                raise ArtefactError(
                    f"{folder.name}: {name} is {list(info.shape)}, this model and r {rank} ask for {list(expected)}"
                )
            if info.dtype not in DTYPES:
                raise ArtefactError(f"{folder.name}: {name} is {info.dtype}, expected one of {', '.join(DTYPES)}")
            tensors[layer, module, side] = name
        for layer, module, side in tensors:
            other = "B" if side == "A" else "A"
            if (layer, module, other) not in tensors:
                raise ArtefactError(f"{folder.name}: there is no lora_{other} beside {tensors[layer, module, side]}")
        if not tensors:
            raise ArtefactError(f"{folder.name} adapts nothing")
        return cls(folder, rank, scale, tensors)

    def factors(self) -> Factors:
        """The scale is in B."""
        file = Checkpoint(self.folder)  # of one file

        def read(layer: int, module: str, side: str) -> Float32Array:
            return to_float32(file.read(self.tensors[layer, module, side]))

        adapted = sorted({(layer, module) for layer, module, _ in self.tensors})
        return {key: (read(*key, "A"), read(*key, "B") * self.scale) for key in adapted}

    def lora_tensors(self, dtype: DType) -> LoraTensors:
        """In the engine's type. Raises CheckpointError where a weight is beyond it."""
        weights, config = pack(self.factors())
        return LoraTensors(from_float32(weights, dtype), config)


def _rank_and_scale(folder: Path) -> tuple[int, float]:
    """Of `adapter_config.json`. Raises ArtefactError."""
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}: an adapter is a folder that PEFT has saved") from None
    except ValueError as error:
        raise ArtefactError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ArtefactError(f"{folder.name}: {CONFIG} is not of a LoRA adapter (peft_type)")
    unserved = {
        "use_dora": "DoRA is not served",
        "lora_bias": "biases are not served",
        "modules_to_save": "modules that were trained whole are not served: merge the adapter into the checkpoint",
        "rank_pattern": "modules of different ranks are not served: train it with one r",
        "alpha_pattern": "modules of different lora_alpha are not served: train it with one",
        "fan_in_fan_out": "it is for matrices [in, out], and Qwen2's are [out, in]",
    }
    for key, reason in unserved.items():
        if config.get(key):
            raise ArtefactError(f"{folder.name}: {CONFIG} says {key}: {reason}")
    if config.get("bias", "none") != "none":
        raise ArtefactError(f"{folder.name}: {CONFIG} says bias {config['bias']!r}: biases are not served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ArtefactError(f"{folder.name}: {CONFIG} has no r, a whole number above 0")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ArtefactError(f"{folder.name}: {CONFIG} has no lora_alpha, a number")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
