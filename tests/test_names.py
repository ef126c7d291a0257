"""Files, modules, targets and settings that documents, images, chart, help and docstrings name are there."""

from __future__ import annotations

import ast
import functools
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from paths import ROOT
from step_audio.settings import fields_of
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.commands.cli import _parser
from step_audio_server.settings import ServeSettings
from syntax import syntax

IGNORED = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()] + [".*"]
TOP = [path for path in ROOT.iterdir() if not any(fnmatch(path.name, pattern) for pattern in IGNORED)]
FILES = sorted(
    str(path.relative_to(ROOT))
    for top in TOP
    for path in (top, *top.rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
)
THEIRS = (
    "docs/source/",
    "docs/multimodal.md",
    "docs/user_guide/",
    "models/",
)  # in our code: of TensorRT-LLM and its backend
TEXT = {".md", ".py", ".yaml", ".yml", ".toml", ".tpl", ".txt", ".env", ".sh", ".cfg", ".pbtxt", ".cpu", ""}
PACKAGES = {path.parent.name: path.parent for path in ROOT.glob("*/step_audio_*/__init__.py")} | {
    "step_audio": ROOT / "step_audio"
}


def texts() -> dict[str, str]:
    """All that is written by us for people to read, and what the commands say of themselves."""
    files = [name for name in FILES if Path(name).suffix in TEXT]
    found = {name: (ROOT / name).read_text("utf-8") for name in files if not name.startswith("docker/requirements-")}
    (commands,) = [a.choices for a in _parser()._actions if hasattr(a, "choices") and isinstance(a.choices, dict)]
    return found | {f"step-audio {name} --help": parser.format_help() for name, parser in commands.items()}


TEXTS = texts()
FOLDERS = {top.name for top in TOP if top.is_dir()}
ENDINGS = {Path(name).suffix[1:] for name in FILES if Path(name).suffix}
BASENAMES = {Path(name).name for name in FILES}


def named(pattern: str, names: list[str] | None = None) -> set[tuple[str, str]]:
    """Each match of the pattern's group, and the text that it stands in."""
    return {(found, name) for name in names or TEXTS for found in re.findall(pattern, TEXTS[name])}


OURS = [name for name in TEXTS if not name.startswith("tests/")]  # tests also name what must not be there
DOCUMENTS = [name for name in TEXTS if name.endswith((".md", "--help"))]


def test_the_texts_are_found():
    assert {"README.md", "docs/structure.md", "docker/compose.yaml", "step-audio serve --help"} <= set(TEXTS)
    assert len(PACKAGES) == 8


def test_files_are_there():
    """Written from the top of the repository; `*`, `{a,b}` and NAME are patterns. What has `@COMMIT` behind it is
    another project's."""
    top = "|".join(map(re.escape, sorted(FOLDERS)))
    quoted = rf"`((?:{top})/[^`\s]*)`(?!\s*@)"
    bare = rf"(?<![\w/.~@-])((?:{top})/[\w./*{{}},-]*\.(?:{'|'.join(sorted(ENDINGS))}))\b(?!\s*@)"
    wrong = [
        f"{name} in {where}"
        for name, where in named(quoted) | named(bare)
        for path in _alternatives(name.partition("::")[0].rstrip("/").replace("NAME", "*"))
        if not list(ROOT.glob(path)) and not (where.endswith(".py") and path.startswith(THEIRS))
    ]
    assert not wrong


def _alternatives(pattern: str) -> list[str]:
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inner, _, after = rest.partition("}")
    return [f"{before}{choice}{after}" for choice in inner.split(",")]


def test_python_files_named_alone_are_there():
    assert not [f"{name} in {where}" for name, where in named(r"`(\w+\.py)`", DOCUMENTS) if name not in BASENAMES]


def test_modules_and_what_is_in_them_are_there():
    pattern = r"\b(step_audio(?:_[a-z]+)?(?:\.[a-z]\w+)+)\b"
    assert not [f"{name} in {where}" for name, where in named(pattern, OURS) if not _resolves(name)]


def _resolves(name: str) -> bool:
    package, *rest = name.split(".")
    place = PACKAGES.get(package)
    if place is None:
        return False
    while rest and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    if rest and (place / f"{rest[0]}.py").is_file():
        names = _names_in(place / f"{rest.pop(0)}.py")
    else:
        names = _names_in(place / "__init__.py") if (place / "__init__.py").is_file() else set()
    return not rest or rest[0] in names


@functools.cache
def _names_in(module: Path) -> set[str]:
    """Functions, classes and variables at its top, and what it imports."""
    names = set()
    for node in syntax(module).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Tuple(elts=several)]):
                names |= {element.id for element in several if isinstance(element, ast.Name)}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.ImportFrom(names=imported) | ast.Import(names=imported):
                names |= {alias.asname or alias.name for alias in imported}
    return names


def test_classes_are_there():
    """And functions with capitals in them. The guides name classes of Kubernetes and NVIDIA, too."""
    ours = set(re.findall(r"^\s*(?:class|def) (\w+)", "\n".join(TEXTS[n] for n in FILES if n.endswith(".py")), re.M))
    pages = [name for name in DOCUMENTS if "/" not in name] + ["docs/structure.md"]
    camel = r"`([A-Z][a-z]+[A-Z]\w+)(?:\.\w+)?(?:\(\))?`"
    assert not [f"{name} in {where}" for name, where in named(camel, pages) if name not in ours]


def test_targets_of_make_are_there():
    targets = set(re.findall(r"^([a-z][\w-]*):", TEXTS["Makefile"], re.M))
    assert not [
        f"make {name} in {where}"
        for name, where in named(r"(?:`|^)make ([a-z][\w-]*)", DOCUMENTS)
        if name not in targets
    ]


def test_settings_by_environment_are_there():
    fields = fields_of(ServeSettings) | fields_of(GatewaySettings)
    aliases = {str(choice) for field in fields.values() for choice in getattr(field.validation_alias, "choices", ())}
    known = {f"STEP_AUDIO_{name.upper()}" for name in fields.keys() | aliases}
    known |= set(re.findall(r"^(\w+)=", TEXTS["docker/versions.env"], re.M))
    assert not [f"{name} in {where}" for name, where in named(r"\b(STEP_AUDIO_[A-Z_]+)\b", OURS) if name not in known]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".md")])
def test_links_lead_to_a_heading(name):
    for path, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", TEXTS[name]):
        target = (ROOT / name).parent / path if path else ROOT / name
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
        assert anchor in map(_anchor, headings), f"{path}#{anchor}"


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
