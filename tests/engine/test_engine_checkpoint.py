import json
import shutil

import numpy as np
import pytest

from engine_fixture import VOCAB, hugging_face, write_engine
from lazy import Lazy
from step_audio.checkpoint import to_float32
from step_audio.engine.trtllm_checkpoint import load_engine
from step_audio.errors import ArtefactError

torch = Lazy("torch")
load_file = Lazy("safetensors.torch:load_file")
save_file = Lazy("safetensors.torch:save_file")


@pytest.mark.parametrize("tp", [1, 2, 4])  # two KV heads: whole, split and repeated
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ranks_merge_to_the_original(tmp_path, tp, dtype):
    dtype = getattr(torch, dtype)
    spec, weights = load_engine(write_engine(tmp_path, tp, dtype))
    state = {name: tensor.to(dtype).float().numpy() for name, tensor in hugging_face().state_dict().items()}
    same = lambda ours, theirs: np.array_equal(to_float32(ours), theirs)  # noqa: E731
    assert (spec.vocab_size, spec.head_size, spec.max_prompt_vocab_size) == (VOCAB, 16, 100)
    assert same(weights.vocab_embedding, state["model.embed_tokens.weight"])
    assert same(weights.lm_head, state["lm_head.weight"])
    assert same(weights.ln_f, state["model.norm.weight"])
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}"
        for kind, ours in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
            assert same(ours, np.concatenate([state[f"{prefix}.self_attn.{part}_proj.{kind}"] for part in "qkv"]))
        assert same(layer.dense, state[f"{prefix}.self_attn.o_proj.weight"])
        assert same(layer.fc, state[f"{prefix}.mlp.gate_proj.weight"])
        assert same(layer.gate, state[f"{prefix}.mlp.up_proj.weight"])
        assert same(layer.proj, state[f"{prefix}.mlp.down_proj.weight"])
        assert same(layer.input_layernorm, state[f"{prefix}.input_layernorm.weight"])
        assert same(layer.post_layernorm, state[f"{prefix}.post_attention_layernorm.weight"])


def test_a_single_rank_is_not_copied(tmp_path):
    _, weights = load_engine(write_engine(tmp_path))
    assert not weights.lm_head.flags.owndata and not weights.lm_head.flags.writeable


def edit_rank(directory, rank, change):
    path = directory / f"rank{rank}.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def edit_config(directory, section, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config[section] |= changes
    path.write_text(json.dumps(config))


FC = "transformer.layers.1.mlp.fc.weight"
QKV = "transformer.layers.0.attention.qkv.weight"
FAULTS = {
    "rank2.safetensors is missing": lambda d: (d / "rank2.safetensors").unlink(),
    f"rank1.safetensors: tensor {FC} is missing": lambda d: edit_rank(d, 1, lambda t: t.pop(FC)),
    f"rank3.safetensors: tensor {FC} is F32 \\[24, 63\\], expected F32 \\[24, 64\\]": lambda d: edit_rank(
        d, 3, lambda t: t.update({FC: t[FC][:, :63]})
    ),
    f"tensor {FC} is BF16": lambda d: edit_rank(d, 0, lambda t: t.update({FC: t[FC].bfloat16()})),
    f"rank1.safetensors: {QKV} should repeat": lambda d: edit_rank(d, 1, lambda t: t.update({QKV: t[QKV] + 1})),
    "rank0.safetensors is not a safetensors file": lambda d: (d / "rank0.safetensors").write_bytes(b"\0" * 100),
    "config.json does not exist": lambda d: (d / "config.json").unlink(),
    "config.json is not valid JSON": lambda d: (d / "config.json").write_text("{"),
    "build_config is missing": lambda d: (d / "config.json").write_text('{"pretrained_config": {}}'),
    "quantization is set": lambda d: edit_config(d, "pretrained_config", quantization={"quant_algo": "W8A16"}),
    "rotary_base is missing": lambda d: edit_config(d, "pretrained_config", rotary_base=None),
    "architecture is 'LlamaForCausalLM'": lambda d: edit_config(
        d, "pretrained_config", architecture="LlamaForCausalLM"
    ),
    "pp_size is 2": lambda d: edit_config(d, "pretrained_config", mapping={"tp_size": 2, "pp_size": 2}),
    "max_num_tokens is missing": lambda d: edit_config(d, "build_config", max_num_tokens=0),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine"), tp=4)


@pytest.mark.parametrize("message", FAULTS)
def test_a_faulty_directory_is_named(tmp_path, whole, message):
    directory = shutil.copytree(whole, tmp_path / "engine")
    FAULTS[message](directory)
    with pytest.raises(ArtefactError, match=message):
        load_engine(directory)


def test_a_cut_file_is_named(tmp_path, whole):
    directory = shutil.copytree(whole, tmp_path / "engine")
    path = directory / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArtefactError, match=r"rank1\.safetensors is truncated: it has \d+ .*; build the engine again"):
        load_engine(directory)
