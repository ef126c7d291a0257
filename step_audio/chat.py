"""Messages to prompt: parse them, render the chat template, encode, put audio in its place.

Nothing a user writes can act as a control token. While the template renders, every user string (message
text, tool schemas, tool names, arguments, results) is replaced by an unguessable placeholder, so only the
template's own words are searched for `<|EOT|>` and its kin. Afterwards template words and user text that
touch each other are joined into one run before encoding: byte-pair merges cross that seam, and the ids
are those of the whole rendered string wherever the user typed no control token.

Turns as the `default` template writes them (`published` is the model card's template, byte for byte):

    system               <|BOT|>system\\n{text}<|EOT|>
    tools                <|BOT|>tool_json_schemas\\n{JSON list}<|EOT|>
    user, human          <|BOT|>human\\n{text}<|EOT|>
    assistant            <|BOT|>assistant\\n{text}<tool_call>function\\n{name}\\n{JSON}</tool_call>...<|EOT|>
    tool, function       <|BOT|>function_output\\n{name}\\n{text}<|EOT|>
    function_output      <|BOT|>input\\n{text}<|EOT|>         as the Step-Audio 2 tokenizer does
    input, observer      <|BOT|>{role}\\n{text}<|EOT|>
    generation prompt    <|BOT|>assistant\\n<think>\\n

`default` differs from `published` in four faults of the latter: no assistant turn is ever closed, tools
without a system message leave an open system turn, tool calls are not rendered, and a function_output
message vanishes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from step_audio.errors import CheckpointError, InvalidRequest
from step_audio.tokenizer import SPECIAL_TOKEN_NAMES, Tokenizer, check_vocabulary

ROLES = ("system", "user", "human", "assistant", "tool", "function", "function_output", "input", "observer")
TEMPLATES = ("default", "published")
MAX_CHARACTERS = 1 << 20  # of all messages and tools: 16 for each of the model's 65,536 positions
MAX_ITEMS = 4096  # messages, content parts, tool calls and tools together, each of which costs time even if empty

_AUDIO_PATCH = SPECIAL_TOKEN_NAMES["audio_patch"]  # where the templates put an audio part


@dataclass(frozen=True, slots=True)
class Text:
    """A run of plain text; control tokens spelt in it are text."""

    text: str


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Audio:
    """The place of the request's next audio."""


Segment = Text | Control | Audio


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made. `arguments` is JSON text, kept as the client sent it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `name` is the called tool's, in the roles tool and function."""

    role: str
    parts: tuple[Text | Audio, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages, and one JSON text per tool."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()

    @property
    def audio_count(self) -> int:
        """How many audios the request must bring, in the order of their parts."""
        return sum(isinstance(part, Audio) for message in self.messages for part in message.parts)


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """One encoded clip: its embeddings' rows, and a hash of its content (1 .. 2**64 - 1) for the KV cache."""

    tokens: int
    content_hash: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What the decoder gets.

    `input_ids`: int32 [n]. An id of `vocab_size + k` stands for row k of the request's clip embeddings,
    all clips concatenated in prompt order. `extra_ids`: uint64 [n], the clip's content hash at its rows
    and 0 elsewhere: those ids repeat in every request, so a KV cache needs it to tell clips apart.
    `audio_tokens`: how many of the n are rows of clips.
    """

    input_ids: np.ndarray
    extra_ids: np.ndarray
    audio_tokens: int


def parse_conversation(messages: str | bytes | list, tools: str | bytes | list | None = None) -> Conversation:
    """Check messages in OpenAI's form (JSON text or parsed), with `{"type": "audio"}` for each audio.

    Raises InvalidRequest, which names the place. Unknown keys are ignored.
    """
    entries = _json_list(messages, "messages")
    if not entries:
        raise InvalidRequest("messages is empty")
    schemas = [] if tools in (None, "", b"") else _json_list(tools, "tools")
    _limit(len(entries) + len(schemas), MAX_ITEMS, "items")
    call_names: dict[str, str] = {}
    conversation = Conversation(
        tuple(_message(entry, f"messages[{i}]", call_names) for i, entry in enumerate(entries)),
        tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(schemas)),
    )
    _limit(sum(1 + len(m.parts) + len(m.tool_calls) for m in conversation.messages) + len(schemas), MAX_ITEMS, "items")
    texts = [text for message in conversation.messages for text in _texts(message)]
    _limit(sum(map(len, [*texts, *conversation.tools])), MAX_CHARACTERS, "characters")
    return conversation


def _limit(count: int, most: int, what: str) -> None:
    if count > most:
        raise InvalidRequest(f"messages and tools hold {count} {what}, at most {most} are accepted")


def _json_list(value: Any, where: str) -> list:
    if isinstance(value, (str, bytes)):
        if len(value) > 8 * MAX_CHARACTERS:  # escapes and keys included, before any work is spent on it
            raise InvalidRequest(f"{where} is too long: {len(value)} bytes of JSON")
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} must be a list")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _dump(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)  # spaces as the model saw them in training
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"{where} cannot be written as JSON: {error}") from None


def _tool(tool: Any, where: str) -> str:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} must be an object")
    return _dump(tool, where)


def _message(entry: Any, where: str, call_names: dict[str, str]) -> Message:
    """`call_names`: tool name by call id, of the messages so far; this one's calls are added."""
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where} must be an object with role and content")
    role = entry.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where}: unknown role {_short(role)}; use one of {', '.join(ROLES)}")
    calls = tuple(_tool_calls(entry, where, call_names)) if role == "assistant" else ()
    content = entry.get("content")
    parts = () if content is None and calls else tuple(_parts(content, f"{where}.content"))
    name = ""
    if role in ("tool", "function"):
        call_id = _optional_string(entry, "tool_call_id", where)
        name = call_names.get(call_id, "") or _optional_string(entry, "name", where) or "tool"
    return Message(role, parts, calls, name)


