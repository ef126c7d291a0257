"""What the benchmarks share: a served checkpoint, the small random one, and tables."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from step_audio_build.convert.make_tiny import make_tiny
from step_audio_server.launch.ports import free_ports
from step_audio_server.serve import Service
from step_audio_server.settings import ServeSettings

RECORDING = "mmsu_test.wav"  # 6.6 s
SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "layers": 4, "dtype": "bfloat16", "max_position_embeddings": 16_384,
}  # fmt: skip


@contextmanager
def serving(checkpoint: Path, **settings: Any) -> Iterator[Service]:
    """On free ports; what is built of the checkpoint is deleted in the end."""
    grpc, http, metrics = free_ports(3)
    with tempfile.TemporaryDirectory() as work:
        settings |= {"grpc_port": grpc, "http_port": http, "metrics_port": metrics}
        with Service(ServeSettings.create(checkpoint=checkpoint, work_dir=Path(work), **settings)) as service:
            yield service


@contextmanager
def serving_random(**sizes: Any) -> Iterator[Service]:
    """A random checkpoint of these sizes, else of SMALL's."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        make_tiny(checkpoint, **SMALL | sizes)
        with serving(checkpoint) as service:
            yield service


def median_ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f} ms"


def p95_ms(seconds: Sequence[float]) -> str:
    return f"{np.percentile(seconds, 95) * 1000:.0f} ms"
