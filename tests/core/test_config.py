"""The two published forms of a configuration, and every way in which one can be wrong."""

import copy
import json

import pytest

from published_config import AUDIO, NESTED, TEXT
from step_audio.config import AudioEncoderConfig, ModelConfig, TextConfig
from step_audio.errors import CheckpointError

FLAT = {
    **TEXT, "num_attention_groups": 8, "max_seq_len": 65536, "torch_dtype": "bfloat16", "audio_encoder_config": AUDIO
}  # fmt: skip


def changed(form: dict, **text) -> dict:
    """A copy with keys of the decoder set, or removed where the value is `del`."""
    form = copy.deepcopy(form)
    table = form.get("text_config", form)
    for key, value in text.items():
        if value is DELETE:
            table.pop(key)
        else:
            table[key] = value
    return form


DELETE = object()


def test_both_forms_are_one_configuration():
    nested = ModelConfig.from_dict(NESTED)
    assert nested == ModelConfig.from_dict(FLAT)
    assert (nested.text.head_dim, nested.text.num_key_value_heads, nested.text.max_position_embeddings) == (
        128, 8, 65536,
    )  # fmt: skip


def test_numbers_are_the_file_s():
    """Not a class's defaults: other ones than the published model has."""
    config = ModelConfig.from_dict(
        changed(NESTED, rms_norm_eps=3e-4, rope_theta=12345.0, vocab_size=999, torch_dtype="float16", head_dim=64)
    )
    text = config.text
    assert (text.rms_norm_eps, text.rope_theta, text.vocab_size, text.dtype, text.head_dim) == (
        3e-4, 12345.0, 999, "float16", 64,
    )  # fmt: skip


def test_dtype_may_stand_at_the_top():
    """As transformers writes it beside a nested text_config."""
    form = changed(NESTED, torch_dtype=DELETE) | {"torch_dtype": "float32"}
    assert ModelConfig.from_dict(form).text.dtype == "float32"


@pytest.mark.parametrize("form", [NESTED, FLAT], ids=["nested", "flat"])
@pytest.mark.parametrize("field", sorted(set(TextConfig.model_fields) - {"head_dim"}))
def test_a_missing_decoder_number_is_named(form, field):
    spelt = {"num_key_value_heads": "num_attention_groups", "max_position_embeddings": "max_seq_len", "dtype": None}
    key = "torch_dtype" if field == "dtype" else spelt.get(field, field) if form is FLAT else field
    with pytest.raises(CheckpointError, match=rf"config\.json: .*\b{key}\b.* is missing"):
        ModelConfig.from_dict(changed(form, **{key: DELETE}))
    with pytest.raises(CheckpointError, match=rf"\b{key}\b.* is missing"):
        ModelConfig.from_dict(changed(form, **{key: None}))


@pytest.mark.parametrize("field", AudioEncoderConfig.model_fields)
def test_a_missing_encoder_number_is_named(field):
    audio = {key: value for key, value in AUDIO.items() if key != field}
    with pytest.raises(CheckpointError, match=rf"audio_encoder_config\.{field} is missing"):
        ModelConfig.from_dict(FLAT | {"audio_encoder_config": audio})


WRONG = {
    "llm_dim": (FLAT | {"audio_encoder_config": AUDIO | {"llm_dim": 4096}}, "llm_dim 4096 .* hidden_size 5120"),
    "encoder heads": (FLAT | {"audio_encoder_config": AUDIO | {"n_audio_head": 7}}, "n_audio_state 1280 .* 7"),
    "kv heads": (changed(FLAT, num_attention_groups=7), "num_attention_heads 40 .* num_key_value_heads 7"),
    "heads": (changed(FLAT, num_attention_heads=48), "hidden_size 5120 .* num_attention_heads 48"),
    "odd head_dim": (changed(FLAT, head_dim=127), "head_dim 127 is odd"),
    "rope_scaling": (changed(NESTED, rope_scaling={"type": "yarn"}), "rope_scaling"),
    "tied": (changed(NESTED, tie_word_embeddings=True), "tie_word_embeddings"),
    "dtype": (changed(NESTED, torch_dtype="int8"), "dtype: .*bfloat16"),
    "zero layers": (changed(NESTED, num_hidden_layers=0), "num_hidden_layers: .*greater than 0"),
    "no heads": (changed(NESTED, num_attention_heads=0), "num_attention_heads must be a positive integer, got 0"),
    "text for a number": (changed(NESTED, hidden_size="5120"), "hidden_size must be a positive integer, got '5120'"),
    "no audio": ({"hidden_size": 1}, "audio_encoder_config is missing"),
    "a list": ([], "JSON object"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_contradiction_is_named(kind):
    form, pattern = WRONG[kind]
    with pytest.raises(CheckpointError, match=pattern) as caught:
        ModelConfig.from_dict(form, "that.json")
    text = str(caught.value)
    assert text.startswith("that.json: ") and "\n" not in text and "Value error" not in text


def test_from_directory(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        ModelConfig.from_directory(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"neither config\.json nor config_origin\.json"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config_origin.json").write_text(json.dumps(FLAT))
    assert ModelConfig.from_directory(tmp_path) == ModelConfig.from_dict(FLAT)
    (tmp_path / "config.json").write_text(json.dumps(changed(NESTED, vocab_size=7)))
    assert ModelConfig.from_directory(str(tmp_path)).text.vocab_size == 7  # config.json goes first
    for broken in (b'{"hidden_size": ', b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
            ModelConfig.from_directory(tmp_path)
