"""One whole build of a tiny model, done once, and copies of it to go on from."""

import os
import shutil
from functools import cache
from pathlib import Path

import pytest

from build_fixture import PROFILE, Whole, own_tokens, quiet, run_tools_here, settings_for
from stand_ins import StandIns
from step_audio.errors import StepAudioError
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.stages import build as stages
from step_audio_build.stages import check
from step_audio_build.stages.layout import Layout
from step_audio_build.tools import encoder_plan
from step_audio_build.tools.tone import gliding_tone


@pytest.fixture(scope="session", autouse=True)
def tones():
    """They take a tenth of a second each time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for user in (check, encoder_plan):
            monkeypatch.setattr(user, "gliding_tone", cache(gliding_tone))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """float32, so that its tokens do not depend on who computes them."""
    directory = tmp_path_factory.mktemp("build") / "tiny"
    make_tiny(directory, dtype="float32", max_position_embeddings=32_768, audio_layers=1)
    return directory


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """Done once, with a process for each rank; the tests go on from links to its files."""
    root = tmp_path_factory.mktemp("build")
    work = root / "work"
    stages.build(settings_for(tiny, work), quiet, last="convert")
    tokens = own_tokens(tiny, work)
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = StandIns(root / "machine", monkeypatch)
        machine.tell("tensorrt_llm", tokens=tokens)
        said: list[str] = []
        stages.build(settings_for(tiny, work), said.append)
        return Whole(work, tokens, said, machine.calls())


@pytest.fixture
def machine(tmp_path, monkeypatch, whole) -> StandIns:
    stand_ins = StandIns(tmp_path / "machine", monkeypatch)
    stand_ins.tell("tensorrt_llm", tokens=whole.tokens)
    run_tools_here(stand_ins, monkeypatch)
    return stand_ins


@pytest.fixture
def built(tmp_path, whole) -> Layout:
    """A finished build of one's own; files are linked, for none is written in place."""
    return Layout(Path(shutil.copytree(whole.work, tmp_path / "work", copy_function=os.link)), PROFILE)


@pytest.fixture
def fails(tiny, built):
    """Build, expecting one line of an error."""

    def run(first=None, last="repository", **others) -> str:
        with pytest.raises(StepAudioError) as caught:
            stages.build(settings_for(tiny, built.work, **others), quiet, first, last)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture
def again(tiny, built):
    """Build, and what was said."""

    def run(first=None, last="repository", **others) -> list[str]:
        said: list[str] = []
        stages.build(settings_for(tiny, built.work, **others), said.append, first, last)
        return said

    return run
