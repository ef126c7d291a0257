"""The processes that do the steps' work, on a real server."""

from __future__ import annotations

from step_audio_server import processes
from step_audio_server.serve import Service


def workers_of(service: Service, step: str) -> list[int]:
    """None while one has died and the next is not there."""
    return [
        pid
        for pid in processes.session(service.server.process.pid)
        if "step_audio.steps.worker" in (words := processes.arguments(pid)) and step in words
    ]


def worker_of(service: Service, step: str) -> int:
    found = workers_of(service, step)
    assert len(found) == 1, f"{step} has {len(found)} workers"
    return found[0]
