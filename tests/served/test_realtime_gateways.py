"""Several gateways behind a balancer: sessions stay where they are, and their clients hear of it where one ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import httpx
import pytest

from balancer import balancing
from metrics_page import figure
from step_audio_client import RealtimeError, RealtimeSession, ResponseCreated, ResponseDone
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports
from waiting import SECONDS, until

LONG = {"ignore_eos": True, "max_output_tokens": 400}
SHORT = {"ignore_eos": True, "max_output_tokens": 2}


@pytest.fixture(scope="module")
def gateways(service):
    """Two, with nothing in common but the server behind them."""
    with contextlib.ExitStack() as stack:
        found = []
        for port in free_ports(2):
            settings = GatewaySettings.create(port=port, triton=[service.address], served_model_name=["R1"])
            found.append(GatewayProcess(settings))
            found[-1].start()
            stack.callback(found[-1].stop)
        yield found


def sessions(gateway: GatewayProcess) -> float:
    return figure(httpx.get(f"{gateway.url}/metrics").text, "step_audio_realtime_sessions")


async def asked(session: RealtimeSession, **how) -> None:
    """Its answer has begun."""
    await session.say("What do you hear?")
    await session.respond(**how)
    async for event in session:
        if isinstance(event, ResponseCreated):
            return


async def ended(session: RealtimeSession) -> str:
    """The status of the answer under way."""
    async for event in session:
        if isinstance(event, ResponseDone):
            return event.status
    raise AssertionError("the session has ended before")


async def lost(session: RealtimeSession) -> RealtimeError:
    with pytest.raises(RealtimeError) as caught:
        async for _ in session:
            pass
    return caught.value


@contextlib.asynccontextmanager
async def opened(port: int):
    async with asyncio.timeout(SECONDS), RealtimeSession.connect(f"http://127.0.0.1:{port}") as session:
        yield session


async def test_sessions_of_two_gateways(gateways):
    one, other = gateways
    async with balancing([gateway.settings.port for gateway in gateways]) as port:
        async with opened(port) as first, opened(port) as second:
            assert [sessions(gateway) for gateway in gateways] == [1, 1], "they take turns"
            for session in (first, second, first, second):
                await asked(session, **SHORT)
                assert await ended(session) in ("completed", "incomplete"), "each goes on where it was begun"

            await asked(first, **LONG)
            stopping = asyncio.create_task(asyncio.to_thread(one.stop))
            assert await ended(first) in ("completed", "incomplete"), "a turn is let end where its gateway stops"
            error = await lost(first)
            assert error.again and "connect again" in str(error)
            await stopping
            async with opened(port) as again:
                assert sessions(other) == 2, "those that are left take all"
                await asked(again, **SHORT)
                assert await ended(again) in ("completed", "incomplete")

            one.start()
            async with opened(port), opened(port):
                await until(lambda: sessions(one) == 1, "a session at the gateway that is back")

            await asked(second, **LONG)
            os.kill(other._process.pid, signal.SIGKILL)
            error = await lost(second)
            assert error.again and "lost" in str(error)
            await asyncio.to_thread(other._process.wait)  # until then it may be connected to, and nobody answers
        async with opened(port) as again:
            await asked(again, **SHORT)
            assert await ended(again) in ("completed", "incomplete")
