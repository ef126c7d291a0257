"""A worker that does what the request says: answers, takes its time, or dies."""

import os
import socket
import sys
import threading
import time

from step_audio.errors import ArtefactError, InvalidRequest
from step_audio.steps.channel import Channel, Frame
from step_audio.steps.tensors import Failed, packed, unpacked
from step_audio.steps.worker_client import BROKEN


def main(mode: str, descriptor: str) -> None:
    channel = Channel(socket.socket(fileno=int(descriptor)))

    def reply(number, result):
        frame = Frame.of(result if isinstance(result, Failed) else packed(result))
        channel.send(number, frame)
        frame.close()

    if mode == "broken":
        reply(BROKEN, Failed.of(ArtefactError("no encoder.onnx")))
        return
    while True:
        number, message = channel.receive()
        inputs = unpacked(message)
        (word,) = inputs["word"]
        if word == b"die":
            os._exit(9)
        if word == b"refuse":
            reply(number, Failed.of(InvalidRequest("not that")))
        elif word == b"late":
            threading.Timer(0.5, reply, [number, inputs]).start()
        elif word == b"hang":
            time.sleep(3600)
        else:
            reply(number, inputs)


main(*sys.argv[1:])
