"""A tiny random checkpoint in the published layout, to run everything on a laptop.

Tensor names, both forms of the config, shards with an index and the tokenizer's special tokens are those of
Step-Audio-R1.1; only the sizes are small and the weights random. The answers make no sense, but they are readable
text, they depend on the audio, and greedy decoding rarely meets a near-tie, so that two correct implementations
give the same tokens.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from step_audio.checkpoint import INDEX_FILE, STORAGE, Shapes, expected_tensors, from_float32
from step_audio.config import AudioEncoderConfig, DType, ModelConfig, TextConfig
from step_audio.errors import ArtefactError
from step_audio_build.manifest import to_json
from step_audio_build.rank_files import safetensors_header

RECIPE = "tiny.json"  # marks a directory that this file wrote, and with which arguments

# Qwen2's, in the order of ids 151643 to 151664; true where the token is hidden from decoded text.
QWEN_TOKENS = [
    *((f"<|{name}|>", True) for name in ("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end")),
    *((f"<|{name}|>", True) for name in ("box_start", "box_end", "quad_start", "quad_end")),
    *((f"<|{name}|>", True) for name in ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")),
    *((name, False) for name in ("<tool_call>", "</tool_call>")),
    *((f"<|{name}|>", False) for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad")),
    *((f"<|{name}|>", False) for name in ("repo_name", "file_sep")),
]
# StepFun's, ids 151665 to 151695. <think> and </think> are not among them: they are ordinary text.
STEP_TOKENS = [
    *(f"<|{name}|>" for name in ("EOT", "BOT", "CALL_START", "CALL_END", "THINK_START", "THINK_END")),
    *(f"<|{name}|>" for name in ("IMG_START", "IMG_END", "META_START", "META_END")),
    *(f"<{name}>" for name in ("im_patch", "im_start", "im_end", "dream", "dream_start", "dream_end")),
    *(f"<|{name}|>" for name in ("MASK_1e69f", "UNMASK_1e69f")),
    *(f"<{name}>" for name in ("video_start", "video_end", "patch_start", "patch_end", "patch_newline")),
    *(f"<{name}>" for name in ("audio_start", "audio_end", "audio_patch", "audio_patch_pad")),
    "<|SC|>",
    *(f"<{name}>" for name in ("tts_start", "tts_end", "tts_pad")),
]
VOICE_TOKENS = [f"<audio_{n}>" for n in range(6562)]

# Qwen2's pre-tokenizer: contractions, words, single digits, punctuation, line ends, spaces.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = """\
system human assistant input function function_output observer tool_json_schemas <think> </think>
<think> </think> tool_json_schemas observer function_output function input assistant human system
The speaker sounds calm at first, then a little surprised, and the voice rises at the end of the question.
There is music in the background: a piano plays slowly while someone walks across a wooden floor.
I hear two people talking. The first one asks for the time, and the second one answers that it is a quarter past nine.
Let me think about what was said. The question is how many apples are left when three of the twelve are eaten.
So the answer is nine. Wait, let me listen again to be sure that the number was twelve and not twenty.
The rain has stopped, the traffic is getting louder, and a dog barks somewhere far away in the street.
She said that she would come back tomorrow, but the tone of her voice tells me that she does not want to.
Please choose the answer from the following options. A. Whispering B. Singing C. Shouting D. Laughing
What is the emotion of the speaker? What is the language of the recording? What happens in this recording?
Okay, the user wants to know what the sound is. It could be a bell, a glass or a small metal object that fell.
It's a man's voice, I'm sure; they're speaking slowly, we've heard him before, he'll say that he can't stay.
In the first second there is silence. After that the door opens, a woman speaks, and the door closes again.
The temperature will fall to five degrees during the night, with strong wind from the north and some snow.
1 2 3 4 5 6 7 8 9 10 11 12 20 30 40 50 100 1000 2024 2025 3.14
{"type": "function", "function": {"name": "get_weather", "description": "weather of a city", "parameters": {}}}
{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius", "days": 3}}
说话的人听起来很平静，后来有一点惊讶，问题结束的时候声音变高了。
背景里有音乐，有人在慢慢地弹钢琴，还有人在说话。
请听这段录音，然后回答问题：录音里发生了什么？说话的人是什么情绪？
我听到两个人在说话，第一个人问现在几点，第二个人回答说现在是九点。
让我想一想，问题是还剩下多少个苹果，所以答案是九个。
"""


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

    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_config(partial, config, nested)
    _write_tokenizer(partial, tokenizer, max_position_embeddings)
    weights = _random_weights(config, seed, _readable_ids(tokenizer))
    groups = _shards(expected_tensors(config), shards, dtype)
    for name, group in groups.items():
        with (partial / name).open("wb") as file:
            file.write(safetensors_header(dtype, list(group.items())))
            for key in group:
                file.write(from_float32(weights[key], dtype).data)
    _write_index(partial, groups, config)
    (partial / RECIPE).write_text(to_json(recipe))
    os.replace(partial, directory)
    return config


def make_sparse(output_dir: str | Path, config: ModelConfig, shards: int = 4) -> None:
    """A checkpoint of `config` at its true size whose weights are all zero and take no disk space, without
    tokenizer: for measuring a conversion."""
    directory = Path(output_dir)
    directory.mkdir(parents=True)
    _write_config(directory, config, nested=True)
    groups = _shards(expected_tensors(config), shards, config.text.dtype)
    for name, group in groups.items():
        header = safetensors_header(config.text.dtype, list(group.items()))
        with (directory / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + _size(group, config.text.dtype))
    _write_index(directory, groups, config)


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen2's splitting, merges learned from CORPUS, and the published special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=768, min_frequency=2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokens = [*QWEN_TOKENS, *((name, True) for name in [*STEP_TOKENS, *VOICE_TOKENS])]
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name, special in tokens])
    return tokenizer


def _readable_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids whose token is whole characters that can be printed: what the random model is made to write."""
    first_added = tokenizer.token_to_id(QWEN_TOKENS[0][0])
    texts = [tokenizer.decode([n]) for n in range(first_added)]
    return np.array([n for n, text in enumerate(texts) if text.strip("\n").isprintable() and "\ufffd" not in text])


def _random_weights(config: ModelConfig, seed: int, readable: np.ndarray) -> dict[str, np.ndarray]:
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


def _shards(shapes: Shapes, count: int, dtype: DType) -> dict[str, Shapes]:
    """File name -> its tensors, in order, of about equal bytes."""
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    )
    groups: dict[str, Shapes] = {name: {} for name in names}
    total, done = _size(shapes, dtype), 0
    for key, shape in shapes.items():
        groups[names[min(done * count // total, count - 1)]][key] = shape
        done += _size({key: shape}, dtype)
    return {name: group for name, group in groups.items() if group}


def _size(shapes: Shapes, dtype: DType) -> int:
    return sum(int(np.prod(shape)) for shape in shapes.values()) * np.dtype(STORAGE[dtype]).itemsize


def _write_index(directory: Path, groups: dict[str, Shapes], config: ModelConfig) -> None:
    if len(groups) > 1:
        weight_map = {key: name for name, group in groups.items() for key in group}
        total = _size(expected_tensors(config), config.text.dtype)
        (directory / INDEX_FILE).write_text(to_json({"metadata": {"total_size": total}, "weight_map": weight_map}))


def _write_config(directory: Path, config: ModelConfig, nested: bool) -> None:
    text = {
        **config.text.model_dump(exclude={"dtype", "head_dim", "max_position_embeddings", "num_key_value_heads"}),
        "num_attention_groups": config.text.num_key_value_heads,
        "max_seq_len": config.text.max_position_embeddings,
        "torch_dtype": config.text.dtype,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    }
    audio = {**config.audio.model_dump(), "n_codebook_size": 4096}
    if nested:
        text |= {
            "num_key_value_heads": config.text.num_key_value_heads,
            "max_position_embeddings": config.text.max_position_embeddings,
        }
        head = {"architectures": ["StepAudio2ForCausalLM"], "model_type": "step_audio_2"}
        content = {**head, "text_config": text, "audio_encoder_config": audio, "torch_dtype": config.text.dtype}
        (directory / "config.json").write_text(to_json(content))
    else:
        head = {"architectures": ["StepAudioForCausalLMV2"], "model_type": "step_audio_qwen2"}
        (directory / "config_origin.json").write_text(to_json({**head, **text, "audio_encoder_config": audio}))


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, model_max_length: int) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        "additional_special_tokens": STEP_TOKENS,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (directory / "special_tokens_map.json").write_text(to_json(special))
    content = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "unk_token": None,
        **special,
    }
    (directory / "tokenizer_config.json").write_text(to_json(content))
