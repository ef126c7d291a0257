"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with the right status."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from step_audio.errors import Code, InvalidRequest, one_line
from step_audio.validation import words
from step_audio_client import RequestError

RETRY_AFTER = 1  # seconds; a queue of short answers moves that fast
CLIENT_GONE = 499  # nobody reads it; nginx's number, for the log

# What is made from messages has names of its own inside.
_FIELDS = dict.fromkeys(("audio", "frames", "input_ids"), "messages")
_MAX_SEQ_LEN = re.compile(r"\bmax_seq_len\b")  # max_model_len here, see /v1/models
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# What a caller is told where the client library names servers, or others their own inside.
_GONE = "the server is not available: try again later"
_TOLD = {Code.INTERNAL: "internal error", Code.UNAVAILABLE: _GONE, Code.SERVER_LOST: _GONE, Code.NOT_CACHED: _GONE}


class ErrorDetail(BaseModel):
    """What is wrong (`message`), with which field of the request (`param`)."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every reply that is not a success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """What a client gets instead of an answer, in one line. `param`: the request's field at fault. `cause`: what the
    log gets of it besides."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        cause: str | None = None,
    ):
        super().__init__(status, one_line(message), headers)
        self.param, self.code, self.cause = param and one_line(param), code, cause

    def renamed(self, names: Mapping[str, str]) -> ApiError:
        """With fields as the caller calls them; a place within one of ours is none of theirs."""
        message, param = self.detail, self.param
        for ours, theirs in names.items():
            place = re.compile(rf"\b{re.escape(ours)}(?!\w)(\[\d+\]|\.content\b)*")
            message, param = place.sub(theirs, message), param and place.sub(theirs, param)
        return ApiError(self.status_code, message, param, self.code, self.headers, self.cause)

    def body(self) -> ErrorBody:
        kind = _TYPES.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return ErrorBody(error=ErrorDetail(message=self.detail, type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        # Escaped to ASCII: a message may quote half a surrogate pair, which UTF-8 cannot hold.
        return Response(json.dumps(self.body().model_dump()), self.status_code, self.headers, "application/json")


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request cannot be served as it is."""
    return ApiError(400, message, param, code)


def unsupported(param: str, instead: str) -> ApiError:
    """400: asked for something that cannot be honoured; `instead` says what can be."""
    return refused(f"{param} is not supported: {instead}", param, "unsupported_parameter")


def from_client(error: RequestError) -> ApiError:
    """The client library's error as a status: its code says which."""
    code = error.code
    message = _MAX_SEQ_LEN.sub("max_model_len", str(error))
    headers = {"Retry-After": str(RETRY_AFTER)} if code.status in (429, 503) else None
    if told := _TOLD.get(code):
        return ApiError(code.status, told, code=code.openai, headers=headers, cause=message)
    return ApiError(code.status, message, _field(error.param), code.openai, headers)


def _field(param: str | None) -> str | None:
    return _FIELDS.get(param or "", param)


def from_validation(error: RequestValidationError) -> ApiError:
    """One fault."""
    param, fault = furthest_inside([{**one, "loc": one["loc"][1:]} for one in error.errors()], error.body)
    return refused(f"{param}: {words(fault)}" if param else words(fault), param or None)


def furthest_inside(faults: Iterable[Mapping[str, Any]], body: Any) -> tuple[str, Mapping[str, Any]]:
    """Of pydantic's `faults` of `body`: where a value may be of several types, each has its complaints, and those of
    the type that it is come first. And where it is, by the caller's own keys."""
    found = [(_place(fault["loc"], fault["type"], body), fault) for fault in faults]
    place, fault = max(found, key=lambda entry: (len(entry[0]), not entry[1]["type"].endswith("_type")))
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix("."), fault


def _place(loc: Sequence[int | str], kind: str, body: Any) -> list[int | str]:
    """The caller's own keys of a fault's place, without those that name a type of ours."""
    place: list[int | str] = []
    for i, part in enumerate(loc, 1):
        known = part in body if isinstance(body, Mapping) else isinstance(body, list) and isinstance(part, int)
        if known or (i == len(loc) and kind == "missing"):
            place.append(part)
            body = body[part] if known else None
    return place


def install(app: FastAPI) -> None:
    """Every error that a route may raise becomes a response in OpenAI's shape."""

    def answer(request: Request, error: ApiError) -> Response:
        error = error.renamed(getattr(request.state, "names", {}))
        if error.status_code == 413:
            request.app.state.metrics.refused.labels("size").inc()
        request.state.log["error"] = error.code or error.body().error.type
        if error.status_code >= 500 or request.app.state.log_content:  # a refusal may quote what was sent
            request.state.log["message"] = error.cause or error.detail
        request.state.told = error.detail
        return error.response()

    async def http(request: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return answer(request, error)
        assert isinstance(error, HTTPException)  # of the router: no such path or method, a body that cannot be read
        where = f": {request.method} {request.url.path}" if error.status_code in (404, 405) else ""
        return answer(request, ApiError(error.status_code, f"{error.detail}{where}", headers=error.headers))

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(request, from_validation(error))

    async def client(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        if error.code is Code.QUEUE_FULL:
            request.app.state.metrics.refused.labels("busy").inc()
        return answer(request, from_client(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, InvalidRequest)
        return answer(request, refused(str(error), _field(error.param)))

    async def gone(request: Request, error: Exception) -> Response:
        request.state.log["error"] = "client_gone"
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(RequestError, client)
    app.add_exception_handler(InvalidRequest, invalid)
    app.add_exception_handler(ClientGone, gone)
