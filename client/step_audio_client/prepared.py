"""A prompt that the server has made ready once, to generate from several times, with token ids put behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from step_audio.arrays import AnyArray, Int32Array, UInt64Array
from step_audio.chat import MARKS
from step_audio.serving_info import LLM
from step_audio.word_list import unpack_word_list
from step_audio_client.audio_report import AudioReport, audio_reports
from step_audio_client.messages import HeardClips
from step_audio_client.sampling import Sampling
from step_audio_client.tokens import TokenRequest, stream_inputs
from step_audio_client.wire import scalar

CLIPS = ("audio_index", "frames", "content_hash")  # outputs about a prompt's recordings
CONTINUE = "step_audio_continue"  # the LLM, with the embeddings of recordings that the server has heard


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """The outputs of the model `step_audio_prompt`, with their batch dimension, and the `request` that they answer.

    `input_ids` int32 [1, n]; ids from the vocabulary's size on are rows of the recordings' embeddings, which the server
    keeps. `extra_ids` uint64 [1, n]: a hash of the recording at its rows, else 0. `end_id` int32 [1, 1], `stop_words`
    int32 [1, 2, m]. `clips`: int32 and uint64 [1, clips] by name, for another prompt about the same recordings.
    """

    request: TokenRequest
    input_ids: Int32Array
    extra_ids: UInt64Array
    end_id: Int32Array
    stop_words: Int32Array
    clips: dict[str, AnyArray]
    audio: tuple[AudioReport, ...] = ()

    @classmethod
    def of(cls, request: TokenRequest, outputs: dict[str, AnyArray]) -> PreparedPrompt:
        return cls(
            request,
            outputs["input_ids"],
            outputs["prompt_table_extra_ids"],
            outputs["end_id"],
            outputs["stop_words_list"],
            {name: outputs[name] for name in CLIPS},
            audio_reports(outputs["audio_report"]),
        )

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    @property
    def audio_tokens(self) -> int:
        """The recordings' positions with the marks around each clip."""
        return int(np.count_nonzero(self.extra_ids)) + MARKS * self.clips["frames"].size

    def heard(self, server: str) -> list[HeardClips]:
        """Of each recording; `server`: the address of that which has made this."""
        index, frames, hashes = (self.clips[name].reshape(-1).tolist() for name in CLIPS)
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.request.audio_count())]
        for i, *clip in zip(index, frames, hashes, strict=True):
            found[i].append((clip[0], clip[1]))
        return [HeardClips(server, tuple(clips)) for clips in found]

    def with_input_ids(self, input_ids: Int32Array, extra_ids: UInt64Array) -> PreparedPrompt:
        """Another prompt about the same recordings."""
        return replace(self, input_ids=input_ids, extra_ids=extra_ids)


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """One generation from `prompt` and the token ids `behind` it."""

    prompt: PreparedPrompt
    sampling: Sampling
    suffix_ids: Sequence[int] = ()
    stop_token_ids: Sequence[int] = ()

    has_memory = False  # of its answer's own tokens: it can be made from its middle

    @property
    def model(self) -> str:
        return CONTINUE if self.prompt.clips["frames"].size else LLM

    def __len__(self) -> int:
        return len(self.prompt) + len(self.suffix_ids)

    def inputs(self, done: Sequence[int] = ()) -> dict[str, AnyArray]:
        """Of `model`; `done`: ids of the answer that have come already. Raises RequestError."""
        if done:
            behind = self.sampling.behind(len(done))
            return replace(self, suffix_ids=[*self.suffix_ids, *done], sampling=behind).inputs()
        prompt = self.prompt
        inputs = {
            "input_ids": np.concatenate([prompt.input_ids, np.array([self.suffix_ids], np.int32)], axis=1),
            "input_lengths": scalar(len(self), np.int32),
            "end_id": prompt.end_id,
        } | self.sampling.inputs()
        inputs |= stream_inputs(self.stop_token_ids, stop_words=unpack_word_list(prompt.stop_words[0]))
        if self.model == CONTINUE:
            rest = np.zeros((1, len(self.suffix_ids)), np.uint64)
            inputs["prompt_table_extra_ids"] = np.concatenate([prompt.extra_ids, rest], axis=1)
            inputs |= {name: prompt.clips[name] for name in ("frames", "content_hash")}
        return inputs
