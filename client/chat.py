"""`step-audio chat`: one question in a terminal, the answer printed as it is made."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from step_audio.errors import StepAudioError
from step_audio.tokenizer import Tokenizer
from step_audio_client.client import StepAudioClient
from step_audio_client.errors import RequestError
from step_audio_client.messages import Audio, user
from step_audio_client.reasoning import reasoning_ended
from step_audio_client.replies import ReplyDelta, ReplyParser
from step_audio_client.sampling import Sampling

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


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
) -> int:
    """Print the answer on `out`, the thought before it and a line of figures on stderr; returns the exit status.

    Ctrl-C stops the server's work too. Raises ChatError.
    """
    if not audio and not text:
        raise ChatError("nothing to ask: give --audio FILE, --text TEXT or both")
    messages = _messages(audio, text, system, prefix)
    own = Tokenizer.from_directory(tokenizer) if tokenizer else None
    return asyncio.run(_ask(address, messages, sampling, prefix, own, out))


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
    """The thought on stderr, dim where that is a terminal; the answer on `out`."""

    def __init__(self, out: TextIO):
        self.out = out
        self.dim, self.plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
        self.thinking = False

    def __call__(self, delta: ReplyDelta) -> None:
        if delta.reasoning:
            self.thinking = True
            print(f"{self.dim}{delta.reasoning}{self.plain}", end="", file=sys.stderr, flush=True)
        if (delta.content or delta.tool_calls) and self.thinking:
            self._end_thought()
        self.out.write(delta.content)
        for call in delta.tool_calls:
            self.out.write(f"{call.name}({call.arguments})\n")
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
    messages: list[dict[str, Any]],
    sampling: Sampling,
    prefix: str | None,
    tokenizer: Tokenizer | None,
    out: TextIO,
) -> int:
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError):  # not the main thread, or not Unix
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last when the terminal is closed
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with StepAudioClient(address, tokenizer) as client:
        start, first = time.monotonic(), None
        parser = ReplyParser(starts_in_content=reasoning_ended(prefix or ""))
        show = _Printer(out)
        try:
            answer = client.generate(messages, sampling, continue_final_message=prefix is not None)
            async with contextlib.aclosing(answer):
                async for delta in answer:
                    first = first or time.monotonic()
                    show(parser.push(delta.text))
                show(parser.flush())
        except RequestError as error:
            raise ChatError(str(error)) from None
        except asyncio.CancelledError:
            task.uncancel()
            with contextlib.suppress(OSError):  # the terminal may be gone
                print("\nstopped", file=sys.stderr)
            return INTERRUPTED
    show.end()
    assert first is not None and delta.usage is not None
    print(
        f"{delta.usage.prompt_tokens} prompt tokens, {delta.usage.completion_tokens} new in "
        f"{time.monotonic() - start:.2f} s (first after {first - start:.2f} s), finish: {delta.finish_reason}",
        file=sys.stderr,
    )
    return 0
