"""Serving on GPUs up to the GPU itself: command lines, the ranks' lives and deaths, and what is said about them.

mpirun and tritonserver are stand-ins (gpu_stand_ins.py); all between them and `step-audio serve` is real.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpu_stand_ins import Machine
from step_audio_client import Tls
from step_audio_server import tritonserver
from step_audio_server.errors import ServerError
from step_audio_server.launch import launch
from step_audio_server.launch.gpu_launch import gpu_environment, gpu_launch
from step_audio_server.launch.launch import Launch
from step_audio_server.launch.ports import Ports, free_ports
from step_audio_server.processes import alive, session, stopped
from step_audio_server.tritonserver import TritonServer
from waiting import SECONDS, wait_until


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    begun: list[TritonServer] = []
    begin = TritonServer.__init__

    def begin_and_remember(server, *arguments):
        begin(server, *arguments)
        begun.append(server)

    monkeypatch.setattr(TritonServer, "__init__", begin_and_remember)
    yield Machine(tmp_path / "machine", monkeypatch)
    for server in begun:  # those of a test that failed would stand in the way of its neighbours
        server.stop()


def launched(gpus: Machine, count: int = 4, **values) -> tuple[Launch, Ports]:
    ports = Ports(*free_ports(3))
    return gpu_launch(gpus.tritonserver, Path("/work/repository"), ports, count, **{"drain_timeout": 5} | values), ports


def started(gpus: Machine, count: int = 4) -> TritonServer:
    what, ports = launched(gpus, count)
    server = TritonServer(what, ports, gpus.notes / "tritonserver.log")
    try:
        server.wait_live(SECONDS)
    except BaseException:
        server.stop()
        raise
    return server


def left_behind(server: TritonServer) -> list[str]:
    """Processes and shared memory."""
    return [f"process {pid}" for pid in session(server.process.pid)] + list(map(str, regions(server.launch)))


def regions(launch: Launch) -> list[Path]:
    folder = Path("/dev/shm")
    return [*folder.glob(f"{launch.prefix}*"), *folder.glob(f"vader_segment.{os.environ['STAND_IN_TAG']}.*")]


# Command lines


def test_the_command_line_of_four_ranks(gpus, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    what = gpu_launch(Path("/opt/tritonserver/bin/tritonserver"), Path("/w/repository"), Ports(1, 2, 3), 4, 20)
    memory = [
        "--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", "--cuda-memory-pool-byte-size=0:0",
        "--cuda-memory-pool-byte-size=1:0", "--cuda-memory-pool-byte-size=2:0", "--cuda-memory-pool-byte-size=3:0",
    ]  # fmt: skip
    prefix = f"--backend-config=python,shm-region-prefix-name=step_audio_{os.getpid()}_1_"
    serves = [
        "--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1",
        "--grpc-port=1", "--http-port=2", "--metrics-port=3", "--exit-timeout-secs=20",
        "--model-load-thread-count=1", "--grpc-infer-allocation-pool-size=0",
        "--grpc-keepalive-time=10000", "--grpc-keepalive-timeout=5000", "--grpc-http2-max-pings-without-data=0",
        "--grpc-restricted-protocol=shared-memory,model-repository,logging,trace:closed=VALUE",
        "--http-restricted-api=shared-memory,model-repository,logging,trace:closed=VALUE",
    ]  # fmt: skip
    works = [
        "--model-control-mode=explicit", "--load-model=tensorrt_llm",
        "--allow-grpc=false", "--allow-http=false", "--allow-metrics=false",
    ]  # fmt: skip

    def rank(number: int, rest: list[str]) -> list[str]:
        return [
            "-n", "1", "/opt/tritonserver/bin/tritonserver", "--model-repository=/w/repository", f"{prefix}{number}_",
            "--disable-auto-complete-config", *memory, *rest,
        ]  # fmt: skip

    assert [re.sub("closed=[0-9a-f]{64}$", "closed=VALUE", word) for word in what.command] == [
        "mpirun", "--bind-to", "none", *rank(0, serves), ":", *rank(1, works), ":", *rank(2, works), ":",
        *rank(3, works),
    ]  # fmt: skip
    assert (what.ranks, what.on_gpu, what.prefix) == (4, True, f"step_audio_{os.getpid()}_1_")


def test_mpirun_runs_as_root_only_for_root(monkeypatch):
    for user, allowed in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        command = gpu_launch(Path("/t"), Path("/r"), Ports(1, 2, 3), 2, 5).command
        assert ("--allow-run-as-root" in command) is allowed


def test_one_gpu_needs_no_mpirun():
    what = gpu_launch(Path("/t"), Path("/r"), Ports(1, 2, 3, "0.0.0.0"), 1, 5)
    assert what.command[0] == "/t" and what.ranks == 1
    assert not any("mpirun" in word or word.startswith("--load-model") for word in what.command)
    assert f"--backend-config=python,shm-region-prefix-name=step_audio_{os.getpid()}_1_" in what.command
    assert "--grpc-address=0.0.0.0" in what.command


def test_the_ranks_environment(monkeypatch):
    user = {"NCCL_P2P_DISABLE": "1", "PATH": "/usr/bin"}
    assert gpu_environment(user, 4) == user | {
        "PMIX_MCA_gds": "hash", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    }  # fmt: skip
    chosen = gpu_environment({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c", "PMIX_MCA_gds": "ds21"}, 2)
    assert chosen == {
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PMIX_MCA_gds": "ds21",
    }  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/tensorrt/lib")
    environment = gpu_launch(Path("/t"), Path("/r"), Ports(1, 2, 3), 4, 5).environment
    assert "PYTHONPATH" not in environment  # the stub would not read it, and mpirun might
    assert environment["LD_LIBRARY_PATH"] == "/usr/local/tensorrt/lib"
    assert environment["PATH"] == f"{Path(sys.executable).parent}:{os.environ['PATH']}"


# The ranks' lives


@pytest.mark.processes
def test_four_ranks_from_start_to_end(gpus):
    server = started(gpus)
    assert len(gpus.calls("mpirun")) == 1
    for rank in range(4):
        (call,) = gpus.calls(f"rank{rank}")
        assert call["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert server.fault() is None
    ranks = dict(server._ranks)
    assert sorted(ranks) == [0, 1, 2, 3]
    (gpus.notes / "workers").write_text(" ".join(str(ranks[rank]) for rank in (1, 2, 3)))
    # mpirun, ranks, stubs; the leader's region, and theirs. A process that is being forked may count for a moment.
    wait_until(lambda: len(left_behind(server)) == 1 + 4 + 2 + 1 + 4)
    server.stop()
    # All of the leader's requests had their answers while the workers were there; then it let them go.
    assert sorted(gpus.events()) == ["0 drained with 3 workers", "0 serves", "1 let go", "2 let go", "3 let go"]
    assert server.process.returncode == 0
    assert left_behind(server) == []


@pytest.mark.processes
def test_one_gpu_from_start_to_end(gpus, monkeypatch):
    monkeypatch.setenv("STAND_IN_WORLD", "1")
    server = started(gpus, 1)
    assert gpus.calls("mpirun") == [] and server.fault() is None
    os.kill(min(server._stubs), signal.SIGKILL)
    wait_until(server.fault)
    assert server.fault().text == "the process of a model died" and server.fault().signal == "SIGKILL"
    server.stop()
    assert gpus.events() == ["0 serves", "0 drained with 0 workers"] and left_behind(server) == []


@pytest.mark.processes
@pytest.mark.parametrize("fault", ["rank2-fails", "rank0-fails"])
def test_a_start_that_fails_ends_with_the_rank_s_own_error(gpus, fault):
    gpus.fault(fault)
    what, ports = launched(gpus)
    server = TritonServer(what, ports, gpus.notes / "tritonserver.log")
    with pytest.raises(ServerError, match="tritonserver did not start"):
        server.wait_live(SECONDS)
    rank = fault[4]
    assert server.reason() == (
        f"rank {rank} ended first; failed to load 'tensorrt_llm': rank {rank} has no engine (log: {server.log})"
    )
    assert not server.crashed  # no second try: it would fail as this one did
    server.stop()
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_killed_rank_is_named_by_mpirun_s_words(gpus):
    gpus.fault("rank3-late-fails")
    with pytest.raises(ServerError):
        started(gpus)
    what, _ = launched(gpus)
    server = TritonServer.__new__(TritonServer)
    server.launch, server.log = what, gpus.notes / "tritonserver.log"
    assert "rank 3 ended first; mpirun noticed that process rank 3" in server.reason()


@pytest.mark.parametrize(
    ("words", "rank"),
    [
        ("mpirun noticed that process rank 2 with PID 0 on node a exited on signal 9 (Killed).", 2),
        ("  Process name: [[22210,1],3]\n  Exit code:    1", 3),  # Open MPI 4
        ("   Process name: [prterun-node-71@1,1] Exit code:    1", 1),  # Open MPI 5
        ("I1123 02:05:44.1 7 metrics.cc:877] Collecting CPU metrics", None),
    ],
)
def test_the_rank_in_mpirun_s_words(tmp_path, words, rank):
    server = TritonServer.__new__(TritonServer)
    server.log = tmp_path / "log"
    server.log.write_text(f"[TensorRT-LLM][ERROR] CUDA runtime error: out of memory\n{'-' * 60}\n{words}\n")
    said = f"rank {rank} ended first; " if rank else ""
    assert server.reason() == f"{said}CUDA runtime error: out of memory (log: {server.log})"


@pytest.mark.processes
def test_a_start_does_not_wait_for_a_rank_that_is_gone(gpus, monkeypatch):
    """Where mpirun does not notice."""
    monkeypatch.setattr(tritonserver, "RANKS_END_IN", 0.5)
    gpus.fault("mpirun-sits")
    what, ports = launched(gpus)
    server = TritonServer(what, ports, gpus.notes / "tritonserver.log")
    monkeypatch.setattr(TritonServer, "_ready", lambda self: False)
    wait_until(lambda: server._lost_rank() is None and len(server._ranks) == 4)
    os.kill(server._ranks[1], signal.SIGKILL)
    with pytest.raises(ServerError, match="rank 1 of tritonserver ended, and the others wait for it"):
        server.wait_live(SECONDS)
    server.stop()
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_start_that_takes_too_long(gpus):
    gpus.fault("loads-for-ever")
    what, ports = launched(gpus)
    server = TritonServer(what, ports, gpus.notes / "tritonserver.log")
    with pytest.raises(ServerError, match="not ready within 1 s"):
        server.wait_live(0.6)
    server.stop()
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_rank_that_is_killed_between_making_a_region_and_mapping_it(gpus):
    gpus.fault("rank2-maps-late")
    server = started(gpus)
    wait_until(lambda: list(gpus.notes.glob("**/maps-late")))
    server.kill()
    assert left_behind(server) == []


@pytest.mark.processes
def test_who_clears_up_behind_a_killed_serve_finds_what_ranks_have_left(gpus, monkeypatch):
    monkeypatch.setattr(launch, "KILL_AFTER_ON_GPU", 0)
    gpus.fault("will-not-end")
    server = started(gpus)
    wait_until(lambda: len(left_behind(server)) == 1 + 4 + 2 + 1 + 4)
    server.process.kill()  # mpirun, which would have removed them
    server.process.wait()
    server._reaper._process.stdin.close()  # as at its parent's end
    assert server._reaper._process.wait(SECONDS) == 0
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_leader_that_will_not_end_is_killed(gpus, monkeypatch):
    monkeypatch.setattr(launch, "KILL_AFTER_ON_GPU", -4)
    gpus.fault("will-not-end")
    server = started(gpus)
    server.stop()
    assert left_behind(server) == []


@pytest.mark.processes
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_dies(gpus, rank):
    server = started(gpus)
    os.kill(server._ranks[rank], signal.SIGKILL)
    wait_until(server.fault)
    assert re.fullmatch(r"rank \d of tritonserver died|tritonserver ended with status 1", str(server.fault()))
    server.stop()
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_stub_that_dies(gpus):
    server = started(gpus)
    os.kill(min(server._stubs), signal.SIGKILL)
    wait_until(server.fault)
    assert server.fault().text == "the process of a model died" and server.fault().signal == "SIGKILL"
    server.stop()
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_process_that_is_stopped(gpus):
    """One that goes on soon enough is not given up."""
    server = started(gpus)
    for pid in (min(server._stubs), server._ranks[0], server._ranks[2]):
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: stopped(pid))
        assert server.fault() is None
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda pid=pid: not stopped(pid))
        assert server.fault() is None
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: stopped(pid))
        first, second = server.fault(), server.fault()
        assert first is None and second.text.endswith(" is stopped")
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda pid=pid: not stopped(pid))
    server.kill()
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_server_that_does_not_answer(gpus, monkeypatch):
    """A rank that hangs, hangs them all, and no process dies."""
    beats = [None, "tensorrt_llm does not answer", None]
    monkeypatch.setattr(tritonserver, "Heartbeat", lambda *_: SimpleNamespace(fault=beats.pop, stop=lambda: None))
    server = started(gpus)
    assert server.fault() is None
    server.watch("127.0.0.1:8001", Tls())
    assert server.fault() is None
    death = server.fault()
    assert (death.text, death.model, death.signal) == ("tensorrt_llm does not answer", "tensorrt_llm", None)
    assert server.fault() is None
    server.kill()
    assert left_behind(server) == []


@pytest.mark.processes
def test_a_killed_supervisor_leaves_nothing_running(gpus):
    what, ports = launched(gpus)
    code = (
        "import json, sys, time; from pathlib import Path\n"
        "from step_audio_server.launch.launch import Launch\n"
        "from step_audio_server.launch.ports import Ports\n"
        "from step_audio_server.tritonserver import TritonServer\n"
        "launch, ports, log = json.loads(sys.argv[1])\n"
        "server = TritonServer(Launch(**launch), Ports(**ports), Path(log))\n"
        f"server.wait_live({SECONDS}); print(server.process.pid, flush=True); time.sleep(600)\n"
    )
    told = json.dumps([vars(what), vars(ports), str(gpus.notes / "log")])
    supervisor = subprocess.Popen([sys.executable, "-c", code, told], stdout=subprocess.PIPE, text=True)
    mpirun = int(supervisor.stdout.readline())
    ranks = session(mpirun)
    assert len(ranks) == 7
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    wait_until(lambda: not any(alive(pid) for pid in ranks if pid == mpirun or "tritonserver" in name(pid)))
    for pid in filter(alive, ranks):  # the stand-in's stubs; real ones see that their server is gone
        os.kill(pid, signal.SIGKILL)
    for region in regions(what):
        region.unlink()


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
