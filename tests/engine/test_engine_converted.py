"""Our converter writes the rank files, our engine reads them, each from its own knowledge; transformers judges."""

import json

import numpy as np
import pytest

from engine_fixture import ask
from lazy import Lazy
from step_audio.engine import Engine, EngineOptions
from step_audio_build.convert.convert_decoder import convert_decoder
from step_audio_build.convert.engine_dir import BuildConfig, build_cpu_engine_dir
from step_audio_build.convert.make_tiny import make_tiny

torch = Lazy("torch")
load_file = Lazy("safetensors.torch:load_file")

NAMES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps "
    "max_position_embeddings"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny(directory / "checkpoint")
    return directory


@pytest.fixture(scope="module")
def expected(tiny):
    """A prompt and its greedy answer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    raw = json.loads((tiny / "checkpoint" / "config.json").read_text())["text_config"]
    config = Qwen2Config(
        **{name: raw[name] for name in NAMES.split()},
        rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    weights = {}
    for path in (tiny / "checkpoint").glob("*.safetensors"):
        weights |= {name: tensor for name, tensor in load_file(path).items() if name.startswith(("model.", "lm_head"))}
    model = Qwen2ForCausalLM(config).eval()
    model.load_state_dict(weights)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, (1, 90)))
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
    return ids[0].numpy(), out[0, 90:].tolist()


@pytest.mark.parametrize("tp", [1, 4, 8])  # eight ranks share four KV heads
def test_a_converted_checkpoint_answers_like_transformers(tiny, expected, tp):
    convert_decoder(tiny / "checkpoint", tiny / f"ranks{tp}", tp=tp)
    limits = BuildConfig(max_batch_size=16, max_seq_len=512, max_num_tokens=64, max_prompt_embedding_table_size=16)
    build_cpu_engine_dir(tiny / f"ranks{tp}", tiny / f"engine{tp}", limits)
    engine = Engine(EngineOptions(tiny / f"engine{tp}", threads=2))
    try:
        assert ask(engine, expected[0], 32).tokens() == expected[1]
    finally:
        engine.shutdown()
