"""How a model in training does on what is kept from it: whole answers, by task, voice and channel."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from step_audio.tokenizer import Tokenizer
from step_audio_training.collation import Encoded, clip_info
from step_audio_training.examples import Task
from step_audio_training.frozen import hearing_by
from step_audio_training.model import Listener
from step_audio_training.questions import ExamQuestion, draw_known, draw_question, sets_that_can_be_made
from step_audio_training.word_errors import word_errors

MOST_TOKENS = 160
NOT_UNDERSTOOD = "I did not understand"
TODAY: tuple[Task, ...] = (
    "arithmetic", "arithmetic_no_think", "transcription", "pitch", "rate", "beeps", "speakers", "tone", "sound",
    "compare", "text_only", "tool_call", "tool_result", "second_turn",
)  # fmt: skip


Paper = dict[str, list[ExamQuestion]]


def draw_paper(seed: int, each: int) -> Paper:
    """Of each kind of question `each`, about voices, words, numbers and noises that training does not have."""
    draws: dict[str, Callable[[np.random.Generator], ExamQuestion]] = {
        task: partial(draw_known, task) for task in TODAY
    }
    draws |= {name: partial(draw_question, name) for name in sets_that_can_be_made()}
    return {
        name: [draw(np.random.default_rng([seed, zlib.crc32(name.encode()), n])) for n in range(each)]
        for name, draw in draws.items()
    }


@torch.no_grad()
def examine(model: Listener, tokenizer: Tokenizer, paper: Paper, at_once: int = 32) -> dict[str, float]:
    """Share of each kind's answers that are right to the letter, the word error rate of what is written down, and of
    all speech the share that is not understood ("false alarms")."""
    was_training = model.training
    model.eval()
    results: dict[str, float] = {}
    alarms: list[bool] = []
    for name, questions in paper.items():
        answers: list[str] = []
        for begin in range(0, len(questions), at_once):
            answers += _answers(model, tokenizer, questions[begin : begin + at_once])
        right = [normal(a) == normal(q.example.answer) for a, q in zip(answers, questions, strict=True)]
        results[name] = float(np.mean(right))
        if name.startswith(("dictation", "transcription")):
            said = [q.example.answer.split() for q in questions]
            errors = sum(word_errors(words, answer.split()) for words, answer in zip(said, answers, strict=True))
            results[f"{name}, WER"] = errors / sum(map(len, said))
        if name not in ("not-understood", "beeps", "tone", "sound", "text_only"):
            alarms += [answer.startswith(NOT_UNDERSTOOD) for answer in answers]
    results["false alarms"] = float(np.mean(alarms))
    model.train(was_training)
    return results


def normal(text: str) -> str:
    return " ".join(text.lower().split())


def _answers(model: Listener, tokenizer: Tokenizer, questions: Sequence[ExamQuestion]) -> list[str]:
    """What it answers, behind the thought; greedy, all at once."""
    prompts = [_prompt(model, tokenizer, question) for question in questions]
    longest = max(map(len, prompts))
    width = prompts[0].shape[1]
    inputs = torch.zeros(len(prompts), longest, width)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for n, prompt in enumerate(prompts):  # on the right, so that all go on at the same place
        inputs[n, longest - len(prompt) :], mask[n, longest - len(prompt) :] = prompt, 1
    stops = torch.tensor(sorted(tokenizer.special.stop_ids))
    cache, position = None, mask.cumsum(1).sub(1).clamp(min=0)
    written: list[Tensor] = []
    done = torch.zeros(len(prompts), dtype=torch.bool)
    while len(written) < MOST_TOKENS and not done.all():
        output = model.decoder(
            inputs_embeds=inputs, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache, chosen = output.past_key_values, output.logits[:, -1].argmax(-1)
        written.append(chosen)
        done |= torch.isin(chosen, stops)
        inputs = model.decoder.model.embed_tokens(chosen)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        position = position[:, -1:] + 1
    texts = []
    for question, row in zip(questions, torch.stack(written, 1).tolist(), strict=True):
        ids = row[: next((n for n, token in enumerate(row) if token in tokenizer.special.stop_ids), len(row))]
        text = tokenizer.decode(ids)
        if question.example.thought is not None and question.example.cut is None:
            text = text.partition("</think>")[2]
        texts.append(text.strip())
    return texts


def _prompt(model: Listener, tokenizer: Tokenizer, question: ExamQuestion) -> Tensor:
    """[S, hidden]"""
    vocab, config = model.config.text.vocab_size, model.config.audio
    ids = torch.tensor(Encoded(question.example, [clip_info(clip) for clip in question.clips], tokenizer, vocab).prompt)
    embedded: Tensor = model.decoder.model.embed_tokens(ids.clamp(max=vocab - 1))
    if question.clips:
        hear = hearing_by(model.audio.encoder, config.n_mels)
        rows = torch.cat([model.audio.adapter(torch.from_numpy(hear(clip))[None])[0] for clip in question.clips])
        audio = ids >= vocab
        embedded[audio] = rows[ids[audio] - vocab]
    return embedded
