"""Around every request: its id, its line in the log, its place in the metrics, who may ask, and how much."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from step_audio import tracing
from step_audio.tracing import Tracer
from step_audio_gateway.admission import Admission, Admitted
from step_audio_gateway.auth import Keys
from step_audio_gateway.body import Body, too_large
from step_audio_gateway.errors import ApiError
from step_audio_gateway.metrics import Metrics
from step_audio_gateway.origins import Origins
from step_audio_gateway.realtime.client_secrets import Caller, authorization_of, caller_of
from step_audio_gateway.settings import GatewaySettings

log = logging.getLogger("step_audio_gateway")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")  # nothing that could break a line of a log


# Fields of the log that a trace has, too, under OpenTelemetry's names.
TOLD = {
    "error": "error.type",
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}
ASKED = ("http", "websocket")  # kinds of what comes; there is also the server's own lifespan
SWITCHED = 101  # HTTP's status of a connection that has become a WebSocket
SCRAPED = ("/health", "/metrics", "/ready")  # every few seconds, by probes and Prometheus
REQUEST_ID = "request.id"
GUARDED = ("/v1/", "/tokenize", "/detokenize")  # what needs a key, and of which there may be too much


class JsonLines(logging.Formatter):
    """One JSON object a line; what was logged with `extra={"fields": {...}}` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class Under:
    """Cuts the path off under which a proxy shows the server: for all that is within, keys too, there is none."""

    def __init__(self, app: ASGIApp, root: str):
        self.app = app
        self.root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self.root:
            return await RedirectResponse(f"{self.root}/")(scope, receive, send)  # the page's links are relative
        if scope["type"] in ASKED and scope["path"].startswith(f"{self.root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self.root)}
        await self.app(scope, receive, send)


class Observe:
    """Outermost. Routes put what is worth logging into `request.state.log`: never text nor audio, unless asked to."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer | None):
        self.app = app
        self.metrics = metrics
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ASKED:
            await self.app(scope, receive, send)
        elif self.tracer is None or scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._observed(scope, receive, send, None)
        else:
            method = scope["method"]
            with self.tracer.request(method, Headers(scope=scope), {"http.request.method": method}) as span:
                await self._observed(scope, receive, send, span)

    async def _observed(self, scope: Scope, receive: Receive, send: Send, span: tracing.RequestSpan | None) -> None:
        start = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        fields: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = fields
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status = message.get("status", SWITCHED)
                message.setdefault("headers", [])
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnected:  # of a WebSocket, before it was open
            fields["closed"] = "the client has left"
        except Exception:
            log.exception("fault", extra={"fields": {"request_id": request_id}})
            fields["error"] = "internal_error"
            if not status:
                response = ApiError(500, "internal error", code="internal_error").response()
                await response(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - start
            route = getattr(scope.get("route"), "path", "other")  # not the path: anybody can make up new ones
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            if span is not None:
                fields["trace_id"] = span.trace_id
                told = {name: fields[field] for field, name in TOLD.items() if field in fields}
                span.end(f"{scope['method']} {route}", status, told | {"http.route": route, REQUEST_ID: request_id})
            client = (scope.get("client") or ("",))[0]
            about = {
                "request_id": request_id,
                "client": client,
                "method": scope.get("method", "GET"),
                "path": scope["path"],
            }
            about |= {"status": status, "seconds": round(seconds, 4)}
            level = logging.DEBUG if route in SCRAPED and status < 400 else logging.INFO
            log.log(level, "request", extra={"fields": about | fields})
            if 400 <= status < 500 and "told" in scope["state"]:
                said = {"request_id": request_id, "status": status, "message": scope["state"]["told"]}
                log.debug("refused", extra={"fields": said})


class Guard:
    """Refuses before a body is read: without a key, too large by its own word, or when there is no place."""

    def __init__(self, app: ASGIApp, keys: Keys, settings: GatewaySettings, admission: Admission, metrics: Metrics):
        self.app = app
        self.keys = keys
        self.origins = None if keys else Origins(settings)
        self.settings = settings
        self.admission = admission
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ASKED:
            return await self.app(scope, receive, send)
        try:
            admitted = None
            if scope["type"] == "http":
                admitted = await self._admitted(scope)
            else:
                scope["state"]["caller"] = self._caller(scope)
        except ApiError as error:
            scope["state"]["log"]["error"] = error.code
            scope["state"]["told"] = error.detail
            return await error.response()(scope, receive, send)
        scope["state"]["admitted"] = admitted
        body = Body(receive, self.settings, admitted, self.metrics)
        try:
            await self.app(scope, body.receive if scope["type"] == "http" else receive, send)
        finally:
            if admitted is not None:
                admitted.leave()

    async def _admitted(self, scope: Scope) -> Admitted | None:
        """None for what generates nothing. Raises ApiError."""
        headers, ours = Headers(scope=scope), scope["path"].startswith(GUARDED)
        if self.origins is not None:
            self.origins.check(scope["method"], headers)
        try:
            key = self.keys.check(headers.get("authorization", "")) if self.keys and ours else 0
        except ApiError:
            self.metrics.refused.labels("key").inc()
            raise
        scope["state"]["key"] = key
        length = headers.get("content-length", "")
        stated = int(length) if length.isdecimal() else 0
        if stated > self.settings.max_body_bytes:
            self.metrics.refused.labels("size").inc()
            raise too_large(self.settings.max_body_bytes)
        return await self.admission.enter(key, stated) if ours and scope["method"] == "POST" else None

    def _caller(self, scope: Scope) -> Caller:
        """Of a WebSocket, which a page of anybody's may open: its browser asks nobody. Raises ApiError."""
        headers = Headers(scope=scope)
        if self.origins is not None:
            self.origins.check("POST", headers)
        given = headers.get("authorization", "") or authorization_of(scope["subprotocols"])
        try:
            return caller_of(given, self.keys)
        except ApiError:
            self.metrics.refused.labels("key").inc()
            raise
