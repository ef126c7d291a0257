"""The wheel, installed far away from any clone: everything it needs is inside it, and the demo answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from paths import ROOT

pytestmark = pytest.mark.build
PACKAGES = {
    "step_audio": "step_audio",
    "benchmarks/step_audio_benchmark": "step_audio_benchmark",
    "build_engines/step_audio_build": "step_audio_build",
    "client/step_audio_client": "step_audio_client",
    "evaluation/step_audio_evaluation": "step_audio_evaluation",
    "gateway/step_audio_gateway": "step_audio_gateway",
    "server/step_audio_server": "step_audio_server",
    "training/step_audio_training": "step_audio_training",
    "backends": "step_audio_server/assets/backends",
    "model_repository": "step_audio_server/assets/model_repository",
    "models": "step_audio_server/assets/models",
}
"""Where each folder of a clone is in a wheel."""

FIND = """
import json, sys
from step_audio.conversation import parse_conversation
from step_audio.chat_template import render
from step_audio.extras import install
from step_audio_gateway.app import create_app
from step_audio_server.assets import asset, embedded_checkpoint
import step_audio_build.planning.profiles, step_audio_client, step_audio_evaluation.run, step_audio_training.command
render(parse_conversation([{"role": "user", "content": "hello"}]))
ours = [module.__file__ for name, module in sys.modules.items() if name.startswith("step_audio") and module.__file__]
print(json.dumps({
    "files": ours + [str(asset(name)) for name in ("backends", "model_repository")] + [str(embedded_checkpoint())],
    "advice": install("train"),
    "path": sys.path,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without a network, as `pip wheel .` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin/ of an environment that has the wheel, and beside it what this one has but the clone."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python3"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel], check=True)
    purelib = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # By their paths alone: what these folders' own .pth files add, a clone among it, is left out.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (purelib / "others.pth").write_text("\n".join(others) + "\n")
    return folder / "bin"


def far_away(tmp_path: Path) -> dict:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}


def test_all_that_git_has_is_in_the_wheel(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("no git repository")
    names = {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}  # which is not deleted, either
    expected = {f"{new}{name.removeprefix(old)}" for name in names for old, new in PACKAGES.items() if _in(name, old)}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert len(expected) == len(names) and held == expected


def _in(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def test_everything_is_found_inside_it(installed, tmp_path):
    ran = subprocess.run([installed / "python3", "-c", FIND], **far_away(tmp_path))
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found["files"]) > 50
    assert all(Path(file).is_relative_to(installed.parent) for file in found["files"]), found["files"]
    assert str(ROOT) not in found["path"]
    assert found["advice"] == "pip install 'step-audio-triton[train]'"
    planned = subprocess.run([installed / "step-audio", "plan"], **far_away(tmp_path))
    assert planned.returncode == 0 and "4xH100-16k" in planned.stdout


@pytest.mark.server
def test_the_demo_answers(installed, tmp_path):
    """What `step-audio demo` names is there to be read, too: the model's card."""
    ran = subprocess.run([installed / "step-audio", "demo"], **far_away(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert "82" in ran.stdout
    (card,) = re.findall(r"see (\S+) for what it can do", ran.stderr)
    assert Path(card).is_file() and Path(card).is_relative_to(installed.parent)
