"""What the tests by OpenAI's own package share; `fake` is a module's own FakeClient."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def openai():
    """Loaded by the process that runs these tests, not by all that collect them."""
    import openai

    return openai


@pytest.fixture
def play(fake):
    """Replace the fake's script for one test."""
    before = fake.script

    def replace(*steps) -> None:
        fake.script = lambda messages, options: list(steps)

    yield replace
    fake.script = before
