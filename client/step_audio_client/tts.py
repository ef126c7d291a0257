"""Speech in a reply, the ta4 format of Step-Audio 2: one text token, four audio tokens, and so on.

The prompt ends with `<tts_start>`; text and audio tokens follow in turns, the shorter of the two filled up with
`<tts_pad>` and `<audio_6561>`, until `<tts_end>`. What comes behind it is ordinary content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from step_audio.tokenizer import IncrementalDecoder, Tokenizer
from step_audio_client.chat_types import TtsContent

TTS_START, TTS_END, TTS_PAD = "<tts_start>", "<tts_end>", "<tts_pad>"
AUDIO_PAD = "<audio_6561>"  # one behind the last code of the vocoder; the model also ends its speech with it

_AUDIO = re.compile(r"<audio_[0-9]+>")


class TtsParser:
    """Takes spoken words and audio tokens apart; the result does not depend on how the ids are cut.

    It works on ids, for the bytes of one character may stand on both sides of audio tokens.

    `ended`: `<tts_end>` was seen.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self.ended = False
        self._end = tokenizer.added_tokens.get(TTS_END)
        self._silent = {tokenizer.added_tokens.get(name) for name in (TTS_START, TTS_PAD, AUDIO_PAD)}
        self._audio = _audio_tokens(tokenizer)
        self._decoder = IncrementalDecoder(tokenizer, skip_special_tokens)

    def push(self, ids: Iterable[int]) -> tuple[TtsContent, list[int]]:
        """The next tokens; what is new of the speech, and the ids that stand behind its end."""
        text, audio = "", ""
        ids = iter(ids)
        for id_ in ids if not self.ended else ():
            if id_ == self._end:  # an unfinished character will not be finished any more
                self.ended = True
                break
            if id_ in self._silent:
                continue
            if id_ in self._audio:
                audio += self._audio[id_]
            else:
                text += self._decoder.push([id_])
        return TtsContent(text, audio), list(ids)


@lru_cache(maxsize=1)  # of thousands of names, for each spoken answer
def _audio_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    return {id_: name for name, id_ in tokenizer.added_tokens.items() if _AUDIO.fullmatch(name)}
