"""Two servers on one work directory, one of them through symbolic links: nothing is built twice, neither disturbs the
other."""

from __future__ import annotations

import asyncio

import pytest

from server_settings import settings_for
from step_audio_build.artefacts.lock import lock
from step_audio_client import Sampling, StepAudioClient, user
from step_audio_server.errors import ServerError
from step_audio_server.serve import Service


def ask(service: Service) -> list[int]:
    async def once() -> list[int]:
        async with StepAudioClient(service.address) as client:
            return (await client.complete([user("hello")], Sampling(max_tokens=8, temperature=0))).token_ids

    return asyncio.run(once())


def test_a_second_server_through_links(service, checkpoint, work_dir, tmp_path):
    def built() -> dict[str, int]:
        # Other workers' tests may be building for other ranks.
        made = [*work_dir.glob(f"decoder-tp{service.settings.tp}-*/*"), *work_dir.glob("encoder-*")]
        return {str(path): path.stat().st_mtime_ns for path in made}

    before, answer = built(), ask(service)
    (tmp_path / "model").symlink_to(checkpoint)
    (tmp_path / "work").symlink_to(work_dir)
    with Service(settings_for(tmp_path / "model", tmp_path / "work")) as second:
        assert ask(second) == ask(service) == answer
        assert built() == before and len(before) > 5
        assert second.settings.run_dir.resolve().parent == work_dir.resolve()
    assert ask(service) == answer


def test_the_same_port_is_refused(service):
    with pytest.raises(ServerError, match=f"^port {service.settings.grpc_port} is in use: choose another with --grpc"):
        Service(service.settings).start()


def test_the_same_port_at_the_same_moment_is_refused(checkpoint, tmp_path):
    """Before the other has opened it."""
    settings = settings_for(checkpoint, tmp_path)
    with lock(settings.run_dir), pytest.raises(ServerError, match=r"^another `step-audio serve` is using .*-port$"):
        Service(settings).start()
