"""The training recipe: seeded, resumable, the same on two cores and on a GPU.

First the encoder and the adaptor alone learn what is to be heard when (the synthesiser tells), then they learn together
with the decoder to think and to answer.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from step_audio.config import AudioEncoderConfig, ModelConfig, TextConfig
from step_audio.errors import ArtefactError
from step_audio.progress import Progress
from step_audio.tokenizer import Tokenizer
from step_audio_build.convert.small_tokenizer import CORPUS, VOICE_TOKENS, build_tokenizer
from step_audio_training.batches import TrainingBatch, held_out_batches, training_batches
from step_audio_training.examples import draw_example
from step_audio_training.model import Listener

TEXT_TOKENS = 1024  # bytes and merges of the tokenizer
CORPUS_EXAMPLES = 4000  # what its merges are learnt from
SAVE_EVERY = 200  # steps
WATCH_EVERY = 200  # steps between looks at what was not trained on
STATE, LOG = "state.pt", "log.jsonl"


class State(TypedDict):
    """What a training that was interrupted goes on from. `recipe`: the fields of one; `log`: figures by name."""

    recipe: dict[str, Any]
    tokenizer: str
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    step: int
    log: list[dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, but the machine."""

    seed: int = 1
    steps: int = 5000
    alignment_steps: int = 900  # of these, the first ones that train the encoder alone
    warm_up_steps: int = 200
    cool_down: float = 0.25
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.02
    hearing_weight: float = 0.4  # of the loss of phonemes, words and sounds, once the answers' is there


# To go on from the weights of a training that has ended, with tasks that have changed since.
REFINEMENT = Recipe(seed=2, steps=1200, alignment_steps=0, warm_up_steps=50, cool_down=0.8, learning_rate=5e-4)


def small_config(vocab_size: int) -> ModelConfig:
    """10 million parameters; every dimension divides by 4 ranks, and TensorRT-LLM has kernels for the head size."""
    return ModelConfig(
        text=TextConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            vocab_size=vocab_size,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_theta=1e4,
            dtype="bfloat16",
        ),
        audio=AudioEncoderConfig(
            n_mels=128,
            n_audio_ctx=1500,
            n_audio_state=192,
            n_audio_head=6,
            n_audio_layer=4,
            llm_dim=256,
            kernel_size=3,
            adapter_stride=2,
        ),
    )


def make_tokenizer(seed: int) -> str:
    """The tokenizer's JSON: merges from the general corpus and from what the examples say."""
    random = np.random.default_rng([seed, 2**32 - 1])
    texts = [CORPUS]
    for _ in range(CORPUS_EXAMPLES):
        example = draw_example(random)
        for message in example.messages:
            content = message["content"]
            texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        texts += [example.thought or "", example.answer, json.dumps(example.tools) if example.tools else ""]
    return build_tokenizer("\n".join(texts), TEXT_TOKENS).to_str()


