"""What servers say, as errors of the client library: by code, by the table of known texts, or a fault of theirs."""

from __future__ import annotations

import logging
import re

import grpc
import pytest

from step_audio.errors import MAX_TEXT, Code
from step_audio_client import ChatOptions, RequestError, ServerFailed
from step_audio_client.chat_stream import check
from step_audio_client.errors import call_error, request_error

LEAKS = re.compile(r"/|\.py|\bshm\b|stub|Stub|_0_0|Traceback|0x|ensemble|TENSOR|tensor|request id|10\.1\.")

# As they come, from inside: of the Python backend, of TensorRT-LLM with its stack traces, of the C++ library.
INTERNALS = [
    "Failed to process the request(s) for model instance 'audio_encoder_0_0', message: ValueError: x\n\nAt:\n"
    "  /srv/step-audio/work/run-8001/repository/audio_encoder/1/model.py(14): execute\n",
    "Failed to process the request(s) for model 'tokenizer_0_0', message: TritonModelException: boom",
    "Failed to increase the shared memory pool size for key 'triton_python_backend_shm_region_4c1d' to 67108864 bytes. "
    "If you are running Triton inside docker, use '--shm-size' flag to control the shared memory region size. Error: "
    "No space left on device",
    "Failed to create new mapped region for the grown shared memory region '/dev/shm/step_audio_1_2'",
    "Unable to open shared memory region: '/step_audio_7', errno: 2",
    "unexpected shape for input 'prompt_embedding_table' for model 'tensorrt_llm'. Expected [-1,-1,512], got [1,3]",
    "inference input 'frames' data-type is 'INT64', but model 'prompt_builder' expects 'INT32'",
    "Executor failed process requestId 7 due to the following error: Encountered an error in forwardAsync function: "
    "[TensorRT-LLM][ERROR] CUDA runtime error in cudaMemcpyAsync (/src/tensorrt_llm/cpp/kernels/x.cu:120)\n"
    "1       0x7f2b /opt/tritonserver/backends/tensorrtllm/libtriton_tensorrtllm.so(+0x1f) [0x7f2b]",
    "onnxruntime::NoSuchFile: Load model from /work/encoder.onnx failed",
    "bad_alloc",
    "",
]


def full(text: str) -> str:
    return f"in ensemble 'step_audio_r1', [request id: 77] {text}"


@pytest.mark.parametrize("text", INTERNALS)
@pytest.mark.parametrize("around", [full, str])
def test_what_is_not_known_is_a_fault_of_the_server_s_and_stays_in_the_log(text, around, caplog):
    error = request_error(around(text), "the-id")
    assert type(error) is ServerFailed and error.code is Code.INTERNAL
    assert not LEAKS.search(str(error)) and len(str(error)) < 100
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "the-id" in record.getMessage() and text in record.getMessage()


@pytest.mark.parametrize("code", Code)
def test_a_code_decides_and_the_words_do_not(code, caplog):
    words = "Stub process 'x_0_0' is not healthy. Exceeds maximum queue size, max_seq_len"
    error = request_error(full(code.put_before(words)))
    assert error.code is code and str(error) == words and not caplog.records


@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("request_output_len", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("runtime_top_p", "top_p"),
        ("min_p", "min_p"),
        ("stop_words_list", "stop_token_ids"),
        ("bad_words_list", "bad_words"),
        ("messages[0].content[1]", "messages[0].content[1]"),
        ("audio[1]", "audio[1]"),
    ],
)
def test_a_parameter_has_the_caller_s_name(param, named):
    error = request_error(full(Code.INVALID_REQUEST.put_before(f"{param} must be other", param)))
    assert (error.param, str(error)) == (named, f"{named} must be other")


def test_the_parameter_is_not_guessed_from_words():
    assert request_error(full(Code.INVALID_REQUEST.put_before("temperature is wrong"))).param is None
    assert request_error(full(Code.CONTEXT_TOO_LONG.put_before("too long"))).param == "messages"
    assert request_error(full(Code.CONTEXT_TOO_LONG.put_before("too long", "suffix_ids"))).param == "suffix_ids"


