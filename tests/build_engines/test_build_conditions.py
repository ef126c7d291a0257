"""What a build looks at before it begins: the machine, the disk, other builds' artefacts."""

import json
import shutil
from collections import namedtuple

import pytest

from build_fixture import L40S, PROFILE, quiet, settings_for
from stand_ins import H100
from step_audio.errors import StepAudioError
from step_audio_build.artefacts import artefact
from step_audio_build.artefacts.manifest import read_manifest
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.stages import build as stages
from step_audio_build.tools import subprocess_runner


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda machine: machine.remove("nvidia-smi"), "nvidia-smi is not installed"),
        (lambda machine: machine.tell("nvidia-smi", status=9, print="No devices"), "nvidia-smi failed: No devices"),
        (lambda machine: machine.tell("nvidia-smi", gpus=["what?"]), "which is not understood"),
        (lambda machine: machine.tell("nvidia-smi", gpus=[H100] * 2), "needs 4 GPUs, 2 are visible"),
        (lambda machine: machine.tell("nvidia-smi", gpus=[f"{H100}, Enabled"] * 4), "GPU 0 is divided (MIG)"),
        (lambda machine: machine.tell("nvidia-smi", gpus=[L40S] * 4), "this is NVIDIA L40S (sm89)"),
        (lambda machine: machine.tell("nvidia-smi", gpus=[H100.replace("81559", "40960")] * 4), "has 42.9 GB"),
        (lambda machine: machine.tell("nvidia-smi", gpus=[H100, H100.replace("HBM3", "PCIe")] * 2), "the GPUs differ"),
        (lambda machine: machine.remove("trtllm-build"), "trtllm-build not found: build inside the image"),
        (lambda machine: machine.remove("mpirun"), "mpirun not found"),
        (lambda machine: shutil.rmtree(machine.modules / "tensorrt"), "tensorrt not found"),
        (lambda machine: shutil.rmtree(machine.modules / "tensorrt_llm"), "tensorrt_llm not found"),
    ],
)  # fmt: skip
def test_what_a_machine_lacks_is_said_before_anything_is_done(prepare, message, tiny, tmp_path, machine):
    prepare(machine)
    with pytest.raises(StepAudioError, match=message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")):
        stages.build(settings_for(tiny, tmp_path / "new"), quiet)
    assert not (tmp_path / "new").exists()


def test_hidden_gpus_do_not_count(machine, fails, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert "2 are visible" in fails()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profile": PROFILE.model_copy(update={"max_batch_size": 8})}, "engine: .*--max_batch_size 32, not 8"),
        ({"profile": PROFILE.model_copy(update={"precision": "int8"})}, "precision bfloat16, not int8"),
        ({"encoder_precision": "float32"}, "encoder: .*made with precision bfloat16, not float32"),
    ],
)
def test_artefacts_of_another_build_are_left_alone(change, message, tiny, built, machine):
    before = (built.engine / "config.json").stat().st_mtime_ns
    with pytest.raises(StepAudioError, match=message) as caught:
        stages.build(settings_for(tiny, built.work, **change), quiet)
    assert "anew with --from" in str(caught.value)
    assert (built.engine / "config.json").stat().st_mtime_ns == before and not machine.calls("trtllm-build")


def test_another_release_or_gpu_is_another_build(tiny, built, machine):
    machine.set_version("tensorrt_llm", "1.0.0")
    with pytest.raises(StepAudioError, match=r"engine: .*tensorrt_llm 1.2.1, not 1.0.0"):
        stages.build(settings_for(tiny, built.work), quiet)
    machine.set_version("tensorrt_llm", "1.2.1")
    machine.tell("nvidia-smi", gpus=["NVIDIA H200, 9.0, 143771, 590.44.01"] * 4)
    with pytest.raises(StepAudioError, match=r"encoder: .*gpu NVIDIA H100 80GB HBM3, not NVIDIA H200"):
        stages.build(settings_for(tiny, built.work), quiet)


def test_another_checkpoint_is_another_build(tiny, built, machine, tmp_path):
    other = tmp_path / "other"
    make_tiny(other, seed=1, dtype="float32", max_position_embeddings=32_768, audio_layers=1)
    with pytest.raises(StepAudioError, match=r"convert: .*another checkpoint"):
        stages.build(settings_for(other, built.work), quiet)


def test_a_converted_decoder_that_was_made_anew_makes_the_engine_old(tiny, built, machine):
    """Equal settings, other bytes: as after a fault of the disk, or by hand."""
    path = built.plain_decoder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"][0]["sha256"] = "0" * 64
    path.unlink()  # a link to what other tests use
    path.write_text(json.dumps(manifest))
    with pytest.raises(StepAudioError, match=r"engine: .*the converted decoder has changed since"):
        stages.build(settings_for(tiny, built.work), quiet)


def full_disk(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(artefact.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - free, free))


def test_a_full_disk_is_seen_first(tiny, tmp_path, machine, monkeypatch):
    full_disk(monkeypatch, 1000)
    with pytest.raises(StepAudioError, match=r"stages download to repository: .* needed, .* has 0.0 GB free"):
        stages.build(settings_for(tiny, tmp_path / "new"), quiet)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_meanwhile(built, machine, fails):
    machine.tell("trtllm-build", status=1, print="OSError: [Errno 28] No space left on device")
    assert "No space left on device" in fails(first="engine")
    assert not (built.own / "engine.partial").exists()  # which gives its space back


@pytest.mark.parametrize("stage", ["encoder", "engine", "check"])
def test_nvidia_smi_fails_after_the_work(stage, tiny, built, machine, monkeypatch):
    """What an hour has built is not lost for want of a line about the driver."""
    real = subprocess_runner.run

    def run(*arguments):
        real(*arguments)
        machine.tell("nvidia-smi", status=9, print="Driver/library version mismatch")

    monkeypatch.setattr(subprocess_runner, "run", run)
    stages.build(settings_for(tiny, built.work), quiet, stage, stage)
    machine.tell("nvidia-smi", gpus=[H100] * 4)
    assert read_manifest(built.manifest(stage)).tools["driver"] == "590.44.01"


def test_a_plan_that_does_not_fit(tiny, tmp_path, machine):
    small = PROFILE.model_copy(update={"gpu": PROFILE.gpu.model_copy(update={"memory_bytes": 4 << 30})})
    with pytest.raises(StepAudioError, match="4xH100-16k does not fit: "):
        stages.build(settings_for(tiny, tmp_path / "new", profile=small), quiet)
