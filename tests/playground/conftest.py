"""A browser, and the gateway that it talks to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browser import Page, browser
from playground_fixture import FakeGateway, fake_gateway, opened, tone


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as server:
        yield server


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("chromium"), tone(5, 48000)) as driver:
        yield driver


@pytest.fixture
def page(driver: Any, gateway: FakeGateway) -> Iterator[Page]:
    with opened(driver, gateway.url) as page:
        yield page
