"""What the cases of LiveKit's classes share: a question, a tool, and recordings as frames."""

from __future__ import annotations

import wave
from typing import Literal

from cases import KEY, URL, WRITTEN
from livekit import rtc
from livekit.agents import function_tool, llm

ADDRESS = {"base_url": URL, "api_key": KEY}


@function_tool
async def calculator(operation: Literal["plus", "minus"], first: int, second: int) -> str:
    """Work out a sum exactly."""
    return "777"


def asked() -> llm.ChatContext:
    context = llm.ChatContext()
    context.add_message(role="system", content="Listen and answer.")
    context.add_message(role="user", content=WRITTEN["text"])
    return context


def frames(path: str) -> list[rtc.AudioFrame]:
    """Of 100 ms."""
    with wave.open(path) as file:
        rate, found = file.getframerate(), []
        while data := file.readframes(rate // 10):
            found.append(rtc.AudioFrame(data, rate, 1, len(data) // 2))
    return found
