"""One session: what is done about each of the client's events, in their order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from step_audio_gateway.admission import HeldSession
from step_audio_gateway.errors import ApiError
from step_audio_gateway.json_body import SMALL, too_much
from step_audio_gateway.languages import name_of
from step_audio_gateway.realtime.ahead import Ahead
from step_audio_gateway.realtime.answering import Answering
from step_audio_gateway.realtime.client_events import (
    Append,
    Clear,
    ClearOutput,
    ClientEvent,
    Commit,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    ResponseCancel,
    ResponseCreate,
    ResponseParams,
    SessionUpdate,
    Unreadable,
    read,
)
from step_audio_gateway.realtime.conversation import Dialogue
from step_audio_gateway.realtime.desk import Desk
from step_audio_gateway.realtime.faults import TOLD, Fault
from step_audio_gateway.realtime.formats import SampleFormat, SpokenAudio, decode
from step_audio_gateway.realtime.idle_timeout import IdleTimeout
from step_audio_gateway.realtime.input_buffer import InputBuffer
from step_audio_gateway.realtime.items import ConversationItem, GivenItem, ItemReference, Part, new_id
from step_audio_gateway.realtime.listener import TurnListener
from step_audio_gateway.realtime.response import SpokenResponse, event
from step_audio_gateway.realtime.session_config import AudioConfig, AudioInput, ServerVad, SessionConfig
from step_audio_gateway.realtime.transcription import transcribe
from step_audio_gateway.realtime.turn_detection import Turn
from step_audio_gateway.realtime.voice_activity import missing

PIECE = 0.5  # seconds of audio that are looked at in one go


class Session:
    """Of one connection. Events come in by `handle`, and leave by the desk's `emit`; `room` waits while the client
    reads too slowly."""

    def __init__(self, desk: Desk, config: SessionConfig, held: HeldSession, room: Callable[[], Awaitable[None]]):
        self.id = new_id("sess")
        self.config = config
        self.turns = 0
        self.active_at = time.monotonic()  # when anything but silence was last seen of the client
        self._desk = desk
        self._held = held
        self._default = default_config(desk.voice is not None)
        self._room = room
        self._conversation = Dialogue()
        self._answering = Answering(desk, room, self._hold)
        self._buffer = InputBuffer(self._format, desk.most_seconds)
        self._ahead = Ahead(desk)
        self._listener: TurnListener | None = None
        self._idle: IdleTimeout | None = None
        self._turn_id = ""  # of the item that will be of the turn that is spoken
        self._beside: set[asyncio.Task[None]] = set()
        self._listen()

    @property
    def idle(self) -> float:
        """Seconds."""
        return 0.0 if self._answering.busy else time.monotonic() - self.active_at

    @property
    def tokens(self) -> list[int]:
        """Of prompts and of answers, all together."""
        return self._answering.usage

    def open(self, expires_at: int) -> None:
        """`expires_at`: seconds since the epoch."""
        self._desk.emit(event("session.created", session=self._public() | {"expires_at": expires_at}))

    async def handle(self, text: str) -> None:
        """One message of the client's. What is wrong with it is an event."""
        given: str | None = None
        try:
            if len(text) > SMALL and (fault := await asyncio.to_thread(too_much, text.encode())):
                raise Unreadable(Fault("invalid_json", fault.replace("the body", "the message")))
            message = read(text)
            given = message.event_id
            await self._do(message)
        except Unreadable as error:
            self._desk.emit(event("error", error=error.body(error.event_id)))
        except TOLD as error:
            self._desk.emit(event("error", error=Fault.of(error).body(given)))
        await self._room()

    async def close(self) -> None:
        """Returns when nothing of it is under way, and no place is taken."""
        for task in self._beside:
            task.cancel()
        ahead = self._ahead.stop()
        await self._answering.close()
        await asyncio.gather(*ahead, *self._beside, return_exceptions=True)
        self._held.leave()

    async def finish(self) -> None:
        """Returns when the answers that are under way have been given."""
        await self._answering.finish()

    async def _do(self, message: ClientEvent) -> None:
        if not isinstance(message, Append) or self._listener is None:
            self.active_at = time.monotonic()
        match message:
            case Append():
                await self._append(message.audio)
            case Commit():
                speaks = self._listener is not None and self._listener.speaking
                self._commit(self._buffer.take(), self._turn_id if speaks else None)
                self._listen()
            case Clear():
                self._buffer.clear()
                self._listen()
                self._desk.emit(event("input_audio_buffer.cleared"))
            case SessionUpdate():
                await self._update(message.session)
            case ItemCreate():
                self._create(message)
            case ItemRetrieve():
                item = self._conversation.find(message.item_id, "retrieve")
                self._desk.emit(event("conversation.item.retrieved", item=item.public(whole=True)))
            case ItemDelete():
                self._conversation.remove(self._conversation.find(message.item_id, "delete"))
                self._hold()
                self._desk.emit(event("conversation.item.deleted", item_id=message.item_id))
            case ItemTruncate():
                self._truncate(message)
            case ResponseCreate():
                self._respond(message.response)
            case ResponseCancel():
                self._answering.cancel(self._answering.find(message.response_id), "client_cancelled")
            case ClearOutput():
                pass  # of WebRTC, where the server plays: here the client does

    async def _update(self, change: dict[str, Any]) -> None:
        config = self.config.updated(change, "session", self._default)
        await self._check_model(config.model)
        if (how := config.audio.input.transcription) is not None:
            name_of(how.language)
        self._check_voice(config, "session")
        if config.detection is not None and (command := missing()):
            place = "session.audio.input.turn_detection"
            raise Fault("invalid_value", f"{place}: this server finds no turns; it would need: {command}", place)
        listens = (self._format, self.config.detection)
        self.config = config
        if (self._format, config.detection) != listens:
            self._buffer.change(self._format)
            self._listen()
        self._desk.emit(event("session.updated", session=self._public()))

    async def _append(self, audio: str) -> None:
        data = decode(audio, self._format, "audio")
        if self._listener is None:
            self._hold(len(data))
            self._buffer.append(data)
            self._ahead.follow(self._buffer, self.config, self._conversation.items)
            return
        size = self._format.size(1000 * PIECE)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self._hold(len(piece))
            if len(piece) > self._buffer.room:  # a turn ends where it has become as long as one may be
                self._turn(Turn("stopped", self._buffer.end))
                self._listen()
            self._buffer.append(piece)
            for turn in self._listener.push(piece):
                self._turn(turn)
            if self._listener.speaking:
                self._ahead.follow(self._buffer, self.config, self._conversation.items)
            else:
                self._forget(self._listener.earliest)
            idle, answer = self._idle, self._answering.latest
            if idle is not None and idle.over(answer, self._listener.speaking, self._buffer.end):
                assert idle.since is not None
                self._time_out(idle.since)
            await asyncio.sleep(0)  # others' turn

    def _forget(self, position: float) -> None:
        """What is before it, in ms, is of no turn; what idle_timeout_ms counts is kept; both while there is room."""
        if self._idle is not None and self._idle.since is not None:
            position = min(position, self._idle.since)
        room = 1000 * max(0.0, self._buffer.most_seconds - PIECE)
        self._buffer.drop_before(max(position, self._buffer.end - room))

    def _time_out(self, since: float) -> None:
        """Nobody has spoken: there may be something to hear nevertheless, and the model is to say something."""
        item_id, span = new_id("item"), {"audio_start_ms": round(since), "audio_end_ms": round(self._buffer.end)}
        self._desk.emit(event("input_audio_buffer.timeout_triggered", **span, item_id=item_id))
        self._buffer.drop_before(since)
        silence = self._buffer.take()
        self._listen()
        self._commit(silence, item_id)
        self._respond(ResponseParams())

    def _turn(self, turn: Turn) -> None:
        how, desk = self.config.detection, self._desk
        assert how is not None
        self.active_at = time.monotonic()
        if turn.what == "started":
            self._turn_id = new_id("item")
            start = max(0.0, turn.position - how.prefix_padding_ms)
            self._buffer.drop_before(start)
            desk.emit(event("input_audio_buffer.speech_started", audio_start_ms=round(start), item_id=self._turn_id))
            if how.interrupt_response and (active := self._answering.active):
                desk.gateway.metrics.barge_ins.inc()
                self._answering.cancel(active, "turn_detected")
            return
        if turn.what == "paused":
            self._ahead.ask(self._buffer.until(turn.position), self.config, self._conversation.items)
            return
        desk.emit(event("input_audio_buffer.speech_stopped", audio_end_ms=round(turn.position), item_id=self._turn_id))
        self._commit(self._buffer.take(turn.position if turn.heard is None else turn.heard), self._turn_id)
        if how.create_response:
            try:
                self._respond(ResponseParams())
            except Fault as error:  # of a client that is not to be interrupted, and has not ended
                desk.emit(event("error", error=error.body(None)))

    def _commit(self, recording: SpokenAudio, item_id: str | None = None) -> None:
        part = Part("input_audio", recording=recording, heard=self._ahead.heard(recording))
        self._ahead.stop()
        item = ConversationItem("message", item_id or new_id("item"), parts=[part])
        before = self._conversation.add(item)
        self.turns += 1
        self._desk.emit(event("input_audio_buffer.committed", previous_item_id=before, item_id=item.id))
        self._tell(item, before)
        if (how := self.config.audio.input.transcription) is not None:
            task = asyncio.create_task(transcribe(self._desk, item, how))
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)

    def _truncate(self, message: ItemTruncate) -> None:
        item = self._conversation.find(message.item_id, "truncate")
        if not any(part.kind == "output_audio" for part in item.parts):
            said = "Only model output audio messages can be truncated"
            raise Fault("item_truncate_invalid_item_id", said, "item_id")
        if message.content_index >= len(item.parts):
            said = f"content_index: the item has {len(item.parts)} parts, which are counted from 0"
            raise Fault("invalid_value", said, "content_index")
        item.parts[message.content_index].cut(message.audio_end_ms)
        about = {"content_index": message.content_index, "audio_end_ms": message.audio_end_ms}
        self._desk.emit(event("conversation.item.truncated", item_id=item.id, **about))

    def _create(self, message: ItemCreate) -> None:
        item = self._item(message.item, "item")
        self._hold(item.bytes)
        self._tell(item, self._conversation.add(item, message.previous_item_id))

    def _tell(self, item: ConversationItem, before: str | None) -> None:
        for kind in ("added", "done"):
            self._desk.emit(event(f"conversation.item.{kind}", previous_item_id=before, item=item.public()))

    def _respond(self, params: ResponseParams) -> None:
        config = self.config.updated(params.change, "response", self._default)
        self._check_voice(config, "response")
        conversation = self._conversation if params.conversation == "auto" else None
        items = self._conversation.items
        if params.input is not None:
            items = [self._item(given, f"response.input[{i}]", True) for i, given in enumerate(params.input)]
        self._answering.check(conversation is not None)
        own = sum(item.bytes for item in items if item not in self._conversation.items)
        self._hold(own)
        response = SpokenResponse(config, conversation, params.metadata, own)
        self._answering.begin(response, config, list(items), self._ahead.stop())

    async def _check_model(self, asked: str | None) -> None:
        if asked:
            gateway = self._desk.gateway
            try:
                name = await gateway.model_name(asked)
            except ApiError as error:
                raise Fault.of(error, "session.") from None
            if await gateway.adapter(name) != await gateway.adapter(self._desk.model):
                said = f"session.model: a session keeps its model, {self._desk.model!r}: open another"
                raise Fault("invalid_value", said, "session.model")

    def _check_voice(self, config: SessionConfig, place: str) -> None:
        if self._desk.voice is None and config.output_modalities == ["audio"]:
            said = f'{place}.output_modalities: this server has no voice (see --speech): use ["text"]'
            raise Fault("invalid_value", said, f"{place}.output_modalities")
        if self._desk.voice is not None:
            self._desk.voice.check(config.audio.output.voice)

    def _item(self, given: GivenItem, param: str, may_refer: bool = False) -> ConversationItem:
        if not isinstance(given, ItemReference):
            return ConversationItem.of(given, self._format, param)
        if not may_refer:
            raise Fault("invalid_value", f"{param}.type: there is nothing to refer to here", f"{param}.type")
        try:
            return self._conversation.find(given.id, "retrieve")
        except Fault as fault:
            raise Fault(fault.code, str(fault), f"{param}.id") from None

    @property
    def _format(self) -> SampleFormat:
        return self.config.audio.input.format.format("session.audio.input.format")

    def _listen(self) -> None:
        """From here on, for the next turn."""
        self._ahead.stop()
        how = self.config.detection
        self._listener = TurnListener(how, self._format, self._buffer.end) if how is not None else None
        wait = how.idle_timeout_ms if how is not None else None
        self._idle = IdleTimeout(wait) if wait is not None else None

    def _hold(self, more: int = 0) -> None:
        """Raises ApiError where all the gateway's sessions hold too much together."""
        self._held.set(self._conversation.bytes + len(self._buffer) + self._answering.bytes + more)

    def _public(self) -> dict[str, Any]:
        return self.config.public() | {"id": self.id, "object": "realtime.session", "model": self._desk.model}


def default_config(aloud: bool) -> SessionConfig:
    """The server finds turns, where it can, and answers `aloud`, where it has a voice."""
    detection = None if missing() else ServerVad()
    audio = AudioConfig(input=AudioInput(turn_detection=detection))
    return SessionConfig(audio=audio, output_modalities=["audio" if aloud else "text"])
