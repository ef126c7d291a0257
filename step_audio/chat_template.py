"""The chat template: a conversation to runs of text, control tokens and places of audio.

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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from step_audio.conversation import AudioPlace, Conversation, Message, Text
from step_audio.errors import CheckpointError, InvalidRequest
from step_audio.tokenizer import SPECIAL_TOKEN_NAMES, split_names

TEMPLATES = ("default", "published")

# How an assistant's turn begins: with a thought, which ends so; or, in the form that the model was trained on, without.
OPEN_THOUGHT, CLOSE_THOUGHT = "<think>\n", "\n</think>\n"
NO_THOUGHT = "<think>\n\n</think>\n"

_AUDIO_PATCH = SPECIAL_TOKEN_NAMES["audio_patch"]  # where the templates put an audio part

# Control tokens that a model writes inside its own turn; none of them begins or ends one.
_OWN_TOKENS = re.compile("(</?tool_call>|<tts_start>|<tts_end>)")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by name."""

    name: str


Segment = Text | Control | AudioPlace

_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError)  # of a template


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


def _raise_exception(text: str) -> None:
    """By which people's templates refuse a conversation."""
    raise jinja2.TemplateError(text)


@dataclass(frozen=True, slots=True)
class Template:
    """A template: what people call it, and its Jinja source."""

    name: str
    source: str


@lru_cache
def load_template(template: str) -> Template:
    """`default`, `published`, or the path of a jinja file. Raises CheckpointError."""
    path = Path(__file__).parent / "templates" / f"{template}.jinja" if template in TEMPLATES else Path(template)
    try:
        return Template(Path(template).name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(
            f"chat template {path.name} cannot be read: use {' or '.join(TEMPLATES)} or a path"
        ) from None


@lru_cache
def _compiled(template: Template) -> jinja2.Template:
    # The white space settings of transformers, for which people's own templates are written.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(template.source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"chat template {template.name}, line {error.lineno}: {error.message}") from None


@lru_cache
def _works(template: Template) -> bool:
    """Whether it can write the simplest of conversations: what else it fails on is the conversation's fault."""
    messages = [{"role": "user", "content": "."}]
    try:
        _compiled(template).render(messages=messages, tools=None, add_generation_prompt=True, _vault=_Vault())
    except _FAILURES:
        return False
    return True


def render(
    conversation: Conversation,
    template: str | Template = "default",
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    control_tokens: frozenset[str] = frozenset(SPECIAL_TOKEN_NAMES.values()),
) -> list[Segment]:
    """Render the conversation into runs of text, control tokens and places of audio.

    `template`: one, or what `load_template` takes. Its `messages` have string content
    (parts joined by a newline, audio as `<audio_patch>`) in which user text is opaque: it can be printed,
    not looked into. `control_tokens`: the names that count when the template itself writes them.

    Raises InvalidRequest, and CheckpointError for a template that does not work.
    """
    if continue_final_message:
        _check_continuation(conversation, add_generation_prompt)
    vault = _Vault()
    if isinstance(template, str):
        template = load_template(template)
    label = f"chat template {template.name}"
    messages = [_template_message(message, vault) for message in conversation.messages]
    end = vault.mark()
    if continue_final_message:
        messages[-1]["content"] = _continued(conversation.messages[-1], vault) + end
    try:
        rendered = _compiled(template).render(
            messages=messages,
            tools=[_Json(vault.put(tool)) for tool in conversation.tools] or None,
            add_generation_prompt=add_generation_prompt,
            _vault=vault,
        )
    except _FAILURES as error:
        told = vault.pattern.sub("...", str(error))
        if _works(template):
            raise InvalidRequest(f"messages: {label} does not take them: {told}", "messages") from None
        raise CheckpointError(f"{label} failed: {told}") from None
    if continue_final_message:  # whatever the template puts behind the last message would end the turn
        rendered, found, _ = rendered.rpartition(end)
        if not found:
            raise CheckpointError(f"{label} leaves out the final message, which is to be continued")
    control = control_tokens if _AUDIO_PATCH in control_tokens else control_tokens | {_AUDIO_PATCH}
    segments = list(_segments(rendered, vault, control, label))
    if (shown := sum(isinstance(segment, AudioPlace) for segment in segments)) != conversation.audio_count:
        raise InvalidRequest(
            f"{label} shows {shown} of {conversation.audio_count} audio parts; put audio into user messages", "messages"
        )
    return segments


def _check_continuation(conversation: Conversation, add_generation_prompt: bool) -> None:
    name = "continue_final_message"
    if add_generation_prompt:
        raise InvalidRequest("continue_final_message needs add_generation_prompt to be false", name)
    last = conversation.messages[-1]
    if last.role != "assistant" or last.tool_calls:
        raise InvalidRequest(
            "continue_final_message needs the last message to be an assistant's without tool_calls", name
        )


def _template_message(message: Message, vault: _Vault) -> dict[str, Any]:
    parts = [_AUDIO_PATCH if isinstance(part, AudioPlace) else vault.put(part.text) for part in message.parts]
    view: dict[str, Any] = {"role": message.role, "content": "\n".join(parts)}
    if message.name:
        view["name"] = vault.put(message.name)
    if message.tool_calls:
        view["tool_calls"] = [
            {"type": "function", "function": {"name": vault.put(c.name), "arguments": vault.put(c.arguments)}}
            for c in message.tool_calls
        ]
    return view


def _continued(message: Message, vault: _Vault) -> str:
    """The turn that the model is to continue: as it would have written it, with the control tokens of its own."""
    text = "\n".join(part.text for part in message.parts if isinstance(part, Text))
    return "".join(piece if i % 2 else vault.put(piece) for i, piece in enumerate(_OWN_TOKENS.split(text)))


def _segments(rendered: str, vault: _Vault, control: frozenset[str], label: str) -> Iterator[Segment]:
    run: list[str] = []  # template words and user text since the last control token
    for i, piece in enumerate(vault.pattern.split(rendered)):  # words, placeholder, words, placeholder, words ...
        if i % 2:
            run.append(vault.texts[int(piece)])
            continue
        if vault.nonce in piece.lower():
            raise CheckpointError(f"{label} takes message text apart; it may only print it")
        for j, word in enumerate(split_names(piece, control)):
            if j % 2 == 0:
                run.append(word)
                continue
            if text := "".join(run):
                yield Text(text)
            run.clear()
            yield AudioPlace() if word == _AUDIO_PATCH else Control(word)
    if text := "".join(run):
        yield Text(text)
