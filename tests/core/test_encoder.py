"""The audio encoder against StepFun's own numbers, alone, in a batch, and as ONNX."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lazy import Lazy
from paths import GOLDEN
from step_audio.checkpoint import Checkpoint, expected_tensors
from step_audio.config import AudioEncoderConfig, ModelConfig
from step_audio.errors import ArtefactError
from step_audio.steps.memory import ALLOCATOR
from step_audio_build.convert import export_encoder as export_module
from step_audio_build.convert.export_encoder import export_encoder
from step_audio_build.convert.make_tiny import make_tiny

torch = Lazy("torch")
OnnxEncoderEngine = Lazy("step_audio.steps.encoder_engine:OnnxEncoderEngine")
TorchEncoderEngine = Lazy("step_audio.steps.torch_encoder:TorchEncoderEngine")
AudioEncoder = Lazy("step_audio.encoder:AudioEncoder")
load_encoder = Lazy("step_audio.encoder:load_encoder")

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden numbers are not here")
CLIPS = ("mmsu_test", "spoken_mqa_test", "mmar_test", "big_bench_audio_test")
SHORT = (3, 4, 5, 7, 8, 9, 11, 12, 13, 27)  # frames; every remainder by 8, and each stage's own remainders


def tokens(frames: int, rule: str) -> int:
    """The published formulas, step by step."""
    frames -= {"L": 0, "L-2": 2}[rule]
    conv2 = (frames + 1) // 2
    return max((conv2 // 2 + 2 * 1 - 3) // 2 + 1, 0)


def random_mel(frames: int, n_mels: int = 128) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(frames).uniform(-1, 1, (1, n_mels, frames)).astype(np.float32))


def batch(mels: list[torch.Tensor], longest: int = 0, fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    frames = torch.tensor([mel.shape[-1] for mel in mels])
    out = torch.full((len(mels), mels[0].shape[1], max(longest, int(frames.max()))), fill)
    for row, mel in zip(out, mels, strict=True):
        row[:, : mel.shape[-1]] = mel[0]
    return out, frames


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("encoder") / "tiny"
    return directory, make_tiny(directory)


@pytest.fixture(scope="module")
def models(tiny):
    directory, config = tiny
    checkpoint = Checkpoint(directory)
    return {rule: load_encoder(checkpoint, config.audio, rule) for rule in ("L", "L-2")}


@pytest.fixture(scope="module")
def programs():
    """What the exporter made for `exported`, the last one last."""
    return []


@pytest.fixture(scope="module")
def exported(tiny, programs, tmp_path_factory):
    """Length rule -> (path, manifest); each in a directory of its own."""
    paths = {rule: tmp_path_factory.mktemp("onnx") / "encoder.onnx" for rule in ("L-2", "L")}
    export = export_module._export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_export", lambda *given: programs.append(export(*given)) or programs[-1])
        return {rule: (path, export_encoder(tiny[0], path, rule)) for rule, path in paths.items()}


@pytest.fixture(scope="module")
def golden():
    """StepFun's encoder's weights, clips and results."""
    config = AudioEncoderConfig(**json.loads((GOLDEN / "encoder_tiny.config.json").read_text()))
    checkpoint = Checkpoint(GOLDEN)
    arrays = np.load(GOLDEN / "golden.npz")
    clips = {name: (torch.from_numpy(arrays[f"{name}.log_mel"])[None], arrays[f"{name}.embedding"]) for name in CLIPS}
    return load_encoder(checkpoint, config, "L"), clips


@needs_golden
def test_golden_alone(golden):
    model, clips = golden
    for name, (mel, expected) in clips.items():
        ours = model(mel, torch.tensor([mel.shape[-1]]))[0].numpy()
        assert ours.shape == expected.shape, name
        np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=name)


@needs_golden
def test_golden_in_a_batch_of_different_lengths(golden):
    model, clips = golden
    ours = model(*batch([mel for mel, _ in clips.values()], fill=7.0)).numpy()
    for row, (name, (_, expected)) in zip(ours, clips.items(), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-4, err_msg=name)
        assert not row[len(expected) :].any(), name


@pytest.mark.parametrize("rule", ["L", "L-2"])
def test_batch_does_not_change_a_clip(models, rule):
    mels = [random_mel(frames) for frames in SHORT]
    each = [models[rule](mel, torch.tensor([mel.shape[-1]]))[0] for mel in mels]
    for longest in (27, 28, 50, 51):  # even and odd: the published fork's mask depends on it
        together = models[rule](*batch(mels, longest))
        for row, mel, alone in zip(together, mels, each, strict=True):
            count = tokens(mel.shape[-1], rule)
            torch.testing.assert_close(row[:count], alone[:count], atol=1e-5, rtol=0)
            assert not row[count:].any()
            assert count == 0 or row[count - 1].any()


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.999999), ("bfloat16", 0.995)])
@pytest.mark.parametrize("rule", ["L", "L-2"])
def test_torch_s_engine_has_the_rows_of_onnx_runtime_s(tiny, exported, rule, dtype, least):
    """As it runs on a GPU beside vLLM, here on the CPU: clips of different lengths in one run, row by row."""
    directory, config = tiny
    frames = np.array([27, 300, 2500, 1201], np.int64)
    features = np.zeros((4, 128, 2500), np.float32)
    for row, length in zip(features, frames, strict=True):
        row[:, :length] = random_mel(int(length))[0]
    ours = TorchEncoderEngine(directory, config.audio, rule, dtype, max_clips=4, gpu=None).run(features, frames)
    theirs = OnnxEncoderEngine(exported[rule][0]).run(features, frames)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    for length, mine, its in zip(frames, ours, theirs, strict=True):
        count = tokens(int(length), rule)
        norms = np.linalg.norm(mine[:count], axis=1) * np.linalg.norm(its[:count], axis=1)
        assert ((mine[:count] * its[:count]).sum(axis=1) / norms).min() >= least
        assert not mine[count:].any()


def reference(weights: dict, config: AudioEncoderConfig, mel: np.ndarray, masked: int) -> np.ndarray:
    """One clip in float64 numpy, written from the published description: mel [n_mels, L] -> [tokens, llm_dim]."""
    erf = np.vectorize(math.erf)

    def gelu(x):
        return x * 0.5 * (1 + erf(x / np.sqrt(2)))

    def conv(name, x, stride):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        x = np.pad(x, ((0, 0), (1, 1)))
        starts = range(0, x.shape[1] - 2, stride)
        return np.stack([np.einsum("oik,ik->o", weight, x[:, s : s + 3]) + bias for s in starts], 1)

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    frames = mel.shape[1]
    x = gelu(conv("encoder.conv2", gelu(conv("encoder.conv1", mel, 1)), 2)).T
    x = x + weights["encoder.positional_embedding.weight"][: len(x)]
    hidden = ~(np.arange(frames) < frames - masked)[(frames + 1) % 2 :: 2]  # the published mask's own words
    for n in range(config.n_audio_layer):
        block = f"encoder.blocks.{n}"
        y = norm(f"{block}.attn_ln", x)
        q, k, v = (
            linear(f"{block}.attn.{part}", y).reshape(len(y), config.n_audio_head, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + np.where(hidden, -1e10, 0)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(f"{block}.attn.out", mixed.swapaxes(0, 1).reshape(len(y), -1))
        x = x + linear(f"{block}.mlp.2", gelu(linear(f"{block}.mlp.0", norm(f"{block}.mlp_ln", x))))
    x = x[: len(x) // 2 * 2].reshape(len(x) // 2, 2, -1).mean(1)
    x = gelu(conv("adapter.conv", norm("encoder.after_norm", x).T, 2)).T
    x = linear("adapter.linear2", np.maximum(linear("adapter.linear1", x), 0))
    return x[: tokens(frames, "L-2" if masked else "L")]


@pytest.mark.parametrize("rule", ["L", "L-2"])
def test_numpy_reference(tiny, models, rule):
    directory, config = tiny
    checkpoint = Checkpoint(directory)
    weights = {name: checkpoint.read(name).astype(np.float64) for name in expected_tensors(config)}
    for frames in (3, 8, 11, 12, 27, 102):
        mel = random_mel(frames)
        expected = reference(weights, config.audio, mel[0].double().numpy(), {"L": 0, "L-2": 2}[rule])
        ours = models[rule](mel, torch.tensor([frames]))[0, : len(expected)].numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=str(frames))


def test_length_rules_differ_where_they_should(models):
    mels = [random_mel(frames) for frames in range(3, 60)]
    together = (models[rule](*batch(mels)) for rule in ("L", "L-2"))
    for frames, full, short in zip(range(3, 60), *together, strict=True):
        assert (full.abs().sum(-1) > 0).sum() == tokens(frames, "L")
        assert (short.abs().sum(-1) > 0).sum() == tokens(frames, "L-2")
        assert (tokens(frames, "L") != tokens(frames, "L-2")) == (frames % 8 in (3, 4))
        assert not torch.equal(full[: tokens(frames, "L-2")], short[: tokens(frames, "L-2")]) or frames < 5


def test_bfloat16_checkpoint_loads_as_float32(tmp_path):
    config = make_tiny(tmp_path / "tiny", dtype="bfloat16", shards=1)
    model = load_encoder(Checkpoint(tmp_path / "tiny"), config.audio, "L")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.isfinite(model(random_mel(50), torch.tensor([50]))).all()


@pytest.mark.parametrize("rule", ["L", "L-2"])
def test_onnx_agrees_with_torch(tiny, models, exported, rule):
    onnxruntime = pytest.importorskip("onnxruntime")
    from step_audio.steps.encoder_engine import OnnxEncoderEngine

    _, config = tiny
    path, manifest = exported[rule]
    assert [output.name for output in manifest.outputs] == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    engine = OnnxEncoderEngine(path)
    assert session.get_modelmeta().custom_metadata_map["length_rule"] == rule
    cases = [SHORT, (3,), (4,), (3, 3), (502,), (27, 1003, 660), (3000,), (3, 2502)]
    for lengths in cases:
        mel, frames = batch([random_mel(n) for n in lengths])
        (ours,) = session.run(["embeddings"], {"mel": mel.numpy(), "frames": frames.numpy()})
        np.testing.assert_allclose(ours, models[rule](mel, frames).numpy(), atol=1e-4, err_msg=str(lengths))
        assert ours.shape == (len(lengths), tokens(max(lengths), "L"), config.audio.llm_dim)
        np.testing.assert_array_equal(engine.run(mel.numpy(), frames.numpy()), ours)  # the longest in memory of its own


def test_bfloat16_stays_within_two_hundredths(models, exported):
    """Of float32's result, on a CPU that has it; what lies behind a clip's end is zero, too."""
    from step_audio.steps.openvino_encoder import OpenVinoEncoderEngine

    engine = OpenVinoEncoderEngine(exported["L"][0])
    for lengths in [(3,), (502,), (27, 1003, 660), (2500,)]:
        mel, frames = batch([random_mel(n) for n in lengths])
        theirs = models["L"](mel, frames).numpy()
        ours = engine.run(mel.numpy(), frames.numpy())
        assert ours.shape == theirs.shape and np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs), lengths
        assert not any(row[tokens(n, "L") :].any() for row, n in zip(ours, lengths, strict=True))


KEPT = """
import re, sys
from pathlib import Path
import numpy as np
from step_audio.steps.{module} import {engine} as Engine

