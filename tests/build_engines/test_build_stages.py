"""`step-audio build`: stages in order, each command line, what is done again and what is not."""

import json
import os
import sys

from build_fixture import PROFILE, quiet, settings_for
from step_audio.config import ModelConfig
from step_audio_build.planning import host_memory
from step_audio_build.planning.memory_plan import plan
from step_audio_build.stages import build as stages
from step_audio_build.stages.check import MAX_TOKENS, CheckStage
from step_audio_build.stages.layout import BuildJob, Layout
from step_audio_build.stages.repository import read_built
from step_audio_build.tools.trtllm_build import command
from step_audio_server.doctor.checks import Examination

ENGINE_FILES = ["config.json", *(f"rank{n}.engine" for n in range(4))]


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
    assert [call["argv"] for call in calls("mpirun")] == [[*as_root, "--bind-to", "none", "-n", "4", *worker]]
    loads = calls("tensorrt_llm")
    assert sorted(load["rank"] for load in loads) == [0, 1, 2, 3]
    assert {load["engine"] for load in loads} == {str(layout.engine)}
    assert {load["kv_cache_free_gpu_memory_fraction"] for load in loads} == {memory.kv_fraction}

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
    assert CheckStage(job)._command() == (
        sys.executable, "-m", "step_audio_build.tools.check_engine", str(built.own / "check.job.json")
    )  # fmt: skip
