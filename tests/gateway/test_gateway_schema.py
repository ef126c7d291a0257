"""Whatever fits the gateway's description of itself, or nearly fits, gets an answer that fits it too."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway_fixture import FakeClient
from step_audio_gateway.app import create_app
from step_audio_gateway.settings import GatewaySettings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

app = create_app(GatewaySettings(), FakeClient())  # type: ignore[arg-type]
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.long
@schema.parametrize()
@hypothesis.settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_every_operation(case):
    response = case.call()
    case.validate_response(response, checks=CHECKS)


def test_the_description_names_all_routes():
    paths = app.openapi()["paths"]
    assert set(paths) == {
        "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/audio/transcriptions",
        "/v1/audio/translations", "/v1/audio/speech", "/v1/realtime/client_secrets", "/v1/models",
        "/v1/models/{model}", "/tokenize", "/detokenize", "/version", "/health", "/ready", "/metrics",
    }  # fmt: skip
    for path in paths:
        for operation in paths[path].values():
            assert "422" not in operation["responses"]
