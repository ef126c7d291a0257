"""LoRA adapters that are served: looked at before anything is built, given to the LLM of every server that starts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc

from step_audio.config import ModelConfig
from step_audio.errors import ArtefactError, SettingsError
from step_audio.lora import task_id
from step_audio.steps.runtime import Runtime
from step_audio_build.convert.peft_adapter import PeftAdapter
from step_audio_client import Tls
from step_audio_client.calls import ConnectionLost, StreamError
from step_audio_client.control import load_adapter
from step_audio_client.errors import call_error, request_error
from step_audio_client.servers import Server
from step_audio_server.errors import ServerError
from step_audio_server.settings import ServeSettings

MOST_BYTES = (1 << 31) - (1 << 20)  # of a request of gRPC's
LOAD_TIMEOUT = 600.0  # seconds, of one: hundreds of megabytes, to all ranks


def open_adapters(settings: ServeSettings, model: ModelConfig) -> dict[str, PeftAdapter]:
    """By name. Raises ArtefactError for one that does not fit the model, SettingsError for a name that is taken."""
    if (name := settings.checkpoint.resolve().name) in settings.adapters:
        raise SettingsError(f"--lora-modules: {name} is the model's own name: give the adapter another")
    opened = {}
    for name, folder in settings.adapters.items():
        try:
            opened[name] = PeftAdapter.open(folder, model.text)
        except ArtefactError as error:
            raise ArtefactError(f"adapter {name}: {error}") from None
    return opened


def check_ranks(adapters: Mapping[str, PeftAdapter], max_rank: int, profile: str) -> None:
    """Against what an engine was built for. Raises ArtefactError."""
    for name, adapter in adapters.items():
        if adapter.rank > max_rank:
            built = f"an engine for r up to {max_rank}" if max_rank else "an engine without adapters"
            raise ArtefactError(
                f"adapter {name} has r {adapter.rank}, and profile {profile} made {built}: set max_lora_rank = "
                f"{adapter.rank} in the profile, and run `step-audio build` again"
            )


def load_adapters(settings: ServeSettings, address: str, tls: Tls) -> None:
    """All of `settings`, one after the other. Raises ArtefactError, ServerError, RequestError."""
    if settings.adapters:
        asyncio.run(_load(settings, address, tls))


async def _load(settings: ServeSettings, address: str, tls: Tls) -> None:
    runtime = Runtime.load(settings.run_dir / "runtime.json")
    server = Server(address, tls)
    try:
        for name, folder in settings.adapters.items():
            lora = PeftAdapter.open(folder, runtime.model.text).lora_tensors(runtime.table_dtype)
            if lora.weights.nbytes > MOST_BYTES:
                raise ArtefactError(
                    f"adapter {name} takes {lora.weights.nbytes / 1e9:.1f} GB, and a request carries 2: train it with "
                    "a smaller r, or merge it into the checkpoint"
                )
            await load_adapter(server.stub, task_id(name), lora, LOAD_TIMEOUT)
    except StreamError as error:
        raise request_error(str(error)) from None
    except grpc.aio.AioRpcError as error:
        raise call_error(error, address) from None
    except (ConnectionLost, TimeoutError) as error:
        raise ServerError(f"the server did not take an adapter: {error or 'it took too long'}") from None
    finally:
        await server.close()
