"""The gateway's process in front of the small trained model."""

from __future__ import annotations

import pytest

from front_door_fixture import door


@pytest.fixture(scope="module")
def url(listener):
    """A module may put another in its place."""
    yield from door(listener.address)


@pytest.fixture(scope="module")
def client(url, openai):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client
