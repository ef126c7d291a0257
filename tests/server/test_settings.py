"""Settings that a person chooses, and the file that the running models read."""

import json
from pathlib import Path

import pytest

from model_fixture import model, runtime
from step_audio.steps.runtime import Runtime
from step_audio_server.settings import ServeSettings, SettingsError

PLACES = {"checkpoint": Path("/models/Step-Audio-R1.1"), "work_dir": Path("/srv/private/work")}


WRONG = {
    "zero": ({"max_batch_size": 0}, "max_batch_size: .*greater than 0.*got 0"),
    "port": ({"grpc_port": 70_000}, "grpc_port: .*65535.*got 70000"),
    "dtype": ({"dtype": "int8"}, "dtype: .*bfloat16.*got 'int8'"),
    "policy": ({"batch_scheduler_policy": "fair"}, "batch_scheduler_policy: .*max_utilization.*'fair'"),
    "length rule": ({"length_rule": "L-1"}, "length_rule: .*'L-2'"),
    "limit": ({"limits": {"max_audio_seconds": -1}}, r"limits\.max_audio_seconds: .*got -1"),
    "unknown": ({"max_beams": 4}, "max_beams: .*not permitted"),
    "template": ({"chat_template": "no-such.jinja"}, "chat_template: neither default nor published nor a file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_setting_is_said_in_words(kind):
    values, pattern = WRONG[kind]
    with pytest.raises(SettingsError, match=pattern) as caught:
        ServeSettings.create(**PLACES, **values)
    assert "\n" not in str(caught.value) and "Value error" not in str(caught.value)


def test_a_template_s_path_holds_in_any_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    assert ServeSettings.create(**PLACES, chat_template="mine.jinja").chat_template == str(tmp_path / "mine.jinja")
    assert ServeSettings.create(**PLACES, chat_template="published").chat_template == "published"


@pytest.mark.parametrize(
    ("asked", "positions", "resolved"), [(None, 65_536, 32_768), (None, 8192, 8192), (65_536, 65_536, 65_536)]
)
def test_max_seq_len(asked, positions, resolved):
    assert ServeSettings.create(**PLACES, max_seq_len=asked).resolved_max_seq_len(model(positions)) == resolved


def test_max_seq_len_that_cannot_be():
    with pytest.raises(SettingsError, match=r"max_seq_len 8193 .* 8192 positions"):
        ServeSettings.create(**PLACES, max_seq_len=8193).resolved_max_seq_len(model(8192))
    with pytest.raises(SettingsError, match=r"kv_cache_tokens 4000 .* 8192"):
        ServeSettings.create(**PLACES, kv_cache_tokens=4000).resolved_max_seq_len(model(8192))


def test_runtime_round_trip(tmp_path):
    file = tmp_path / "runtime.json"
    file.write_text(runtime().model_dump_json())
    assert Runtime.load(file) == runtime()


def test_serving_info_tells_limits_and_no_paths(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    info = runtime().model_copy(update={"chat_template": str(tmp_path / "mine.jinja")}).serving_info()
    assert info["chat_template"] == "{{ messages }}"
    assert info["model"] == "Step-Audio-R1.1"
    assert (info["vocab_size"], info["max_seq_len"], info["limits"]["max_audios"]) == (1000, 8192, 3)
    assert "/" not in json.dumps(info)


@pytest.mark.parametrize(
    ("given", "said"),
    [(["terse"], "is not NAME=DIR"), (["=x"], "is not NAME=DIR"), (["a=x", "a=y"], "a is there twice")],
)
def test_adapters_that_are_refused(tmp_path, given, said):
    with pytest.raises(SettingsError, match=f"lora_modules.*{said}"):
        ServeSettings.create(checkpoint=tmp_path, work_dir=tmp_path, lora_modules=given)


def test_adapters_by_name(tmp_path):
    settings = ServeSettings.create(checkpoint=tmp_path, work_dir=tmp_path, lora_modules="terse=/x/terse,b=/y=z")
    assert settings.adapters == {"terse": Path("/x/terse"), "b": Path("/y=z")}
