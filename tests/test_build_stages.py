"""`step-audio build`: stages in order, each command line, and what happens when one fails, is stopped or does not fit.

The programs and modules of a GPU machine are stand-ins (stand_ins.py); the conversion, the ONNX encoder, its numbers
and the comparison of tokens are real, on a tiny random checkpoint.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from stand_ins import H100, StandIns
from step_audio.config import ModelConfig
from step_audio.errors import StepAudioError
from step_audio.tokenizer import Tokenizer
from step_audio_build.artefacts import artefact
from step_audio_build.commands import build as build_command
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.planning import host_memory
from step_audio_build.planning.memory_plan import plan
from step_audio_build.planning.profiles import load_profile
from step_audio_build.stages import build as stages
from step_audio_build.stages.check import MAX_TOKENS, QUESTIONS, CheckStage
from step_audio_build.stages.convert import ConvertStage
from step_audio_build.stages.layout import BuildJob, BuildSettings, Layout
from step_audio_build.stages.repository import read_built
from step_audio_build.tools import subprocess_runner
from step_audio_build.tools.trtllm_build import command
from step_audio_server.doctor.checks import Examination

PROFILE = load_profile("4xH100-16k")
L40S = "NVIDIA L40S, 8.9, 46068, 590.44.01"
ENGINE_FILES = ["config.json", *(f"rank{n}.engine" for n in range(4))]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """float32, so that its tokens do not depend on who computes them."""
    directory = tmp_path_factory.mktemp("build") / "tiny"
    make_tiny(directory, dtype="float32", max_position_embeddings=32_768, audio_layers=1)
    return directory


@dataclass
class Whole:
    """One build from the beginning to the end: what it was given, made, said and called."""

    work: Path
    tokens: dict[str, list[int]]
    said: list[str]
    calls: list[dict]


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """Done once, with a process for each rank; the tests go on from links to its files."""
    root = tmp_path_factory.mktemp("build")
    work = root / "work"
    stages.build(settings_for(tiny, work), quiet, last="convert")
    tokens = own_tokens(tiny, work)
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = StandIns(root / "machine", monkeypatch)
        machine.tell("tensorrt_llm", tokens=tokens)
        machine.tell("mpirun", all=True)
        said: list[str] = []
        stages.build(settings_for(tiny, work), said.append)
        return Whole(work, tokens, said, machine.calls())


def own_tokens(tiny, work) -> dict[str, list[int]]:
    """By transformers' Qwen2 on embeddings put together here."""
    from reference import Reference

    reference = Reference(tiny)
    check, tokenizer = CheckStage(BuildJob(settings_for(tiny, work), quiet)), Tokenizer.from_directory(tiny)
    tokens = {}
    for name in QUESTIONS:
        tables: dict = {}
        ids = torch.tensor(check._question(name, tokenizer, tables).ids)
        words = reference.weights["model.embed_tokens.weight"]
        rows = torch.from_numpy(tables.get(name, np.zeros((0, words.shape[1]), np.float32)))
        inputs = torch.cat([words, rows])[ids][None]
        with torch.no_grad():
            tokens[name] = reference.model.generate(
                inputs_embeds=inputs, max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0].tolist()
    return tokens


def settings_for(tiny, work, **others) -> BuildSettings:
    return BuildSettings.create(**{"profile": PROFILE, "checkpoint": tiny, "work_dir": work} | others)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def machine(tmp_path, monkeypatch, whole) -> StandIns:
    stand_ins = StandIns(tmp_path / "machine", monkeypatch)
    stand_ins.tell("tensorrt_llm", tokens=whole.tokens)
    return stand_ins


@pytest.fixture
def built(tmp_path, whole) -> Layout:
    """A finished build of one's own; files are linked, for none is written in place."""
    return Layout(Path(shutil.copytree(whole.work, tmp_path / "work", copy_function=os.link)), PROFILE)


@pytest.fixture
def fails(tiny, built):
    """Build, expecting one line of an error."""

    def run(first=None, last="repository", **others) -> str:
        with pytest.raises(StepAudioError) as caught:
            stages.build(settings_for(tiny, built.work, **others), quiet, first, last)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture
def again(tiny, built):
    """Build, and what was said."""

    def run(first=None, last="repository", **others) -> list[str]:
        said: list[str] = []
        stages.build(settings_for(tiny, built.work, **others), said.append, first, last)
        return said

    return run


def finished(layout: Layout) -> list[str]:
    return [name for name in stages.STAGES if layout.manifest(name).exists()]


