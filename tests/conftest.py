"""What the tests share: one tiny checkpoint, its independent reference, and one running server.

Imports are in the fixtures: pytest-xdist's controller reads this file, too, and runs no test.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import logging
import os
import signal
from pathlib import Path

import pytest

# Before torch is loaded, here and in what the tests start: models are tiny, and tests run side by side, so more
# threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# gRPC says on the terminal that a connection has ended which a test ends.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# A shell's background ignores it, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The markers of pyproject.toml that a fixture brings; a test that needs one without its fixture says so itself.
MARKERS = {
    "work_dir": "server",
    "driver": "browser",
    "tokenizer_json": "training",
    "whole": "build",
    "exported": "build",
}
ONE_WORKER = {  # beginnings of the names of tests that share what takes long to make
    "references": (  # torch, transformers and librosa take seconds to load; and one whole build
        "tests/benchmark/test_one_gpu.py",
        "tests/benchmark/test_peers.py",
        "tests/build_engines/",
        "tests/core/test_audio.py",
        "tests/core/test_checkpoint.py",
        "tests/core/test_encoder.py",
        "tests/core/test_mel.py",
        "tests/core/test_old_tokenizers.py",
        "tests/engine/",
        "tests/server/test_gpu_serve.py",
        "tests/steps/test_dlpack.py",
        "tests/steps/test_memory.py",
        "tests/steps/test_stub.py",
        "tests/steps/test_tensorrt_encoder.py",
        "tests/training/test_lessons.py",
        "tests/training/test_parallel.py",
        "tests/training/test_recipe.py",
        "tests/training/test_training.py",
        "tests/training/test_whisper.py",
    ),
    "openai": (  # a second to load, and another until its types are made
        "tests/gateway/test_gateway_completions.py",
        "tests/gateway/test_gateway_openai.py",
        "tests/gateway/test_gateway_responses.py",
        "tests/gateway/test_realtime_",
    ),
    "sources": ("tests/test_dependencies.py", "tests/test_house.py", "tests/test_names.py"),  # take all files apart
    "listener": (  # the small model's server; and one set of processes speaks
        "tests/evaluation/",
        "tests/reliability/test_soak.py",
        "tests/served/test_bench.py",
        "tests/served/test_chat_mode.py",
        "tests/served/test_documents_served.py",
        "tests/served/test_encoder_cache.py",
        "tests/served/test_error_params.py",
        "tests/served/test_front_door.py",
        "tests/served/test_listener.py",
        "tests/served/test_mind_paced_",
        "tests/served/test_realtime_",
        "tests/served/test_requests_served.py",
        "tests/served/test_structured_output.py",
    ),
    "service": (  # the tiny model's; who starts others shares nothing but what they are built of
        "tests/deploy/test_chart_serving.py",
        "tests/reliability/test_endings.py",
        "tests/reliability/test_fuzz.py",
        "tests/reliability/test_interruptions.py",
        "tests/reliability/test_leases_served.py",
        "tests/served/test_bad_input.py",
        "tests/served/test_client_served.py",
        "tests/served/test_doors.py",
        "tests/served/test_gateway_served.py",
        "tests/served/test_guides.py",
        "tests/served/test_memory_served.py",
        "tests/served/test_server.py",
        "tests/served/test_shared_work_dir.py",
        "tests/served/test_streaming.py",
        "tests/served/test_vllm_served.py",
    ),
    "deaths": ("tests/reliability/test_clients_vanish.py", "tests/reliability/test_deaths.py"),
}
FIRST = (  # what takes longest: begun last, it would be waited for by all others
    "listener",
    "service",
    "references",
    "deaths",
    "tests/reliability/test_rolling_restarts.py",
    "tests/playground/test_playground_dialogue.py",
    "tests/playground/test_playground.py",
    "tests/served/test_step_workers.py",
    "tests/served/test_serve_command.py",
    "tests/test_wheel.py",
    "tests/gateway/test_talk_command.py",
    "tests/served/test_vllm_stand_in.py",
    "tests/served/test_adapters_served.py",
    "tests/reliability/test_overload.py",
    "tests/served/test_tls_served.py",
    "tests/served/test_codes.py",
    "tests/served/test_doors_of_files.py",
)


gc.disable()  # what collecting the tests imports stays: looking through it again and again takes seconds


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


def pytest_sessionfinish():
    gc.freeze()  # pytest looks twice for what nobody has closed, Python once more when it ends
    if "PYTEST_XDIST_WORKER" not in os.environ:  # on a terminal nanobind would tell of all that is left
        atexit.register(gc.unfreeze)  # a worker takes up to ten seconds to take torch apart


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    for item in items:
        for fixture in MARKERS.keys() & set(item.fixturenames):
            item.add_marker(MARKERS[fixture])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests run in one worker, and some folders' (pytest-xdist 3.8 loses its own groups on pytest 9.2)."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            shared = (name for name, tests in ONE_WORKER.items() if nodeid.startswith(tests))
            return next(shared, super()._split_scope(nodeid))

        def _assign_work_unit(self, node):
            """The next of the queue, in which those with most tests stand in front."""
            for scope in reversed(FIRST):
                if scope in self.workqueue:
                    self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_a_power_cut():
    """Where others write to the same disk, too, it takes a second to be sure of that."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def torch_logs_like_others():
    """Whenever torch is loaded: pytest hangs its handlers on each logger that stands alone, of fifty six a test."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(("torch", "c10d", "strobelight")) and isinstance(logger, logging.Logger):
            logger.propagate = True


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of all workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def checkpoint(shared, tmp_path_factory) -> Path:
    """float32, so that tokens can be compared one by one."""
    from step_audio_build.convert.make_tiny import make_tiny

    made, directory = tmp_path_factory.mktemp("checkpoint") / "tiny", shared / "tiny"
    make_tiny(made, dtype="float32", max_position_embeddings=32_768)
    with contextlib.suppress(OSError):  # another worker's is there, and the same
        made.rename(directory)
    return directory


@pytest.fixture(scope="session")
def work_dir(shared) -> Path:
    """Of real servers, shared between them: what one has built, the next finds."""
    (shared / "work").mkdir(exist_ok=True)
    return shared / "work"


@pytest.fixture(scope="session")
def service(checkpoint, work_dir):
    """The server that most tests talk to: TP 4, KV reuse on, all defaults but the length."""
    from server_settings import settings_for
    from step_audio_server.serve import Service

    with Service(settings_for(checkpoint, work_dir)) as running:
        yield running


@pytest.fixture(scope="session")
def listener(work_dir):
    """The small trained model, served; in float32, so that tokens can be compared one by one."""
    from server_settings import settings_for
    from step_audio_server.assets import embedded_checkpoint
    from step_audio_server.serve import Service

    with Service(
        settings_for(embedded_checkpoint(), work_dir / "listener", max_seq_len=None, dtype="float32")
    ) as running:
        yield running


@pytest.fixture(scope="session")
def openai():
    """OpenAI's own package, loaded by the process that runs these tests, not by all that collect them."""
    import openai

    return openai


@pytest.fixture(scope="session")
def reference(checkpoint):
    from reference import Reference

    return Reference(checkpoint)


@pytest.fixture
def ask(service):
    """Call a coroutine function with a client of the running server, and return its result."""
    from step_audio_client import StepAudioClient

    def run(use):
        async def with_client():
            async with StepAudioClient(service.address) as client:
                return await asyncio.wait_for(use(client), timeout=600)

        return asyncio.run(with_client())

    return run
