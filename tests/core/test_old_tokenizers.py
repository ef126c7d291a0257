"""Tokenizers of the older layout, vocabulary and merges apart, which transformers converts."""

import json

import pytest

from step_audio.errors import CheckpointError
from step_audio.tokenizer import Tokenizer
from tokenizer_fixture import CORPUS, build_json


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(build_json())


def write_old_layout(folder, gap: int = 0) -> None:
    raw = json.loads(build_json())
    (folder / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(merge) for merge in raw["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    table = {str(token.pop("id") + gap): token for token in raw["added_tokens"]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": table}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_from_directory_converts_the_old_layout(tmp_path, tokenizer):
    pytest.importorskip("transformers")
    write_old_layout(tmp_path)
    converted = Tokenizer.from_directory(tmp_path)
    assert dict(converted.added_tokens) == dict(tokenizer.added_tokens)
    for text in (*CORPUS, "e\u0301 don't 1234"):
        assert converted.encode(text) == tokenizer.encode(text)
    added = {token: id_ for token, id_ in tokenizer.added_tokens.items()}
    assert converted.decode(added.values(), True) == tokenizer.decode(added.values(), True)


def test_from_directory_refuses_a_conversion_that_renumbers(tmp_path):
    pytest.importorskip("transformers")
    write_old_layout(tmp_path, gap=7)
    with pytest.raises(CheckpointError, match="did not keep"):
        Tokenizer.from_directory(tmp_path)
