"""A stand-in for the client library, and the gateway in front of it, in process or behind a real port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import httpx
import numpy as np
from fastapi import FastAPI

import tokenizer_fixture
from step_audio import sampling_parameters
from step_audio.audio import encode_wav
from step_audio.chat_template import load_template
from step_audio.clips import SAMPLE_RATE, split_clips
from step_audio.mel import frame_count
from step_audio.tokenizer import Tokenizer
from step_audio_client import (
    Audio,
    ChatDelta,
    ChatOptions,
    ChatUsage,
    Counts,
    HeardClips,
    RawOptions,
    RawPrompt,
    TokenLogprob,
    ToolCall,
    TopLogprob,
)
from step_audio_client.messages import recordings, split_audio
from step_audio_gateway.app import create_app
from step_audio_gateway.server import listen, server_of
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports

USAGE = ChatUsage(prompt_tokens=20, completion_tokens=6, audio_tokens=13, reasoning_tokens=4, cached_tokens=16)
THOUGHT, ANSWER = "It says four.", "Four."
REPLY = [
    ChatDelta(reasoning="It says ", raw="It says "),
    ChatDelta(reasoning="four.", raw="four.\n</th"),
    ChatDelta(content="Fo", raw="ink>\nFo"),
    ChatDelta(content="ur.", raw="ur."),
    ChatDelta(finish_reason="stop", usage=USAGE),
]
SUGGESTIONS = {"say": ["What is two plus two?"], "ask": ["Is the voice high or low?"]}
PARAMETERS = [one.name for one in sampling_parameters.PARAMETERS]
TOKENIZER = Tokenizer.from_json(tokenizer_fixture.build_json())
LIMITS = {"max_audios": 4, "max_audio_seconds": 60.0, "max_audio_bytes": 2_000_000}
Step = ChatDelta | Exception | float  # to hand out, to raise, or seconds to wait

# For addresses without TLS: to load the certificates that nobody shows takes httpx 25 ms each time.
PLAIN = httpx.Client(verify=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


def script(messages: list[dict[str, Any]], options: ChatOptions) -> list[Step]:
    """What a model would say that calls tools when it is given some, and obeys a schema."""
    if options.guide:
        text = '{"city": "Paris", "people": 2}' if options.guide.kind == "json_schema" else '{"a": 1}'
        return [*REPLY[:2], ChatDelta(content=text, raw=text), REPLY[-1]]
    if options.tools and options.tool_choice != "none" and messages[-1]["role"] != "tool":
        call = ToolCall(0, "call_1", options.tools[0]["function"]["name"], '{"city": "Paris"}')
        text = f"<tool_call>function\n{call.name}\n{call.arguments}</tool_call>"
        return [*REPLY[:2], ChatDelta(tool_calls=(call,), raw=text), ChatDelta(finish_reason="tool_calls", usage=USAGE)]
    if options.logprobs:
        words = [("Four", -0.25), (".", -0.5)]
        top = (TopLogprob("Five", tuple(b"Five"), -1.5),) * (options.sampling.top_logprobs or 0)
        return [
            ChatDelta(content=w, raw=w, logprobs=(TokenLogprob(w, tuple(w.encode()), p, top=top),)) for w, p in words
        ] + REPLY[-1:]
    return list(REPLY)


class FakeClient:
    """Plays `script`; remembers what was asked, and whether every answer that was begun has been closed."""

    def __init__(self, script: Callable[[list[dict[str, Any]], ChatOptions], list[Step]] = script):
        self.script = script
        self.asked: list[tuple[Any, Any]] = []
        self.ahead: list[Any] = []  # messages of what was to be heard ahead
        self.begun = self.closed = 0
        self.up = True
        self.max_batch_size = 32
        self.adapters: dict[str, int] = {}
        self.expected = 1
        self.counts = Counts()

    async def chat(
        self, messages: list[dict[str, Any]], options: ChatOptions, *, request_id: str | None = None
    ) -> AsyncGenerator[ChatDelta]:
        split_audio(messages)[0].encode()
        options.sampling.inputs()
        self.asked.append((messages, options))
        self.begun += 1
        try:
            for step in self.script(messages, options):
                if isinstance(step, Exception):
                    raise step
                await asyncio.sleep(step if isinstance(step, float) else 0)
                if isinstance(step, ChatDelta):
                    yield step
        finally:
            await asyncio.sleep(0.01)  # as a stop that is sent to the server; must not be cut short
            self.closed += 1

    async def hear(self, messages: list[dict[str, Any]], options: ChatOptions) -> list[HeardClips]:
        self.ahead.append(messages)
        return [HeardClips("fake", clips_of(one)) for one in recordings(messages)]

    async def bounded(self, options: RawOptions) -> RawOptions:
        return options

    async def continue_raw(
        self, prompt: RawPrompt, options: RawOptions, *, request_id: str | None = None
    ) -> AsyncGenerator[ChatDelta]:
        self.asked.append((prompt, options))
        self.begun += 1
        yield ChatDelta(content=ANSWER, raw=ANSWER)
        yield REPLY[-1]
        self.closed += 1

    async def tokenizer(self) -> Tokenizer:
        return TOKENIZER

    async def serving_info(self) -> dict[str, Any]:
        return {
            "model": "tiny",
            "vocab_size": 700,
            "max_seq_len": 4096,
            "max_batch_size": self.max_batch_size,
            "tokens_per_block": 32,
            "chat_template": load_template("default").source,
            "limits": LIMITS,
            "adapters": self.adapters,
            "sampling_parameters": PARAMETERS,
            "mind_paced_speaking": {"think_tokens": 80, "speak_tokens": 20},
            "suggestions": SUGGESTIONS,
        }

    async def ready(self) -> bool:
        return self.up

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.asked[-1][0]

    @property
    def options(self) -> ChatOptions:
        return self.asked[-1][1]


def clips_of(audio: Audio) -> tuple[tuple[int, int], ...]:
    """Of a WAV file of 16 bits: frames, and a number in the place of the hash."""
    data = whole(audio)
    count, rate = len(data[44:]) // 2, int.from_bytes(data[24:28], "little")
    clips = split_clips(np.empty(-(-count * SAMPLE_RATE // rate), np.float32))
    return tuple((frame_count(len(clip)), 1 + i) for i, clip in enumerate(clips))


def whole(audio: Audio) -> bytes:
    """The file of all of it, whatever is known."""
    return audio.known.whole() if audio.known else audio.data


def http(fake: FakeClient, fetcher: Any = None, **settings: Any) -> httpx.AsyncClient:
    """An HTTP client of a gateway in this process."""
    app = create_app(GatewaySettings.create(**settings), fake, fetcher)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


_asked: ContextVar[FakeClient] = ContextVar("_asked", default=FakeClient())  # noqa: B039  whom the shared gateway asks


class _Asked:
    """A client library in whose place the fake of the task is."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_asked.get(), name)


