"""What docs/structure.md and the README say of the tree: the layers that the linter holds, folders that are there."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch

import pytest

from paths import ROOT

STRUCTURE = (ROOT / "docs/structure.md").read_text("utf-8")
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
LAYERS = [contract for contract in LINTER["contracts"] if contract["type"] == "layers"]
IGNORED = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()] + [".*"]
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and not any(fnmatch(path.name, p) for p in IGNORED)]


def boxes() -> dict[str, tuple[int, list[str]]]:
    """The picture's boxes by title: the line that each begins on, and its rows."""
    (picture,) = [block for block in re.findall(r"^```\n(.*?)^```$", STRUCTURE, re.M | re.S) if "┌ step_audio" in block]
    lines = picture.splitlines()
    found = {}
    for number, line in enumerate(lines):
        for top in re.finditer(r"┌ (\w+) ─*┐", line):
            rows = []
            for below in lines[number + 1 :]:
                if below[top.start()] != "│":
                    break
                rows.append(below[top.start() + 2 : top.end() - 2])
            found[top[1]] = number, rows
    return found


def test_every_package_has_its_box():
    assert set(boxes()) == set(LINTER["root_packages"])


@pytest.mark.parametrize("contract", [c for c in LAYERS if "containers" not in c], ids=lambda c: c["id"])
def test_boxes_are_stacked_as_the_linter_has_them(contract):
    """A layer begins below those above it; what shares a layer begins on one line."""
    drawn = boxes()
    starts = [{drawn[package.strip()][0] for package in re.split("[|:]", layer)} for layer in contract["layers"]]
    assert all(len(start) == 1 for start in starts), starts
    flat = [line for (line,) in starts]
    assert flat == sorted(set(flat)), flat


@pytest.mark.parametrize("contract", [c for c in LAYERS if "containers" in c], ids=lambda c: c["id"])
def test_rows_of_a_box_are_the_linter_s_layers(contract):
    for container in contract["containers"]:
        _, rows = boxes()[container]
        named = [re.split(r"  +", row)[0] for row in rows if not row.startswith(" ")]
        assert named == contract["layers"], f"the box of {container} in docs/structure.md"


def test_every_package_is_explained():
    packages = set()
    for folder in (ROOT, *FOLDERS):
        for init in folder.glob("step_audio*/**/__init__.py"):
            packages.add(".".join(init.parent.relative_to(folder).parts))
    table = set(re.findall(r"^\| `([\w.]+)` \|", STRUCTURE, re.M))
    whole = {"step_audio_build", "step_audio_server"}  # their rows are those of what they consist of
    assert table == packages - whole


def test_the_tree_in_the_readme_is_the_tree():
    (tree,) = re.findall(r"^## The tree\n+```\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    named = re.findall(r"^(\S+)/ ", tree, re.M)
    assert {name.partition("/")[0] for name in named} == {folder.name for folder in FOLDERS}
    for name in named:
        assert (ROOT / name).is_dir(), name
