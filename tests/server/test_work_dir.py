"""Two builds in one work directory at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server_settings import settings_for
from step_audio_build.artefacts.lock import building, lock
from waiting import SECONDS

BUILD = """
import sys
from step_audio_server.prepare import build_for_cpu
from step_audio_server.settings import ServeSettings
build_for_cpu(ServeSettings.model_validate_json(sys.argv[1]), lambda line: print(line, file=sys.stderr, flush=True))
"""


def test_a_lock_is_held_by_one(tmp_path):
    held = lock(tmp_path / "work")
    assert lock(tmp_path / "work") is None
    held.close()
    with building(tmp_path / "work", pytest.fail):
        assert lock(tmp_path / "work") is None
    lock(tmp_path / "work").close()


def test_two_that_find_nothing_build_once(checkpoint, tmp_path):
    settings = settings_for(checkpoint, tmp_path / "work", max_seq_len=4096)
    held = lock(settings.work_dir)  # until both have begun
    builds = [
        subprocess.Popen([sys.executable, "-c", BUILD, settings.model_dump_json()], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [build.stderr.readline() for build in builds]
    held.close()
    assert said == [f"another process is building in {settings.work_dir}: waiting for it\n"] * 2
    rest = [build.communicate(timeout=5 * SECONDS)[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], rest
    assert ["decoder: 100 %" in lines for lines in rest].count(True) == 1, rest
