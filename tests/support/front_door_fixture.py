"""The gateway's process in front of a served model, and what it is asked."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from step_audio_evaluation.items import Item
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports


def door(address: str) -> Iterator[str]:
    (port,) = free_ports(1)
    process = GatewayProcess(GatewaySettings.create(port=port, triton=[address], served_model_name=["R1"]))
    process.start()
    yield f"http://localhost:{port}"
    process.stop()


def messages(item: Item) -> list[dict[str, Any]]:
    """As an OpenAI client sends them: recordings as base64 within the message."""
    recordings = iter(item.audio)

    def part(value: dict[str, Any]) -> dict[str, Any]:
        if value["type"] != "audio":
            return value
        data = base64.b64encode(bytes(next(recordings))).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    return [
        {**m, "content": [part(p) for p in m["content"]]} if isinstance(m["content"], list) else m
        for m in item.messages
    ]
