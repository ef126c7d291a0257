"""Settings of a server for a test: free ports, and room for long recordings."""

from pathlib import Path

from step_audio_server.launch.ports import free_ports
from step_audio_server.settings import ServeSettings

MAX_SEQ_LEN = 24_576  # holds 30 minutes of audio: 72 clips of 315 positions


def settings_for(checkpoint: Path, work_dir: Path, **overrides) -> ServeSettings:
    grpc, http, metrics = free_ports(3)
    return ServeSettings.create(
        **{
            "checkpoint": checkpoint,
            "work_dir": work_dir,
            "grpc_port": grpc,
            "http_port": http,
            "metrics_port": metrics,
            "max_seq_len": MAX_SEQ_LEN,
        }
        | overrides
    )