def trtllm(text: str) -> str:
    """As TllmException writes it, and NVIDIA's backend hands it on."""
    return (
        "Executor failed process requestId 5 due to the following error: "
        "Encountered an error when fetching new request: "
        f"[TensorRT-LLM][ERROR] Assertion failed: {text} (/src/tensorrt_llm/batch_manager/llmRequest.h:601)\n"
        "1       0x7f60a3d4d1b7 tensorrt_llm::common::throwRuntimeError(char const*, int) + 100\n"
        "2       0x7f60a3e1c1c7 /opt/tritonserver/backends/tensorrtllm/libtriton_tensorrtllm.so(+0x1c) [0x7f60a3e1c1c7]"
    )


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("Exceeds maximum queue size", Code.QUEUE_FULL, "the server's queue is full: try again later"),
        (
            "Maximum queue size of 16 has been reached, please try again later (/src/executorImpl.cpp:1000)\n1  0x7f",
            Code.QUEUE_FULL,
            "the server's queue is full: try again later",
        ),
        (
            "Server is stopping, scheduler for model has stopped accepting new inference requests",
            Code.UNAVAILABLE,
            "the server is stopping: try again later",
        ),
        (
            "Request for unknown model: 'step_audio_r1' has no available versions",
            Code.UNAVAILABLE,
            "the server is stopping: try again later",
        ),
        (
            "Failed to process the request(s) for model instance 'audio_encoder_0_0', message: Stub process "
            "'audio_encoder_0_0' is not healthy.",
            Code.SERVER_LOST,
            "the server is broken: try again later",
        ),
        (
            trtllm("Prompt length (70000) exceeds maximum input length (65535). Set log level to info and check"),
            Code.CONTEXT_TOO_LONG,
            "Prompt length (70000) exceeds maximum input length (65535)",
        ),
        (
            trtllm("EndId (160000) is not within acceptable range [-1, 152064)."),
            Code.INVALID_REQUEST,
            "EndId (160000) is not within acceptable range [-1, 152064)",
        ),
        (
            trtllm("Prompt vocab size 25000 is larger than max prompt vocab size of 24576. Max prompt vocab size is"),
            Code.INVALID_REQUEST,
            "Prompt vocab size 25000 is larger than max prompt vocab size of 24576",
        ),
    ],
)
def test_what_others_say_and_is_known(text, code, told, caplog):
    error = request_error(full(text))
    assert (error.code, str(error)) == (code, told) and not caplog.records


def rpc(status: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("status", "details", "connected", "code"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; 10.1.2.3:8001", False, Code.UNAVAILABLE),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", True, Code.SERVER_LOST),
        (grpc.StatusCode.UNAVAILABLE, "[request id: 1] Exceeds maximum queue size", True, Code.QUEUE_FULL),
        (grpc.StatusCode.UNAVAILABLE, Code.QUEUE_FULL.put_before("1024 wait"), True, Code.QUEUE_FULL),
        (grpc.StatusCode.INVALID_ARGUMENT, full(Code.INVALID_REQUEST.put_before("x")), True, Code.INVALID_REQUEST),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", True, Code.TIMED_OUT),
        (grpc.StatusCode.INVALID_ARGUMENT, INTERNALS[5], True, Code.INTERNAL),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", True, Code.SERVER_LOST),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", True, Code.SERVER_LOST),
        (grpc.StatusCode.UNKNOWN, "Stream removed", True, Code.SERVER_LOST),
        (grpc.StatusCode.UNKNOWN, "", True, Code.INTERNAL),
        (grpc.StatusCode.CANCELLED, "", False, Code.SERVER_LOST),
        (grpc.StatusCode.CANCELLED, Code.CANCELLED.put_before("stopped"), True, Code.CANCELLED),
        (grpc.StatusCode.ABORTED, "", True, Code.SERVER_LOST),
        (grpc.StatusCode.DATA_LOSS, "", True, Code.SERVER_LOST),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", True, Code.INTERNAL),
    ],
)
def test_a_call_that_fails(status, details, connected, code):
    error = call_error(rpc(status, details), "here:8001", connected)
    assert isinstance(error, RequestError) and error.code is code and not LEAKS.search(str(error))


def test_a_text_is_a_line_however_long_what_it_quotes():
    options = ChatOptions(tool_choice="no such\ntool " * 10_000, tools=[{"function": {"name": "a"}}])
    with pytest.raises(RequestError) as caught:
        check(options)
    assert caught.value.param == "tool_choice"
    assert len(str(caught.value)) == MAX_TEXT and "\n" not in str(caught.value)
