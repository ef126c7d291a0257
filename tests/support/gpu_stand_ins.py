"""Small programs in the place of mpirun and of the NGC image's tritonserver: they do as the real ones in what a
supervisor sees of them (processes, signals, endpoints, shared memory, words in the log), and write down how they were
called. In the environment, STAND_IN names a fault, STAND_IN_DIR is where they write, and STAND_IN_TAG is in the names
of their shared memory.

As Open MPI 4.1 does (orterun(1), "Signal Propagation", "Process Termination"), mpirun puts its ranks into process
groups of their own, ends them all when one dies, and passes SIGTERM on with one second's grace.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

from step_audio_server.launch import launch

MPIRUN = r"""
import json, os, signal, subprocess, sys, time

here, fault = os.environ["STAND_IN_DIR"], os.environ.get("STAND_IN", "")
with open(f"{here}/mpirun.jsonl", "a") as file:
    print(json.dumps(sys.argv), file=file)
words, ranks = sys.argv[1:], []
while words[0] != "-n":
    words = words[1:] if words[0] == "--allow-run-as-root" else words[2:]
for part in "\0".join(words).split("\0:\0"):
    parts = part.split("\0")
    assert parts[:2] == ["-n", "1"], parts
    environment = {**os.environ, "OMPI_COMM_WORLD_RANK": str(len(ranks))}
    ranks.append(subprocess.Popen(parts[2:], env=environment, process_group=0))


def end(*_):
    for number in (signal.SIGTERM, signal.SIGKILL):
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
            time.sleep(0.01)
    for rank in ranks:  # what they had registered for this, as Open MPI's ranks do
        if os.path.exists(f"/dev/shm/vader_segment.{os.environ['STAND_IN_TAG']}.{rank.pid}"):
            os.unlink(f"/dev/shm/vader_segment.{os.environ['STAND_IN_TAG']}.{rank.pid}")
    os._exit(143 if _ else 1)


signal.signal(signal.SIGTERM, end)
if fault == "mpirun-sits":
    time.sleep(600)
while any(rank.poll() is None for rank in ranks):
    for number, rank in enumerate(ranks):
        if rank.poll():
            how = f"exited on signal {-rank.returncode}" if rank.returncode < 0 else f"status {rank.returncode}"
            print(f"mpirun noticed that process rank {number} with PID {rank.pid} on node here {how}.", flush=True)
            end()
    time.sleep(0.02)
"""

TRITONSERVER = r"""
import json, mmap, os, signal, sys, time
from pathlib import Path

here, fault = Path(os.environ["STAND_IN_DIR"]), os.environ.get("STAND_IN", "")
rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
job = here / f"job-{os.getppid() if 'OMPI_COMM_WORLD_RANK' in os.environ else os.getpid()}"
job.mkdir(exist_ok=True)
flags = dict(word.partition("=")[::2] for word in sys.argv[1:])
keep = ("CUDA_VISIBLE_DEVICES", "PMIX_MCA_gds", "NCCL_DEBUG", "PATH", "PYTHONPATH")
with open(here / f"rank{rank}.jsonl", "a") as file:
    print(json.dumps({"argv": sys.argv, "environment": {k: os.environ[k] for k in keep if k in os.environ}}), file=file)
prefix = flags["--backend-config"].partition("shm-region-prefix-name=")[2]


def note(word):
    with open(here / "events", "a") as file:
        print(f"{rank} {word}", file=file)


if fault == f"rank{rank}-fails":
    print(f'E1123 02:05:50.1 7 model_lifecycle.cc:642] "failed to load \'tensorrt_llm\': rank {rank} has no engine"')
    sys.exit(1)
if fault == f"rank{rank}-late-fails":  # when the others have begun
    while len(list(job.glob("rank*"))) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
(job / f"rank{rank}").touch()
# Shared between ranks, as Open MPI does: mapped, and left behind by whoever is killed.
region = Path(f"/dev/shm/vader_segment.{os.environ['STAND_IN_TAG']}.{os.getpid()}")
with region.open("w+b") as file:
    file.truncate(4096)
    if fault == f"rank{rank}-maps-late":
        (job / "maps-late").touch()
        time.sleep(600)
    mapped = mmap.mmap(file.fileno(), 4096)

