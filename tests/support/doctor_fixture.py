"""Machines for `step-audio doctor`: programs on PATH and folders in place of a GPU machine's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dockerfile import executable
from step_audio_server.doctor import command, image
from step_audio_server.launch import gpu_image

H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01"
L40S = "NVIDIA L40S, 8.9, 46068, 590.44.01"
HEAD = "| NVIDIA-SMI 590.44.01    Driver Version: 590.44.01    CUDA Version: 13.1     |\n"

# As nvidia-smi prints it: an underlined head, and columns behind the GPUs' own.
NVLINKED = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tNV18\tNODE\t0-55\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tNV18\tNODE\t0-55\t0\t\tN/A
GPU2\tNV18\tNV18\t X \tNV18\tSYS\t56-111\t1\t\tN/A
GPU3\tNV18\tNV18\tNV18\t X \tSYS\t56-111\t1\t\tN/A
NIC0\tNODE\tNODE\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
"""
TWO_SOCKETS = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tPIX\tSYS\tSYS\t0-31\t0\t\tN/A
GPU1\tPIX\t X \tSYS\tSYS\t0-31\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tPIX\t32-63\t1\t\tN/A
GPU3\tSYS\tSYS\tPIX\t X \t32-63\t1\t\tN/A
"""


class Machine:
    """Programs on PATH and folders in place of a GPU machine's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.bin, self.triton = folder / "bin", folder / "tritonserver"
        self.work = folder / "work"
        self.work.mkdir()
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("_CUDA_COMPAT_STATUS", raising=False)
        monkeypatch.setattr(gpu_image, "TRITON", self.triton)
        monkeypatch.setattr(image, "installed_version", {"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1.48"}.get)

    def gpus(
        self, *cards: str, head: str = HEAD, topology: str = NVLINKED, load: str = "4", status: int = 0,
        uuids: Sequence[str] = (),
    ):  # fmt: skip
        """`cards`: lines as gpus.QUERY is answered; `load`: memory in use, of each."""
        self.load(*[load] * len(cards))
        answers = {"cards": "\n".join(cards), "head": head, "topology": topology, "uuids": "\n".join(uuids)}
        for name, text in answers.items():
            (self.triton.parent / name).write_text(text + "\n", encoding="utf-8")
        asked = {
            "*memory.used*": "load",
            "*gpu=uuid*": "uuids",
            "*query-gpu*": "cards",
            "topo*": "topology",
            '""': "head",
        }
        cases = "".join(
            f"{words}) cat {self.triton.parent}/{name} ;;\n" for words, name in (asked | {'""': "head"}).items()
        )
        executable(self.bin / "nvidia-smi", f'#!/bin/sh\ncase "$*" in\n{cases}esac\nexit {status}\n')

    def load(self, *lines: str) -> None:
        (self.triton.parent / "load").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def ngc_image(self) -> None:
        for part in gpu_image.PARTS:
            executable(self.triton / part, "")
        for name in ("trtllm-build", "mpirun"):
            executable(self.bin / name, "#!/bin/sh\n")

    def doctor(self, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict]:
        """Exit status and what --json says."""
        status, lines = self.run(capsys, "--json", *flags)
        return status, json.loads("".join(lines))

    def run(self, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[str]]:
        parser = argparse.ArgumentParser()
        command.add_doctor(parser.add_subparsers())
        arguments = parser.parse_args(["doctor", "--work-dir", str(self.work), *flags])
        return arguments.run(arguments), capsys.readouterr().out.splitlines()


class Space:
    def __init__(self, total: int, free: int):
        self.total, self.free = total, free


def found(report: dict, name: str) -> dict:
    return next(finding for finding in report["findings"] if finding["name"] == name)
