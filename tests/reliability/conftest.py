"""One `step-audio serve` for all tests here that kill parts of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_process import ServeProcess
from server_settings import MAX_SEQ_LEN, settings_for
from waiting import SECONDS


@pytest.fixture(scope="session")
def served() -> Iterator[list[ServeProcess]]:
    """What has been started, the latest last."""
    started: list[ServeProcess] = []
    yield started
    for process in started:
        process.end()


@pytest.fixture
def running(checkpoint: Path, work_dir: Path, served: list[ServeProcess]) -> ServeProcess:
    """Another one, where a test has ended the last for good."""
    if not served or served[-1].process.poll() is not None:
        served.append(ServeProcess(settings_for(checkpoint, work_dir), "--max-seq-len", str(MAX_SEQ_LEN)))
        served[-1].wait_for("ready", 5 * SECONDS)  # it may build first
    return served[-1]
