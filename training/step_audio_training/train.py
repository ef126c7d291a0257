"""The training recipe: seeded, resumable at any moment, the same on two cores and on a GPU.

First the decoder reads. Then encoder and adaptor hear, without it, what is told in words that it reads; at the start of
that the encoder stays as it is. Then it answers, and all of them learn.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import torch

from step_audio.config import AudioEncoderConfig, ModelConfig
from step_audio.errors import ArtefactError
from step_audio.tokenizer import Tokenizer
from step_audio_build.convert.small_tokenizer import VOICE_TOKENS
from step_audio_training.batches import Stages, training_batches
from step_audio_training.beginning import Beginning, listener_config, used_tokens
from step_audio_training.collation import TrainingBatch
from step_audio_training.exam import Paper, draw_paper, examine
from step_audio_training.frozen import hearing_by
from step_audio_training.model import HEARING, Listener
from step_audio_training.parallel import SideBySide

SAVE_EVERY = 50  # steps
SAY_EVERY = 20  # steps
EXAMINE_EVERY = 1000  # steps
QUESTIONS = 32  # of each kind in an examination
STATE, LOG, EXAMINED = "state.pt", "log.jsonl", "examined.jsonl"


class State(TypedDict):
    """What a training that was interrupted goes on from. `recipe`: the fields of one; `log`: figures by name."""

    recipe: dict[str, Any]
    tokenizer: str
    audio: dict[str, Any]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    step: int
    log: list[dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, but the machine and what is begun with."""

    seed: int = 1
    steps: int = 6000
    batches: int = 2  # of a step
    reading_steps: int = 400  # of these, the first ones, without recordings
    hearing_steps: int = 400  # behind them, in which nothing is asked
    frozen_steps: int = 100  # of those behind the reading, the first ones in which the encoder does not learn
    warm_up_steps: int = 100
    cool_down: float = 0.4
    learning_rate: float = 1e-3  # of what is new
    decoder_share: float = 0.6  # of that rate, for a decoder that has learnt before
    encoder_share: float = 0.15
    adaptor_share: float = 1.0
    weight_decay: float = 0.02
    hearing_weight: float = 0.5  # of the loss of letters and sounds
    encoder_frozen: bool = False  # to the end, and what it hears is kept


class Stopped(Exception):
    """A signal came; the state is saved."""


