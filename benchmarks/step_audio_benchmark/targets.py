"""What is asked: the model repository over gRPC, or the OpenAI-compatible API over HTTP."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx

from step_audio.errors import StepAudioError
from step_audio_benchmark.records import Record
from step_audio_benchmark.workload import Question, Workload
from step_audio_client import Audio, ReplyParser, RequestError, StepAudioClient, Tls, user

TIMEOUT = 3600.0  # seconds; a request that is refused or lost is told by the server


class Target(Protocol):
    """One way to the model."""

    name: str

    async def ask(self, question: Question, workload: Workload) -> Record:
        """Send it and read the answer to its end. A refusal is in the record's `error`."""
        ...


class Grpc:
    """The client library."""

    name = "gRPC"

    def __init__(self, client: StepAudioClient):
        self._client = client

    async def ask(self, question: Question, workload: Workload) -> Record:
        parts = [question.text] if question.audio is None else [Audio(question.audio), question.text]
        record, parser = Record(time.perf_counter(), question.audio_seconds), ReplyParser()
        try:
            async for delta in self._client.generate([user(*parts)], workload.sampling_of(question)):
                now = time.perf_counter()
                if delta.token_ids:
                    record.pieces.append((now, len(delta.token_ids)))
                    record.token_ids += delta.token_ids
                if record.first_answer is None and parser.push(delta.text).content:
                    record.first_answer = now
                if delta.usage is not None:
                    record.prompt_tokens = delta.usage.prompt_tokens
                    record.output_tokens = delta.usage.completion_tokens
        except RequestError as error:
            record.error = str(error)
        record.ended = time.perf_counter()
        return record


class Http:
    """Streamed chat completions. Messages do not say how many tokens they carry: those of the usage are shared out.

    extra: fields of the request's body that only this server knows.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        model: str,
        name: str = "HTTP",
        extra: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self._client, self._url, self._model, self._extra = client, f"{url}/v1/chat/completions", model, extra or {}

    async def ask(self, question: Question, workload: Workload) -> Record:
        body = self._body(question, workload)
        record = Record(time.perf_counter(), question.audio_seconds)
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                if response.is_error:
                    record.error = _message(await response.aread(), response.status_code)
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        _take(record, json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError as error:
            record.error = str(error) or type(error).__name__
        record.ended = time.perf_counter()
        record.share_out()
        return record

    def _body(self, question: Question, workload: Workload) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        if question.audio is not None:
            clip = {"data": base64.b64encode(question.audio).decode(), "format": "wav"}
            content.insert(0, {"type": "input_audio", "input_audio": clip})
        tokens = workload.output_tokens
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "min_tokens": tokens,
            "seed": question.seed,
            **workload.sampling,
            **self._extra,
        }


def _take(record: Record, chunk: dict[str, Any]) -> None:
    now = time.perf_counter()
    if "error" in chunk:
        record.error = str(chunk["error"].get("message"))
    if usage := chunk.get("usage"):
        record.prompt_tokens, record.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        record.token_ids += choice.get("token_ids") or ()  # vLLM tells them when asked to
        if delta.get("reasoning_content") or delta.get("reasoning") or delta.get("content"):
            record.pieces.append((now, 1))
        if record.first_answer is None and delta.get("content"):
            record.first_answer = now


def _message(body: bytes, status: int) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {status}"


async def _served_model(client: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> str:
    try:
        response = await client.get(f"{url}/v1/models", headers=headers)
        if response.is_error:
            raise StepAudioError(f"{url}: {_message(response.content, response.status_code)}")
        return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        raise StepAudioError(f"{url} does not answer as an OpenAI-compatible API") from None


@asynccontextmanager
async def connected(
    grpc: str | None, http: str | None, *, tls: Tls | None = None, model: str | None = None, key: str | None = None
) -> AsyncIterator[list[Target]]:
    """The targets that have an address. `model`: by its name over HTTP, else the first that is served.

    Raises StepAudioError where there is no such API.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits, headers=headers) as client:
        targets: list[Target] = []
        if http:
            url = http.rstrip("/")
            targets.append(Http(client, url, model or await _served_model(client, url, headers)))
        if not grpc:
            yield targets
            return
        async with StepAudioClient(grpc, tls=tls) as ours:
            yield [Grpc(ours), *targets]