def test_all_stages_in_order(tiny, whole):
    ends = [line for line in whole.said if line.endswith((": done", ": nothing to do"))]
    assert ends == [
        "download: nothing to do", "convert: nothing to do", "encoder: done", "engine: done", "check: done",
        "repository: done",
    ]  # fmt: skip

    def calls(name):
        return [call for call in whole.calls if call["name"] == name]

    layout = Layout(whole.work, PROFILE)
    memory = plan(PROFILE, ModelConfig.from_directory(tiny))
    partial = layout.own / "engine.partial"
    cache = whole.work / "decoder-sm90.timing-cache"
    wanted = command(PROFILE, memory, whole.work / "decoder-tp4-bfloat16", partial, cache, PROFILE.gpus)
    assert [["trtllm-build", *call["argv"]] for call in calls("trtllm-build")] == [wanted]
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    worker = [sys.executable, "-m", "step_audio_build.tools.check_engine", str(layout.own / "check.job.json")]
    assert [call["argv"] for call in calls("mpirun")] == [[*as_root, "-n", "4", *worker]]
    loads = calls("tensorrt_llm")
    assert sorted(load["rank"] for load in loads) == [0, 1, 2, 3]
    assert {load["engine"] for load in loads} == {str(layout.engine)}
    assert {load["kv_cache_free_gpu_memory_fraction"] for load in loads} == {PROFILE.kv_fraction}

    assert sorted(path.name for path in layout.engine.iterdir()) == ENGINE_FILES
    assert not list(whole.work.rglob("*.partial"))
    verdict = json.loads((layout.own / "check.json").read_text())
    assert verdict["agreement"] == 1 and verdict["repeatable"] and verdict["tokens"] == 2 * MAX_TOKENS
    parity = json.loads((layout.own / "encoder.parity.json").read_text())
    assert parity["max_error"] == 0 and parity["min_cosine"] > 0.99999


def test_what_serving_reads(tiny, built, machine):
    artefacts = read_built(PROFILE, built.work, tiny, "L")
    assert artefacts.engine_dir == built.engine and artefacts.encoder_file.suffix == ".plan"
    assert artefacts.tokenizer_file.is_file() and artefacts.xgrammar_tokenizer_info_file.is_file()
    limits = plan(PROFILE, ModelConfig.from_directory(tiny)).build
    assert artefacts.max_prompt_table_rows == limits.max_prompt_embedding_table_size // limits.max_batch_size
    assert artefacts.table_dtype == "bfloat16"


def test_a_second_run_does_nothing(built, machine, again):
    before = {path: path.stat().st_mtime_ns for path in built.work.rglob("*")}
    assert {line.partition(": ")[2] for line in again()} == {"nothing to do"}
    assert {call["name"] for call in machine.calls()} == {"nvidia-smi"}
    assert {path: path.stat().st_mtime_ns for path in built.work.rglob("*")} == before


@pytest.mark.parametrize(
    ("stage", "program", "behaviour", "message"),
    [
        ("encoder", "tensorrt", {"no_plan": True}, "encoder_plan ended with status 1: error: TensorRT built no plan"),
        ("encoder", "encoder", {"error": 5.0}, "differs from ONNX Runtime: cosine"),
        ("engine", "trtllm-build", {"status": 1, "print": "[E] out of memory"}, "ended with status 1: [E] out of"),
        ("engine", "trtllm-build", {"status": 1}, "status 1: [TRT-LLM] [I] Compute capability: (9, 0)"),
        ("engine", "trtllm-build", {"workers": "no tactic"}, "status 1: RuntimeError: no tactic; log: "),
        ("engine", "trtllm-build", {"workers": 9}, f"status 1: {subprocess_runner.FOR_MEMORY}; log: "),
        ("engine", "trtllm-build", {"ranks": 3}, "trtllm-build left no rank3.engine"),
        ("engine", "trtllm-build", {"build_config": {"max_batch_size": 1}}, "max_batch_size 1, 32 was asked"),
        ("check", "mpirun", {"status": 213, "print": "Error: no slots"}, "check_engine ended with status 213: Error:"),
    ],
)  # fmt: skip
def test_a_stage_fails_and_is_taken_up_again(stage, program, behaviour, message, built, machine, fails, again):
    machine.tell(program, **behaviour)
    error = fails(first=stage)
    assert message in error, error
    assert finished(built) == list(stages.STAGES[2 : stages.STAGES.index(stage)])
    assert not (built.own / "engine.partial").exists() and not (built.own / "encoder.plan.partial").exists()
    machine.tell(program)
    said = again(last=stage)
    assert f"{stage}: done" in said
    assert [line for line in said if line.endswith("begins")] == [f"{stage}: begins"]


def memory_of(tmp_path, monkeypatch, gigabytes: float) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 990000000 kB\nMemAvailable: {int(gigabytes * 1e9) >> 10} kB\n")
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "CGROUP", tmp_path / "none")


def test_as_many_ranks_at_once_as_memory_has_room_for(tiny, built, machine, again, tmp_path, monkeypatch):
    """Of which the engines know nothing."""
    rank = 2 * plan(PROFILE, ModelConfig.from_directory(tiny)).weights / 1e9
    for room, asked, workers, told in (
        (4.1, None, 4, ""),
        (3.9, None, 3, "engine: 3 of 4 ranks at once, which take "),
        (0.5, None, 1, "engine: 1 of 4 ranks at once take "),
        (9.0, 2, 2, "engine: 2 of 4 ranks at once, which take "),
    ):
        memory_of(tmp_path, monkeypatch, room * rank)
        machine.forget_calls()
        said = again(first="engine", last="engine", workers=asked)
        [call] = machine.calls("trtllm-build")
        assert call["argv"][call["argv"].index("--workers") + 1] == str(workers)
        assert [line for line in said if "ranks at once" in line] == [line for line in said if told and told in line]
        assert not told or any(told in line for line in said)
    memory_of(tmp_path, monkeypatch, 9 * rank)
    assert "engine: nothing to do" in again(last="engine")


