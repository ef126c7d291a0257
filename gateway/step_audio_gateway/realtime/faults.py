"""What a client did wrong, as an event of type `error` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from step_audio.errors import InvalidRequest, one_line
from step_audio.validation import words
from step_audio_client import RequestError
from step_audio_gateway.errors import ApiError, from_client, furthest_inside, refused

_OF_TYPE = ("union_tag_invalid", "union_tag_not_found", "item_type")  # pydantic's words: told of the whole object
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "union_tag_not_found": "missing_required_parameter",
}


class Fault(Exception):
    """`code`: OpenAI's, where there is one: clients go by it. `param`: the event's field at fault.

    The session goes on after it.
    """

    def __init__(
        self, code: str | None, message: str, param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(one_line(message))
        self.code, self.param, self.kind = code, param and one_line(param), kind

    @classmethod
    def of(cls, error: Exception, place: str = "") -> Fault:
        """What another route would answer with; `place`: where its fields are in an event. Of a fault of ours, which
        is none of `TOLD`, no more than that it is one."""
        match error:
            case Fault():
                return error
            case ApiError():
                told = error.body().error
            case RequestError():
                told = from_client(error).body().error
            case InvalidRequest():
                told = refused(str(error), error.param, error.code.openai).body().error
            case _:
                return cls("internal_error", "internal error", kind="server_error")
        code = told.code or ("server_error" if told.type == "server_error" else "invalid_value")
        return cls(code, told.message, f"{place}{told.param}" if told.param else None, told.type)

    @classmethod
    def of_validation(cls, error: ValidationError, values: Mapping[str, Any], place: str = "") -> Fault:
        """The fault of `values` that is furthest inside. `place`: what stands before its keys."""
        param, fault = furthest_inside([{**one} for one in error.errors()], values)
        keys = [place, param, *(["type"] if fault["type"] in _OF_TYPE else [])]
        param = ".".join(key for key in keys if key)
        code = _CODES.get(fault["type"], "invalid_value")
        text = "there is no such parameter" if code == "unknown_parameter" else words(fault)
        return cls(code, f"{param}: {text}" if param else text, param or None)

    def body(self, event_id: str | None) -> dict[str, Any]:
        """Of the event's field `error`. `event_id`: the client's."""
        return {
            "type": self.kind,
            "code": self.code,
            "message": str(self),
            "param": self.param,
            "event_id": event_id,
        }


TOLD = (Fault, ApiError, RequestError, InvalidRequest)  # what a client is told in words