def train(
    output: Path,
    recipe: Recipe,
    begin: Callable[[], Beginning],
    workers: int = 1,
    device: str | None = None,
    processes: int = 1,
    echo: Callable[[str], None] = lambda line: print(line, flush=True),
) -> tuple[Listener, str]:
    """Train in `output`, or go on with what is there; returns the trained model, on the CPU, and its tokenizer's JSON.

    begin: asked at the first start only. processes: that compute the batches of a step on a CPU; changes no result.

    SIGTERM and Ctrl-C save the state; a kill loses at most SAVE_EVERY steps. In each step the same is said, by the same
    voices, wherever a run begins. Raises Stopped; ArtefactError where `output` belongs to another recipe, and for files
    that cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state: State | None = None
    if (output / STATE).is_file():
        state = _load_state(output / STATE, "delete it to begin anew, or restore it")
        if state["recipe"] | {"steps": recipe.steps} != asdict(recipe):
            raise ArtefactError(f"{output} holds a training with other settings; finish it or choose another output")
    torch.manual_seed(recipe.seed)
    beginning = (
        Beginning(state["tokenizer"], AudioEncoderConfig(**state["audio"]), state["model"]) if state else begin()
    )
    tokenizer, audio = beginning.tokenizer, beginning.audio
    config = listener_config(tokenizer, audio)
    model = Listener(config, torch.arange(used_tokens(tokenizer) - len(VOICE_TOKENS)))
    model.load_state_dict(model.state_dict() | beginning.weights)
    step, log = (state["step"], state["log"]) if state else (0, [])
    optimizer = torch.optim.AdamW(_groups(model, recipe), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    model.to(chosen).train()
    computing = SideBySide(
        model, partial(_losses, model, recipe), min(processes, recipe.batches) if chosen.type == "cpu" else 1
    )
    for group in optimizer.state.values():
        for name, value in group.items():
            if name != "step" and torch.is_tensor(value):
                group[name] = value.to(chosen)

    stops: list[int] = []
    before = {number: signal.signal(number, lambda n, _: stops.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    saved = _Saved(output, recipe, tokenizer, config, model, optimizer, log)
    paper: Paper = {}
    first_batch, last_batch = (recipe.batches * n for n in (step, recipe.steps))
    vocab = config.text.vocab_size
    heard = recipe.reading_steps + recipe.hearing_steps
    stages = Stages(recipe.batches * recipe.reading_steps, recipe.batches * heard)
    hear = None
    if recipe.encoder_frozen:
        hear = hearing_by(deepcopy(model.audio.encoder).cpu(), audio.n_mels)
        model.audio.encoder.requires_grad_(False)
    batches = training_batches(
        recipe.seed, first_batch, last_batch, tokenizer, vocab, audio.n_mels, workers, stages, hear
    )  # fmt: skip
    began, first = time.monotonic(), step
    try:
        while step < recipe.steps:
            drawn = [batch.to(chosen) for batch in islice(batches, recipe.batches)]
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * _rate(step, recipe)
            row = computing.compute(drawn, step >= recipe.reading_steps + recipe.frozen_steps)
            _learn(model, optimizer)
            step += 1
            log.append({"step": step, **row})
            if step % SAY_EVERY == 0:
                pace = (time.monotonic() - began) / (step - first)
                alike = [r for r in log[-SAY_EVERY:] if r.keys() == log[-1].keys()]  # of one stage
                mean = {name: sum(r[name] for r in alike) / len(alike) for name in row}
                figures = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
                echo(f"step {step} of {recipe.steps}: {figures}; {pace:.1f} s a step, {_clock()}")
            if step % SAVE_EVERY == 0 or step == recipe.steps or stops:
                saved.write(step)
            if stops:
                raise Stopped(f"stopped at step {step} of {recipe.steps}; the same command goes on")
            if step % EXAMINE_EVERY == 0 or step == recipe.steps:
                paper = paper or draw_paper(recipe.seed, QUESTIONS)
                with computing.alone():
                    _report(output, step, examine(model, Tokenizer(tokenizer), paper), echo)
    finally:
        batches.close()  # its processes end now, not when nobody holds the exception any more
        computing.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return model.cpu().eval(), tokenizer


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _report(output: Path, step: int, results: dict[str, float], echo: Callable[[str], None]) -> None:
    with (output / EXAMINED).open("a") as file:
        file.write(json.dumps({"step": step, **results}) + "\n")
    echo(f"examined at step {step}, {_clock()}")
    for name, value in results.items():
        echo(f"  {name:28} {100 * value:5.1f} %")


def _load_state(file: Path, remedy: str) -> State:
    try:
        state: State | None = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:  # not the file's contents: the command says it as it stands
        raise
    except Exception:  # what torch raises for a damaged file depends on where the damage is
        state = None
    if not isinstance(state, dict) or not state.keys() >= State.__required_keys__:
        raise ArtefactError(f"{file} is damaged or no state of a training: {remedy}")
    return state


def _groups(model: Listener, recipe: Recipe) -> list[dict[str, Any]]:
    """By part, as each has its share of the rate. Matrices decay; biases, norms and embeddings do not."""
    shares = {
        "audio.encoder.": recipe.encoder_share, "audio.adapter.": recipe.adaptor_share,
        "decoder.": recipe.decoder_share, "": 1.0,
    }  # fmt: skip
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        share = next(share for prefix, share in shares.items() if name.startswith(prefix))
        decay = recipe.weight_decay if parameter.dim() > 1 and "embed" not in name else 0.0
        groups.setdefault((share, decay), []).append(parameter)
    return [{"params": p, "weight_decay": decay, "share": share} for (share, decay), p in groups.items()]


def _rate(step: int, recipe: Recipe) -> float:
    """Up to `learning_rate`, steady, and down to nothing over the last `cool_down` of the steps, all in lines."""
    up = (step + 1) / recipe.warm_up_steps
    down = (recipe.steps - step) / (recipe.cool_down * recipe.steps)
    return recipe.learning_rate * min(1.0, up, down)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether it multiplies in bfloat16 faster than in float32."""
    return device.type == "cuda" or "avx512_bf16" in _cpu_flags()


@cache
def _cpu_flags() -> frozenset[str]:
    file = Path("/proc/cpuinfo")
    return frozenset(file.read_text().split()) if file.is_file() else frozenset()


def _losses(model: Listener, recipe: Recipe, batch: TrainingBatch, encoder_learns: bool) -> dict[str, float]:
    """Adds to the gradients; returns what is told of a step."""
    with torch.autocast(batch.mels.device.type, torch.bfloat16, enabled=_has_bfloat16(batch.mels.device)):
        heard = model.embed(batch, encoder_learns) if len(batch.sounds) else None
        hearing = model.hearing_loss(heard, batch) if heard else {}
        answers, accuracy = model.answer_loss(heard, batch) if batch.groups else (None, None)
    told = {f"{name}_loss": loss.item() for name, loss in hearing.items()}
    loss = sum((HEARING[name] * each for name, each in hearing.items()), torch.zeros(()))
    if answers is not None and accuracy is not None:
        loss = recipe.hearing_weight * loss + answers
        told |= {"answer_loss": answers.item(), "token_accuracy": accuracy.item()}
    loss.backward()
    return told


def _learn(model: Listener, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@dataclass
class _Saved:
    """Writes the state of what it holds."""

    output: Path
    recipe: Recipe
    tokenizer: str
    config: ModelConfig
    model: Listener
    optimizer: torch.optim.Optimizer
    log: list[dict[str, float]]

    def write(self, step: int) -> None:
        state: State = {
            "recipe": asdict(self.recipe), "tokenizer": self.tokenizer, "audio": self.config.audio.model_dump(),
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step, "log": self.log,
        }  # fmt: skip
        torch.save(state, self.output / f"{STATE}.partial")
        os.replace(self.output / f"{STATE}.partial", self.output / STATE)
        (self.output / LOG).write_text("".join(json.dumps(row) + "\n" for row in self.log))
