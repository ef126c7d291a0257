"""Answers that are left in the middle: asyncio has nothing to report, however and whenever it is done."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from fake_triton import for_ever, message, script, served, serving, stops
from step_audio_client import user

TESTS = Path(__file__).parents[1]


@pytest.mark.processes
async def test_nothing_is_reported():
    """In a process of its own, as a user has it, with Python's own checks on."""
    async with serving(script(message(5), message(6), then=for_ever)) as [(_, address, _)]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning"),
            *(TESTS / "support" / "leaving.py", address),
            env=os.environ | {"PYTHONPATH": str(TESTS / "support")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        ways, reported = await process.communicate()
    assert process.returncode == 0 and len(ways.split()) > 12, reported.decode()
    assert reported.decode() == ""


async def test_a_stop_that_comes_too_early_is_sent_again_and_again():
    """And no more when the answer has ended."""
    async with served(script(message(5), then=for_ever)) as (fake, client):
        fake.lost_stops = 3
        answer = client.generate([user("x")], request_id="mine")
        await anext(answer)
        await answer.aclose()
        await client.close()
        assert stops(fake) == [("stop", "mine", True)] * 4
