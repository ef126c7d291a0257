"""Two servers behind one gateway, restarted in turn: nobody who calls the gateway notices."""

from __future__ import annotations

import asyncio
import os

import httpx
import pytest

from server_settings import settings_for
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.launch.ports import free_ports
from step_audio_server.serve import Service

pytestmark = pytest.mark.server

ROUNDS = int(os.environ.get("RELIABILITY_ROUNDS", "1"))
PERIOD = 0.1 if "RELIABILITY_ROUNDS" in os.environ else 0.4  # seconds between requests
QUESTIONS = 5


@pytest.fixture(scope="module")
def replicas(work_dir):
    """Of the trained model, whose choices are no near ties: a random one's hang on the batch."""
    made = [
        Service(settings_for(embedded_checkpoint(), work_dir / "listener", max_seq_len=4096, dtype="float32"))
        for _ in range(2)
    ]
    for service in made:
        service.start()
    yield made
    for service in made:
        service.stop()


@pytest.fixture(scope="module")
def url(replicas):
    (port,) = free_ports(1)
    addresses = [service.address for service in replicas]
    process = GatewayProcess(GatewaySettings.create(port=port, triton=addresses, served_model_name=["R1"]))
    process.start()
    yield f"http://localhost:{port}"
    process.stop()


async def ask(http: httpx.AsyncClient, number: int) -> tuple[int, str]:
    """(status, text) of a greedy answer, which takes a second or two: some are always under way."""
    messages = [{"role": "user", "content": f"What is {number % QUESTIONS} plus 3?"}]
    how = {"temperature": 0, "max_tokens": 60, "stream": number % 2 == 0, "separate_reasoning": False}
    body = {"model": "R1", "messages": messages, **how}
    response = await http.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        return response.status_code, response.text
    if not body["stream"]:
        return response.status_code, response.json()["choices"][0]["message"]["content"]
    chunks = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]", chunks[-1]
    deltas = (choice["delta"] for chunk in chunks[:-1] for choice in httpx.Response(200, text=chunk).json()["choices"])
    return response.status_code, "".join(delta.get("content") or "" for delta in deltas)


def test_nobody_notices(replicas, url):
    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            right = [(await ask(http, number))[1] for number in range(QUESTIONS)]
            asked: list[asyncio.Task[tuple[int, str]]] = []
            done = asyncio.Event()

            async def keep_asking() -> None:
                while not done.is_set():
                    asked.append(asyncio.create_task(ask(http, len(asked))))
                    await asyncio.sleep(PERIOD)

            asking = asyncio.create_task(keep_asking())
            for _ in range(ROUNDS):
                for service in replicas:
                    await asyncio.to_thread(service.stop)
                    await asyncio.to_thread(service.start)
            done.set()
            await asking
            found = await asyncio.gather(*asked)
            assert [(status, text) for status, text in found if status != 200] == [] and len(found) > 10
            assert [text for _, text in found] == [right[number % QUESTIONS] for number in range(len(found))]

    asyncio.run(run())
