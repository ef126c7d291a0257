"""The application: all routes, and what stands around them."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from step_audio.generation_config import Pace, Suggestions
from step_audio.tracing import Tracer
from step_audio_client import StepAudioClient
from step_audio_gateway import errors
from step_audio_gateway.admission import Admission
from step_audio_gateway.auth import Keys
from step_audio_gateway.chat import FAILURES, chat_routes
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ErrorBody
from step_audio_gateway.fetch import Fetcher
from step_audio_gateway.middleware import GUARDED, Guard, Observe, Under
from step_audio_gateway.page import page_routes
from step_audio_gateway.raw_route import raw_routes
from step_audio_gateway.realtime.route import realtime_routes
from step_audio_gateway.realtime.sessions import Sessions
from step_audio_gateway.recordings import WARNINGS
from step_audio_gateway.response_route import response_routes
from step_audio_gateway.responses import ChatCompletionChunk, Model, ModelList, Status, Version
from step_audio_gateway.settings import GatewaySettings
from step_audio_gateway.speech.route import speech_routes
from step_audio_gateway.speech.voices import voice_of
from step_audio_gateway.tokenization import tokenization_routes
from step_audio_gateway.transcriptions import transcription_routes
from step_audio_gateway.translations import translation_routes


def create_app(
    settings: GatewaySettings, client: StepAudioClient, fetcher: Fetcher | None = None, tracer: Tracer | None = None
) -> FastAPI:
    """The ASGI application. The client, and the tracer, stay the caller's to close. `fetcher` replaces that of the
    settings.

    Raises SettingsError.
    """
    gateway = Gateway(settings, client, fetcher)
    keys = Keys(settings.keys())
    admission = Admission(settings, client, len(keys), gateway.metrics)
    app = FastAPI(
        title="Step-Audio-R1",
        version=version("step-audio-triton"),
        redoc_url=None,
        docs_url=None,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
    )
    app.state.log_content = settings.log_content
    app.state.metrics = gateway.metrics
    app.state.sessions = sessions = Sessions()
    app.state.voice = voice = voice_of(settings)
    errors.install(app)
    app.include_router(chat_routes(gateway, voice))
    app.include_router(raw_routes(gateway))
    app.include_router(response_routes(gateway))
    app.include_router(transcription_routes(gateway))
    app.include_router(translation_routes(gateway))
    app.include_router(speech_routes(gateway, voice))
    app.include_router(tokenization_routes(gateway))
    app.include_router(realtime_routes(gateway, admission, keys, sessions, voice))
    _service_routes(app, gateway)
    app.routes.extend(page_routes())
    # The last one added is the outermost.
    app.add_middleware(Guard, keys=keys, settings=settings, admission=admission, metrics=gateway.metrics)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", WARNINGS],
        )
    app.add_middleware(Observe, metrics=gateway.metrics, tracer=tracer)
    if settings.root_path:
        app.add_middleware(Under, root=settings.root_path)
    _describe(app, bool(keys))
    return app


def _service_routes(app: FastAPI, gateway: Gateway) -> None:
    started = int(time.time())
    unavailable: dict[int | str, dict[str, Any]] = {503: FAILURES[503]}

    async def describe(name: str) -> Model:
        info, adapter = await gateway.client.serving_info(), await gateway.adapter(name)
        return Model(
            id=name,
            parent=None if adapter is None else (await gateway.model_names())[0],
            object="model",
            created=started,
            owned_by="stepfun-ai",
            root=info["model"],
            max_model_len=info["max_seq_len"],
            supported_parameters=info["sampling_parameters"],
            mind_paced_speaking=Pace(**info["mind_paced_speaking"]),
            suggestions=Suggestions.model_validate(info["suggestions"]),
        )

    @app.get("/v1/models", responses={401: FAILURES[401], 500: FAILURES[500], **unavailable}, tags=["models"])
    async def list_models() -> ModelList:
        """The served model, once for each of its names, and its adapters."""
        return ModelList(object="list", data=[await describe(name) for name in await gateway.model_names()])

    @app.get(
        "/v1/models/{model:path}",
        responses={status: FAILURES[status] for status in (401, 404, 500, 503)},
        tags=["models"],
    )
    async def retrieve_model(model: str) -> Model:
        """The served model, by one of its names, or an adapter."""
        return await describe(await gateway.model_name(model))

    @app.get("/version", tags=["service"])
    async def version_of_this() -> Version:
        """The release of the gateway."""
        return Version(version=app.version)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["service"])
    async def health() -> Status:
        """Whether the gateway itself is alive."""
        return Status(status="ok")

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses={503: {"model": Status}}, tags=["service"])
    async def ready(response: Response) -> Status:
        """Whether the served model answers."""
        if await gateway.client.ready():
            return Status(status="ok")
        response.status_code = 503
        return Status(status="unavailable")

    @app.get("/metrics", response_class=Response, tags=["service"])
    async def metrics(request: Request) -> Response:
        """Prometheus' text format."""
        return Response(gateway.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _describe(app: FastAPI, with_keys: bool) -> None:
    """Correct what FastAPI writes about itself into /openapi.json."""
    generate = app.openapi

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            components = document["components"]
            for name in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(name, None)
            chunk = ChatCompletionChunk.model_json_schema(ref_template="#/components/schemas/{model}")
            components["schemas"] |= chunk.pop("$defs") | {"ChatCompletionChunk": chunk}
            components["schemas"].setdefault("ErrorBody", ErrorBody.model_json_schema())
            for path, methods in document["paths"].items():
                for method in methods.values():
                    method["responses"].pop("422", None)  # faults of validation are 400 here
                    if with_keys and path.startswith(GUARDED):
                        method["security"] = [{"key": []}]
            if with_keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
