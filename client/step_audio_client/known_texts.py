"""Texts of others that are understood: tritonserver's own, its Python backend's, NVIDIA's LLM backend's, gRPC's.

Our steps put a code before their texts (`step_audio.errors`); these cannot, and are translated here and nowhere else.
What matches none of them is a fault of the server's, whatever it says. A text is looked for within what comes, for
there is more around it: the ensemble's name, the request's id, with TensorRT-LLM the file, the line and a stack trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from step_audio.errors import Code

QUEUE_FULL = "the server's queue is full: try again later"
BROKEN = "the server is broken: try again later"
STOPPING = "the server is stopping: try again later"
NOT_LOADED = "the server has not loaded that adapter yet: try again later"


@dataclass(frozen=True)
class Known:
    """`told`: what a caller gets; None: that part of the text which the pattern matches."""

    pattern: re.Pattern[str]
    code: Code
    told: str | None


def _known(pattern: str, code: Code, told: str | None) -> Known:
    return Known(re.compile(pattern), code, told)


KNOWN = (
    # core r24.10 and r26.07, src/scheduler_utils.cc (PriorityQueue::PolicyQueue::Enqueue): UNAVAILABLE.
    _known(r"Exceeds maximum queue size", Code.QUEUE_FULL, QUEUE_FULL),
    # core, src/dynamic_batch_scheduler.cc and src/sequence_batch_scheduler: while the server shuts down.
    _known(r"Server is stopping, scheduler for model has stopped", Code.UNAVAILABLE, STOPPING),
    # core, src/server.cc: a server that shuts down or starts.
    _known(r"^Server not ready$", Code.UNAVAILABLE, STOPPING),
    # core, src/model_repository_manager/model_repository_manager.cc (GetModel): while models are loaded and unloaded.
    _known(r"Request for unknown model: ", Code.UNAVAILABLE, STOPPING),
    # python_backend, src/request_executor.cc: the same, of a model that another asks.
    _known(r"Model '[^']*' is not ready", Code.UNAVAILABLE, STOPPING),
    # python_backend r24.10 and r26.07, src/stub_launcher.cc and src/python_be.cc: a model's process is dead or stopped.
    _known(r"Stub process ('[^']*' )?is not healthy", Code.SERVER_LOST, BROKEN),
    # TensorRT-LLM 1.2.1, cpp/tensorrt_llm/executor/executorImpl.cpp (enqueueRequests), sent as INTERNAL by
    # triton_backend/inflight_batcher_llm/src/model_instance_state.cc, as are those that follow.
    _known(r"Maximum queue size of \d+ has been reached", Code.QUEUE_FULL, QUEUE_FULL),
    _known(r"Shutdown called, cannot enqueue requests", Code.UNAVAILABLE, STOPPING),
    # TensorRT-LLM 1.2.1, cpp/include/tensorrt_llm/batch_manager/llmRequest.h (validate).
    _known(r"Prompt length \(\d+\) exceeds maximum input length \(\d+\)", Code.CONTEXT_TOO_LONG, None),
    _known(r"EndId \(-?\d+\) is not within acceptable range \[-1, \d+\)", Code.INVALID_REQUEST, None),
    _known(r"Input token extra ids must be provided when enabling kv cache reuse with prompt table",
           Code.INVALID_REQUEST, None),
    # TensorRT-LLM 1.2.1, cpp/tensorrt_llm/batch_manager/promptTuningBuffers.cpp.
    _known(r"Prompt vocab size \d+ is larger than max prompt vocab size of \d+", Code.INVALID_REQUEST, None),
    # TensorRT-LLM 1.2.1, executorImpl.cpp (fetchNewRequests): a guide, and an engine that was set up without.
    _known(r"GuidedDecoder is not setup", Code.INVALID_GUIDE, "the served LLM is not set up for guided decoding"),
    # TensorRT-LLM 1.2.1, cpp/tensorrt_llm/batch_manager/peftCacheManager.cpp (addRequestPeft).
    _known(r"LoRA task \d+ not found in cache", Code.UNAVAILABLE, NOT_LOADED),
    # gRPC, src/core/ext/transport/chttp2: the server ended, or a proxy before it.
    _known(r"Received RST_STREAM with error code|^Stream removed$", Code.SERVER_LOST, BROKEN),
    # gRPC, src/python/grpcio/grpc/_cython/_cygrpc/aio/call.pyx.pxi: the call broke while this client was writing it.
    _known(r"^Internal error from Core$", Code.SERVER_LOST, BROKEN),
)  # fmt: skip

# gRPC's, of a server's certificate that is by somebody unknown, and of one that is for another name.
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|is not in peer certificate|Hostname Verification Check failed")


def translate(text: str) -> tuple[Code, str] | None:
    """What a known text means, and what a caller is told of it; None for an unknown one."""
    for known in KNOWN:
        if match := known.pattern.search(text):
            return known.code, known.told or match[0]
    return None


def untrusted(text: str) -> bool:
    """Whether gRPC does not trust a server's certificate."""
    return _UNTRUSTED.search(text) is not None