def _tool_calls(entry: dict, where: str, call_names: dict[str, str]) -> Iterator[ToolCall]:
    calls = entry.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where}.tool_calls must be a list")
    for i, call in enumerate(calls):
        here = f"{where}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise InvalidRequest(f"{here} must be an object with function.name and function.arguments")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"{here}.function.name must be a non-empty string")
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, dict):
            arguments = _dump(arguments, f"{here}.function.arguments")
        elif not isinstance(arguments, str):
            raise InvalidRequest(f"{here}.function.arguments must be a JSON string or an object")
        if call_id := _optional_string(call, "id", here):
            call_names[call_id] = name
        yield ToolCall(name, arguments)


def _parts(content: Any, where: str) -> Iterator[Text | Audio]:
    if isinstance(content, str):
        yield Text(content)
    elif isinstance(content, dict):
        yield _text(content, where)
    elif isinstance(content, list) and content:
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                yield _text(part, f"{where}[{i}]")
            elif kind == "audio":
                yield Audio()
            else:
                raise InvalidRequest(f"{where}[{i}]: unknown part type {_short(kind)}; use text or audio")
    else:
        raise InvalidRequest(f"{where} must be a string or a non-empty list of parts")


def _text(part: dict, where: str) -> Text:
    key = "value" if "value" in part else "text"
    if not isinstance(part.get(key), str):
        raise InvalidRequest(f"{where}.{key} must be a string")
    return Text(part[key])


def _optional_string(entry: dict, key: str, where: str) -> str:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{where}.{key} must be a string")
    return value or ""


def _texts(message: Message) -> Iterator[str]:
    yield from (part.text for part in message.parts if isinstance(part, Text))
    yield from (text for call in message.tool_calls for text in (call.name, call.arguments))
    yield message.name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


class _Vault:
    """User strings during one rendering: each is kept here, the template sees a placeholder."""

    def __init__(self) -> None:
        self.nonce = secrets.token_hex(16)
        self.texts: list[str] = []
        self.pattern = re.compile(f"{self.nonce}:([0-9]+);")

    def put(self, text: str) -> str:
        return self.mark(text) if text else ""  # templates ask whether there is content

    def mark(self, text: str = "") -> str:
        self.texts.append(text)
        return f"{self.nonce}:{len(self.texts) - 1};"

    def restore(self, rendered: str) -> str:
        return self.pattern.sub(lambda found: self.texts[int(found[1])], rendered)


class _Json(str):
    """The placeholder of a JSON text, which `tojson` must not quote again."""


@jinja2.pass_context
def _tojson(context: jinja2.runtime.Context, value: Any) -> str:
    """The template's `tojson`: user text goes back in before escaping, the outcome is user text again."""
    vault: _Vault = context["_vault"]

    def dump(value: Any) -> str:
        if isinstance(value, _Json):
            return vault.restore(value)
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(dump, value)) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{dump(key)}: {dump(item)}" for key, item in value.items()) + "}"
        return json.dumps(vault.restore(value) if isinstance(value, str) else value, ensure_ascii=False)

    return vault.put(dump(value))


@lru_cache
def _load_template(template: str) -> jinja2.Template:
    path = Path(__file__).parent / "templates" / f"{template}.jinja" if template in TEMPLATES else Path(template)
    # The white space settings of transformers, for which people's own templates are written.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(
            f"chat template {path.name} cannot be read: use {' or '.join(TEMPLATES)} or a path"
        ) from None
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"chat template {path.name}, line {error.lineno}: {error.message}") from None


