"""`step-audio chat`: one question in a terminal, the answer printed as it is made."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from step_audio.errors import StepAudioError
from step_audio.tokenizer import Tokenizer
from step_audio_client.chat_types import ChatDelta, ChatOptions, MindPaced, SpeechTiming
from step_audio_client.client import StepAudioClient
from step_audio_client.columns import DIM, PLAIN, Columns, Lines, can_show_columns
from step_audio_client.errors import RequestError
from step_audio_client.interrupts import cancel_on_signals, stopped
from step_audio_client.messages import Audio, user
from step_audio_client.sampling import Sampling
from step_audio_client.tls import Tls


class ChatError(StepAudioError):
    """The question could not be asked or answered."""


def chat(
    address: str,
    audio: Sequence[str | Path],
    text: Sequence[str],
    sampling: Sampling,
    system: str | None = None,
    prefix: str | None = None,
    tokenizer: Path | None = None,
    out: TextIO = sys.stdout,
    mind_paced: MindPaced | None = None,
    tls: Tls | None = None,
    adapter: str | None = None,
) -> int:
    """Print the answer on `out`, the thought before it and a line of figures on stderr; returns the exit status.

    Mind-paced, a terminal shows both side by side. Ctrl-C stops the server's work too. Raises ChatError.
    """
    if not audio and not text:
        raise ChatError("nothing to ask: give --audio FILE, --text TEXT or both")
    messages = _messages(audio, text, system, prefix)
    own = Tokenizer.from_directory(tokenizer) if tokenizer else None
    options = ChatOptions(
        sampling=sampling, adapter=adapter, continue_final_message=prefix is not None, mind_paced=mind_paced
    )
    return asyncio.run(_ask(address, tls, messages, options, own, out))


def _messages(
    audio: Sequence[str | Path], text: Sequence[str], system: str | None, prefix: str | None
) -> list[dict[str, Any]]:
    try:
        recordings = [Audio.load(path) for path in audio]
    except OSError as error:
        raise ChatError(f"cannot read {error.filename}: {error.strerror}") from None
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages.append(user(*recordings, *text))
    if prefix is not None:
        messages.append({"role": "assistant", "content": prefix})
    return messages


class _Printer:
    """The thought on stderr, dim where that is a terminal; the answer on `out`.

    `in_turns`: the answer comes after the thought, which is ended by a line end then; else both come at once.
    """

    def __init__(self, out: TextIO, in_turns: bool):
        self.out, self.in_turns = out, in_turns
        self.dim, self.plain = (DIM, PLAIN) if sys.stderr.isatty() else ("", "")
        self.thinking = False

    def add(self, reasoning: str, content: str) -> None:
        if reasoning:
            self.thinking = True
            print(f"{self.dim}{reasoning}{self.plain}", end="", file=sys.stderr, flush=True)
        if content and self.thinking and self.in_turns:
            self._end_thought()
        self.out.write(content)
        self.out.flush()

    def _end_thought(self) -> None:
        self.thinking = False
        print(file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.thinking:
            self._end_thought()
        self.out.write("\n")
        self.out.flush()


async def _ask(
    address: str,
    tls: Tls | None,
    messages: list[dict[str, Any]],
    options: ChatOptions,
    tokenizer: Tokenizer | None,
    out: TextIO,
) -> int:
    task = cancel_on_signals()
    async with StepAudioClient(address, tokenizer, tls=tls) as client:
        start, first = time.monotonic(), None
        mind_paced = options.mind_paced is not None
        show: Columns | Lines | _Printer = _Printer(out, in_turns=not mind_paced)
        if mind_paced and can_show_columns(out):
            show = Columns(out)
        elif mind_paced and out.isatty() and sys.stderr.isatty():  # letters of both would be mixed
            show = Lines(out)
        try:
            async with contextlib.aclosing(client.chat(messages, options)) as answer:
                async for delta in answer:
                    first = first or time.monotonic()
                    show.add(delta.reasoning, delta.content)
        except RequestError as error:
            if first:
                print(file=sys.stderr)
            raise ChatError(str(error)) from None
        except asyncio.CancelledError:
            return stopped(task)
    show.end()
    assert first is not None
    for report in delta.audio:
        print(f"recording {report.index + 1}: {report.text}", file=sys.stderr)
    print(f"{_figures(delta, options, start, first)}, finish: {delta.finish_reason}", file=sys.stderr)
    return 0


def _figures(last: ChatDelta, options: ChatOptions, start: float, first: float) -> str:
    if last.speech and options.mind_paced:
        return speech_figures(last.speech, played=options.mind_paced.speech_rate is not None)
    assert last.usage
    return (
        f"{last.usage.prompt_tokens} prompt tokens, {last.usage.completion_tokens} new in "
        f"{time.monotonic() - start:.2f} s (first after {first - start:.2f} s)"
    )


def speech_figures(speech: SpeechTiming, played: bool) -> str:
    """How a mind-paced answer went, in a line; `played`: at a speech rate."""
    figures = ["nothing said"]
    if (first := speech.first_spoken) is not None:
        figures = [f"first word after {first:.2f} s with {speech.thought_before} tokens thought before it"]
    if speech.thought_ended is not None:
        figures.append(f"thought over after {speech.thought_ended:.2f} s with {speech.thought_tokens}")
    figures.append(f"segments: {len(speech.segments)}")
    if played:
        figures.append(f"underruns: {speech.underruns} ({speech.silence:.2f} s)")
    reused, total = (
        sum(getattr(segment, name) for segment in speech.segments) for name in ("reused_blocks", "total_blocks")
    )
    figures.append(f"KV blocks reused: {reused} of {total}")
    return ", ".join(figures)
