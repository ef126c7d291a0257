"""The path without a GPU: a tritonserver from PyPI, the Python that it embeds, and the CPU backend's runtimes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path

from step_audio.errors import StepAudioError
from step_audio.extras import install
from step_audio_server import encoder_gpu, vllm_process
from step_audio_server.doctor.finding import Finding, fault, ok
from step_audio_server.launch.installation import Installation
from step_audio_server.launch.launch import python_environment

INSTALL = install("cpu")
RUNTIMES = ("onnxruntime", "openvino", "torch", "xgrammar")


def python() -> Finding:
    """The interpreter, and that the server's stub can be led to it."""
    version = platform.python_version()
    try:
        python_environment()
    except StepAudioError as error:
        return fault("Python", version, str(error))
    return ok("Python", f"{version}, {sys.executable}")


def server() -> Finding:
    """The server's parts, numpy and libpython."""
    try:
        installation = Installation.find()
    except StepAudioError as error:
        said, _, advice = str(error).partition(": ")
        return fault("CPU server", said, advice)
    missing = [path for path in (installation.binary, installation.backends) if not path.exists()]
    if missing:
        return fault("CPU server", f"{missing[0]} is missing", f"pip install --force-reinstall, then {INSTALL}")
    if not installation.libraries:
        return ok("CPU server", str(installation.binary))
    return ok("CPU server", f"tritonserver of nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}")


def vllm(python: Path) -> Finding:
    """The environment that `serve --llm vllm` is to use."""
    try:
        return ok("vLLM", f"{vllm_process.check(python).version}, {python}")
    except StepAudioError as error:
        said, _, advice = str(error).rpartition(": ")
        return fault("vLLM", said, advice)


def encoder(on_gpu: bool) -> Finding:
    """What the audio encoder computes with beside vLLM."""
    if not on_gpu:
        return ok("audio encoder", "ONNX on the processor")
    try:
        return ok("audio encoder", f"torch {encoder_gpu.check()} on GPU {encoder_gpu.first()}")
    except StepAudioError as error:
        said, _, advice = str(error).partition(": ")
        return fault("audio encoder", said, advice)


def runtimes() -> Finding:
    missing = [name for name in RUNTIMES if importlib.util.find_spec(name) is None]
    if missing:
        return fault("CPU runtimes", f"{', '.join(missing)} not installed", INSTALL)
    return ok("CPU runtimes", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in RUNTIMES))
