"""Builds of a tiny model for four GPUs."""

import contextlib
import importlib
import io
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from stand_ins import StandIns
from step_audio.command_line import Echo
from step_audio.tokenizer import Tokenizer
from step_audio_build.planning.profiles import load_profile
from step_audio_build.stages.check import MAX_TOKENS, QUESTIONS, CheckStage
from step_audio_build.stages.layout import BuildJob, BuildSettings
from step_audio_build.tools import subprocess_runner

PROFILE = load_profile("4xH100-16k")
L40S = "NVIDIA L40S, 8.9, 46068, 590.44.01"


@dataclass
class Whole:
    """One build from the beginning to the end: what it was given, made, said and called."""

    work: Path
    tokens: dict[str, list[int]]
    said: list[str]
    calls: list[dict]


def own_tokens(tiny, work) -> dict[str, list[int]]:
    """By transformers' Qwen2 on embeddings put together here."""
    import torch  # a second, in each worker that collects

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


def run_tools_here(machine: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build's own programs run in this process, of several ranks the first: to start them takes seconds.

    What they print and how they end reaches the build through a process still, under their names.
    """
    run = subprocess_runner.run
    plans = types.ModuleType("tensorrt_encoder")
    exec(machine.tensorrt_encoder, vars(plans))
    monkeypatch.setitem(sys.modules, "step_audio.steps.tensorrt_encoder", plans)
    monkeypatch.setenv("RANKS_ELSEWHERE", "1")

    def run_here(
        argv: Sequence[str], log: Path, echo: Echo = quiet, environment: Mapping[str, str] | None = None
    ) -> None:
        if "-m" not in argv or argv[0] not in (sys.executable, "mpirun"):
            return run(argv, log, echo, environment)
        if argv[0] == "mpirun":
            done = machine.root / "mpirun.done"
            done.unlink(missing_ok=True)
            run(argv, log, echo, environment)
            if not done.exists():  # another program in its place
                return None
        module, *arguments = argv[argv.index("-m") + 1 :]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                status = importlib.import_module(module).main(arguments)
            except SystemExit as ended:
                status = ended.code
            except Exception:
                status = 1
                traceback.print_exc(file=printed)
        end = f"import sys; print(sys.argv[3], end=''); sys.exit({status})"
        return run([sys.executable, "-ISc", end, "-m", module, printed.getvalue()], log, echo)

    monkeypatch.setattr(subprocess_runner, "run", run_here)


def settings_for(tiny, work, **others) -> BuildSettings:
    return BuildSettings.create(**{"profile": PROFILE, "checkpoint": tiny, "work_dir": work} | others)


def quiet(line: str) -> None:
    pass
