"""A spoken conversation over the gateway's `WS /v1/realtime`: audio in as it is recorded, the answer out as it is made.

```python
async with RealtimeSession.connect("http://localhost:9999") as session:
    await session.update(instructions="Be brief.")
    await session.append(pcm16)  # 16 kHz, again and again, in real time; silence, too
    async for event in session:
        if isinstance(event, TextDelta):
            print(event.text, end="")
        elif isinstance(event, ResponseDone):
            break  # or listen on
```
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

from step_audio.clips import SAMPLE_RATE
from step_audio.errors import one_line
from step_audio_client.realtime_events import RealtimeEvent, SpeechStopped, read_event

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

OUTPUT_RATE = 24_000  # Hz, of answers aloud
REMEMBERED = 6000  # appends whose times are kept: two minutes of 20 ms
_HEARD = {"input": {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}}}

# RFC 6455's codes, None where there was none -> what that means, and whether to connect again.
_CLOSES: dict[int | None, tuple[str, bool]] = {
    None: ("the connection to the server is lost", True),
    1001: ("the server has ended the session: its time is up, or nobody spoke", True),
    1008: ("the server has ended the session: its events were not read in time", False),
    1012: ("the server stops: connect again", True),
}


class RealtimeError(Exception):
    """There is no session, or no more; the text is a line for a person.

    `code`: OpenAI's, where the server gave one. `again`: the same may succeed at once, or a little later.
    """

    def __init__(self, text: str, code: str | None = None, again: bool = False):
        super().__init__(one_line(text))
        self.code = code
        self.again = again


class RealtimeSession:
    """One session; `async for` gives its events until it is closed. One task may read, others may send.

    `config`: as the server has last told it.
    """

    def __init__(self, socket: ClientConnection):
        self.config: dict[str, Any] = {}
        self._socket = socket
        self._held: deque[dict[str, Any]] = deque()  # events that came before what was waited for
        self._sent: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)  # ms of all audio, and when they were sent
        self._milliseconds = 0.0
        self._code: str | None = None  # of the last error

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: str, key: str | None = None, model: str | None = None) -> AsyncIterator[Self]:
        """`url`: the gateway's, as http://127.0.0.1:9999. `key`: an API key, or a client secret.

        Raises RealtimeError.
        """
        from websockets.asyncio.client import connect  # not for all who import the library
        from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        address = _address(url, model)
        try:
            socket = await connect(address, additional_headers=headers, max_size=None)
        except InvalidStatus as error:
            raise _refused(error.response.status_code, error.response.body, url) from None
        except (InvalidHandshake, InvalidURI, ValueError):
            raise RealtimeError(f"there is no realtime gateway at {url}") from None
        except (OSError, TimeoutError):
            raise RealtimeError(f"no gateway answers at {url}", again=True) from None
        async with socket:
            session = cls(socket)
            await session._wait("session.created")
            await session.update(audio=_HEARD)
            yield session

    @property
    def aloud(self) -> bool:
        """Whether answers come as audio."""
        return "audio" in self.config["output_modalities"]

    @property
    def finds_turns(self) -> bool:
        """Whether the server does; else `commit` ends one."""
        return self.config["audio"]["input"]["turn_detection"] is not None

    async def update(self, **settings: Any) -> None:
        """Change what is named; returns when the server has. By the task that reads. Raises RealtimeError."""
        event_id = uuid.uuid4().hex
        await self._send("session.update", event_id=event_id, session={"type": "realtime", **settings})
        await self._wait("session.updated", event_id)

    async def append(self, pcm16: bytes) -> None:
        """More audio: 16 bits little-endian, mono, at the input format's rate, 16 kHz by default."""
        await self._send("input_audio_buffer.append", audio=base64.b64encode(pcm16).decode())
        rate = self.config["audio"]["input"]["format"]["rate"]
        self._milliseconds += 1000 * len(pcm16) / (2 * rate)
        self._sent.append((self._milliseconds, time.monotonic()))

    async def commit(self) -> None:
        """What was appended is a turn."""
        await self._send("input_audio_buffer.commit")

    async def respond(self, **settings: Any) -> None:
        """Ask for an answer; `settings`: of it alone."""
        await self._send("response.create", response=settings)

    async def cancel(self) -> None:
        """End the answer under way."""
        await self._send("response.cancel")

    async def truncate(self, item_id: str, milliseconds: float) -> None:
        """Of an answer aloud only so much was heard: the rest is forgotten."""
        about = {"content_index": 0, "audio_end_ms": max(0, round(milliseconds))}
        await self._send("conversation.item.truncate", item_id=item_id, **about)

    async def say(self, text: str) -> None:
        """A written turn; `respond` asks for its answer."""
        part = {"type": "input_text", "text": text}
        await self._send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})

    async def give(self, call_id: str, output: str) -> None:
        """What a function call has brought; `respond` asks the model to go on."""
        await self._send(
            "conversation.item.create", item={"type": "function_call_output", "call_id": call_id, "output": output}
        )

    async def __aiter__(self) -> AsyncIterator[RealtimeEvent]:
        """Raises RealtimeError where the server has closed the session, or is gone."""
        while True:
            told = self._held.popleft() if self._held else await self._receive()
            if told is None:
                return
            event = read_event(told)
            if isinstance(event, SpeechStopped):
                event = replace(event, speech_ended=self._sent_at(event.milliseconds - self._silence))
            if event is not None:
                yield event

    @property
    def _silence(self) -> float:
        """ms of it, behind which a turn is over."""
        detection = self.config["audio"]["input"]["turn_detection"] or {}
        return float(detection.get("silence_duration_ms", 0))

    def _sent_at(self, milliseconds: float) -> float | None:
        return next((when for end, when in self._sent if end >= milliseconds), None)

    async def _send(self, kind: str, **values: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._socket.send(json.dumps({"type": kind, **values}))
        except ConnectionClosed as closed:
            raise self._ended(closed.rcvd.code if closed.rcvd else None) from None

    async def _receive(self) -> dict[str, Any] | None:
        """None: the session has been closed, by us."""
        from websockets.exceptions import ConnectionClosed

        try:
            event: dict[str, Any] = json.loads(await self._socket.recv())
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            if code == 1000:
                return None
            raise self._ended(code) from None
        if event["type"] in ("session.created", "session.updated"):
            self.config = event["session"]
        elif event["type"] == "error":
            self._code = event["error"].get("code")
        return event

    async def _wait(self, kind: str, event_id: str | None = None) -> None:
        """For an event, or an error about ours."""
        while (event := await self._receive()) is None or event["type"] != kind:
            if event is None:
                raise self._ended(1000)
            if event["type"] == "error" and event["error"].get("event_id") == event_id:
                raise RealtimeError(event["error"]["message"], event["error"].get("code"))
            self._held.append(event)

    def _ended(self, close: int | None) -> RealtimeError:
        """`close`: RFC 6455's code."""
        text, again = _CLOSES.get(close, ("the server has ended the session", False))
        return RealtimeError(text, self._code, again)


def _address(url: str, model: str | None) -> str:
    """Raises RealtimeError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.hostname:
        raise RealtimeError(f"{url} is no address of a gateway, such as http://127.0.0.1:9999")
    path = parts.path.rstrip("/").removesuffix("/v1")
    query = f"?model={quote(model)}" if model else ""
    return f"{schemes[parts.scheme]}://{parts.netloc}{path}/v1/realtime{query}"


def _refused(status: int, body: bytes | bytearray, url: str) -> RealtimeError:
    try:
        error = json.loads(body)["error"]
        return RealtimeError(error["message"], error.get("code"), again=status in (429, 503))
    except (ValueError, KeyError, TypeError):
        return RealtimeError(f"{url} opens no realtime session: it answered {status}", again=status in (429, 503))
