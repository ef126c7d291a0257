"""Two builds in one work directory at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from export_fixture import export_nothing
from server_settings import settings_for
from step_audio_build.artefacts.lock import building, lock
from step_audio_build.stages import cpu_build
from step_audio_server.prepare import build_for_cpu
from waiting import SECONDS, wait_until


def test_a_lock_is_held_by_one(tmp_path):
    held = lock(tmp_path / "work")
    assert lock(tmp_path / "work") is None
    held.close()
    with building(tmp_path / "work", pytest.fail):
        assert lock(tmp_path / "work") is None
    lock(tmp_path / "work").close()


@pytest.mark.build
def test_two_that_find_nothing_build_once(checkpoint, tmp_path, monkeypatch):
    """In two threads: the lock is a file's, which knows no processes. Two servers are in tests/served."""
    export_nothing(monkeypatch)
    converted = []
    monkeypatch.setattr(cpu_build, "Progress", lambda name: lambda done, total: converted.append(done == total))
    settings = settings_for(checkpoint, tmp_path / "work", max_seq_len=4096)
    held = lock(settings.work_dir)  # until both have begun
    said: list[str] = []
    with ThreadPoolExecutor(2) as threads:
        builds = [threads.submit(build_for_cpu, settings, said.append) for _ in range(2)]
        wait_until(lambda: len(said) == 2, "both to wait")
        assert said == [f"another process is building in {settings.work_dir}: waiting for it"] * 2
        held.close()
        for build in builds:
            build.result(timeout=5 * SECONDS)
    assert converted.count(True) == 1
