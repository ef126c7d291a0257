"""Whether tritonserver lives while its clients leave short streams early: `hammer.py [--seconds 40]`.

Once they cancel what they leave, once they stop it and read it to its end, as the client library does. The models are
the smallest that stream: nothing of the product is in it but the way it starts a server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import grpc
import numpy as np

from step_audio_client import wire
from step_audio_server.launch.cpu_launch import cpu_launch
from step_audio_server.launch.installation import Installation
from step_audio_server.launch.ports import Ports, free_ports

WIDE = 48
PATIENCE = 10  # seconds for an answer of milliseconds
CONFIG = """
name: "count"
backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "n", data_type: TYPE_INT32, dims: [ 1 ] } ]
output [ { name: "k", data_type: TYPE_INT32, dims: [ 1 ] } ]
instance_group [ { count: 1, kind: KIND_CPU } ]
"""
MODEL = """
import queue, threading
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    '''Counts to n; asked for 0 it ends what goes under the same id.'''

    def initialize(self, args):
        self.todo, self.stopped = queue.SimpleQueue(), set()
        for _ in range(4):
            threading.Thread(target=self.work, daemon=True).start()

    def execute(self, requests):
        for request in requests:
            n = int(request.inputs()[0].as_numpy()[0])
            if n == 0:
                self.stopped.add(request.request_id())
            self.todo.put((request.request_id(), 0, n, request.get_response_sender()))

    def work(self):
        while True:
            id_, k, n, sender = self.todo.get()
            if k == n or id_ in self.stopped:
                sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            sender.send(pb.InferenceResponse([pb.Tensor("k", np.array([k], np.int32))]))
            self.todo.put((id_, k + 1, n, sender))
"""


def count(id_: str, n: int):
    return wire.infer_request("count", id_, {"n": np.array([n], np.int32)})


async def read(call, responses: float) -> bool:
    """So many, or up to the last."""
    while responses > 0:
        message = await call.read()
        if message is grpc.aio.EOF or message.infer_response.parameters["triton_final_response"].bool_param:
            return True
        responses -= 1
    return False


async def end(call) -> None:
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass


async def answer(stub, cancels: bool) -> None:
    id_, n = uuid4().hex, random.choice([1, 2, 3, 5, 8])
    call = stub.ModelStreamInfer()
    await call.write(count(id_, n))
    if not await read(call, random.randrange(n + 2) if random.random() < 0.6 else float("inf")):
        if random.random() < 0.5:
            await asyncio.sleep(random.random() * 0.004)
        if cancels:
            call.cancel()
            return
        stop = stub.ModelStreamInfer()
        await stop.write(count(id_, 0))
        await read(stop, float("inf"))
        await end(stop)
        await read(call, float("inf"))
    await end(call)


async def hammer(address: str, cancels: bool, seconds: float, alive) -> int:
    """How many answers there were until the end, or the server's."""
    until, done = time.monotonic() + seconds, 0
    async with wire.channel(address) as channel:
        stub = wire.Stub(channel)

        async def client():
            nonlocal done
            while time.monotonic() < until and alive():
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    async with asyncio.timeout(PATIENCE):
                        await answer(stub, cancels)
                    done += 1

        await asyncio.gather(*(client() for _ in range(WIDE)), return_exceptions=True)
    return done


def tried(folder: Path, cancels: bool, seconds: float) -> str:
    installation = Installation.find()
    (folder / "models" / "count" / "1").mkdir(parents=True)
    (folder / "models" / "count" / "config.pbtxt").write_text(CONFIG)
    (folder / "models" / "count" / "1" / "model.py").write_text(MODEL)
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (*(installation.backends / "python").iterdir(), installation.stub):
        (backend / file.name).symlink_to(file)
    grpc_port, http, metrics = free_ports(3)
    launch = cpu_launch(
        installation, folder / "models", backend.parent, Ports(grpc_port, http, metrics), drain_timeout=1
    )
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(launch.command, env=os.environ | launch.environment, stdout=file, stderr=file)
    try:
        while "Started GRPCInferenceService" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        done = asyncio.run(hammer(f"127.0.0.1:{grpc_port}", cancels, seconds, lambda: process.poll() is None))
        if process.poll() is not None:
            return f"{done} answers, then it died of signal {-process.returncode}"
        return f"{done} answers, and it lives"
    finally:
        process.kill()
        process.wait()
        for region in Path("/dev/shm").glob(f"{launch.prefix}*"):
            region.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40)
    seconds = parser.parse_args().seconds
    for cancels, way in ((True, "cancelled"), (False, "stopped and read to the end")):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{way}: {tried(Path(folder), cancels, seconds)}", flush=True)


if __name__ == "__main__":
    main()
