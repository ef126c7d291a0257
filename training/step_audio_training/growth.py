"""A larger decoder that begins as a trained smaller one: what is new changes nothing until it has learnt something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from step_audio.checkpoint import Checkpoint, decoder_tensors, to_float32
from step_audio.config import ModelConfig, TextConfig
from step_audio.errors import ArtefactError


def grown_decoder(directory: Path, tokenizer_json: str, text: TextConfig) -> dict[str, Tensor]:
    """The weights of a decoder of `text` that computes what the checkpoint in `directory` does.

    Its tokens are found by their texts; one that the checkpoint does not have begins as the mean of its parts. Further
    layers and further rows of the MLPs end in zeros. Raises CheckpointError and ArtefactError.
    """
    config = ModelConfig.from_directory(directory)
    old = config.text
    same = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta")
    if wrong := [name for name in same if getattr(old, name) != getattr(text, name)]:
        raise ArtefactError(f"{directory} cannot be grown: its {wrong[0]} is another")
    checkpoint = Checkpoint(directory)
    weights = {name: torch.from_numpy(np.array(to_float32(checkpoint.read(name)))) for name in decoder_tensors(old)}
    parts = _parts(Tokenizer.from_file(str(directory / "tokenizer.json")), Tokenizer.from_str(tokenizer_json))
    out = {"model.norm.weight": weights["model.norm.weight"]}
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.zeros(text.vocab_size, text.hidden_size)
        for n, ids in parts.items():
            rows[n] = weights[table][ids].mean(0)
        out[table] = rows
    for layer in range(text.num_hidden_layers):
        source = layer * old.num_hidden_layers // text.num_hidden_layers
        is_new = layer > 0 and (layer - 1) * old.num_hidden_layers // text.num_hidden_layers == source
        prefix = f"model.layers.{source}."
        for name, value in weights.items():
            if name.startswith(prefix):
                out[f"model.layers.{layer}.{name.removeprefix(prefix)}"] = _widened(name, value, text, is_new)
    return out


def _widened(name: str, value: Tensor, text: TextConfig, is_new: bool) -> Tensor:
    if is_new and ("o_proj" in name or "down_proj" in name):
        value = torch.zeros_like(value)
    more = text.intermediate_size
    if "gate_proj" in name or "up_proj" in name:
        return torch.cat([value, 0.02 * torch.randn(more - value.shape[0], value.shape[1])])
    if "down_proj" in name:
        return torch.cat([value, torch.zeros(value.shape[0], more - value.shape[1])], 1)
    return value.clone()


def _parts(old: Tokenizer, new: Tokenizer) -> dict[int, list[int]]:
    """Of each new id the old ids that say the same."""
    known = old.get_vocab()
    return {
        n: [known[text]] if text in known else [token.id for token in old.model.tokenize(text)]
        for text, n in new.get_vocab().items()
    }
