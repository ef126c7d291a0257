"""What a realtime session tells, against the types of OpenAI's package."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from step_audio import sampling_parameters

# Ours, beside OpenAI's, as docs/realtime.md names them; a session tells `parallel_tool_calls`, too.
_SESSION = ["thinking", "mind_paced_speaking", "parallel_tool_calls", "stop", "bad_words", "ignore_eos"]
_SESSION += [one.name for one in sampling_parameters.PARAMETERS]
_FORMATS = ["session.audio.input.format", "session.audio.output.format", "response.audio.output.format"]
_RESPONSE = ["audio_warnings", "mind_paced_speaking", "usage.output_token_details.reasoning_tokens"]
OURS = {
    *(f"session.{name}" for name in _SESSION),
    *(f"{place}.rate" for place in _FORMATS),
    *(f"response.{name}" for name in _RESPONSE),
}


@cache
def _types() -> dict[str, type[BaseModel]]:
    """By `type`."""
    from openai.types.realtime import RealtimeServerEvent

    kinds = get_args(get_args(RealtimeServerEvent)[0])
    return {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in kinds}


def check_event(event: dict[str, Any]) -> None:
    """It is of a type that OpenAI's package has, with the fields that must be there, and no others but ours."""
    if event["type"].startswith("response.reasoning_text.") or event.get("item", {}).get("type") == "reasoning":
        return  # where `include` asks for it
    event = copy.deepcopy(event)
    if "response" in event:
        event["response"]["output"] = [item for item in event["response"]["output"] if item["type"] != "reasoning"]
    if (session := event.pop("session", None)) is not None:
        check_session(session)
        event["session"] = {"type": "realtime"}
    read = _types()[event["type"]].model_validate(event)
    unknown = set(_unknown(read, "")) - OURS
    assert not unknown, (event["type"], unknown)


def check_session(session: dict[str, Any]) -> None:
    """As `session.created` and client secrets tell it: the package's type of that event is what clients send."""
    from openai.types.realtime import RealtimeSessionCreateResponse

    session = copy.deepcopy(session)
    if session.get("include") == ["reasoning"]:
        session["include"] = None
    for way in session["audio"].values():
        if way["format"] == {"type": "audio/pcm", "rate": 16_000}:
            way["format"]["rate"] = 24_000
    unknown = set(_unknown(RealtimeSessionCreateResponse.model_validate(session), "session")) - OURS
    assert not unknown, unknown


def _unknown(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        for name in value.model_extra or {}:
            yield f"{place}.{name}".removeprefix(".")
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{place}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for one in value:
            yield from _unknown(one, place)
