"""LoRA adapters of random numbers, saved as PEFT does, and what they come to when they are merged."""

from __future__ import annotations

import json
from pathlib import Path

from lazy import Lazy

torch, save_file = Lazy("torch"), Lazy("safetensors.torch:save_file")

PROJECTIONS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
ALL = tuple(f"{part}.{name}" for part, names in PROJECTIONS.items() for name in names)


def save_adapter(
    folder: Path, state: dict[str, torch.Tensor], rank: int, seed: int, modules=ALL, strength: float = 0.3, **config
) -> Path:
    """For a decoder of that state. `config`: further keys of adapter_config.json."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in state.items():
        path, _, kind = name.removeprefix("model.").rpartition(".")
        if kind == "weight" and path.split(".", 2)[-1] in modules and path.startswith("layers."):
            outputs, inputs = weight.shape
            a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            b = torch.randn(outputs, rank, generator=generator) * strength
            tensors |= {f"base_model.model.model.{path}.lora_{side}.weight": x for side, x in (("A", a), ("B", b))}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": list(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


def merged(state: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """The matrices that the adapter changes, W + B A lora_alpha / r."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
    out = {}
    for name, a in tensors.items():
        if ".lora_A." in name:
            ours = name.removeprefix("base_model.model.").replace(".lora_A", "")
            out[ours] = state[ours] + scale * tensors[name.replace("lora_A", "lora_B")] @ a
    return out
