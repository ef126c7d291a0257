"""The tritonserver of nvidia-pytriton's wheel, for machines without a GPU.

The facts behind the oddities: its Python stub embeds an interpreter that ignores PYTHONPATH and VIRTUAL_ENV and takes
the first `python3` on PATH; numpy 2 silently corrupts its arrays; a missing libpython leaves the server loading for
ever.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from step_audio.extras import install_for
from step_audio_server.errors import ServerError
from step_audio_server.launch.gpu_image import TRITON

STUB = Path("backends/python/triton_python_backend_stub")


@dataclass(frozen=True)
class Installation:
    """Where a tritonserver's parts are."""

    binary: Path
    backends: Path
    stub: Path
    libraries: tuple[Path, ...]  # for LD_LIBRARY_PATH; none: it finds them by itself

    @classmethod
    def find(cls) -> Installation:
        """The server inside nvidia-pytriton's wheel, or that of an image of NVIDIA's. Raises ServerError that says
        what to install."""
        spec = importlib.util.find_spec("pytriton")
        if spec is None or spec.origin is None:
            if (of_image := TRITON / STUB).is_file():
                return cls(TRITON / "bin" / "tritonserver", TRITON / "backends", of_image, libraries=())
            raise ServerError(f"no tritonserver here: {install_for('pytriton')}")
        if int(importlib.metadata.version("numpy").split(".")[0]) >= 2:
            raise ServerError("this tritonserver corrupts numpy 2 arrays: pip install 'numpy==1.26.4'")
        site = Path(spec.origin).resolve().parents[1]
        root = site / "pytriton" / "tritonserver"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.is_file():
            raise ServerError(f"this tritonserver has no stub for Python {version}: use Python 3.11 or 3.12")
        return cls(
            binary=root / "bin" / "tritonserver",
            backends=root / "backends",
            stub=stub,
            libraries=(site / "nvidia_pytriton.libs", _libpython_folder()),
        )


def _libpython_folder() -> Path:
    """The folder of this interpreter's libpython, which the stub loads."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    soname = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    candidates = [
        Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"),
        Path(sys.base_prefix) / "lib",
        Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or ""),
        Path("/usr/lib64"),
    ]
    for folder in candidates:
        if (folder / soname).exists():
            return folder
    raise ServerError(
        f"{soname} is missing (this Python has {name or 'none'}): install your system's libpython "
        f"(Debian: apt-get install libpython{sysconfig.get_python_version()}) or a Python built with --enable-shared"
    )
