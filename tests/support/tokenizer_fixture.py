"""A small tokenizer of the product's shape: byte-level BPE, Qwen's splitting, Step-Audio's control tokens."""

from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "system\nhuman\nassistant\n<think>\nOkay, the user asks about the audio.\n</think>\n\nThe answer is B.",
    "input\nfunction\nfunction_output\ntool_json_schemas\ntool\nobserver\n",
    "Please choose the answer from the following options.\nA. Whispering\nB. Singing\nC. Shouting\n",
    '[{"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {}}}]',
    "你好，这段音频里的人在说什么？请回答。",
    "<|EOT|> <|BOT|>system <audio_patch> <audio_start> <tool_call>function </tool_call> <|im_end|> <|endoftext|>",
] * 4

# Special, then not special, as in the checkpoint: tool tags are added tokens that decoding keeps.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|EOT|>", "<|BOT|>", "<|THINK_END|>"]
SPECIAL += ["<audio_start>", "<audio_end>", "<audio_patch>", "<audio_patch_pad>", "<tts_start>", "<tts_end>"]
SPECIAL += [f"<audio_{i}>" for i in range(16)]
NOT_SPECIAL = ["<tool_call>", "</tool_call>"]


@cache
def build_reference() -> tokenizers.Tokenizer:
    """The library's tokenizer with added tokens on: the second route of the tests."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in NOT_SPECIAL])
    return tokenizer


@cache
def build_json() -> str:
    """Content of its tokenizer.json."""
    return build_reference().to_str()
