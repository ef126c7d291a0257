"""What a checkpoint lacks is named before anything is built of it, with what to do."""

import json
import shutil

import pytest

from step_audio.checkpoint_faults import checkpoint_faults
from step_audio.safetensors import LFS_POINTER
from step_audio_build.convert.make_tiny import make_tiny

POINTER = LFS_POINTER + b"v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "tiny"
    make_tiny(directory, shards=2, audio_layers=1)
    assert checkpoint_faults(directory) == []
    return directory


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "tiny")


def shard(checkpoint):
    return sorted(checkpoint.glob("*.safetensors"))[0]


def pointers(checkpoint):
    """As `git clone` leaves it without git-lfs."""
    for path in (*checkpoint.glob("*.safetensors"), checkpoint / "tokenizer.json"):
        path.write_bytes(POINTER)


def other_vocabulary(checkpoint):
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["id"] = 10**6
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_family(checkpoint):
    text = (checkpoint / "tokenizer.json").read_text().replace("<|EOT|>", "<|eot_id|>")
    (checkpoint / "tokenizer.json").write_text(text)


def wrong_index(checkpoint):
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    index["weight_map"]["lm_head.weight"] = next(n for n in names if n != index["weight_map"]["lm_head.weight"])
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


def cache_without_blobs(checkpoint):
    """As a hub's snapshot is in a container that has its folder alone."""
    shard(checkpoint).unlink()
    shard_name = "model-00001-of-00002.safetensors"
    (checkpoint / shard_name).symlink_to(checkpoint.parent / "blobs/4d7a2146")


def folder_of_shards(checkpoint):
    (checkpoint / "old.safetensors").mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cache_without_blobs, ["is a link to a file that is not here"]),
        (folder_of_shards, ["old.safetensors is a folder"]),
        (lambda here: (here / "tokenizer.json").write_bytes(b"\xff\xfe"), ["tokenizer.json is not text"]),
        (pointers, ["and 2 more are git-lfs pointers, not the file: run `git lfs install` and `git lfs pull` in "]),
        (lambda here: (here / "tokenizer.json").write_bytes(POINTER), ["tokenizer.json is a git-lfs pointer"]),
        (lambda here: (here / "tokenizer.json").unlink(), ["neither tokenizer.json nor vocab.json with merges.txt"]),
        (other_vocabulary, ["tokenizer.json and config.json are of different checkpoints"]),
        (other_family, ["<|EOT|>"]),
        (lambda here: shard(here).write_bytes(shard(here).read_bytes()[:-5]), ["is truncated"]),
        (lambda here: shard(here).unlink(), ["names files that are not there"]),
        (wrong_index, ["places lm_head.weight in "]),
        (lambda here: (here / "config.json").write_text("{"), ["config.json is not valid JSON"]),
        (lambda here: (here / "generation_config.json").write_text("{"), ["generation_config.json cannot be read"]),
        (
            lambda here: [(here / "tokenizer.json").unlink(), shard(here).write_bytes(b"")],
            ["is truncated", "neither tokenizer.json nor"],
        ),
        (shutil.rmtree, ["does not exist"]),
    ],
)
def test_each_fault_is_one_sentence(checkpoint, spoil, said):
    spoil(checkpoint)
    faults = checkpoint_faults(checkpoint)
    assert len(faults) == len(said), faults
    for fault, words in zip(faults, said, strict=True):
        assert words in fault and "\n" not in fault


def test_files_of_another_user(checkpoint, monkeypatch):
    """Root, who runs tests in containers, may read everything."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("step_audio.checkpoint_faults.is_lfs_pointer", refuse)
    (fault,) = checkpoint_faults(checkpoint)
    assert "cannot be read (Permission denied): chmod -R a+rX" in fault