def test_what_a_build_has_still_to_write(tiny, built, machine):
    """As doctor asks; a stage that is done takes no more room."""
    job = BuildJob(settings_for(tiny, built.work), quiet)
    assert stages.space_needed(job) == Examination(PROFILE, built.work, tiny)._to_write(False) == 0
    built.manifest("engine").unlink()
    assert stages.space_needed(job) == 4 * job.plan.weights
    (built.plain_decoder / "manifest.json").unlink()
    assert stages.space_needed(job) == Examination(PROFILE, built.work, tiny)._to_write(False)
    assert 8 * job.plan.weights <= stages.space_needed(job) < 8.01 * job.plan.weights  # the ONNX encoder is still there


def test_an_engine_that_answers_wrongly(built, machine, fails, whole):
    machine.tell("tensorrt_llm", tokens={name: [token + 1 for token in ids] for name, ids in whole.tokens.items()})
    assert "agrees with the checkpoint in 0% of tokens, 75% is the least" in fails(first="check")
    assert json.loads((built.own / "check.json").read_text())["largest_shortfall"] > 1
    machine.tell("tensorrt_llm", tokens={"text": [], "audio": []})
    assert "no token for the question text" in fails()
    machine.add_program("mpirun", "")
    assert "gave no answer; log: " in fails()


def test_answers_that_change_are_told(machine, again, whole):
    machine.tell("tensorrt_llm", tokens=whole.tokens, again={name: ids[::-1] for name, ids in whole.tokens.items()})
    assert any("not repeatable" in line for line in again(first="check"))


def test_one_gpu_needs_no_mpirun(tiny, built, machine):
    machine.remove("mpirun")
    job = BuildJob(settings_for(tiny, built.work, profile=PROFILE.model_copy(update={"gpus": 1})), quiet)
    assert CheckStage(job)._command() == [
        sys.executable, "-m", "step_audio_build.tools.check_engine", str(built.own / "check.job.json")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda machine: machine.remove("nvidia-smi"), "nvidia-smi is not installed"),
        (lambda machine: machine.tell("nvidia-smi", status=9, print="No devices"), "nvidia-smi failed: No devices"),
        (lambda machine: machine.tell("nvidia-smi", gpus=["what?"]), "which is not understood"),
        (lambda machine: machine.tell("nvidia-smi", gpus=[H100] * 2), "needs 4 GPUs, 2 are visible"),
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


def test_from_and_to(built, machine, fails, again):
    assert "--from check is behind --to engine" in fails(first="check", last="engine")
    again(first="engine", last="engine")
    assert len(machine.calls("trtllm-build")) == 1 and not machine.calls("mpirun")
    assert finished(built) == ["encoder", "engine"]
    again(first="check")
    assert len(machine.calls("trtllm-build")) == 1 and len(machine.calls("mpirun")) == 1
    built.manifest("encoder").unlink()
    assert "stage encoder is not finished; run `step-audio build --from encoder`" in fails(first="engine")


def test_from_the_beginning_keeps_what_other_profiles_use(built, machine, again):
    for program in ("nvidia-smi", "trtllm-build", "mpirun"):  # none of which these two stages need
        machine.remove(program)
    assert "convert: nothing to do" in again(first="download", last="convert")
    assert finished(built) == []


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


def test_a_plan_that_does_not_fit(tiny, tmp_path, machine):
    small = PROFILE.model_copy(update={"gpu": PROFILE.gpu.model_copy(update={"memory_bytes": 4 << 30})})
    with pytest.raises(StepAudioError, match="4xH100-16k does not fit: "):
        stages.build(settings_for(tiny, tmp_path / "new", profile=small), quiet)


MAIN = """
import argparse, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started under
from step_audio_build.commands.build import add_build
parser = argparse.ArgumentParser()
add_build(parser.add_subparsers())
arguments = parser.parse_args(sys.argv[1:])
try:
    sys.exit(arguments.run(arguments))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number, tiny, built, machine, again):
    machine.tell("trtllm-build", hang=True)
    arguments = ["build", "--profile", PROFILE.name, "--checkpoint", str(tiny), "--work-dir", str(built.work)]
    arguments += ["--from", "engine"]
    with subprocess.Popen([sys.executable, "-c", MAIN, *arguments], stderr=subprocess.PIPE, text=True) as process:
        pid_file = machine.root / "trtllm-build.pid"
        deadline = time.monotonic() + 300
        while not pid_file.exists() or not pid_file.read_text():
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(120) == 130
        assert "Traceback" not in process.stderr.read()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert finished(built) == ["encoder"] and not (built.own / "engine.partial").exists()
    machine.tell("trtllm-build")
    assert "encoder: nothing to do" in again(last="engine")


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
