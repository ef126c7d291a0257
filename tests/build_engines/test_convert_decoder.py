"""Rank files against transformers: put together again by a plain tensor-parallel forward, they are the same model."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from lazy import Lazy
from step_audio.checkpoint import Checkpoint, decoder_tensors
from step_audio.config import ModelConfig
from step_audio.errors import ArtefactError, CheckpointError
from step_audio_build.artefacts.manifest import read_manifest, sha256_file
from step_audio_build.convert import convert_decoder as convert_module
from step_audio_build.convert.convert_decoder import convert_decoder
from step_audio_build.convert.engine_dir import BuildConfig, build_cpu_engine_dir
from step_audio_build.convert.make_tiny import make_tiny

torch = Lazy("torch")
load_file = Lazy("safetensors.torch:load_file")
save_file = Lazy("safetensors.torch:save_file")
F = Lazy("torch.nn.functional")

VOCAB = 101  # odd, so that the head's rows never divide; smaller than the tokenizer's, which plays no part here
PROMPT = [3, 100, 14, 15, 92, 65, 35, 89, 79, 0, 32, 38]


def make_source(directory, dtype="float32", **sizes):
    """A tiny checkpoint whose vocabulary is cut down to VOCAB rows."""
    make_tiny(directory, dtype=dtype, **sizes)
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                # A random head: the original's rows are mostly next to zero.
                rows = torch.randn(VOCAB, tensors[name].shape[1], generator=torch.Generator().manual_seed(len(name)))
                tensors[name] = rows.to(tensors[name].dtype)
        save_file(tensors, path, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["vocab_size"] = VOCAB
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("convert") / "source")


@pytest.fixture
def copied(source, tmp_path):
    """One that a test may spoil."""
    return shutil.copytree(source, tmp_path / "source")


def load_source(directory):
    return {k: v for path in sorted(directory.glob("*.safetensors")) for k, v in load_file(path).items()}


def transformers_logits(directory):
    transformers = pytest.importorskip("transformers")
    text = ModelConfig.from_directory(directory).text
    config = transformers.Qwen2Config(
        **text.model_dump(exclude={"dtype", "head_dim", "rope_theta"}),
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    model.load_state_dict({k: v.float() for k, v in load_source(directory).items() if k in decoder_tensors(text)})
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0]


def tensor_parallel_logits(directory):
    """What TensorRT-LLM computes from `directory`, one rank after the other, sums where it all-reduces."""
    config = json.loads((directory / "config.json").read_text())
    tp, size, eps = config["mapping"]["tp_size"], config["head_size"], config["norm_epsilon"]
    ranks = [{k: v.float() for k, v in load_file(directory / f"rank{r}.safetensors").items()} for r in range(tp)]
    heads, kv_heads = config["num_attention_heads"] // tp, -(-config["num_key_value_heads"] // tp)
    length = len(PROMPT)
    angles = torch.arange(length)[:, None] * config["rotary_base"] ** (-torch.arange(0, size, 2) / size)
    cos, sin = angles.cos(), angles.sin()

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def rotate(x):  # [heads, length, size], GPT-NeoX halves
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(w, x):
        qkv = F.linear(x, w["attention.qkv.weight"], w["attention.qkv.bias"]).unflatten(-1, (-1, size)).transpose(0, 1)
        q, k, v = qkv.split([heads, kv_heads, kv_heads])
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        return F.linear(mixed.transpose(0, 1).flatten(1), w["attention.dense.weight"])

    def mlp(w, x):
        return F.linear(
            F.silu(F.linear(x, w["mlp.fc.weight"])) * F.linear(x, w["mlp.gate.weight"]), w["mlp.proj.weight"]
        )

    x = ranks[0]["transformer.vocab_embedding.weight"][PROMPT]
    for n in range(config["num_hidden_layers"]):
        prefix = f"transformer.layers.{n}."
        layers = [{k.removeprefix(prefix): v for k, v in rank.items() if k.startswith(prefix)} for rank in ranks]
        x = x + sum(attention(w, norm(x, w["input_layernorm.weight"])) for w in layers)
        x = x + sum(mlp(w, norm(x, w["post_layernorm.weight"])) for w in layers)
    x = norm(x, ranks[0]["transformer.ln_f.weight"])
    return torch.cat([F.linear(x, rank["lm_head.weight"]) for rank in ranks], -1)


def tree(directory):
    return {path.name: sha256_file(path) for path in directory.iterdir()}


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_ranks_together_are_the_model(source, tmp_path, tp):
    convert_decoder(source, tmp_path / "out", tp)
    ours, expected = tensor_parallel_logits(tmp_path / "out"), transformers_logits(source)
    torch.testing.assert_close(ours[:, :VOCAB], expected, atol=1e-4, rtol=0)
    assert ours.shape[1] == -(-VOCAB // tp) * tp
    assert not ours[:, VOCAB:].any()


def test_names_and_shapes_of_a_rank(source, tmp_path):
    """TensorRT-LLM 1.2.1's checkpoint of a Qwen2 of width 64, 8 heads of 8, 4 KV heads, MLP 192, four ways."""
    convert_decoder(source, tmp_path / "out", 4)
    layer = {
        "input_layernorm.weight": [64],
        "attention.qkv.weight": [(2 + 1 + 1) * 8, 64],
        "attention.qkv.bias": [(2 + 1 + 1) * 8],
        "attention.dense.weight": [64, 16],
        "post_layernorm.weight": [64],
        "mlp.fc.weight": [48, 64],
        "mlp.gate.weight": [48, 64],
        "mlp.proj.weight": [64, 48],
    }
    expected = {
        "transformer.vocab_embedding.weight": [VOCAB, 64],
        **{f"transformer.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()},
        "transformer.ln_f.weight": [64],
        "lm_head.weight": [26, 64],
    }
    for rank in range(4):
        tensors = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        assert {name: list(tensor.shape) for name, tensor in tensors.items()} == expected


def test_config(source, tmp_path):
    convert_decoder(source, tmp_path / "out", 4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    text = ModelConfig.from_directory(source).text
    assert config["architecture"] == "Qwen2ForCausalLM"
    assert (config["vocab_size"], config["norm_epsilon"], config["rotary_base"]) == (VOCAB, 1e-5, 1e6)
    assert config["max_position_embeddings"] == text.max_position_embeddings
    assert config["mapping"]["world_size"] == config["mapping"]["tp_size"] == 4
    assert config["dtype"] == "float32"
    assert config["qwen_type"] == "qwen2"
    assert config["attn_bias"] is True and config["mlp_bias"] is False
    assert "moe" not in config


def test_bfloat16_is_kept_bit_for_bit(tmp_path):
    source = make_source(tmp_path / "source", "bfloat16", shards=1)
    convert_decoder(source, tmp_path / "out", 2)
    original, rank = load_source(source), load_file(tmp_path / "out" / "rank1.safetensors")
    assert {tensor.dtype for tensor in rank.values()} == {torch.bfloat16}
    assert torch.equal(rank["transformer.vocab_embedding.weight"], original["model.embed_tokens.weight"])
    assert torch.equal(rank["transformer.layers.1.mlp.fc.weight"], original["model.layers.1.mlp.gate_proj.weight"][96:])


@pytest.mark.parametrize("tp", [2, 8])  # 8: each of 4 KV heads is read by two ranks
def test_hash_of_the_source_is_that_of_whole_tensors(source, tmp_path, monkeypatch, tp):
    """In the order of the layers, each tensor once, however many ranks read it and in how many blocks."""
    monkeypatch.setattr(convert_module, "BLOCK", 1024)
    layer = [f"self_attn.{part}_proj.{kind}" for kind in ("weight", "bias") for part in "qkv"]
    layer = ["input_layernorm.weight", *layer, "self_attn.o_proj.weight", "post_attention_layernorm.weight"]
    layer += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    names = [f"model.layers.{n}.{name}" for n in range(2) for name in layer]
    names = ["model.embed_tokens.weight", *names, "model.norm.weight", "lm_head.weight"]
    tensors = load_source(source)
    lines = [f"{hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()}  {name}\n" for name in names]
    manifest = convert_decoder(source, tmp_path / "out", tp)
    assert manifest.tensors_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("have", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("want", ["float32", "bfloat16", "float16"])
def test_dtype_conversion_rounds_as_torch(tmp_path, have, want):
    source = make_source(tmp_path / "source", have, shards=1)
    convert_decoder(source, tmp_path / "out", 1, want)
    rank = load_file(tmp_path / "out" / "rank0.safetensors")
    expected = load_source(source)["model.layers.0.mlp.down_proj.weight"].to(getattr(torch, want))
    assert torch.equal(rank["transformer.layers.0.mlp.proj.weight"], expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == want


@pytest.mark.parametrize("tp", [0, 3, 16])
def test_impossible_splits_are_refused(source, tmp_path, tp):
    with pytest.raises(ArtefactError, match="possible numbers: 1, 2, 4, 8"):
        convert_decoder(source, tmp_path / "out", tp)


class Stop(Exception):
    pass


def stop_after(fraction):
    def report(done, total):
        if done > fraction * total:
            raise Stop

    return report


def test_interrupted_runs_go_on_to_the_same_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "BLOCK", 4096)  # so that a stop falls inside tensors
    convert_decoder(source, tmp_path / "whole", 4)
    out = tmp_path / "stopped"
    starts = []
    for fraction in (0.0, 0.2, 0.21, 0.6, 0.95):
        with pytest.raises(Stop):
            convert_decoder(source, out, 4, progress=stop_after(fraction))
        assert not list(out.glob("rank?.safetensors")) and not (out / "config.json").exists()
        with (out / "convert.journal").open("a") as journal:
            journal.write('{"name": "transformer.la')  # as a kill leaves it
        starts.append((out / "rank3.safetensors.partial").stat().st_size)
    assert starts == sorted(starts)
    reports = []
    convert_decoder(source, out, 4, progress=lambda done, total: reports.append((done, total)))
    assert reports[0][0] > 0.5 * reports[0][1]  # did not begin anew
    assert reports[-1][0] == reports[-1][1]
    assert tree(out) == tree(tmp_path / "whole")


def test_stop_between_renames(source, tmp_path, monkeypatch):
    convert_decoder(source, tmp_path / "whole", 2)
    replace = os.replace

    def stop_at_second(old, new):
        if str(new).endswith("rank1.safetensors"):
            raise Stop
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at_second)
        with pytest.raises(Stop):
            convert_decoder(source, tmp_path / "out", 2)
    assert (tmp_path / "out" / "rank0.safetensors").exists()
    convert_decoder(source, tmp_path / "out", 2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_damage_to_unfinished_files_is_noticed(source, tmp_path):
    convert_decoder(source, tmp_path / "whole", 2)
    with pytest.raises(Stop):
        convert_decoder(source, tmp_path / "out", 2, progress=stop_after(0.7))
    with (tmp_path / "out" / "rank1.safetensors.partial").open("r+b") as file:
        file.seek(40_000)
        file.write(b"damage")
    with (tmp_path / "out" / "rank0.safetensors.partial").open("ab") as file:
        file.write(bytes(1_000_000))
    convert_decoder(source, tmp_path / "out", 2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_finished_conversion_is_left_alone(source, tmp_path):
    first = convert_decoder(source, tmp_path / "out", 2)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(before) == ["config.json", "manifest.json", "rank0.safetensors", "rank1.safetensors"]
    assert convert_decoder(source, tmp_path / "out", 2, progress=lambda *_: pytest.fail("wrote")) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert {output.name: output.sha256 for output in first.outputs} == {
        name: digest for name, digest in tree(tmp_path / "out").items() if name != "manifest.json"
    }
    assert read_manifest(tmp_path / "out" / "manifest.json") == first


def test_other_builds_are_refused(copied, tmp_path):
    convert_decoder(copied, tmp_path / "out", 2)
    with pytest.raises(ArtefactError, match="made with tp 2, not 4"):
        convert_decoder(copied, tmp_path / "out", 4)
    with pytest.raises(ArtefactError, match="made with dtype float32, not bfloat16"):
        convert_decoder(copied, tmp_path / "out", 2, "bfloat16")
    with pytest.raises(Stop):
        convert_decoder(copied, tmp_path / "unfinished", 2, progress=stop_after(0.5))
    with pytest.raises(ArtefactError, match="made with tp 2, not 4"):
        convert_decoder(copied, tmp_path / "unfinished", 4)

    victim = sorted(copied.glob("*.safetensors"))[-1]
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(raw)  # same size, same header, another time
    for out in ("out", "unfinished"):
        with pytest.raises(ArtefactError, match=f"{victim.name} has changed since; delete it or choose"):
            convert_decoder(copied, tmp_path / out, 2)


def test_lost_and_foreign_files_are_noticed(source, tmp_path):
    convert_decoder(source, tmp_path / "out", 2)
    (tmp_path / "out" / "rank1.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"rank1.safetensors is missing"):
        convert_decoder(source, tmp_path / "out", 2)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "rank0.safetensors").write_bytes(b"someone's")
    with pytest.raises(ArtefactError, match="unknown origin"):
        convert_decoder(source, tmp_path / "foreign", 2)
    assert (tmp_path / "foreign" / "rank0.safetensors").read_bytes() == b"someone's"


def test_truncated_source_is_refused(copied, tmp_path):
    victim = sorted(copied.glob("*.safetensors"))[-1]
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"{victim.name} is truncated"):
        convert_decoder(copied, tmp_path / "out", 2)


def test_full_disk_is_foreseen(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ArtefactError, match=r"writes 0.\d GB more"):
        convert_decoder(source, tmp_path / "out", 2)


def test_two_conversions_in_one_directory_are_refused(source, tmp_path):
    def again(done, total):
        with pytest.raises(ArtefactError, match="another conversion is writing"):
            convert_decoder(source, tmp_path / "out", 2)
        raise Stop

    with pytest.raises(Stop):
        convert_decoder(source, tmp_path / "out", 2, progress=again)


def test_engine_dir_for_the_cpu(source, tmp_path):
    build = BuildConfig(max_batch_size=4, max_seq_len=2048, max_num_tokens=256, max_prompt_embedding_table_size=4000)
    with pytest.raises(ArtefactError, match="not a finished"):
        build_cpu_engine_dir(tmp_path / "a" / "ckpt", tmp_path / "a" / "engine", build)
    convert_decoder(source, tmp_path / "a" / "ckpt", 2)
    for _ in range(2):  # again over itself
        build_cpu_engine_dir(tmp_path / "a" / "ckpt", tmp_path / "a" / "engine", build)
    (tmp_path / "a").rename(tmp_path / "b")  # moved together, links hold
    engine = tmp_path / "b" / "engine"
    config = json.loads((engine / "config.json").read_text())
    assert config["version"] == "1.2.1"
    assert config["pretrained_config"] == json.loads((tmp_path / "b" / "ckpt" / "config.json").read_text())
    assert config["build_config"]["max_prompt_embedding_table_size"] == 4000
    assert config["build_config"]["plugin_config"]["tokens_per_block"] == 32
    assert (engine / "rank1.safetensors").read_bytes() == (tmp_path / "b" / "ckpt" / "rank1.safetensors").read_bytes()

    with pytest.raises(ArtefactError, match="above the model's 8192 positions"):
        build_cpu_engine_dir(tmp_path / "b" / "ckpt", engine, build.model_copy(update={"max_seq_len": 8193}))
    with pytest.raises(ArtefactError, match="choose another directory"):
        build_cpu_engine_dir(tmp_path / "b" / "ckpt", tmp_path / "b" / "ckpt", build)
    assert (tmp_path / "b" / "ckpt" / "rank0.safetensors").is_file()
    with pytest.raises(ValueError, match="leaves no row"):
        BuildConfig(max_batch_size=16, max_seq_len=2048, max_num_tokens=256, max_prompt_embedding_table_size=15)


def test_memory_stays_at_a_few_blocks(source, tmp_path, monkeypatch):
    """No read is larger than a block, whatever the tensor."""
    monkeypatch.setattr(convert_module, "BLOCK", 2048)
    sizes = []
    read_rows = Checkpoint.read_rows

    def watched(self, name, start, stop):
        out = read_rows(self, name, start, stop)
        sizes.append(out.nbytes)
        return out

    monkeypatch.setattr(Checkpoint, "read_rows", watched)
    convert_decoder(source, tmp_path / "out", 2)
    assert np.max(sizes) <= 2048
