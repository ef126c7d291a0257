"""The folders that are no Python packages: in a wheel they lie inside this one, in a clone at its top."""

from __future__ import annotations

from pathlib import Path

from step_audio.errors import ArtefactError

_PACKED = Path(__file__).resolve().parent / "assets"
_ROOT = _PACKED if _PACKED.is_dir() else Path(__file__).resolve().parents[2]

EMBEDDED_MODEL = "listener-19m"


def asset(name: str) -> Path:
    """`model_repository`, `backends`, `models` or, in a clone, any other folder. Raises ArtefactError."""
    if not (folder := _ROOT / name).is_dir():
        raise ArtefactError(
            f"{name}/ did not come with this installation: install the wheel, or a clone with `pip install -e .`"
        )
    return folder


def example_recordings() -> tuple[Path, ...]:
    """WAV files, by name. Raises ArtefactError where there are none."""
    return tuple(sorted(asset("examples").glob("*.wav")))


def embedded_checkpoint() -> Path:
    """The small trained model that comes along. Raises ArtefactError without one."""
    return asset("models") / EMBEDDED_MODEL
