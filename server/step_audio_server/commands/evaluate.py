"""`step-audio eval`: questions to a server, its answers scored, figures and a report."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from step_audio.command_line import Echo
from step_audio.config import ModelConfig
from step_audio.extras import install_for
from step_audio.progress import Progress
from step_audio.serving_info import no_adapter
from step_audio_client import RequestError, Sampling, StepAudioClient, Tls
from step_audio_evaluation.agreement import Agreement, agreement
from step_audio_evaluation.answers import AnswerFile, EvaluationSettings, SpecialSettings
from step_audio_evaluation.data_set import load_data_set
from step_audio_evaluation.formats import FORMATS
from step_audio_evaluation.held_out import TASKS, at_budgets, at_noise_levels, end_speakers, held_out
from step_audio_evaluation.items import Budget, EvaluationError, Item, Snr, repeated
from step_audio_evaluation.plots import plot_budgets, plot_noise
from step_audio_evaluation.presets import GREEDY, PRESETS
from step_audio_evaluation.report import Row, grade, make_report
from step_audio_evaluation.run import run
from step_audio_evaluation.tables import sentences, table, write
from step_audio_evaluation.voices import by_voice
from step_audio_server.commands.own_server import own_server
from step_audio_server.serve import Service
from step_audio_training.questions import SETS, sets_that_can_be_made

PER_TASK, PER_TASK_QUICK = 100, 10


@dataclass(frozen=True)
class EvaluationOptions:
    """What a person chooses. `format`: of the data set; its preset comes along. `tasks` None: all, or none where there
    is a data set or there are `voices` or `budgets`. `voices`: names of sets, none for all that can be made here.
    `sampling`: over the preset's. `adapter`: of the server at `url`."""

    output: Path
    url: str | None = None
    tls: Tls | None = None
    checkpoint: Path | None = None
    data: Path | None = None
    format: str | None = None
    audio_dir: Path | None = None
    adapter: str | None = None
    repeat: int = 1
    audio_first: bool = False
    think: bool = True
    tasks: Sequence[str] | None = None
    per_task: int | None = None
    snr: Sequence[Snr] = ()
    budgets: Sequence[Budget] = ()
    voices: Sequence[str] | None = None
    quick: bool = False
    concurrency: int = 32
    seed: int = 0
    preset: str | None = None
    sampling: Mapping[str, Any] | None = None
    against_torch: Path | None = None


def evaluate(options: EvaluationOptions, echo: Echo) -> int:
    """Returns the exit status: 1 where a request failed. Raises StepAudioError."""
    if options.seed < 0:
        raise EvaluationError(f"the seed {options.seed} is negative")
    preset = options.preset or (FORMATS[options.format].preset if options.format else None)
    drawn = dict(PRESETS[preset] if preset else GREEDY) | dict(options.sampling or {})
    if options.adapter is not None and not options.url:
        raise EvaluationError("--adapter names one of a running server's --lora-modules: give its --url, too")
    if options.repeat > 1 and not drawn["temperature"]:
        raise EvaluationError("--repeat: greedy answers are the same each time: give --preset or --temperature")
    sampling = Sampling(**drawn, seed=options.seed)
    try:
        sampling.inputs()
    except RequestError as error:
        raise EvaluationError(str(error)) from None
    if options.against_torch:
        if options.budgets:
            raise EvaluationError("--against-torch compares answers of one generation: leave out --budgets")
        if sampling != Sampling(**{**GREEDY, "max_tokens": sampling.max_tokens}, seed=options.seed):
            raise EvaluationError("--against-torch compares greedy answers: leave out --preset and sampling options")
        # What would keep it from being compared is said now, and not after the answers.
        import step_audio_evaluation.torch_reference  # noqa: F401  # needs transformers, as nothing else here does

        ModelConfig.from_directory(options.against_torch)
    items = _items(options, echo)
    with contextlib.ExitStack() as stack:
        address = options.url or stack.enter_context(Service(own_server(options.checkpoint), echo)).address
        settings, answers = asyncio.run(_answers(options, address, items, sampling, drawn, echo))
    report = make_report(grade(items, answers.of), settings, datetime.date.today().isoformat())
    write(report, options.output)
    if options.against_torch:
        report = replace(report, agreement=_agreement(options.against_torch, items, answers))
        write(report, options.output)
    print("\n".join([table(report.rows), *sentences(report)]))
    noisy = [row for row in report.rows if row.snr_db is not None]
    if noisy:
        _plot(plot_noise, noisy, options.output / "noise.svg", echo)
    budgeted = [row for row in report.rows if row.budget is not None]
    if budgeted:
        _plot(plot_budgets, budgeted, options.output / "budgets.svg", echo)
    failed = sum(answers.of[item.id].error is not None for item in items)
    if failed:
        echo(f"{failed} of {len(items)} requests failed and count as wrong; the same command asks them again")
    echo(f"{options.output}: report.md, report.json, answers.jsonl")
    return 1 if failed else 0


