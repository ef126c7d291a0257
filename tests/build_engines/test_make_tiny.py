"""The tiny checkpoint: deterministic, complete, and lively enough to test a server with."""

import hashlib
import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from lazy import Lazy
from step_audio.checkpoint import Checkpoint, decoder_tensors
from step_audio.config import ModelConfig
from step_audio.errors import ArtefactError
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.convert.write_checkpoint import make_sparse

torch, load_encoder = Lazy("torch"), Lazy("step_audio.encoder:load_encoder")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    return directory, make_tiny(directory)


def tree(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_equal_arguments_give_equal_bytes(tiny, tmp_path):
    directory, config = tiny
    assert make_tiny(tmp_path / "again") == config
    assert tree(tmp_path / "again") == tree(directory)
    make_tiny(tmp_path / "other", seed=1)
    other = tree(tmp_path / "other")
    assert other["tokenizer.json"] == tree(directory)["tokenizer.json"]
    assert other["model-00001-of-00002.safetensors"] != tree(directory)["model-00001-of-00002.safetensors"]


def test_existing_directories_are_kept(tmp_path):
    make_tiny(tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").iterdir()}
    make_tiny(tmp_path / "tiny")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").iterdir()} == before
    with pytest.raises(ArtefactError, match="not empty"):
        make_tiny(tmp_path / "tiny", seed=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("nested", [True, False])
def test_published_layout(tmp_path, dtype, shards, nested):
    config = make_tiny(tmp_path / "tiny", dtype=dtype, shards=shards, nested=nested)
    assert ModelConfig.from_directory(tmp_path / "tiny") == config
    names = {path.name for path in (tmp_path / "tiny").iterdir()}
    assert ("config.json" in names, "config_origin.json" in names) == (nested, not nested)
    assert ("model.safetensors" in names, "model.safetensors.index.json" in names) == (shards == 1, shards > 1)
    checkpoint = Checkpoint(tmp_path / "tiny")
    assert len(checkpoint.files) == shards
    assert checkpoint.verify(config) == []
    assert {checkpoint.dtype(name) for name in checkpoint.tensors} == {dtype}
    for name in checkpoint.tensors:
        if name.endswith("bias"):
            assert checkpoint.read(name).any(), name


def test_added_tokens_stand_where_the_published_ones_do(tiny):
    directory, config = tiny
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    shift = 151643 - tokenizer.token_to_id("<|endoftext|>")
    published = {
        151644: "<|im_start|>",
        151645: "<|im_end|>",
        151657: "<tool_call>",
        151658: "</tool_call>",
        151665: "<|EOT|>",
        151666: "<|BOT|>",
        151669: "<|THINK_START|>",
        151675: "<im_patch>",
        151682: "<|UNMASK_1e69f|>",
        151688: "<audio_start>",
        151690: "<audio_patch>",
        151692: "<|SC|>",
        151695: "<tts_pad>",
        151696: "<audio_0>",
        158257: "<audio_6561>",
    }
    for number, name in published.items():
        assert tokenizer.id_to_token(number - shift) == name
    assert tokenizer.get_vocab_size() == 158258 - shift
    assert config.text.vocab_size >= tokenizer.get_vocab_size() + 32 and config.text.vocab_size % 64 == 0
    assert len(tokenizer.encode("<think>").ids) > 1
    special = json.loads((directory / "special_tokens_map.json").read_text())["additional_special_tokens"]
    assert (special[0], special[-1], len(special)) == ("<|EOT|>", "<tts_pad>", 31)


def test_tokenizer_keeps_any_text(tiny):
    tokenizer = Tokenizer.from_file(str(tiny[0] / "tokenizer.json"))
    for text in ("Hello, it's 2025!\n\n  Two  spaces", "说话的人 🎵 naïve", "<think>\nno\n</think>\n", '{"a": [1, 2]}'):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert max(ids) < tokenizer.token_to_id("<|endoftext|>")


def test_answers_are_text_that_depends_on_the_audio_without_near_ties(tiny):
    transformers = pytest.importorskip("transformers")
    directory, config = tiny
    checkpoint, tokenizer = Checkpoint(directory), Tokenizer.from_file(str(directory / "tokenizer.json"))
    qwen = transformers.Qwen2Config(
        **config.text.model_dump(exclude={"dtype", "head_dim", "rope_theta"}),
        rope_parameters={"rope_type": "default", "rope_theta": config.text.rope_theta},
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2ForCausalLM(qwen).eval()
    model.load_state_dict({name: torch.from_numpy(checkpoint.read(name)) for name in decoder_tensors(config.text)})
    encoder = load_encoder(checkpoint, config.audio, "L")
    before, after = (
        model.model.embed_tokens(torch.tensor(tokenizer.encode(text).ids))
        for text in ("<|BOT|>human\nWhat is this?<audio_start>", "<audio_end><|EOT|><|BOT|>assistant\n<think>\n")
    )
    rng = np.random.default_rng(0)
    tone = np.full((128, 502), -0.5, np.float32)
    tone[20:24] = 1
    sounds = {
        "silence": np.full((128, 502), -1.5, np.float32),
        "noise": rng.uniform(-0.5, 0.5, (128, 502)).astype(np.float32),
        "tone": tone,
    }
    answers, gaps = {}, []
    with torch.no_grad():
        for name, mel in sounds.items():
            audio = encoder(torch.from_numpy(mel)[None], torch.tensor([mel.shape[1]]))[0]
            step = model(inputs_embeds=torch.cat([before, audio, after])[None], use_cache=True)
            ids = []
            for _ in range(24):
                best = step.logits[0, -1].topk(2)
                gaps.append(float(best.values[0] - best.values[1]))
                ids.append(int(best.indices[0]))
                step = model(torch.tensor([ids[-1:]]), past_key_values=step.past_key_values, use_cache=True)
            assert max(ids) < tokenizer.token_to_id("<|endoftext|>")
            answers[name] = tokenizer.decode(ids)
    assert len(set(answers.values())) == len(sounds), answers
    assert all(len(set(text)) > 8 and text.replace("\n", "").isprintable() for text in answers.values()), answers
    assert min(gaps) > 1e-3


def test_sparse_checkpoint_has_its_true_size(tiny, tmp_path):
    _, config = tiny
    make_sparse(tmp_path / "sparse", config, shards=2)
    checkpoint = Checkpoint(tmp_path / "sparse")
    assert checkpoint.verify(ModelConfig.from_directory(tmp_path / "sparse")) == []
    assert not checkpoint.read("lm_head.weight").any()
    assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "sparse").glob("*.safetensors")) < 100_000
