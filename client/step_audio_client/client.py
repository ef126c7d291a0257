"""The client: one coroutine-safe object for one server or several, one async iterator per answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from step_audio.chat_template import NO_THOUGHT, Template
from step_audio.serving_info import ServingInfo, no_adapter
from step_audio.tokenizer import IncrementalDecoder, Tokenizer
from step_audio_client.audio_report import AudioReport
from step_audio_client.chat_stream import ChatStream, HeardAudio
from step_audio_client.chat_stream import check as check_options
from step_audio_client.chat_types import ChatDelta, ChatOptions, RawOptions
from step_audio_client.continuation import AnyRequest
from step_audio_client.counts import Counts
from step_audio_client.errors import InvalidGuide, RequestError
from step_audio_client.failover import PATIENCE
from step_audio_client.generators import inner
from step_audio_client.messages import HeardClips, recordings
from step_audio_client.mind_paced import MindPacedSpeaker, paced
from step_audio_client.mind_paced import check as check_mind_paced
from step_audio_client.pipeline import BUILDER, Pipeline
from step_audio_client.prepared import PreparedRequest
from step_audio_client.raw import RawPrompt, RawStream
from step_audio_client.raw import check as check_raw
from step_audio_client.run import Run
from step_audio_client.sampling import Sampling
from step_audio_client.tls import Tls
from step_audio_client.tokens import FinishReason, TokenRequest, Tokens


@dataclass(frozen=True)
class Usage:
    """Positions of the prompt, audio included, and tokens that were generated."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Delta:
    """What is new. `text` is whole characters; the ids may be ahead of it."""

    token_ids: list[int]
    text: str
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None  # on the last one
    usage: Usage | None = None  # on the last one
    audio: tuple[AudioReport, ...] = ()  # on the last one: what was amiss with recordings


@dataclass(frozen=True)
class Generation:
    """A whole answer."""

    token_ids: list[int]
    text: str
    logprobs: list[float]
    finish_reason: FinishReason
    usage: Usage
    audio: tuple[AudioReport, ...] = ()  # what was amiss with recordings


