"""The encoder in torch beside vLLM: which engine a server gets, and what is said where there is no GPU for it."""

import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from lazy import Lazy
from model_fixture import runtime
from step_audio.errors import ArtefactError, SettingsError
from step_audio.steps import torch_encoder
from step_audio.steps.encoder_engine import ClipEncoder
from step_audio.steps.torch_encoder import TorchEncoderEngine
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_server import encoder_gpu

torch = Lazy("torch")


@pytest.fixture
def visible(monkeypatch):
    """Set anew by whoever takes a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda: os.environ["CUDA_VISIBLE_DEVICES"]


def test_it_is_the_one_where_the_server_names_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch_encoder, "TorchEncoderEngine", lambda *given: asked.append(given) or SimpleNamespace())
    told = runtime().model_copy(update={"encoder_gpu": "2"})
    ClipEncoder(told)
    assert asked == [(told.encoder_file, told.model.audio, "L-2", "float16", told.encoder_batch_clips, "2")]


def test_without_a_gpu_it_does_not_load(tmp_path, visible):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ArtefactError, match=r"the audio encoder is to run on GPU 2, and torch \S+ finds none"):
        TorchEncoderEngine(tmp_path, runtime().model.audio, "L", "bfloat16", 4, "2")
    assert visible() == "2", "and would have seen no other"


def test_the_largest_run_is_made_while_it_loads(tmp_path, visible, monkeypatch):
    """What that takes stays taken; where there is no room nothing is promised."""
    config = make_tiny(tmp_path / "tiny")
    ran = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, **told: self)
    monkeypatch.setattr(TorchEncoderEngine, "run", lambda self, mel, frames: ran.append((mel.shape, frames.tolist())))
    given = (tmp_path / "tiny", config.audio, "L", "bfloat16", 3, "0")
    TorchEncoderEngine(*given)
    assert ran == [((3, 128, 2 * config.audio.n_audio_ctx), [2 * config.audio.n_audio_ctx] * 3)]

    def full(self, mel: np.ndarray, frames: np.ndarray) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(TorchEncoderEngine, "run", full)
    with pytest.raises(ArtefactError, match="no room for the audio encoder on GPU 0: lower --gpu-memory-utilization"):
        TorchEncoderEngine(*given)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("2.13.0+cpu  0", r"torch 2\.13\.0\+cpu here has no CUDA"),
        ("2.13.0 13.0 0", r"torch 2\.13\.0 finds none"),
        ("", "has no torch"),
    ],
)
def test_a_torch_that_cannot_is_told_before_anything_is_loaded(monkeypatch, said, why):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=f"{said}\n"))
    with pytest.raises(SettingsError, match=f"the audio encoder is to run on the GPU, and .*{why}: .*--encoder-device"):
        encoder_gpu.check()


def test_a_torch_that_can(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="2.13.0 13.0 4\n"))
    assert encoder_gpu.check() == "2.13.0"


@pytest.mark.parametrize(("named", "first"), [(None, "0"), ("2,3", "2"), ("GPU-1a, GPU-2b", "GPU-1a"), ("", "0")])
def test_the_gpu_is_that_of_vllm_s_first_rank(monkeypatch, named, first):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert encoder_gpu.first() == first
