"""The page to talk to the model: its files, and what it offers, as the core's lists have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.routing import Route

from step_audio.containers import ADVICE, EXTENSIONS, MIME_TYPES
from step_audio.sampling_parameters import PARAMETERS, Parameter, Slider
from step_audio_gateway.realtime.session_config import NAMES as SESSION_NAMES

PLAYGROUND = Path(__file__).parent / "playground"
LARGEST = 2**53 - 1  # whole number of JavaScript

# The page uses nothing but its own files and this server.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """One for each of the page's files: all other paths are nobody's."""
    files = StaticFiles(directory=PLAYGROUND)

    def route(path: str, name: str) -> Route:
        async def get(request: Request) -> Response:
            response = await files.get_response(name, request.scope)
            response.headers.update(PAGE_HEADERS)
            return response

        return Route(path, get, include_in_schema=False)

    async def lists(request: Request) -> Response:
        return Response(offers_module(), media_type="text/javascript", headers=PAGE_HEADERS)

    names = sorted(str(file.relative_to(PLAYGROUND)) for file in PLAYGROUND.rglob("*") if file.is_file())
    return [
        route("/", "index.html"),
        *(route(f"/{name}", name) for name in names),
        Route("/offers.js", lists, include_in_schema=False),
    ]


def offers_module() -> str:
    """The JavaScript module `offers.js`: SAMPLING, the controls of the sampling parameters in their order;
    SESSION_NAMES, what realtime sessions call otherwise; and RECORDINGS, the files that can be sent."""
    recordings = {"extensions": EXTENSIONS, "types": MIME_TYPES, "advice": ADVICE}
    controls = [_control(one) for one in PARAMETERS if one.control]
    offers = {"SAMPLING": controls, "SESSION_NAMES": SESSION_NAMES, "RECORDINGS": recordings}
    return "".join(f"export const {name} = {json.dumps(value)};\n" for name, value in offers.items())


def _control(one: Parameter) -> dict[str, Any]:
    """Attributes of an `input`, and its label. A slider begins at the default, or where it asks for nothing."""
    assert one.control and one.at_most is not None
    shared = {"name": one.name, "label": one.name.replace("_", " ").capitalize(), "title": one.text}
    if isinstance(one.control, Slider):
        step = one.control.step
        low = step if one.at_least is None else one.at_least
        value = one.nothing[0] if one.default is None else one.default
        return shared | {"type": "range", "min": low, "max": one.at_most, "step": step, "value": value}
    bounds = {"min": max(0, one.at_least or 0), "max": min(one.at_most, LARGEST)}
    return shared | bounds | {"type": "number", "step": 1, "placeholder": one.control.placeholder}
