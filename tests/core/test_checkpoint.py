"""Reading published weights: with and without an index, and every way in which a download can be wrong."""

import json
import shutil

import numpy as np
import pytest

from lazy import Lazy
from step_audio.checkpoint import Checkpoint, expected_tensors, from_float32, to_float32
from step_audio.config import ModelConfig
from step_audio.errors import CheckpointError
from step_audio_build.convert.make_tiny import make_tiny

torch = Lazy("torch")
load_file = Lazy("safetensors.torch:load_file")
save_file = Lazy("safetensors.torch:save_file")

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny(directory, dtype="bfloat16")
    return directory


@pytest.fixture
def directory(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny")


def shard(directory, n=-1):
    return sorted(directory.glob("*.safetensors"))[n]


def rewrite_header(path, change):
    """Pass the header through `change`, keeping the tensors' bytes."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def rewrite_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def drop_from_index(directory, name):
    index = json.loads((directory / INDEX).read_text())
    del index["weight_map"][name]
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("with_index", [True, False])
def test_reads_what_the_safetensors_library_reads(directory, with_index):
    if not with_index:
        (directory / INDEX).unlink()
    checkpoint = Checkpoint(directory)
    theirs = load_file(shard(directory, 0)) | load_file(shard(directory, 1))
    assert set(checkpoint.tensors) == set(theirs)
    for name, tensor in theirs.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.dtype(name) == "bfloat16"
        bits = tensor.view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(checkpoint.read(name), bits, name)
        np.testing.assert_array_equal(checkpoint.read_rows(name, 3, 7), bits[3:7], name)
        np.testing.assert_array_equal(to_float32(checkpoint.read(name)), tensor.float().numpy(), name)
    assert checkpoint.read_rows(name, 5, 5).shape == (0, *tensor.shape[1:])
    with pytest.raises(ValueError, match="rows 0 to"):
        checkpoint.read_rows(name, 0, len(tensor) + 1)


def test_every_expected_tensor_and_nothing_else(directory):
    checkpoint, config = Checkpoint(directory), ModelConfig.from_directory(directory)
    assert checkpoint.verify(config) == []
    assert len(checkpoint.tensors) == len(expected_tensors(config))


def test_published_model_has_1264_tensors_and_33_487_033_600_parameters():
    audio = {"n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 32}
    config = ModelConfig.from_dict(
        {
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_attention_heads": 40,
            "num_attention_groups": 8,
            "num_hidden_layers": 64,
            "max_seq_len": 65536,
            "vocab_size": 158720,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "torch_dtype": "bfloat16",
            "audio_encoder_config": {**audio, "llm_dim": 5120, "kernel_size": 3, "adapter_stride": 2},
        }
    )
    shapes = expected_tensors(config)
    assert len(shapes) == 1264
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 33_487_033_600


def test_extra_tensors_are_reported(directory):
    (directory / INDEX).unlink()
    rewrite_tensors(shard(directory), lambda t: t.update(stray=torch.zeros(2)))
    assert Checkpoint(directory).verify(ModelConfig.from_directory(directory)) == ["stray"]


def test_missing_tensors_are_named(directory):
    (directory / INDEX).unlink()
    rewrite_tensors(shard(directory), lambda t: t.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        Checkpoint(directory).verify(ModelConfig.from_directory(directory))


def test_wrong_shapes_are_named(directory):
    (directory / INDEX).unlink()
    rewrite_tensors(shard(directory), lambda t: t.update({"model.norm.weight": torch.zeros(63)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is \[63\], config.json says \[64\]"):
        Checkpoint(directory).verify(ModelConfig.from_directory(directory))


def test_quantised_tensors_are_refused(directory):
    (directory / INDEX).unlink()
    rewrite_tensors(shard(directory), lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))
    checkpoint = Checkpoint(directory)
    with pytest.raises(CheckpointError, match=r"quantised .* model\.norm\.weight is I8"):
        checkpoint.verify(ModelConfig.from_directory(directory))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is I8"):
        checkpoint.read("model.norm.weight")


def test_missing_shard(directory):
    shard(directory).unlink()
    with pytest.raises(CheckpointError, match=r"names files that are not there: model-00002-of-00002\.safetensors"):
        Checkpoint(directory)


def test_index_that_disagrees_with_its_files(directory):
    rewrite_tensors(shard(directory), lambda t: t.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"places lm_head\.weight in model-00002-of-00002\.safetensors, which"):
        Checkpoint(directory)


def test_tensor_left_out_of_the_index(directory):
    drop_from_index(directory, "lm_head.weight")
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        Checkpoint(directory).verify(ModelConfig.from_directory(directory))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}']
)
def test_malformed_index(directory, text):
    (directory / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="weight_map"):
        Checkpoint(directory)


def test_index_cannot_lead_out_of_its_directory(directory):
    (directory / INDEX).write_text('{"weight_map": {"a": "../tiny/model-00001-of-00002.safetensors"}}')
    with pytest.raises(CheckpointError, match="same directory"):
        Checkpoint(directory)


def test_duplicate_tensor_without_index(directory):
    (directory / INDEX).unlink()
    shutil.copy(shard(directory), directory / "copy.safetensors")
    with pytest.raises(CheckpointError, match=r"is in both copy\.safetensors and model-00002"):
        Checkpoint(directory)


def test_truncated_files(directory):
    path = shard(directory)
    raw = path.read_bytes()
    for length in (0, 7, 8, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=f"{path.name} is truncated"):
            Checkpoint(directory)


def test_file_cut_while_it_is_read(directory):
    checkpoint = Checkpoint(directory)
    path = shard(directory)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 10)
    name = max(checkpoint.files[path.name].tensors.values(), key=lambda info: info.stop)
    (name,) = (key for key, info in checkpoint.tensors.items() if info == name)
    with pytest.raises(CheckpointError, match=f"truncated: it ends inside {name}"):
        checkpoint.read(name)


def test_a_file_with_more_than_its_header_lists(directory):
    with shard(directory).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"is damaged: it has \d+ bytes, its header lists \d+; download it again"):
        Checkpoint(directory)


def test_overlapping_tensors(directory):
    path = shard(directory)

    def overlap(header):
        header["lm_head.weight"]["data_offsets"] = [n - 2 for n in header["lm_head.weight"]["data_offsets"]]

    rewrite_header(path, overlap)
    with pytest.raises(CheckpointError, match=f"{path.name} is corrupt: lm_head.weight overlaps"):
        Checkpoint(directory)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [],
        {"dtype": "BF16", "shape": [2], "data_offsets": [0, 2]},  # 2 bytes for 2 numbers of 2
        {"dtype": "BF16", "shape": [-1], "data_offsets": [2, 0]},
        {"dtype": "BF16", "shape": [1.0], "data_offsets": [0, 2]},
        {"dtype": "BF16", "shape": [1], "data_offsets": [0]},
    ],
)
def test_malformed_headers(directory, entry):
    path = shard(directory)
    rewrite_header(path, lambda header: header.update(stray=entry))
    with pytest.raises(CheckpointError, match=f"{path.name} is not a safetensors file"):
        Checkpoint(directory)


def test_something_else_named_safetensors(directory):
    path = shard(directory)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n" * 3)
    with pytest.raises(CheckpointError, match=path.name):
        Checkpoint(directory)
    path.write_bytes((16).to_bytes(8, "little") + b"{" * 16)
    with pytest.raises(CheckpointError, match="its header is malformed"):
        Checkpoint(directory)


def test_empty_and_absent_directories(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint(tmp_path / "nowhere")


def test_rounding_as_torch():
    """Every upper half of a float32, with the lower halves where rounding turns."""
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    values = (upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).reshape(-1).view(np.float32)
    theirs = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    ours = from_float32(values, "bfloat16")
    number = ~np.isnan(values)
    np.testing.assert_array_equal(ours[number], theirs[number])
    assert np.isnan(to_float32(ours)[~number]).all()


def test_float16_overflow_is_an_error():
    assert from_float32(np.array([65504, np.inf], np.float32), "float16")[0] == 65504
    with pytest.raises(CheckpointError, match="use bfloat16"):
        from_float32(np.array([1e5], np.float32), "float16")