@lru_cache
def _control_pattern(names: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(names | {_AUDIO_PATCH}, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def render(
    conversation: Conversation,
    template: str = "default",
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    control_tokens: frozenset[str] = frozenset(SPECIAL_TOKEN_NAMES.values()),
) -> list[Segment]:
    """Render the conversation into runs of text, control tokens and places of audio.

    `template`: `default`, `published`, or the path of a jinja file. Its `messages` have string content
    (parts joined by a newline, audio as `<audio_patch>`) in which user text is opaque: it can be printed,
    not looked into. `control_tokens`: the names that count when the template itself writes them.

    Raises InvalidRequest, and CheckpointError for a template that does not work.
    """
    if continue_final_message:
        _check_continuation(conversation, add_generation_prompt)
    vault = _Vault()
    label = f"chat template {Path(template).name}"
    messages = [_template_message(message, vault) for message in conversation.messages]
    end = vault.mark()
    if continue_final_message:
        messages[-1]["content"] += end
    try:
        rendered = _load_template(template).render(
            messages=messages,
            tools=[_Json(vault.put(tool)) for tool in conversation.tools] or None,
            add_generation_prompt=add_generation_prompt,
            _vault=vault,
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"{label} failed: {vault.pattern.sub('...', str(error))}") from None
    if continue_final_message:  # whatever the template puts behind the last message would end the turn
        rendered, found, _ = rendered.rpartition(end)
        if not found:
            raise CheckpointError(f"{label} leaves out the final message, which is to be continued")
    segments = list(_segments(rendered, vault, _control_pattern(control_tokens), label))
    if (shown := sum(isinstance(segment, Audio) for segment in segments)) != conversation.audio_count:
        raise InvalidRequest(
            f"{label} shows {shown} of {conversation.audio_count} audio parts; put audio into user messages"
        )
    return segments


def _check_continuation(conversation: Conversation, add_generation_prompt: bool) -> None:
    if add_generation_prompt:
        raise InvalidRequest("continue_final_message needs add_generation_prompt to be false")
    last = conversation.messages[-1]
    if last.role != "assistant" or last.tool_calls:
        raise InvalidRequest("continue_final_message needs the last message to be an assistant's without tool_calls")


def _template_message(message: Message, vault: _Vault) -> dict[str, Any]:
    parts = [_AUDIO_PATCH if isinstance(part, Audio) else vault.put(part.text) for part in message.parts]
    view: dict[str, Any] = {"role": message.role, "content": "\n".join(parts)}
    if message.name:
        view["name"] = vault.put(message.name)
    if message.tool_calls:
        view["tool_calls"] = [
            {"type": "function", "function": {"name": vault.put(c.name), "arguments": vault.put(c.arguments)}}
            for c in message.tool_calls
        ]
    return view


def _segments(rendered: str, vault: _Vault, control: re.Pattern[str], label: str) -> Iterator[Segment]:
    run: list[str] = []  # template words and user text since the last control token
    for i, piece in enumerate(vault.pattern.split(rendered)):  # words, placeholder, words, placeholder, words ...
        if i % 2:
            run.append(vault.texts[int(piece)])
            continue
        if vault.nonce in piece.lower():
            raise CheckpointError(f"{label} takes message text apart; it may only print it")
        for j, word in enumerate(control.split(piece)):
            if j % 2 == 0:
                run.append(word)
                continue
            if text := "".join(run):
                yield Text(text)
            run.clear()
            yield Audio() if word == _AUDIO_PATCH else Control(word)
    if text := "".join(run):
        yield Text(text)


def build_prompt(
    conversation: Conversation,
    tokenizer: Tokenizer,
    vocab_size: int,
    clips: Sequence[Sequence[ClipInfo]],
    template: str = "default",
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> Prompt:
    """Render and encode; every clip becomes `<audio_start>`, its rows' ids, `<audio_end>`.

    `vocab_size`: rows of the embedding, where ids of clip rows begin. `clips[a]`: the clips of audio a.
    Raises InvalidRequest, and CheckpointError if tokenizer, template and vocab_size do not fit together.
    """
    check_vocabulary(tokenizer, vocab_size)
    if len(clips) != conversation.audio_count:
        raise InvalidRequest(
            f"the messages have {conversation.audio_count} audio parts but the request brings {len(clips)} audios"
        )
    segments = render(conversation, template, add_generation_prompt, continue_final_message, tokenizer.added_names)
    audios = iter(clips)
    ids: list[int] = []
    extra: list[int] = []
    rows = 0
    for segment in segments:
        match segment:
            case Text(text):
                ids += tokenizer.encode(text)
            case Control(name):
                ids.append(tokenizer.token_id(name))
            case Audio():
                for clip in next(audios):
                    if clip.content_hash == 0:
                        raise ValueError("content_hash 0 means text: two clips would share KV cache")
                    ids.append(tokenizer.special.audio_start)
                    extra += [0] * (len(ids) - len(extra)) + [clip.content_hash] * clip.tokens
                    ids += range(vocab_size + rows, vocab_size + rows + clip.tokens)
                    ids.append(tokenizer.special.audio_end)
                    rows += clip.tokens
    extra += [0] * (len(ids) - len(extra))
    return Prompt(np.array(ids, np.int32), np.array(extra, np.uint64), rows)
