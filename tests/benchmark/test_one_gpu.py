"""The script for one GPU, at a small size on the CPU: all of its steps, its seam, what it says is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from engine_fixture import batch, model, prompt
from lazy import Lazy
from scripts import script_of
from step_audio.checkpoint import expected_tensors
from step_audio.engine.executor import TokenEmbedding
from step_audio_benchmark.generated import GeneratedCheckpoint

torch, one_gpu = Lazy("torch"), Lazy("step_audio_benchmark.one_gpu")
CudaExecutor = Lazy("step_audio_benchmark.cuda_executor:CudaExecutor")
TorchExecutor = Lazy("step_audio.engine.torch_executor:TorchExecutor")


@pytest.fixture(scope="module")
def script():
    return script_of("benchmarks/one_gpu.py")


@pytest.fixture
def parts(script):
    return {name: step for part in script.PARTS.values() for name, step in part.items()}


@pytest.fixture
def job(script, tmp_path):
    said = []
    made = one_gpu.Job(script.SMALL, tmp_path / "work", "cpu", said.append)
    object.__setattr__(made, "said", said)
    return made


@pytest.fixture
def run(script, monkeypatch):
    def main(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["one_gpu.py", *map(str, arguments)])
        return script.main()

    return main


@pytest.mark.long
def test_the_decoder_s_part(run, script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("step_audio_benchmark.one_gpu.REPEATS", 3)
    arguments = ("--work", tmp_path, "--device", "cpu", "--size", "small", "--part", "decoder")
    assert run(*arguments) == 0
    report = (tmp_path / "one_gpu.md").read_text()
    for line in ("- device: cpu", "- size: small", "| decode ", "| batch 1 ", "| batch 8 ", "| batch 32 "):
        assert line in report
    found = json.loads((tmp_path / "one_gpu.json").read_text())
    assert found["ranks"]["matrices"] == 10
    assert all(found["decode"][f"batch {size}"]["cosine"] > 0.999 for size in (1, 8, 32))
    capsys.readouterr()
    assert run(*arguments) == 0
    said = capsys.readouterr().err
    assert all(f"{name}: done before" in said for name in script.PARTS["decoder"])


@pytest.mark.build
def test_the_encoder_s_part(run, tmp_path):
    assert run("--work", tmp_path, "--device", "cpu", "--size", "small", "--part", "encoder") == 0
    found = json.loads((tmp_path / "one_gpu.json").read_text())
    assert found["encoder"]["torch float32"]["least cosine"] > 0.9999
    assert found["encoder"]["torch bfloat16"]["least cosine"] > 0.99
    assert found["tensorrt"] == {"left out": "it needs a GPU"}


def test_another_machine_begins_anew(job):
    job.work.mkdir()
    done = []
    steps = {"one": lambda job: done.append(1) or {"n": len(done)}}
    for about in ({"card": "A"}, {"card": "A"}, {"card": "B"}):
        found = one_gpu.run(job, steps, about)
    assert len(done) == 2 and found == {"about": {"card": "B"}, "one": {"n": 2}}


def test_what_is_missing_is_said_first(job, parts, monkeypatch):
    assert one_gpu.missing(job, parts) == []
    monkeypatch.setattr("step_audio_benchmark.one_gpu.free_space", lambda path: 1000)
    monkeypatch.setattr("step_audio_benchmark.one_gpu.find_spec", lambda name: None if name == "onnxscript" else True)
    said = one_gpu.missing(replace(job, device="cuda:0"), parts)
    assert any("needs 0 GB and has 0 GB free" in line for line in said)
    assert "onnxscript is not installed" in said
    if not torch.cuda.is_available():
        assert any("torch finds no CUDA device" in line for line in said)


def test_generated_rows_are_the_same_however_they_are_read(script, tmp_path):
    checkpoint = GeneratedCheckpoint(tmp_path, script.SMALL)
    checkpoint.verify(script.SMALL)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"):
        whole = checkpoint.read(name)
        assert whole.shape == expected_tensors(script.SMALL)[name] and whole.dtype == np.uint16
        assert np.array_equal(
            np.concatenate([checkpoint.read_rows(name, 0, 7), checkpoint.read_rows(name, 7, len(whole))]), whole
        )
    assert len(np.unique(checkpoint.read("lm_head.weight"), axis=0)) == script.SMALL.text.vocab_size


def test_steps_of_decoding_equal_the_oracle():
    """Of sequences of different lengths, in blocks of no order, beside steps with prompts."""
    spec, weights = model()
    embed = TokenEmbedding(weights)
    ours, theirs = CudaExecutor(spec, weights, 10, "f32", "cpu"), TorchExecutor(spec, weights, 10, "f32", 1)
    a, b = prompt(100), prompt(40)
    for step in (
        [("a", 0, a[:90]), ("b", 0, b[:33])],
        [("a", 90, a[90:91]), ("b", 33, b[33:34])],
        [("b", 34, b[34:35]), ("a", 91, a[91:92])],
        [("a", 92, a[92:]), ("c", 0, prompt(1))],
    ):
        got, expected = (executor.forward(batch(embed, *step)).copy() for executor in (ours, theirs))
        assert np.abs(got - expected).max() < 2e-4
