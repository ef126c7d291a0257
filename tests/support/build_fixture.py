"""Builds of a tiny model for four GPUs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from step_audio.tokenizer import Tokenizer
from step_audio_build.planning.profiles import load_profile
from step_audio_build.stages.check import MAX_TOKENS, QUESTIONS, CheckStage
from step_audio_build.stages.layout import BuildJob, BuildSettings

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
