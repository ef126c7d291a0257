"""A small tokenizer with the published one's splitting and special tokens: only its merges are few."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

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


def build_tokenizer(corpus: str = CORPUS, text_tokens: int = 768) -> Tokenizer:
    """Byte-level BPE with Qwen2's splitting, merges learned from `corpus`, and the published special tokens.

    `text_tokens`: the most that bytes and merges may take.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=text_tokens,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([corpus], trainer)
    tokens = [*QWEN_TOKENS, *((name, True) for name in [*STEP_TOKENS, *VOICE_TOKENS])]
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name, special in tokens])
    return tokenizer
