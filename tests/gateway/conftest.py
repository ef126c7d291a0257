"""A gateway on a real port, in front of a stand-in for the client library."""

from __future__ import annotations

from typing import Any

import pytest

from gateway_fixture import FakeClient, listening


@pytest.fixture(scope="session", autouse=True)
def nobody_is_trusted(tmp_path_factory):
    """Every HTTP client reads who is, which takes longer than most requests, and nothing here is asked over TLS."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(scope="module")
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """The gateway's, of all tests of a module, which may have others."""
    return {}


@pytest.fixture(scope="module")
def url(fake, settings):
    with listening(fake, **settings) as url:
        yield url


@pytest.fixture(scope="module")
def client(url, openai, settings):
    (key, *_) = settings.get("api_key", ["none"])
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def play(fake):
    """Replace the fake's script for one test."""
    before = fake.script

    def replace(*steps) -> None:
        fake.script = lambda messages, options: list(steps)

    yield replace
    fake.script = before
