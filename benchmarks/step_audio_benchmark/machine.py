"""Where a benchmark ran, so that its figures can be compared with others."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from step_audio.errors import StepAudioError
from step_audio_build.planning.gpus import visible_gpus

PACKAGES = ("openvino", "onnxruntime", "nvidia-pytriton", "tritonclient", "numpy")


def machine(command: Sequence[str]) -> dict[str, Any]:
    """`command`: with which it was measured."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": len(os.sched_getaffinity(0)),
        **({"gpus": gpus} if (gpus := _gpus()) else {}),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def _gpus() -> str:
    """Cards and driver."""
    try:
        found = visible_gpus()
    except StepAudioError:
        return ""
    return ", ".join(
        f"{count} x {name}, driver {driver}"
        for (name, driver), count in Counter((gpu.name, gpu.driver) for gpu in found).items()
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _instructions() -> list[str]:
    """Those that engines choose their arithmetic by."""
    known = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"}
    return sorted(known.intersection(Path("/proc/cpuinfo").read_text().split()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the clone that this runs from, with a + where it has been changed; None in an installed wheel."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        ran = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