_apps: dict[str, FastAPI] = {}


def shared(fake: FakeClient, **settings: Any) -> httpx.AsyncClient:
    """As `http`, of the one gateway that all who call this with the same settings share: to make one takes ten times as
    long as to ask it. Its counters have counted others, too."""
    _asked.set(fake)
    if (key := repr(sorted(settings.items()))) not in _apps:
        _apps[key] = create_app(GatewaySettings.create(**settings), _Asked())  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=_apps[key]), base_url="http://gateway")


loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()  # of all gateways on real ports


@contextlib.contextmanager
def listening(fake: FakeClient, **settings: Any) -> Iterator[str]:
    """A gateway on a real port, in a thread; its base URL."""
    chosen = GatewaySettings.create(port=free_ports(1)[0], **settings)
    server = server_of(chosen, fake)  # type: ignore[arg-type]
    server.config.timeout_graceful_shutdown = 2
    listener = listen(chosen)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        loops.add(server.servers[0].get_loop())
        yield f"http://127.0.0.1:{chosen.port}"
    finally:
        server.should_exit = True
        thread.join(20)


def wav(seconds: float = 0.1, rate: int = 16_000) -> bytes:
    return encode_wav(np.random.default_rng(0).uniform(-0.003, 0.003, round(seconds * rate)), rate)


def events(text: str) -> list[Any]:
    """The chunks of a streamed reply, which must be closed properly."""
    lines = text.split("\n\n")
    assert lines[-1] == "" and all(line.startswith("data: ") for line in lines[:-1])
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
