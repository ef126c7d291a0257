"""In place of the package vLLM: as much as `step_audio.vllm.process` takes of it, which notes what it is told.

For what that module does by itself: how a request is put to vLLM, and where an answer of vLLM's ends.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Noted:
    """Takes any arguments."""

    def __init__(self, **given: Any):
        self.__dict__.update(given)


class ClientError(Exception):
    pass


class EngineDead(Exception):
    pass


class Engine:
    """As AsyncLLM: each request gets the outputs that the test puts into its queue, or raises what it finds there."""

    errored = False

    def __init__(self):
        self.asked: dict[str, tuple[Any, Any]] = {}
        self.queues: dict[str, asyncio.Queue] = {}
        self.left: list[str] = []

    async def generate(self, prompt: Any, params: Any, request: str):
        self.asked[request] = prompt, params
        queue = self.queues[request] = asyncio.Queue()
        try:
            while True:
                output = await queue.get()
                if isinstance(output, BaseException):
                    raise output
                yield output
        finally:
            self.left.append(request)


def output(*tokens: int, finished: str | None = None, logprobs: list | None = None, cached: int = 0) -> Any:
    completion = SimpleNamespace(token_ids=tokens, finish_reason=finished, logprobs=logprobs)
    times = SimpleNamespace(scheduled_ts=1.0, first_token_ts=2.0, last_token_ts=3.0)
    return SimpleNamespace(outputs=[completion], metrics=times, num_cached_tokens=cached)


def process_module(monkeypatch: pytest.MonkeyPatch, on_cpu: bool = False) -> ModuleType:
    """`step_audio.vllm.process`, imported with this in vLLM's place."""
    platform = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: on_cpu))
    members: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": "stand-in", "platforms": platform},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": Noted},
        "vllm.exceptions": {"VLLMClientError": ClientError},
        "vllm.inputs": {},
        "vllm.inputs.engine": {
            "tokens_input": lambda ids: SimpleNamespace(ids=ids),
            "embeds_input": lambda rows, **told: SimpleNamespace(rows=rows, **told),
        },
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA="delta"),
            "SamplingParams": Noted,
            "StructuredOutputsParams": Noted,
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": Engine},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDead},
        "vllm.v1.metrics": {},
        "vllm.v1.metrics.loggers": {"StatLoggerBase": object},
    }
    for name, values in members.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "step_audio.vllm.process", raising=False)
    module = importlib.import_module("step_audio.vllm.process")
    monkeypatch.delitem(sys.modules, "step_audio.vllm.process")
    return module
