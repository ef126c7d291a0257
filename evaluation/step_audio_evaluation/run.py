"""Many questions at once to one server, each answer kept as soon as it is there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from step_audio.chat_template import CLOSE_THOUGHT
from step_audio.progress import Progress
from step_audio_client import ChatOptions, RequestError, Sampling, ServerBusy, StepAudioClient, Thinking
from step_audio_evaluation.answers import AnswerFile, EvaluatedAnswer
from step_audio_evaluation.items import EvaluationError, Item

BUSY_PAUSES = (0.5, 1, 2, 4, 8, 16)  # seconds before a question is asked again where the queue was full


async def run(
    items: Sequence[Item],
    client: StepAudioClient,
    sampling: Sampling,
    answers: AnswerFile,
    concurrency: int = 32,
    stream: TextIO | None = None,
    adapter: str | None = None,
) -> None:
    """Ask what is not answered yet, of an `adapter` where one is named.

    A question that the server refuses is kept with the error. Raises EvaluationError when the server is gone; what
    was answered before is kept.
    """
    for item in items:  # the same id, and yet another question: the recordings are made otherwise now
        if item.id in answers.of and answers.of[item.id].expected != item.expected:
            raise EvaluationError(f"{answers.path} answers another question as {item.id}: choose another --output")
    left = [item for item in items if (known := answers.of.get(item.id)) is None or known.error is not None]
    progress = Progress("answers", unit="", done=len(items) - len(left), total=len(items), stream=stream)
    queue = iter(left)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(left))):
                group.create_task(_work(queue, client, sampling, answers, progress, adapter))
    except* (EvaluationError, OSError) as errors:  # the latter of a full disk, or of a pipe that nobody reads
        raise errors.exceptions[0] from None
    finally:
        progress.close()


async def _work(
    queue: Iterator[Item],
    client: StepAudioClient,
    sampling: Sampling,
    answers: AnswerFile,
    progress: Progress,
    adapter: str | None,
) -> None:
    for item in queue:  # shared: each worker takes the next one
        try:
            answer = await _ask(item, client, sampling, adapter)
        except RequestError as error:
            if not await client.ready():
                raise EvaluationError(f"{error}; the same command goes on where this one ended") from None
            answer = EvaluatedAnswer(id=item.id, expected=item.expected, error=str(error))
        except OSError as error:  # a recording
            text = f"{error.filename} cannot be read: {error.strerror}"
            answer = EvaluatedAnswer(id=item.id, expected=item.expected, error=text)
        answers.add(answer)
        progress.step()


async def _ask(item: Item, client: StepAudioClient, sampling: Sampling, adapter: str | None) -> EvaluatedAnswer:
    messages = item.request()
    sampling = dataclasses.replace(sampling, seed=(sampling.seed or 0) + item.round)
    for pause in (*BUSY_PAUSES, None):
        try:
            if item.budget is not None:
                return await _within_budget(item, messages, client, ChatOptions(sampling, adapter=adapter))
            made = await client.complete(
                messages,
                sampling,
                tools=item.tools or None,
                continue_final_message=item.prefix is not None,
                adapter=adapter,
            )
            break
        except ServerBusy:
            if pause is None:
                raise
            await asyncio.sleep(pause)
    return EvaluatedAnswer(
        id=item.id,
        expected=item.expected,
        text=made.text,
        token_ids=made.token_ids,
        finish_reason=made.finish_reason,
        prompt_tokens=made.usage.prompt_tokens,
    )


async def _within_budget(
    item: Item, messages: list[dict[str, Any]], client: StepAudioClient, options: ChatOptions
) -> EvaluatedAnswer:
    thinking = Thinking() if item.budget == "unlimited" else Thinking(budget=item.budget)
    deltas = [delta async for delta in client.chat(messages, dataclasses.replace(options, thinking=thinking))]
    thought, said = "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas)
    reason, usage = deltas[-1].finish_reason, deltas[-1].usage
    assert usage
    return EvaluatedAnswer(
        id=item.id,
        expected=item.expected,
        text=f"{thought}{CLOSE_THOUGHT}{said}",
        token_ids=[token for delta in deltas for token in delta.token_ids],
        finish_reason="length" if reason == "length" else "stop",
        prompt_tokens=usage.prompt_tokens,
    )
