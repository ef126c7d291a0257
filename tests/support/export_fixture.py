"""In place of torch's exporter, which takes seconds of tracing: for tests of what stands around it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from step_audio_build.convert import export_encoder


class Program:
    """As much of torch.onnx.ONNXProgram as is used."""

    def __init__(self):
        self.model = SimpleNamespace(metadata_props={})

    def save(self, path: Path, external_data: bool) -> None:
        path.write_bytes(b"an encoder")


def export_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_encoder, "_export", lambda model, max_frames: Program())
