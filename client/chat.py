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
    """Print the answer on `out` and a line of figures on stderr; returns the exit status.

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
        try:
            answer = client.generate(messages, sampling, continue_final_message=prefix is not None)
            async with contextlib.aclosing(answer):
                async for delta in answer:
                    first = first or time.monotonic()
                    out.write(delta.text)
                    out.flush()
        except RequestError as error:
            raise ChatError(str(error)) from None
        except asyncio.CancelledError:
            task.uncancel()
            with contextlib.suppress(OSError):  # the terminal may be gone
                print("\nstopped", file=sys.stderr)
            return INTERRUPTED
    out.write("\n")
    out.flush()
    assert first is not None and delta.usage is not None
    print(
        f"{delta.usage.prompt_tokens} prompt tokens, {delta.usage.completion_tokens} new in "
        f"{time.monotonic() - start:.2f} s (first after {first - start:.2f} s), finish: {delta.finish_reason}",
        file=sys.stderr,
    )
    return 0
