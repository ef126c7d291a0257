"""What each brain of a mind-paced answer is asked: which token ids are put behind the prompt, and for how many more.

    Formulation     prompt, then the chain of thought up to `</think>`
    Articulation    prompt + thought so far + `</think>` + what has been said, then some more of the answer

All in token ids: nothing is tokenized anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from step_audio.chat_template import CLOSE_THOUGHT
from step_audio.tokenizer import Tokenizer
from step_audio_client.chat_types import ChatOptions
from step_audio_client.markers import partial_marker
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.reasoning import END_MARKERS

MARKER_TOKENS = 8  # in which an end marker would lie


@dataclass(frozen=True)
class Articulation:
    """A segment to ask for. `last`: the answer ends with it, however it ends."""

    request: PreparedRequest
    thought_tokens: int  # in its prompt, those of the end marker not counted unless the model wrote it
    last: bool


class Brains:
    """Requests of one answer; `prompt` and `without_thought` as for MindPacedSpeaker."""

    def __init__(
        self,
        prompt: PreparedPrompt,
        without_thought: PreparedPrompt,
        tokenizer: Tokenizer,
        options: ChatOptions,
        max_seq_len: int,
    ):
        assert options.mind_paced
        self._prompt, self._without_thought = prompt, without_thought
        self._tokenizer, self._options, self._max_seq_len = tokenizer, options, max_seq_len
        assert options.mind_paced.speak_tokens
        self._speak_tokens = options.mind_paced.speak_tokens
        self._close = tokenizer.encode(CLOSE_THOUGHT)

    def formulation(self) -> PreparedRequest:
        """The whole answer, as from one brain."""
        return self._request(self._prompt, (), 0, self._room(len(self._prompt), 0))

    def articulation(
        self, number: int, thought: Sequence[int], closed: bool, spoken: Sequence[int], last: bool
    ) -> Articulation | None:
        """Segment `number`, from 0; None where there is no room for it.

        `thought`: what it is spoken out of. `closed`: with the model's own end marker. `last`: it is not to end before
        the answer does.
        """
        used = len(thought) + len(spoken)
        thought, close = self._end(list(thought), closed)
        prompt = self._prompt if thought else self._without_thought
        suffix_ids = [*thought, *close, *spoken] if thought else list(spoken)
        room = self._room(len(prompt) + len(suffix_ids), used)
        if room < 1:
            return None
        most = room if last else min(room, self._speak_tokens)
        request = self._request(prompt, suffix_ids, number + 1, most)
        return Articulation(request, len(thought), most == room)

    def _end(self, thought: list[int], closed: bool) -> tuple[list[int], list[int]]:
        """The thought and what closes it, so that there is one end marker and one line end behind it."""
        text = self._tokenizer.decode(thought[-1:])
        if closed and not text.rstrip("\n").endswith(">"):  # the token has words of the answer, too
            closed = False
        if closed:
            return thought, [] if text.endswith("\n") else self._tokenizer.encode("\n")
        while thought and self._has_marker(self._tokenizer.decode(thought[-MARKER_TOKENS:])):
            thought.pop()
        return thought, self._close

    @staticmethod
    def _has_marker(text: str) -> bool:
        return any(marker in text for marker in END_MARKERS) or partial_marker(text, END_MARKERS) > 0

    def _room(self, positions: int, used: int) -> int:
        """How many more tokens there may be behind a prompt of so many positions, `used` having been generated."""
        most, room = self._options.sampling.max_tokens, self._max_seq_len - positions
        return room if most is None else min(room, most - used)

    def _request(self, prompt: PreparedPrompt, suffix_ids: Sequence[int], number: int, most: int) -> PreparedRequest:
        """`number`: of the generation, which has a seed of its own."""
        sampling = replace(self._options.sampling.with_seed_after(number), max_tokens=most)
        return PreparedRequest(prompt, sampling, tuple(suffix_ids), self._options.stop_token_ids)
