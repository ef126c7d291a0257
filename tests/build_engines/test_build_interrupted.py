"""`step-audio build` that fails or is stopped, and goes on where it was."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from build_fixture import PROFILE
from step_audio_build.stages import build as stages
from step_audio_build.stages.layout import Layout
from step_audio_build.tools import subprocess_runner
from waiting import wait_until


def finished(layout: Layout) -> list[str]:
    return [name for name in stages.STAGES if layout.manifest(name).exists()]


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


MAIN = """
import argparse, sys
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
        wait_until(
            lambda: process.poll() is not None or (pid_file.exists() and pid_file.read_text()), "the engine's build"
        )
        process.send_signal(number)
        assert process.wait() == 130
        assert "Traceback" not in process.stderr.read()
    status = Path(f"/proc/{pid_file.read_text()}/status")
    wait_until(lambda: not status.exists() or "zombie" in status.read_text(), "the end of its own program")
    assert finished(built) == ["encoder"] and not (built.own / "engine.partial").exists()
    machine.tell("trtllm-build")
    assert "encoder: nothing to do" in again(last="engine")
