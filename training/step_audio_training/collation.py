"""Recordings and examples as the tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from step_audio.arrays import Float32Array, Int64Array
from step_audio.chat import ClipInfo, build_prompt
from step_audio.chat_template import CLOSE_THOUGHT, NO_THOUGHT
from step_audio.clips import content_hash
from step_audio.conversation import parse_conversation
from step_audio.mel import ADAPTOR_STRIDE, TOKENS_PER_SECOND, frame_count, pad_batch, token_count
from step_audio.tokenizer import Tokenizer
from step_audio_training.examples import Example
from step_audio_training.recordings import SOUNDS, DrawnRecording

GROUPS = 4  # of examples of similar length, each padded to its own longest
IGNORED = -100  # labels that do not count, as torch's cross entropy has it

LETTERS = "abcdefghijklmnopqrstuvwxyz' "  # those that are told apart; 0 is none of them
LETTER_IDS = {letter: n for n, letter in enumerate(LETTERS, 1)}
SOUND_IDS = {sound: n for n, sound in enumerate(SOUNDS)}


def sounds_when(recording: DrawnRecording, before: float, tokens: int) -> Int64Array:
    """Which of SOUNDS is heard in the middle of each of the clip's `tokens` embeddings, behind `before` seconds."""
    sounds = np.zeros(tokens, np.int64)
    at = (np.arange(tokens) + 0.5) / TOKENS_PER_SECOND - before
    for start, end, sound in recording.sounds:
        sounds[(at >= start) & (at < end)] = SOUND_IDS[sound]
    return sounds


@dataclass
class TrainingBatch:
    """`mels` float32 [clips, n_mels, T], `frames` int64 [clips]. Without clips it is all in writing; without `groups`,
    nothing is asked about the clips.

    `sounds` int64 [clips, tok]: what is heard there, 0 for nothing, IGNORED past the clip's end. `letters` int64 [n],
    what is said in all clips one after the other, `letter_counts` int64 [clips] of each; `words` int64 [n] and
    `word_counts` int64 [clips]: the same as the tokenizer's tokens.

    `heard` float32 [clips, T, width]: where the encoder does not learn, what it makes of the clips, at 25 Hz. There are
    no `mels` and no `frames` then.

    `groups`: pairs of `ids` int64 [examples, S], each a token, or vocabulary size + row of the clips' embeddings, all
    clips' own rows one after the other; and `labels` int64 [examples, S], the token that comes next, IGNORED outside
    the answer.
    """

    mels: torch.Tensor
    frames: torch.Tensor
    sounds: torch.Tensor
    letters: torch.Tensor
    letter_counts: torch.Tensor
    words: torch.Tensor
    word_counts: torch.Tensor
    groups: list[tuple[torch.Tensor, torch.Tensor]]
    heard: torch.Tensor | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        return TrainingBatch(
            self.mels.to(device),
            self.frames.to(device),
            self.sounds.to(device),
            self.letters.to(device),
            self.letter_counts.to(device),
            self.words.to(device),
            self.word_counts.to(device),
            [(ids.to(device), labels.to(device)) for ids, labels in self.groups],
            None if self.heard is None else self.heard.to(device),
        )


def clip_info(samples: Float32Array) -> ClipInfo:
    """Of a recording of one clip."""
    return ClipInfo(token_count(frame_count(len(samples))), content_hash(samples))


