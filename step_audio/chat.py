"""A conversation and its clips to the decoder's prompt: render, encode, put audio in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from step_audio.arrays import Int32Array, UInt64Array
from step_audio.chat_template import Control, Template, render
from step_audio.conversation import AudioPlace, Conversation, Text
from step_audio.errors import ContextTooLong, InvalidRequest
from step_audio.tokenizer import Tokenizer, check_vocabulary

MARKS = 2  # positions around each clip: audio_start, audio_end


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """One encoded clip: its embeddings' rows, and a hash of its content (1 .. 2**64 - 1) for the KV cache."""

    tokens: int
    content_hash: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What the decoder gets.

    `input_ids`: int32 [n]. An id of `vocab_size + k` stands for row k of the request's clip embeddings,
    all clips concatenated in prompt order. `extra_ids`: uint64 [n], the clip's content hash at its rows
    and 0 elsewhere: those ids repeat in every request, so a KV cache needs it to tell clips apart.
    `audio_tokens`: how many of the n are rows of clips.
    """

    input_ids: Int32Array
    extra_ids: UInt64Array
    audio_tokens: int


def build_prompt(
    conversation: Conversation,
    tokenizer: Tokenizer,
    vocab_size: int,
    clips: Sequence[Sequence[ClipInfo]],
    template: str | Template = "default",
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    max_positions: int | None = None,
) -> Prompt:
    """Render and encode; every clip becomes `<audio_start>`, its rows' ids, `<audio_end>`.

    `vocab_size`: rows of the embedding, where ids of clip rows begin. `clips[a]`: the clips of audio a. Nothing is
    encoded where the text is so long that the prompt surely has `max_positions`, of which an answer needs one.
    Raises InvalidRequest, and CheckpointError if tokenizer, template and vocab_size do not fit together.
    """
    check_vocabulary(tokenizer, vocab_size)
    if len(clips) != conversation.audio_count:
        raise InvalidRequest(
            f"the messages have {conversation.audio_count} audio parts but the request brings {len(clips)} audios",
            "messages",
        )
    segments = render(conversation, template, add_generation_prompt, continue_final_message, tokenizer.added_names)
    if max_positions is not None:
        least = sum(tokenizer.least_tokens(segment.text) for segment in segments if isinstance(segment, Text))
        least += sum(isinstance(segment, Control) for segment in segments)
        least += sum(2 + clip.tokens for audio in clips for clip in audio)
        if least >= max_positions:
            raise ContextTooLong(
                f"the prompt has at least {least} positions and max_seq_len is {max_positions}; send less audio or text"
            )
    audios = iter(clips)
    ids: list[int] = []
    extra: list[int] = []
    rows = 0
    for segment in segments:
        match segment:
            case Text(text):
                ids += tokenizer.encode(text)
            case Control(name):
                ids.append(tokenizer.token_id(name))
            case AudioPlace():
                for clip in next(audios):
                    if clip.content_hash == 0:
                        raise ValueError("content_hash 0 means text: two clips would share KV cache")
                    ids.append(tokenizer.special.audio_start)
                    extra += [0] * (len(ids) - len(extra)) + [clip.content_hash] * clip.tokens
                    ids += range(vocab_size + rows, vocab_size + rows + clip.tokens)
                    ids.append(tokenizer.special.audio_end)
                    rows += clip.tokens
    extra += [0] * (len(ids) - len(extra))
    return Prompt(np.array(ids, np.int32), np.array(extra, np.uint64), rows)


def count_text(
    conversation: Conversation,
    tokenizer: Tokenizer,
    vocab_size: int,
    template: str | Template = "default",
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> int:
    """How many of a prompt's positions are not the recordings' own, whatever they hold. Raises as `build_prompt`."""
    shortest = [[ClipInfo(tokens=1, content_hash=1)]] * conversation.audio_count
    prompt = build_prompt(
        conversation, tokenizer, vocab_size, shortest, template, add_generation_prompt, continue_final_message
    )
    return len(prompt.input_ids) - (1 + MARKS) * conversation.audio_count
