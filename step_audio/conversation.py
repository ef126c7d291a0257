"""Messages as clients send them (OpenAI's shape and the model card's roles), parsed and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from step_audio.errors import InvalidRequest

# Those that a message may have, at every door. Here and nowhere else.
Role = Literal[
    "system", "user", "human", "assistant", "tool", "function", "function_output", "input", "observer", "developer"
]
ROLES: tuple[Role, ...] = get_args(Role)
SAME_ROLES: dict[Role, Role] = {"developer": "system"}  # OpenAI's newer word, which no template has
MAX_CHARACTERS = 1 << 20  # of all messages and tools: 16 for each of the model's 65,536 positions
MAX_ITEMS = 4096  # messages, content parts, tool calls and tools together, each of which costs time even if empty
MAX_CHANNELS = 64  # of a recording, those that can be asked for
MAX_SKIPPED = 1 << 20  # samples, more than a minute


@dataclass(frozen=True, slots=True)
class Text:
    """A run of plain text; control tokens spelt in it are text."""

    text: str


class KnownClip(NamedTuple):
    """A clip that the encoder has. `frames`: of 10 ms; `content_hash`: of its features."""

    frames: int
    content_hash: int


@dataclass(frozen=True, slots=True)
class AudioPlace:
    """The place of the request's next audio. `channel`: which is heard, from 0 on; None: the mean of all.

    `known`: the clips that it begins with, where the encoder has them; the audio brings what comes behind, nothing
    where they are all. `skip`: samples at 16 kHz of what it brings that are theirs.
    """

    channel: int | None = None
    known: tuple[KnownClip, ...] = ()
    skip: int = 0


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A call that the assistant made. `arguments` is JSON text, kept as the client sent it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `name` is the called tool's, in the roles tool and function."""

    role: str
    parts: tuple[Text | AudioPlace, ...]
    tool_calls: tuple[CalledTool, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages, and one JSON text per tool."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()

    @property
    def audio_places(self) -> list[AudioPlace]:
        """Those of the audios that the request must bring, in the order of their parts."""
        return [part for message in self.messages for part in message.parts if isinstance(part, AudioPlace)]

    @property
    def audio_count(self) -> int:
        return len(self.audio_places)


def parse_conversation(messages: str | bytes | list[Any], tools: str | bytes | list[Any] | None = None) -> Conversation:
    """Check messages in OpenAI's form (JSON text or parsed), with `{"type": "audio"}` for each audio,
    and in it, as AudioPlace has them, `"channel"`, `"known"`, as pairs, and `"skip"`.

    Raises InvalidRequest, which names the place. Unknown keys are ignored.
    """
    try:
        return _parse(messages, tools)
    except RecursionError:
        raise InvalidRequest("messages and tools are nested too deeply", "messages") from None


def _parse(messages: str | bytes | list[Any], tools: str | bytes | list[Any] | None) -> Conversation:
    entries = _json_list(messages, "messages")
    if not entries:
        raise InvalidRequest("messages is empty", "messages")
    schemas = [] if tools in (None, "", b"") else _json_list(tools, "tools")
    _limit(len(entries) + len(schemas), MAX_ITEMS, "items")
    call_names: dict[str, str] = {}
    conversation = Conversation(
        tuple(_message(entry, f"messages[{i}]", call_names) for i, entry in enumerate(entries)),
        tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(schemas)),
    )
    items = sum(1 + len(m.parts) + len(m.tool_calls) for m in conversation.messages) + len(schemas)
    _limit(items + sum(len(place.known) for place in conversation.audio_places), MAX_ITEMS, "items")
    texts = [text for message in conversation.messages for text in _texts(message)]
    _limit(sum(map(len, [*texts, *conversation.tools])), MAX_CHARACTERS, "characters")
    return conversation


def _limit(count: int, most: int, what: str) -> None:
    if count > most:
        raise InvalidRequest(f"messages and tools hold {count} {what}, at most {most} are accepted", "messages")


def _json_list(value: Any, where: str) -> list[Any]:
    if isinstance(value, (str, bytes)):
        if len(value) > 8 * MAX_CHARACTERS:  # escapes and keys included, before any work is spent on it
            raise InvalidRequest(f"{where} is too long: {len(value)} bytes of JSON", where)
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except ValueError as error:
            raise InvalidRequest(f"{where} is not valid JSON: {error}", where) from None
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} must be a list", where)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _dump(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)  # spaces as the model saw them in training
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{where} cannot be written as JSON: {error}", where) from None


