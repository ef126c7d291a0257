"""PEFT's adapters: read as they are saved, packed as TensorRT-LLM takes them, or refused with what to change."""

import json

import numpy as np
import pytest

from lazy import Lazy
from lora_fixture import ALL, save_adapter
from model_fixture import model
from step_audio.checkpoint import decoder_tensors, to_float32
from step_audio.errors import ArtefactError
from step_audio_build.convert.peft_adapter import PeftAdapter

torch, load_file = Lazy("torch"), Lazy("safetensors.torch:load_file")
save_file = Lazy("safetensors.torch:save_file")

TEXT = model().text
RANK = 4


@pytest.fixture
def folder(tmp_path):
    state = {name: torch.zeros(shape) for name, shape in decoder_tensors(TEXT).items()}
    return save_adapter(tmp_path / "terse", state, RANK, seed=0)


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def name(module, side):
    return f"base_model.model.model.layers.0.{module}.lora_{side}.weight"


def test_packed_as_tensorrt_llm_reads_it(folder):
    """Row by row by hand: A [r, in], then B [out, r] times lora_alpha / r; the modules' numbers are NVIDIA's."""
    lora = PeftAdapter.open(folder, TEXT).lora_tensors("float32")
    saved = weights(folder)
    numbers = dict(zip(ALL, (1, 2, 3, 4, 5, 7, 6), strict=True))  # q k v o gate up down
    assert lora.config.dtype == np.int32 and sorted(lora.config.tolist()) == [[n, 0, RANK] for n in range(1, 8)]
    assert lora.weights.shape == (7, RANK * (64 + 128))  # of the widest, q
    rows = {number: row for (number, *_), row in zip(lora.config.tolist(), lora.weights, strict=True)}
    for module, number in numbers.items():
        a, b = (saved[name(module, side)].numpy().ravel() for side in "AB")
        assert np.array_equal(rows[number][: a.size], a)
        assert np.array_equal(rows[number][a.size : a.size + b.size], 2 * b)
        assert not rows[number][a.size + b.size :].any()


def test_in_the_engine_s_type(folder):
    exact, rounded = (PeftAdapter.open(folder, TEXT).lora_tensors(dtype).weights for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == np.uint16 and np.allclose(to_float32(rounded), exact, rtol=2**-8)


def test_names_and_scales_that_peft_writes(folder):
    saved = {key.replace(".weight", ".default.weight"): value for key, value in weights(folder).items()}
    save_file(saved, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    adapter = PeftAdapter.open(folder, TEXT)
    assert adapter.scale == 8 / RANK**0.5 and len(adapter.tensors) == 14


def changed(folder, **config):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "not of a LoRA adapter"),
        ({"use_dora": True}, "DoRA is not served"),
        ({"bias": "all"}, "biases are not served"),
        ({"modules_to_save": ["lm_head"]}, "merge the adapter into the checkpoint"),
        ({"rank_pattern": {"q_proj": 2}}, "train it with one r"),
        ({"alpha_pattern": {"q_proj": 2}}, "train it with one"),
        ({"r": 0}, "no r, a whole number above 0"),
        ({"r": 8}, r"is \[4, \d+\], this model and r 8 ask for \[8, \d+\]"),
        ({"lora_alpha": None}, "no lora_alpha"),
    ],
)
def test_configurations_that_are_refused(folder, config, said):
    changed(folder, **config)
    with pytest.raises(ArtefactError, match=said):
        PeftAdapter.open(folder, TEXT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {name("self_attn.q_proj", "A"): torch.zeros(RANK, 65)}, r"q_proj.*is \[4, 65\]"),
        (lambda t: t | {name("self_attn.k_proj", "B"): torch.zeros(64, RANK)}, r"k_proj.*ask for \[32, 4\]"),
        (lambda t: t | {"base_model.model.encoder.blocks.0.attn.query.lora_A.weight": torch.zeros(RANK, 64)},
         "adapts base_model.model.encoder.*served are q_proj, k_proj"),
        (lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.zeros(RANK, 64)}, "adapts .*lm_head"),
        (lambda t: t | {"base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": torch.zeros(RANK, 64)},
         "adapts layer 1 .* has 1 layers"),
        (lambda t: {key: value for key, value in t.items() if "q_proj.lora_B" not in key}, "no lora_B beside"),
        (lambda t: {}, "adapts nothing"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(folder, change, said):
    save_file(change(weights(folder)), folder / "adapter_model.safetensors")
    with pytest.raises(ArtefactError, match=said):
        PeftAdapter.open(folder, TEXT)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(ArtefactError, match="an adapter is a folder that PEFT has saved"):
        PeftAdapter.open(tmp_path, TEXT)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtefactError, match="save_pretrained"):
        PeftAdapter.open(folder, TEXT)