def rows(used: int) -> int:
    """Of the embedding: some beyond the tokens that are used, as in the published model."""
    return -(-(used + 32) // 64) * 64


def train(
    output: Path, recipe: Recipe, workers: int = 1, device: str | None = None, refined: Path | None = None
) -> tuple[Listener, str]:
    """Train in `output`, or go on with what is there; returns the trained model, on the CPU, and its tokenizer's JSON.

    refined: another training's output, whose weights and tokenizer are begun with; else with random ones.

    Ctrl-C loses at most SAVE_EVERY steps. Raises ArtefactError where `output` belongs to another recipe, where a state
    cannot be read, and where there is no training to refine.
    """
    output.mkdir(parents=True, exist_ok=True)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state: State | None = None
    if (output / STATE).is_file():
        state = _load_state(output / STATE, "delete it to begin anew, or restore it")
        if state["recipe"] | {"steps": recipe.steps} != asdict(recipe):
            raise ArtefactError(f"{output} holds a training with other settings; finish it or choose another output")
    start = state or _state_to_refine(refined)
    tokenizer = start["tokenizer"] if start else make_tokenizer(recipe.seed)

    torch.manual_seed(recipe.seed)
    used = Tokenizer(tokenizer).max_id + 1
    config = small_config(rows(used))
    model = Listener(config, torch.arange(used - len(VOICE_TOKENS)))
    optimizer = torch.optim.AdamW(_groups(model, recipe), lr=recipe.learning_rate, betas=(0.9, 0.98))
    step, log = 0, []
    if start:
        model.load_state_dict(start["model"])
    if state:
        optimizer.load_state_dict(state["optimizer"])
        step, log = state["step"], state["log"]
    model.to(chosen).train()
    for group in optimizer.state.values():
        for name, value in group.items():
            if name != "step" and torch.is_tensor(value):
                group[name] = value.to(chosen)

    watched = held_out_batches(recipe.seed, tokenizer, config.text.vocab_size)
    batches = training_batches(recipe.seed, step, recipe.steps, tokenizer, config.text.vocab_size, workers)
    progress = Progress("training", unit="", done=step, total=recipe.steps)
    try:
        for batch in batches:
            if step >= recipe.steps:
                break
            _set_rate(optimizer, _rate(step, recipe))
            note = ""
            row = _step(model, optimizer, batch.to(chosen), step >= recipe.alignment_steps, recipe)
            step += 1
            if step % WATCH_EVERY == 0 or step == recipe.steps:
                row |= {f"held_out_{name}": value for name, value in _watch(model, watched, chosen).items()}
                note = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
            log.append({"step": step, **row})
            progress.step(note)
            if step % SAVE_EVERY == 0 or step == recipe.steps:
                _save(output, recipe, tokenizer, model, optimizer, step, log)
    finally:
        progress.close()
    return model.cpu().eval(), tokenizer


def _state_to_refine(directory: Path | None) -> State | None:
    if directory is None:
        return None
    if not (directory / STATE).is_file():
        raise ArtefactError(f"{directory / STATE} does not exist: give the output of a training")
    return _load_state(directory / STATE, "restore it, or give the output of another training")


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
    """Matrices decay; biases, norms and embeddings do not."""
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name]
    kept = [p for name, p in model.named_parameters() if p.dim() <= 1 or "embed" in name]
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _rate(step: int, recipe: Recipe) -> float:
    """Up to `learning_rate`, steady, and down to nothing over the last `cool_down` of the steps, all in lines."""
    up = (step + 1) / recipe.warm_up_steps
    down = (recipe.steps - step) / (recipe.cool_down * recipe.steps)
    return recipe.learning_rate * min(1.0, up, down)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _step(
    model: Listener, optimizer: torch.optim.Optimizer, batch: TrainingBatch, with_answers: bool, recipe: Recipe
) -> dict[str, float]:
    heard = model.embed(batch)
    hearing = model.hearing_loss(heard, batch)
    row = {"hearing_loss": hearing.item()}
    loss = hearing
    if with_answers:
        answers, accuracy = model.answer_loss(heard, batch)
        loss = recipe.hearing_weight * hearing + answers
        row |= {"answer_loss": answers.item(), "token_accuracy": accuracy.item()}
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return row


@torch.no_grad()
def _watch(model: Listener, batches: list[TrainingBatch], device: torch.device) -> dict[str, float]:
    """On recordings of voices, speeds, noises and numbers that are not trained on."""
    model.eval()
    sums: dict[str, float] = {}
    for batch in (batch.to(device) for batch in batches):
        heard = model.embed(batch)
        answers, accuracy = model.answer_loss(heard, batch)
        values = {f"{name}_errors": share for name, share in model.hearing_errors(heard, batch).items()} | {
            "hearing_loss": model.hearing_loss(heard, batch),
            "answer_loss": answers,
            "token_accuracy": accuracy,
        }
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    model.train()
    return sums


def _save(
    output: Path,
    recipe: Recipe,
    tokenizer: str,
    model: Listener,
    optimizer: torch.optim.Optimizer,
    step: int,
    log: list[dict[str, float]],
) -> None:
    state: State = {
        "recipe": asdict(recipe), "tokenizer": tokenizer, "model": model.state_dict(),
        "optimizer": optimizer.state_dict(), "step": step, "log": log,
    }  # fmt: skip
    torch.save(state, output / f"{STATE}.partial")
    os.replace(output / f"{STATE}.partial", output / STATE)
    (output / LOG).write_text("".join(json.dumps(row) + "\n" for row in log))