def _tool(tool: Any, where: str) -> str:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} must be an object", where)
    return _dump(tool, where)


def _message(entry: Any, where: str, call_names: dict[str, str]) -> Message:
    """`call_names`: tool name by call id, of the messages so far; this one's calls are added."""
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where} must be an object with role and content", where)
    role: Any = entry.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where}: unknown role {_short(role)}; use one of {', '.join(ROLES)}", where)
    calls = tuple(_tool_calls(entry, where, call_names)) if role == "assistant" else ()
    content = entry.get("content")
    parts = () if content is None and calls else tuple(_parts(content, f"{where}.content"))
    name = ""
    if role in ("tool", "function"):
        call_id = _optional_string(entry, "tool_call_id", where)
        name = call_names.get(call_id, "") or _optional_string(entry, "name", where) or "tool"
    return Message(SAME_ROLES.get(role, role), parts, calls, name)


def _tool_calls(entry: dict[str, Any], where: str, call_names: dict[str, str]) -> Iterator[CalledTool]:
    calls = entry.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where}.tool_calls must be a list", f"{where}.tool_calls")
    for i, call in enumerate(calls):
        here = f"{where}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise InvalidRequest(f"{here} must be an object with function.name and function.arguments", here)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"{here}.function.name must be a non-empty string", f"{here}.function.name")
        arguments, place = function.get("arguments", "{}"), f"{here}.function.arguments"
        if isinstance(arguments, dict):
            arguments = _dump(arguments, place)
        elif not isinstance(arguments, str):
            raise InvalidRequest(f"{place} must be a JSON string or an object", place)
        if call_id := _optional_string(call, "id", here):
            call_names[call_id] = name
        yield CalledTool(name, arguments)


def _parts(content: Any, where: str) -> Iterator[Text | AudioPlace]:
    if isinstance(content, str):
        yield Text(content)
    elif isinstance(content, dict):
        yield _text(content, where)
    elif isinstance(content, list) and content:
        for i, part in enumerate(content):
            kind, here = part.get("type") if isinstance(part, dict) else None, f"{where}[{i}]"
            if kind == "text":
                yield _text(part, here)
            elif kind == "audio":
                channel, known = _number(part, "channel", MAX_CHANNELS, here), _known(part, here)
                skip = _number(part, "skip", MAX_SKIPPED, here) or 0
                if skip and not known:
                    raise InvalidRequest(f"{here}.skip: samples belong to no known clip", f"{here}.skip")
                yield AudioPlace(channel, known, skip)
            else:
                raise InvalidRequest(f"{here}: unknown part type {_short(kind)}; use text or audio", here)
    else:
        raise InvalidRequest(f"{where} must be a string or a non-empty list of parts", where)


def _number(part: dict[str, Any], key: str, end: int, where: str) -> int | None:
    number = part.get(key)
    if number is not None and (type(number) is not int or not 0 <= number < end):
        raise InvalidRequest(f"{where}.{key} must be a whole number from 0 to {end - 1}", f"{where}.{key}")
    return number


def _known(part: dict[str, Any], where: str) -> tuple[KnownClip, ...]:
    clips, here = part.get("known", []), f"{where}.known"
    if not isinstance(clips, list) or len(clips) > MAX_ITEMS:
        raise InvalidRequest(f"{here} must be a list of at most {MAX_ITEMS} clips", here)
    for clip in clips:
        if not (isinstance(clip, list) and len(clip) == 2 and all(type(number) is int for number in clip)):
            raise InvalidRequest(f"{here}: a clip is its frames and its content hash", here)
        if not (0 < clip[0] < 2**31 and 0 < clip[1] < 2**64):
            raise InvalidRequest(f"{here}: a clip's frames and content hash are positive, and not so large", here)
    return tuple(KnownClip(frames, content_hash) for frames, content_hash in clips)


def _text(part: dict[str, Any], where: str) -> Text:
    key = "value" if "value" in part else "text"
    return Text(_string(part.get(key), f"{where}.{key}"))


def _optional_string(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    return "" if value is None else _string(value, f"{where}.{key}")


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where} must be a string", where)
    return value


def _texts(message: Message) -> Iterator[str]:
    yield from (part.text for part in message.parts if isinstance(part, Text))
    yield from (text for call in message.tool_calls for text in (call.name, call.arguments))
    yield message.name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
