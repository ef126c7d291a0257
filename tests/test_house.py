"""What keeps the house in order does notice: the layers' linter, the type checker, and that all find the same files."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from paths import ROOT
from syntax import imports, syntax

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TOOLS = PROJECT["tool"]
MYPY, PACKAGES = TOOLS["mypy"], TOOLS["importlinter"]["root_packages"]
PATHS = [".", *(path for path in MYPY["mypy_path"] if path != "typings")]  # the folders that packages lie in
WRITTEN = [
    Path(folder, name)
    for top in ROOT.iterdir()
    if top.is_dir() and not top.name.startswith(".") and top.name not in ("build", "dist")
    for folder, _, names in os.walk(top)
    if "node_modules" not in folder
    for name in names
    if name.endswith((".py", ".js", ".mjs", ".css", ".html"))
]
FILES = [file for file in WRITTEN if file.suffix == ".py"]
WRONG = {  # a module, what it may not import, and the layers that this would join
    "step_audio.audio": ("step_audio_client", "step_audio", "step_audio_client"),
    "step_audio.steps.runtime": ("step_audio_gateway", "step_audio", "step_audio_gateway"),
    "step_audio_build.stages.layout": ("step_audio_server.settings", "step_audio_build", "step_audio_server"),
    "step_audio_gateway.core": ("step_audio_training.speech", "step_audio_gateway", "step_audio_training"),
    "step_audio.mel": ("step_audio.engine.engine", "step_audio.mel", "step_audio.engine"),
}


def run(tool: str, *arguments: str, cwd: Path) -> str:
    """What it prints. It finds the packages in `cwd` alone, not this clone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(cwd / path) for path in PATHS), "NO_COLOR": "1"}
    command = [str(Path(sys.executable).with_name(tool)), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True).stdout


@pytest.fixture
def tree(tmp_path) -> Path:
    """The packages' modules and pyproject.toml."""
    for path in PATHS:
        for package in (ROOT / path).glob("step_audio*/"):
            modules = shutil.ignore_patterns("__pycache__", "*.[!p]*", "playground", "profiles")
            shutil.copytree(package, tmp_path / path / package.name, ignore=modules)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.processes
def test_the_linter_names_every_wrong_import(tree):
    for importer, (imported, _, _) in WRONG.items():
        (file,) = (file for path in PATHS if (file := tree / path / f"{importer.replace('.', '/')}.py").exists())
        file.write_text(f"{file.read_text('utf-8')}\nimport {imported}\n", "utf-8")
    told = " ".join(run("lint-imports", "--no-cache", cwd=tree).split())
    for importer, (imported, layer, other) in WRONG.items():
        assert f"{layer} is not allowed to import {other}: - {importer} -> {imported} " in told, told
    assert "The server KEPT" in told, "nothing wrong was put there"


@pytest.mark.processes
def test_the_type_checker_notices_a_broken_type(tree):
    """In a small module, as `make lint` calls it; without annotations a function passes nowhere."""
    module = tree / "step_audio/markdown.py"
    assert "Success" in run("mypy", "step_audio/markdown.py", cwd=tree)
    module.write_text(module.read_text("utf-8") + "\n\nwidth: int = markdown_table([])\n\n\ndef bare(x): return x\n")
    told = run("mypy", "step_audio/markdown.py", cwd=tree)
    assert "[assignment]" in told and "[no-untyped-def]" in told, told


def test_the_type_checker_reads_all_packages_without_exception():
    assert MYPY["strict"] is True
    assert sorted(MYPY["packages"]) == sorted(PACKAGES)
    assert sorted(file.parent.name for path in PATHS for file in (ROOT / path).glob("*/py.typed")) == sorted(PACKAGES)
    for override in MYPY["overrides"]:
        assert override.keys() == {"module", "ignore_missing_imports"}, "a blanket exception"
        assert not any(name.startswith("step_audio") for name in override["module"])
    for file in FILES:
        text = file.read_text("utf-8")
        assert not re.search(r"#\s*(type:\s*ignore(?!\[)|(mypy|pyright):)", text), f"{file}: a blanket exception"


def test_all_tools_look_into_the_same_folders():
    folders = set(PATHS)
    assert set(TOOLS["hatch"]["build"]["dev-mode-dirs"]) == folders
    assert set(TOOLS["pyright"]["extraPaths"]) | {"."} == folders
    assert set(TOOLS["ruff"]["src"]) == folders | set(TOOLS["pytest"]["ini_options"]["pythonpath"])


@cache
def resolved(module: str, paths: tuple[str, ...] = tuple(PATHS)) -> Path | None:
    """By pyproject.toml's folders alone, as a type checker or an editor does it."""
    file = Path(*module.split("."))
    places = [place for path in paths for place in (ROOT / path / file / "__init__.py", ROOT / path / f"{file}.py")]
    return next(filter(Path.is_file, places), None)


def test_every_import_of_ours_resolves():
    found = 0
    for file in FILES:
        for module in imports(file):
            if module.startswith("step_audio"):
                found += 1
                assert resolved(module), f"{file}: {module}"
    assert found > 1000 and not resolved("step_audio.nothing") and not resolved("step_audio_nothing")


SLOW = {"librosa", "matplotlib", "openai", "openvino", "torch", "transformers"}  # a second each


@cache
def at_its_top(file: Path) -> set[str]:
    """Names of the modules that are imported when this one is, and of what is taken from them."""
    modules = []
    for node in syntax(file).body:
        match node:
            case ast.Import(names=names):
                modules += [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names):
                modules += [module, *(f"{module}.{alias.name}" for alias in names)]
    return set(modules)


def loads(file: Path) -> set[str]:
    """Those of SLOW that come with a module, however far away they are imported."""
    found, seen, left = set(), set(), [file]
    while left:
        for module in at_its_top(left.pop()) - seen:
            seen.add(module)
            found |= SLOW & {module.partition(".")[0]}
            if (ours := resolved(module, (*PATHS, "tests/support"))) is not None:
                left.append(ours)
    return found


def test_collecting_the_quick_tests_loads_nothing_slow():
    """All workers import all test modules: see tests/support/lazy.py."""
    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("tests/**/conftest.py")]
    quick = [file for file in files if not file.name.endswith(("_fuzz.py", "_schema.py"))]
    assert {str(file.relative_to(ROOT)): found for file in quick if (found := loads(file))} == {}
    assert loads(ROOT / "step_audio/encoder.py") == {"torch"}


def test_the_workers_are_given_tests_that_there_are(request):
    plan = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    files = {file.relative_to(ROOT).as_posix() for file in FILES}
    beginnings = {begin for tests in plan.ONE_WORKER.values() for begin in tests}
    assert {begin for begin in beginnings if not any(name.startswith(begin) for name in files)} == set()
    assert set(plan.FIRST) - plan.ONE_WORKER.keys() - files == set()


def test_no_file_is_too_long():
    """For a person to take in at once."""
    assert len(FILES) > 300
    long = {str(file.relative_to(ROOT)): len(file.read_text("utf-8").splitlines()) for file in WRITTEN}
    assert {file: lines for file, lines in long.items() if lines > 400} == {}
