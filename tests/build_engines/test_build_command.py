"""`step-audio build` and `step-audio serve` as commands: what is checked, said and refused."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from build_fixture import L40S, PROFILE, quiet, settings_for
from stand_ins import H100
from step_audio.errors import StepAudioError
from step_audio.safetensors import LFS_POINTER
from step_audio_build.artefacts import artefact
from step_audio_build.commands import build as build_command
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.stages import build as stages
from step_audio_build.stages.convert import ConvertStage
from step_audio_build.stages.layout import BuildJob
from step_audio_build.stages.repository import read_built
from step_audio_server.doctor import host


def test_serving_refuses_what_is_not_its_own(tiny, built, machine, tmp_path):
    def refusal(profile=PROFILE, checkpoint=tiny, rule=None) -> str:
        with pytest.raises(StepAudioError) as caught:
            read_built(profile, built.work, checkpoint, rule)
        return str(caught.value)

    assert "no engines of profile none" in refusal(PROFILE.model_copy(update={"name": "none"}))
    assert "max_seq_len 16384, not 8192" in refusal(PROFILE.model_copy(update={"max_seq_len": 8192}))
    assert "length rule L, not L-2" in refusal(rule="L-2")
    make_tiny(tmp_path / "other", hidden_size=32)
    assert "another checkpoint" in refusal(checkpoint=tmp_path / "other")
    machine.tell("nvidia-smi", gpus=[L40S] * 4)
    assert "choose a profile of this GPU" in refusal()
    machine.tell("nvidia-smi", gpus=["NVIDIA H200, 9.0, 143771, 590.44.01"] * 4)
    assert "was built for gpu NVIDIA H100 80GB HBM3, this is NVIDIA H200" in refusal()
    machine.tell("nvidia-smi", gpus=[H100] * 4)
    machine.set_version("tensorrt_llm", "1.0.0")
    assert "tensorrt_llm 1.2.1, this is 1.0.0" in refusal()
    machine.set_version("tensorrt_llm", "1.2.1")
    path = built.manifest("engine")
    content = path.read_text()
    path.unlink()
    assert "engine.manifest.json is missing; run `step-audio build --from engine`" in refusal()
    path.write_text(content.replace('"--max_batch_size": "32"', '"--max_batch_size": "31"'))
    assert "the engine has been built anew since" in refusal()
    path.write_text(content)
    (built.engine / "rank2.engine").unlink()
    (built.engine / "rank2.engine").write_bytes(b"short")
    assert "rank2.engine has 5 bytes" in refusal()
    (built.engine / "rank2.engine").unlink()
    assert "rank2.engine is missing" in refusal()


def test_doctor_says_what_serving_would_refuse(tiny, built, machine):
    assert host.engines(PROFILE, built.work, tiny).status == "ok"
    other = host.engines(PROFILE.model_copy(update={"max_seq_len": 8192}), built.work, None)
    assert other.status == "fault" and "was built with max_seq_len 16384, not 8192" in other.found
    assert other.advice == f"run `step-audio build --profile {PROFILE.name}` again"


def test_served_as_it_was_built(tiny, built, machine, again):
    """The precision is chosen when building; serving names the profile alone."""
    int8 = PROFILE.model_copy(update={"precision": "int8"})
    ConvertStage(BuildJob(settings_for(tiny, built.work, profile=int8), quiet)).run()
    again(first="engine", profile=int8)
    assert read_built(PROFILE, built.work, tiny).engine_dir == built.engine
    [trtllm] = machine.calls("trtllm-build")
    assert str(built.work / "decoder-tp4-int8") in trtllm["argv"]


def test_checked_parts_only(tiny, built, machine):
    """An encoder that was built after the check, its manifest brought along by hand."""
    manifest = built.manifest("encoder")
    content = json.loads(manifest.read_text())
    manifest.unlink()
    content["outputs"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    built.manifest("repository").unlink()
    with pytest.raises(StepAudioError, match=r"check: .*encoder has changed since"):
        stages.build(settings_for(tiny, built.work), quiet)


def run_command(*arguments) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    build_command.add_build(parser.add_subparsers())
    parsed = parser.parse_args(["build", *map(str, arguments)])
    return parsed.run(parsed)


def test_dry_run_writes_nothing(tiny, tmp_path, machine, capsys):
    machine.remove("nvidia-smi")
    work = tmp_path / "new"
    assert run_command("--profile", PROFILE.name, "--checkpoint", tiny, "--work-dir", work, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "trtllm-build --checkpoint_dir" in text and "mpirun" in text and "GB free" in text
    assert all(f"{stage}:" in text for stage in stages.STAGES)
    assert not work.exists() and not machine.calls()


def test_what_a_late_stage_would_lack_is_said_at_once(tiny, tmp_path, machine, capsys, monkeypatch):
    """By a dry run, which fails then, and by a build before its first stage."""
    own, work = shutil.copytree(tiny, tmp_path / "own"), tmp_path / "new"
    given = ("--profile", PROFILE.name, "--checkpoint", own, "--work-dir", work)
    assert run_command(*given, "--dry-run") == 0 and "would fail" not in capsys.readouterr().out
    (own / "tokenizer.json").unlink()
    monkeypatch.setattr(artefact.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert run_command(*given, "--dry-run") == 1
    tokenizer, disk = [line for line in capsys.readouterr().out.splitlines() if line.startswith("this would fail: ")]
    assert "neither tokenizer.json nor vocab.json" in tokenizer and "0.0 GB free" in disk
    with pytest.raises(StepAudioError, match=r"neither tokenizer.json nor vocab.json.*; stages download to repository"):
        run_command(*given)
    (own / "tokenizer.json").write_bytes(LFS_POINTER)
    with pytest.raises(StepAudioError, match=r"tokenizer.json is a git-lfs pointer, .*`git lfs pull` in .*own"):
        run_command(*given)
    assert not work.exists() and not machine.calls("trtllm-build")


def test_a_folder_of_another_user(tiny, built, machine, monkeypatch):
    """A stage of an earlier run as root, say."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != built.own and real(path, mode))
    with pytest.raises(StepAudioError, match=rf"{built.own} is not writable by user \d+: chown -R"):
        stages.build(settings_for(tiny, built.work), quiet)


def test_the_command_says_how_to_serve(tiny, built, machine, capsys):
    assert run_command("--profile", PROFILE.name, "--checkpoint", tiny, "--work-dir", built.work) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"serve it: step-audio serve --profile {PROFILE.name} --checkpoint {tiny} --work-dir {built.work}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--profile 4xH100-16k", "where to"),
        ("--profile 4xH100-16k --work-dir w", "give either --checkpoint DIR or --model"),
        ("--profile 4xH100-16k --work-dir w --checkpoint c --model a/b@c", "give either"),
        ("--profile 4xH100-16k --work-dir w --model a/b", "needs a pinned revision"),
        ("--profile 9xZX81 --work-dir w --checkpoint c", "there is no profile 9xZX81"),
        ("--profile 4xH100-16k --work-dir w --checkpoint nowhere --dry-run", "nowhere does not exist"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(StepAudioError, match=message):
        run_command(*arguments.split())
