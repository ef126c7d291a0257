"""A model repository, assembled once; a machine to examine."""

import resource
from pathlib import Path

import pytest

from doctor_fixture import Machine, Space
from repository_fixture import LLM, build, parse
from step_audio_build.planning import host_memory
from step_audio_server.doctor import host


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """In a folder whose name needs escaping."""
    return build(tmp_path_factory.mktemp("work") / 'a "quoted" \\ folder')


@pytest.fixture(scope="module")
def configs(repository):
    return parse(repository)


@pytest.fixture(scope="module")
def llm(configs):
    return configs[LLM]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Machine:
    """A machine with room for everything, and no GPUs yet."""
    monkeypatch.setattr(host, "_free", lambda port: True)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: Space(10**12, 10**12))
    monkeypatch.setattr(host_memory, "memory", lambda: (10**12, 10**12))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return Machine(tmp_path, monkeypatch)