def held():
    return int(re.search(r"Pss_Anon:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])

def run(frames):
    engine.run(np.zeros((1, {n_mels}, frames), np.float32), np.array([frames]))
    return held()

engine = Engine(Path(sys.argv[1]))
run(500)
engine.give_back()
before = held()
assert run(2500) > before + 20_000, "a clip of 25 s leaves megabytes for the next one"
engine.give_back()
assert held() < before + 5_000
"""


@pytest.mark.processes
@pytest.mark.parametrize("module, engine", [
    ("encoder_engine", "OnnxEncoderEngine"), ("openvino_encoder", "OpenVinoEncoderEngine"),
])  # fmt: skip
def test_what_a_clip_s_run_leaves_is_given_back(tiny, exported, module, engine):
    code = KEPT.format(module=module, engine=engine, n_mels=tiny[1].audio.n_mels)
    subprocess.run([sys.executable, "-c", code, exported["L"][0]], env=os.environ | ALLOCATOR, check=True)


def test_export_is_not_repeated_and_not_mixed_up(tiny, exported, tmp_path, monkeypatch):
    directory, _ = tiny
    original, first = exported["L"]
    path = shutil.copytree(original.parent, tmp_path / "copy") / original.name
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported again"))
    assert export_encoder(directory, path, "L") == first
    with pytest.raises(ArtefactError, match="length_rule"):
        export_encoder(directory, path, "L-2")
    path.write_bytes(b"")
    with pytest.raises(ArtefactError, match="bytes instead of"):
        export_encoder(directory, path, "L")


def test_meta_initialisation_covers_every_tensor(tiny):
    """Our module has exactly the published names and shapes."""
    directory, _ = tiny
    config = ModelConfig.from_directory(directory)
    ours = {name: tuple(value.shape) for name, value in AudioEncoder(config.audio, "L").state_dict().items()}
    published = {n: s for n, s in expected_tensors(config).items() if n.startswith(("encoder.", "adapter."))}
    assert ours == published


def test_large_models_keep_their_weights_beside_them(tiny, models, exported, programs, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    directory, _ = tiny
    monkeypatch.setattr(export_module, "EXTERNAL_BYTES", 100_000)
    monkeypatch.setattr(export_module, "_export", lambda *_: programs[-1])
    manifest = export_encoder(directory, tmp_path / "encoder.onnx", "L")
    assert [output.name for output in manifest.outputs] == ["encoder.onnx.data", "encoder.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "encoder.manifest.json",
        "encoder.onnx",
        "encoder.onnx.data",
    ]
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    mel, frames = random_mel(27), torch.tensor([27])
    (ours,) = session.run(["embeddings"], {"mel": mel.numpy(), "frames": frames.numpy()})
    np.testing.assert_allclose(ours, models["L"](mel, frames).numpy(), atol=1e-4)