def _items(options: EvaluationOptions, echo: Echo) -> list[Item]:
    items = []
    if options.data:
        form = FORMATS[options.format] if options.format else None
        items += load_data_set(options.data, options.audio_first, options.think, form, options.audio_dir)
    elif options.format or options.audio_dir:
        raise EvaluationError("--format and --audio-dir are about a data set: give --data, too")
    others = options.data or options.budgets or options.voices is not None
    tasks = options.tasks if options.tasks is not None else () if others else TASKS
    if unknown := [task for task in tasks if task not in TASKS]:
        raise EvaluationError(f"there is no task {unknown[0]}; use {', '.join(TASKS)}")
    per_task = options.per_task or (PER_TASK_QUICK if options.quick else PER_TASK)
    sets = _sets(options.voices) if options.voices is not None else ()
    if tasks or sets or options.snr or options.budgets:
        echo("making the recordings")
    try:
        items += held_out([task for task in TASKS if task in tasks], per_task, options.seed)
        items += by_voice(sets, per_task, options.seed)
        items += at_noise_levels(dict.fromkeys(options.snr), per_task, options.seed)
        items += at_budgets(dict.fromkeys(options.budgets), per_task, options.seed)
    finally:
        end_speakers()  # the server needs the memory
    if not items:
        raise EvaluationError("nothing to ask: give --tasks, --voices, --snr, --budgets or --data")
    return repeated(items, options.repeat)


def _sets(names: Sequence[str]) -> tuple[str, ...]:
    there = sets_that_can_be_made()
    if unknown := [name for name in names if name not in SETS]:
        raise EvaluationError(f"there is no set {unknown[0]}; use {', '.join(there)}")
    if missing := [name for name in names if name not in there]:
        voice = SETS[missing[0]].voice
        package = {"pico": "pip install py-nanotts", "human": "apt-get install asterisk-core-sounds-en-g722"}[voice]
        raise EvaluationError(f"{missing[0]} needs a voice that is not installed: {package}")
    return tuple(name for name in there if name in names or not names)


async def _answers(
    options: EvaluationOptions,
    address: str,
    items: Sequence[Item],
    sampling: Sampling,
    drawn: Mapping[str, Any],
    echo: Echo,
) -> tuple[EvaluationSettings, AnswerFile]:
    """Everything answered, in the output folder too, and the settings it was answered with."""
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError):  # not the main thread, or not Unix
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # SIGINT does so by itself
    async with StepAudioClient(address, tls=options.tls) as client:
        try:
            info = await client.serving_info()
        except RequestError as error:
            raise EvaluationError(str(error)) from None
        if options.adapter is not None and options.adapter not in info["adapters"]:
            raise EvaluationError(no_adapter(options.adapter, info["adapters"]))
        special: SpecialSettings = {}
        if options.data:
            special = {
                "data": options.data.name,
                "data_sha256": hashlib.sha256(options.data.read_bytes()).hexdigest(),
                "audio_first": options.audio_first,
                "think": options.think,
            }
            if options.format:
                special["format"] = options.format
        if options.adapter is not None:
            special["adapter"] = options.adapter
        settings: EvaluationSettings = {
            "model": info["model"],
            "seed": options.seed,
            "sampling": dict(drawn),
            **special,
        }
        answers = AnswerFile(options.output, settings)
        try:
            await run(items, client, sampling, answers, options.concurrency, adapter=options.adapter)
        except asyncio.CancelledError:
            done = sum(item.id in answers.of for item in items)
            echo(f"stopped with {done} of {len(items)} answers; the same command goes on from there")
            raise KeyboardInterrupt from None
    return settings, answers


def _agreement(checkpoint: Path, items: Sequence[Item], answers: AnswerFile) -> Agreement:
    from step_audio_evaluation.torch_reference import TorchReference

    progress = Progress("plain torch", unit="", total=len(items))
    try:
        return agreement(items, answers.of, TorchReference(checkpoint), progress.step)
    finally:
        progress.close()


def _plot(draw: Callable[[Sequence[Row], Path], None], rows: Sequence[Row], file: Path, echo: Echo) -> None:
    try:
        draw(rows, file)
    except ModuleNotFoundError as error:
        echo(f"{file.name} is not drawn: {install_for(error.name or '')}")
