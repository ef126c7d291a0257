r"""Where the thought ends and the answer begins.

The prompt opens the thought with `<think>\n`, so a reply reads `thought\n</think>\nanswer`. The markers are
plain text to the tokenizer and share tokens with the text around them (`.</`, `>\n\n`): no token id tells where
the thought ends, only decoded text does.
"""

from __future__ import annotations

import re

from step_audio_client.markers import partial_marker

BEGIN_MARKERS = ("<think>", "<|THINK_START|>")
END_MARKERS = ("</think>", "<|THINK_END|>")


def _any(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)))


_BEGIN, _END, _MARKER = _any(BEGIN_MARKERS), _any(END_MARKERS), _any(BEGIN_MARKERS + END_MARKERS)


def reasoning_ended(prompt_tail: str) -> bool:
    r"""Whether the reply to a prompt begins with the answer; the last marker decides.

    `prompt_tail` is the assistant's turn as far as the prompt has it: the message that `continue_final_message`
    continues, else `<think>\n`. Without a marker the thought is still to come.

    >>> reasoning_ended("<think>\n\n</think>\n"), reasoning_ended("<think>\nFirst,"), reasoning_ended("")
    (True, False, False)
    """
    markers = _MARKER.findall(prompt_tail)
    return bool(markers) and markers[-1] in END_MARKERS


def thought_of(reply: str) -> str:
    r"""The thought as the model wrote it, ready to be closed: up to its end marker, to what may become one, or all.

    >>> thought_of("Two.\n</think>\nFour."), thought_of("Two.\n</th"), thought_of("<think>\nTwo")
    ('Two.', 'Two.', '<think>\nTwo')
    """
    end = _END.search(reply)
    size = end.start() if end else len(reply) - partial_marker(reply, END_MARKERS)
    return reply[:size].rstrip("\n")


class ReasoningSplitter:
    """Splits a reply that arrives in pieces of any size; what it returns joins up the same however it was cut.

    The thought is what stands before the first end marker, less one leading begin marker and the newlines at
    both ends; the content is what stands behind it, less leading newlines. Without an end marker all is thought,
    and its last newlines stay: it was cut short and may be continued.

    `starts_in_content`: the prompt closed the thought (`reasoning_ended`). The reply is then content as it
    stands, leading newlines too, for the prompt may end inside a half-written answer.

    `ended`: whether the thought is over.
    """

    def __init__(self, starts_in_content: bool = False):
        self.ended = starts_in_content
        self._held = ""  # may belong to a marker: a part of one, and the newlines before it
        self._nothing_yet = True  # of the thought
        self._opened = False
        self._skip_newlines = not starts_in_content

    def push(self, text: str) -> tuple[str, str]:
        """The next piece of the reply; what is new of the thought and of the content, either may be empty."""
        if self.ended:
            return "", self._content(text)
        text = self._held + text
        if self._nothing_yet:
            text = self._without_opening(text)
        if end := _END.search(text):
            self.ended, self._held = True, ""
            return text[: end.start()].rstrip("\n"), self._content(text[end.end() :])
        sure = text[: len(text) - partial_marker(text, BEGIN_MARKERS + END_MARKERS)].rstrip("\n")
        self._held = text[len(sure) :]
        self._nothing_yet = self._nothing_yet and not sure
        return sure, ""

    def flush(self) -> tuple[str, str]:
        """The end of the reply: what was held back was no marker."""
        held, self._held = self._held, ""
        return held, ""

    def _without_opening(self, text: str) -> str:
        text = text.lstrip("\n")
        if not self._opened and (begin := _BEGIN.match(text)):
            self._opened = True
            text = text[begin.end() :].lstrip("\n")
        return text

    def _content(self, text: str) -> str:
        if self._skip_newlines:
            text = text.lstrip("\n")
            self._skip_newlines = not text
        return text