if "--load-model" in flags:  # a worker: it never gets out of loading, and has no handler for signals
    while not (job / "leader-ended").exists():
        time.sleep(0.02)
    region.unlink(missing_ok=True)
    note("let go")
    sys.exit(0)

if fault == "loads-for-ever":
    time.sleep(600)
world = int(os.environ.get("STAND_IN_WORLD", "1"))
while len(list(job.glob("rank*"))) < world:
    time.sleep(0.01)

import http.server, subprocess, threading  # which workers need not wait for

Path(f"/dev/shm/{prefix}region").write_bytes(b"")
# Ours hold the region's name, as real ones do, and take no SIGTERM.
stub = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
stubs = [subprocess.Popen([sys.executable, "-IS", "-c", stub, f"{prefix}region"]) for _ in range(2)]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if (here / "unready").exists() else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: None if fault == "will-not-end" else stopping.set())
server = http.server.ThreadingHTTPServer((flags["--http-address"], int(flags["--http-port"])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
note("serves")
stopping.wait()
workers = [pid for pid in (here / "workers").read_text().split()] if (here / "workers").exists() else []
note("drained with " + str(sum(Path(f"/proc/{pid}").exists() for pid in workers)) + " workers")
for process in stubs:
    process.kill()
    process.wait()
Path(f"/dev/shm/{prefix}region").unlink()
region.unlink(missing_ok=True)
(job / "leader-ended").touch()
os._exit(0)  # an interpreter that ends beside a thread may crash, and mpirun would then kill the others
"""

NVIDIA_SMI = r"""
import os
for line in os.environ["STAND_IN_GPUS"].split(";"):
    print(line)
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\n{text}")
    path.chmod(0o755)
    return path


_machines = itertools.count()


class Machine:
    """A made-up machine with the NGC image and GPUs, below `root`."""

    def __init__(self, root: Path, monkeypatch, gpus: int = 4, name: str = "NVIDIA H100 80GB HBM3"):
        self.root = root
        self.notes = root / "notes"
        self.notes.mkdir(parents=True)
        self.bin = root / "bin"
        self.triton = root / "opt" / "tritonserver"
        script(self.bin / "mpirun", MPIRUN)
        script(self.bin / "nvidia-smi", NVIDIA_SMI)
        script(self.triton / "bin" / "tritonserver", TRITONSERVER)
        for part in ("python/triton_python_backend_stub", "tensorrtllm/libtriton_tensorrtllm.so",
                     "tensorrtllm/trtllmExecutorWorker"):  # fmt: skip
            path = self.triton / "backends" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        monkeypatch.setattr("step_audio_server.launch.gpu_image.TRITON", self.triton)
        monkeypatch.setattr(launch, "KILL_AFTER_ON_GPU", 5)
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        monkeypatch.setenv("STAND_IN_DIR", str(self.notes))
        # Its own, or what a test leaves whose servers are killed without a look would fail all those behind it.
        monkeypatch.setenv("STAND_IN_TAG", f"stand_in_{os.getpid()}_{next(_machines)}")
        monkeypatch.setenv("STAND_IN_WORLD", str(gpus))
        monkeypatch.setenv("STAND_IN_GPUS", ";".join([f"{name}, 9.0, 81559, 590.44.01"] * gpus))
        monkeypatch.delenv("STAND_IN", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self._monkeypatch = monkeypatch

    @property
    def tritonserver(self) -> Path:
        return self.triton / "bin" / "tritonserver"

    def fault(self, name: str) -> None:
        self._monkeypatch.setenv("STAND_IN", name)

    def calls(self, program: str) -> list:
        """How `program` ("mpirun", "rank2") was called, each time."""
        path = self.notes / f"{program}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def events(self) -> list[str]:
        path = self.notes / "events"
        return path.read_text().splitlines() if path.exists() else []
