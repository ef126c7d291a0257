"""Where the audio encoder runs beside vLLM: on the processor, or on a GPU, which, and whether torch here can."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Literal

from step_audio.errors import SettingsError

LOOK = "import torch; print(torch.__version__, torch.version.cuda or '', torch.cuda.device_count())"
TIMEOUT = 120.0  # seconds; the driver may have to initialise every GPU first
ELSE = "docs/engines.md says which torch it needs; --encoder-device cpu goes without, seconds of many cores for a clip"


def device(chosen: Literal["cpu", "cuda"] | None, vllm_on_gpus: bool) -> Literal["cpu", "cuda"]:
    """What --encoder-device says; where it says nothing, where vLLM is."""
    return chosen or ("cuda" if vllm_on_gpus else "cpu")


def first() -> str:
    """The first that this process may use, as CUDA_VISIBLE_DEVICES names it; vLLM's rank 0 is on it, too."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"


def check() -> str:
    """torch's version. Raises SettingsError where torch of this Python cannot use that GPU."""
    try:
        ran = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=TIMEOUT, check=True)
        version, cuda, count = ran.stdout.strip().split(" ")
    except (OSError, subprocess.SubprocessError, ValueError):
        raise SettingsError(
            f"the audio encoder is to run on the GPU, and {sys.executable} has no torch: {ELSE}"
        ) from None
    if not cuda:
        raise SettingsError(f"the audio encoder is to run on the GPU, and torch {version} here has no CUDA: {ELSE}")
    if not int(count):
        raise SettingsError(f"the audio encoder is to run on the GPU, and torch {version} finds none: {ELSE}")
    return version