class Encoded:
    """An example as tokens: `prompt` as the server builds it, `answer` what the model is to write."""

    def __init__(self, example: Example, clips: Sequence[ClipInfo], tokenizer: Tokenizer, vocab_size: int):
        """`clips`: of the example's recordings."""
        thinks = example.thought is not None
        messages = example.messages if thinks else [*example.messages, {"role": "assistant", "content": NO_THOUGHT}]
        infos = [[clip] for clip in clips]
        conversation = parse_conversation(messages, example.tools)
        prompt = build_prompt(
            conversation, tokenizer, vocab_size, infos, add_generation_prompt=thinks, continue_final_message=not thinks
        )
        self.prompt: list[int] = prompt.input_ids.tolist()
        self.answer: list[int] = []
        if example.thought is not None:
            thought = tokenizer.encode(example.thought)
            end = tokenizer.encode(CLOSE_THOUGHT)
            if example.cut is None:
                self.answer += thought + end
            else:  # what is there of the thought is given, not learnt
                self.prompt += thought[: max(1, int(example.cut * len(thought)))] + end
        self.answer += [*_encode_answer(example.answer, tokenizer), tokenizer.special.eot]


def _encode_answer(text: str, tokenizer: Tokenizer) -> list[int]:
    """The answer's tokens, tool calls within their control tokens."""
    if not text.startswith("<tool_call>"):
        return tokenizer.encode(text)
    body = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
    return [tokenizer.special.tool_call, *tokenizer.encode(body), tokenizer.special.tool_call_end]


def embedding_count(rows: Float32Array) -> int:
    """Of a clip of which the encoder made `rows` [T, width]."""
    return -(-len(rows) // ADAPTOR_STRIDE)


def collate(
    clips: Sequence[Float32Array],
    said: Sequence[tuple[DrawnRecording, float]],
    words: Sequence[Sequence[int]],
    encoded: Sequence[Encoded],
    heard: Sequence[Sequence[int]],
    vocab_size: int,
    n_mels: int,
    by_encoder: bool = False,
) -> TrainingBatch:
    """`clips[c]` float32 [n_mels, T], or `by_encoder` what the encoder has made of it, [T, width]; `said[c]`: its
    recording, and the seconds of silence before it; `words[c]`: the tokens of what it says; `heard[e]`: example e's
    clips, in order."""
    padded, frames = pad_batch([] if by_encoder else list(clips), n_mels)
    rows = None
    if by_encoder:
        rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(each) for each in clips], batch_first=True)
    counts = [embedding_count(each) if by_encoder else token_count(each.shape[1]) for each in clips]
    sounds = _stack(
        [sounds_when(recording, before, count) for (recording, before), count in zip(said, counts, strict=True)],
        IGNORED,
    )
    letters = [[LETTER_IDS[letter] for letter in recording.text] for recording, _ in said]
    return TrainingBatch(
        torch.from_numpy(padded),
        torch.from_numpy(frames.astype(np.int64)),
        sounds,
        torch.tensor([letter for each in letters for letter in each], dtype=torch.int64),
        torch.tensor([len(each) for each in letters], dtype=torch.int64),
        torch.tensor([token for each in words for token in each], dtype=torch.int64),
        torch.tensor([len(each) for each in words], dtype=torch.int64),
        _grouped(counts, encoded, heard, vocab_size),
        rows,
    )


def _grouped(
    counts: Sequence[int], encoded: Sequence[Encoded], heard: Sequence[Sequence[int]], vocab_size: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`counts[c]`: clip c's embeddings."""
    starts = np.cumsum([0, *counts])
    wholes, labels = [], []
    for example, clips in zip(encoded, heard, strict=True):
        rows = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in clips]) if clips else np.zeros(0, np.int64)
        whole = np.array(example.prompt + example.answer)
        audio = whole >= vocab_size
        whole[audio] = vocab_size + rows[whole[audio] - vocab_size]
        wholes.append(whole[:-1])
        labels.append(np.array([IGNORED] * (len(example.prompt) - 1) + example.answer))
    order = np.argsort([len(whole) for whole in wholes])
    return [
        (_stack([wholes[n] for n in part], 0), _stack([labels[n] for n in part], IGNORED))
        for part in np.array_split(order, GROUPS)
        if len(part)
    ]


def _stack(rows: Sequence[Int64Array], filling: int) -> torch.Tensor:
    stacked = np.full((len(rows), max(map(len, rows), default=0)), filling, np.int64)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(stacked)