class StepAudioClient:
    """Speaks gRPC to the model repository. `async with`, or `close()` when done.

    `address`: of one server, or of several that serve the same, as "host1:8001,host2:8001" or a sequence; with
    "grpcs://" before a host the connection is TLS, `tls` says whom it trusts. Answers
    take them in turns; one that a server did not begin, out of reach or its queue full, goes to the next.
    A server that dies is seen as a pause: what it had begun goes on elsewhere, or when it is back. Greedy answers are
    the same, token for token; sampled ones go on from another seed.
    `tokenizer`: taken from the server at first use if not given.
    `patience`: seconds for which an answer waits where no server is left, one having answered before.

    Raises ValueError for an empty address or certificates that do not belong together, OSError where a certificate
    cannot be read.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:8001",
        tokenizer: Tokenizer | None = None,
        patience: float = PATIENCE,
        tls: Tls | None = None,
    ):
        self._pipeline = Pipeline(address, patience, tls)
        self._tokenizer = tokenizer
        self._info: ServingInfo | None = None

    async def __aenter__(self) -> StepAudioClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops what is under way, and waits for it, so that no slot stays taken on the server."""
        await self._pipeline.close()

    @property
    def counts(self) -> Counts:
        """What has happened to its requests besides going well."""
        return self._pipeline.counts

    @property
    def expected(self) -> int:
        """How many of its servers are in reach, or have been away for less than the patience."""
        return self._pipeline.expected

    async def ready(self) -> bool:
        """Whether the whole pipeline is loaded, on one server at least."""
        return await self._pipeline.ready()

    async def stop(self, request_id: str) -> None:
        """End an answer by its id, from wherever. Its own iterator then ends as if the model had."""
        await self._pipeline.stop(request_id)

    async def serving_info(self) -> ServingInfo:
        """The served model's name and limits; asked once."""
        if self._info is None:
            info: ServingInfo = json.loads(await self._ask_tokenizer_model("serving_info"))
            self._info = info
        return self._info

    async def tokenizer(self) -> Tokenizer:
        """The given one, or the server's; asked once."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_json((await self._ask_tokenizer_model("tokenizer_json")).decode())
        return self._tokenizer

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: ChatOptions | None = None,
        *,
        request_id: str | None = None,
    ) -> AsyncGenerator[ChatDelta]:
        """The reply taken apart: thought, answer, tool calls, speech; the last delta has `finish_reason` and `usage`.

        Leaving early and `request_id` are as for `generate`. Raises RequestError; for options that contradict each
        other before anything is sent.
        """
        options = options or ChatOptions()
        run = await self._run(request_id, options.timeout, options.adapter, _who_knows(messages))
        if options.mind_paced:
            async with contextlib.aclosing(self._speak(run, messages, options)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        stream = ChatStream(lambda request: self._tokens(run, request), await self.tokenizer(), messages, options)
        request = stream.request()
        heard = (lambda: self._heard(run, request)) if request.audio_count() else None
        async with contextlib.aclosing(stream.deltas(heard)) as deltas:
            async for delta in deltas:
                yield delta

    async def hear(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None) -> list[HeardClips]:
        """Has a server compute what a prompt begins with, of which more is to come: the next `chat` with this beginning
        finds it there. What it has heard of each recording, for `Audio.known`.

        Takes a place as an answer of one token does; leaving early is as for `generate`. Raises RequestError.
        """
        options = options or ChatOptions()
        run = await self._run(None, options.timeout, options.adapter, _who_knows(messages))
        stream = ChatStream(lambda request: self._tokens(run, request), await self.tokenizer(), messages, options)
        prompt = await self._pipeline.prepare(run, stream.request())
        request = PreparedRequest(prompt, replace(options.sampling, max_tokens=1))
        async with contextlib.aclosing(self._tokens(run, request)) as tokens:
            async for _ in tokens:
                pass
        return prompt.heard(run.route[0].address)

    async def continue_raw(
        self,
        prompt: str | Sequence[int] | RawPrompt,
        options: RawOptions | None = None,
        *,
        request_id: str | None = None,
    ) -> AsyncGenerator[ChatDelta]:
        """What the model writes behind a prompt that the caller has laid out, template and all: as text, or as token
        ids. Names of added tokens in it are those tokens; it has no recordings.

        Thought, end marker and calls stay in `content` as the model wrote them. The rest is as for `chat`.
        """
        options = options or RawOptions()
        run = await self._run(request_id, options.timeout, options.adapter)
        tokenizer, info = await self.tokenizer(), await self.serving_info()
        if not isinstance(prompt, RawPrompt):
            prompt = await asyncio.to_thread(RawPrompt.of, prompt, tokenizer, info)
        options = await self._bounded(run, options)
        try:
            stream = RawStream(
                lambda request: self._tokens(run, request), tokenizer, prompt, options, info["max_seq_len"]
            )
            async with contextlib.aclosing(stream.deltas()) as deltas:
                async for delta in deltas:
                    yield delta
        except InvalidGuide as error:
            raise error.by_name(options.guide.name if options.guide else "guide") from None

    async def bounded(self, options: RawOptions) -> RawOptions:
        """With the guide as the LLM is to get it, for several texts behind raw prompts, each of which asks for it.

        Raises RequestError.
        """
        return await self._bounded(self._pipeline.run(None, options.timeout), options)

    async def generate(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        adapter: str | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[Delta]:
        """Deltas of the reply as the model writes it; the last one carries `finish_reason`, `usage` and `audio`.

        Leaving the iteration early, by `break`, cancellation or an exception, stops the server's work.
        `timeout` in seconds bounds the whole answer. `request_id` must be unguessable: who knows it can stop the
        request; None makes a UUID. `adapter`: the name of one that is served. Raises RequestError.
        """
        run = await self._run(request_id, timeout, adapter)
        tokenizer = await self.tokenizer()
        stop_ids = tokenizer.special.stop_ids
        decoder = IncrementalDecoder(tokenizer)
        request = TokenRequest(messages, sampling or Sampling(), tools, continue_final_message)
        completion = 0
        async with contextlib.aclosing(self._tokens(run, request)) as stream:
            async for tokens in stream:
                ids, reason = tokens.token_ids, tokens.finish_reason
                completion += len(ids)
                text = decoder.push([token for token in ids if token not in stop_ids])
                if reason is None:
                    yield Delta(ids, text, tokens.logprobs)
                else:
                    usage = Usage(tokens.prompt_tokens, completion)
                    audio = await self._pipeline.audio_report(run) if request.audio_count() else ()
                    yield Delta(ids, text + decoder.flush(), tokens.logprobs, reason, usage, audio)

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        adapter: str | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Generation:
        """The whole answer at once; arguments as for `generate`."""
        answer = self.generate(
            messages,
            sampling,
            tools=tools,
            continue_final_message=continue_final_message,
            adapter=adapter,
            timeout=timeout,
            request_id=request_id,
        )
        deltas = [delta async for delta in answer]
        last = deltas[-1]
        assert last.finish_reason and last.usage
        return Generation(
            token_ids=[token for delta in deltas for token in delta.token_ids],
            text="".join(delta.text for delta in deltas),
            logprobs=[value for delta in deltas for value in delta.logprobs],
            finish_reason=last.finish_reason,
            usage=last.usage,
            audio=last.audio,
        )

    async def _run(
        self, request_id: str | None, timeout: float | None, adapter: str | None, first: str | None = None
    ) -> Run:
        """Raises RequestError for an adapter that is not served."""
        run = self._pipeline.run(request_id, timeout, first)
        if adapter is not None:
            served = (await self.serving_info())["adapters"]
            if adapter not in served:
                raise RequestError(no_adapter(adapter, served), "adapter")
            run.lora_task_id = served[adapter]
        return run

    @inner
    async def _speak(
        self, run: Run, messages: Sequence[Mapping[str, Any]], options: ChatOptions
    ) -> AsyncGenerator[ChatDelta]:
        """A mind-paced answer: the recordings are encoded once, for both brains."""
        schemas = check_options(options)
        check_mind_paced(options)
        info = await self.serving_info()
        options = paced(options, info["mind_paced_speaking"])
        tools = options.tools if schemas and options.tool_choice != "none" else None
        prompt = await self._pipeline.prepare(run, TokenRequest(messages, options.sampling, tools))
        turns = [*messages, {"role": "assistant", "content": NO_THOUGHT}]
        request = TokenRequest(turns, options.sampling, tools, continue_final_message=True)
        inputs = request.prompt_inputs() | prompt.clips
        ids = await self._pipeline.ask(run, BUILDER, inputs, "input_ids", "prompt_table_extra_ids")
        speaker = MindPacedSpeaker(
            lambda request: self._tokens(run, request),
            prompt,
            prompt.with_input_ids(*ids),
            await self.tokenizer(),
            options,
            info["max_seq_len"],
            run.start,
        )
        async with contextlib.aclosing(speaker.deltas()) as deltas:
            async for delta in deltas:
                yield delta

    async def _bounded(self, run: Run, options: RawOptions) -> RawOptions:
        check_raw(options)
        if options.guide is None or options.guide.bounded:
            return options
        try:
            return replace(options, guide=await self._pipeline.bounded(run, options.guide))
        except InvalidGuide as error:
            raise error.by_name(options.guide.name) from None

    @inner
    async def _tokens(self, run: Run, request: AnyRequest) -> AsyncGenerator[Tokens]:
        info = await self.serving_info()
        request.sampling.check_supported(info["sampling_parameters"])
        stop_ids = {*(await self.tokenizer()).special.stop_ids, *request.stop_token_ids}
        stream = self._pipeline.tokens(run, request, stop_ids, info["max_seq_len"], info["tokens_per_block"])
        async with contextlib.aclosing(stream):
            async for tokens in stream:
                yield tokens

    async def _heard(self, run: Run, request: TokenRequest) -> HeardAudio:
        text_tokens, reports = await asyncio.gather(self._text_tokens(request), self._pipeline.audio_report(run))
        return HeardAudio(text_tokens, reports)

    async def _text_tokens(self, request: TokenRequest) -> int:
        """Positions of the prompt that are not the recordings' own.

        Counted here: only what comes out of the LLM may be an output of an ensemble that streams, so the server's own
        count cannot come with its answer, and asking for it would send all messages a second time.
        """
        info, tokenizer = await self.serving_info(), await self.tokenizer()
        template = Template("of the server", info["chat_template"])
        return await asyncio.to_thread(request.text_tokens, tokenizer, info["vocab_size"], template)

    async def _ask_tokenizer_model(self, output: str) -> bytes:
        (array,) = await self._pipeline.ask(self._pipeline.run(), "tokenizer", {}, output)
        value: bytes = array.item()
        return value


def _who_knows(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The server that has heard the recordings, or the last of them; None where nobody has."""
    return next((one.known.heard.server for one in reversed([*recordings(messages)]) if one.known), None)
