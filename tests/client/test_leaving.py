"""Answers that are left in the middle: asyncio has nothing to report, however and whenever it is done."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from fake_triton import for_ever, message, script, serving

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
