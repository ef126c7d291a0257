"""A tiny random checkpoint in the published layout, to run everything on a laptop.

Tensor names, both forms of the config, shards with an index and the tokenizer's special tokens are those of
Step-Audio-R1.1; only the sizes are small and the weights random. The answers make no sense, but they are readable
text, they depend on the audio, and greedy decoding rarely meets a near-tie, so that two correct implementations
give the same tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from step_audio.arrays import Float32Array, Int64Array
from step_audio.checkpoint import expected_tensors
from step_audio.config import AudioEncoderConfig, DType, ModelConfig, TextConfig
from step_audio.errors import ArtefactError
from step_audio_build.artefacts.manifest import to_json
from step_audio_build.convert.small_tokenizer import QWEN_TOKENS, build_tokenizer
from step_audio_build.convert.write_checkpoint import write_checkpoint

RECIPE = "tiny.json"  # marks a directory that this file wrote, and with which arguments


def make_tiny(
    output_dir: str | Path,
    seed: int = 0,
    hidden_size: int = 64,
    intermediate_size: int = 192,
    layers: int = 2,
    heads: int = 8,
    kv_heads: int = 4,
    max_position_embeddings: int = 8192,
    n_mels: int = 128,
    audio_ctx: int = 1500,
    audio_state: int = 64,
    audio_heads: int = 4,
    audio_layers: int = 2,
    dtype: DType = "float32",
    shards: int = 2,
    nested: bool = True,
) -> ModelConfig:
    """Write a random checkpoint; equal arguments give equal bytes. The defaults can be split over 1, 2, 4 or 8 GPUs.

    `nested` chooses between config.json and the flat config_origin.json; with one shard there is no index. Does
    nothing when the same checkpoint is there already; raises ArtefactError when something else is.
    """
    recipe = {name: value for name, value in locals().items() if name != "output_dir"}
    directory = Path(output_dir)
    tokenizer = build_tokenizer()
    used = tokenizer.get_vocab_size()
    config = ModelConfig(
        text=TextConfig(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=hidden_size // heads,
            vocab_size=-(-(used + 32) // 64) * 64,  # rows beyond the tokenizer's, as in the published model
            max_position_embeddings=max_position_embeddings,
            rms_norm_eps=1e-5,
            rope_theta=1e6,
            dtype=dtype,
        ),
        audio=AudioEncoderConfig(
            n_mels=n_mels,
            n_audio_ctx=audio_ctx,
            n_audio_state=audio_state,
            n_audio_head=audio_heads,
            n_audio_layer=audio_layers,
            llm_dim=hidden_size,
            kernel_size=3,
            adapter_stride=2,
        ),
    )
    if directory.exists():
        if (directory / RECIPE).is_file() and json.loads((directory / RECIPE).read_text()) == recipe:
            return config
        if any(directory.iterdir()):
            raise ArtefactError(f"{directory} is not empty; delete it or choose another output")

    weights = _random_weights(config, seed, _readable_ids(tokenizer))
    write_checkpoint(directory, config, weights, tokenizer, shards, nested, {RECIPE: to_json(recipe)})
    return config


def _readable_ids(tokenizer: Tokenizer) -> Int64Array:
    """Ids whose token is whole characters that can be printed: what the random model is made to write."""
    first_added = tokenizer.token_to_id(QWEN_TOKENS[0][0])
    assert first_added is not None
    texts = [tokenizer.decode([n]) for n in range(first_added)]
    return np.array([n for n, text in enumerate(texts) if text.strip("\n").isprintable() and "\ufffd" not in text])


def _random_weights(config: ModelConfig, seed: int, readable: Int64Array) -> dict[str, Float32Array]:
    """Weights whose activations stay near 1 from layer to layer, as float32.

    Queries and keys are large enough for attention to choose. The head's rows spread the logits by about 4, so that
    the first and the second are seldom close; rows of tokens that should not be written (special tokens, halves of
    characters, padding) are next to zero and never win.
    """
    random = np.random.default_rng(seed)
    gains = {
        "conv1": 2.0,
        "conv2": 2.0,
        "query": 1.5,
        "key": 1.5,
        "q_proj": 1.7,
        "k_proj": 1.7,
        "o_proj": 2.0,
        "v_proj": 1.5,
        "linear1": 1.5,
        "linear2": 2.0,
        "lm_head": 4.0,
    }
    weights = {}
    for name, shape in expected_tensors(config).items():
        *_, layer, kind = name.split(".")
        values = random.standard_normal(shape, np.float32)
        if kind == "bias":
            values *= 0.1
        elif len(shape) == 1:  # a norm's weight
            values = 1 + 0.1 * values
        elif layer == "positional_embedding":
            values *= 0.3
        elif layer != "embed_tokens":
            values *= gains.get(layer, 1.0) / np.sqrt(np.prod(shape[1:]))
        weights[name] = values.astype(np.float32)
    quiet = np.ones(config.text.vocab_size, bool)
    quiet[readable] = False
    weights["lm_head.weight"][quiet] *= 1e-3
    return weights
