"""The worker of a step, a process of its own: `python -m step_audio.steps.worker STEP RUNTIME_FILE SOCKET`."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Protocol

from step_audio.steps.channel import Channel, Frame
from step_audio.steps.runtime import Runtime
from step_audio.steps.tensors import Failed, Reply, Tensors, packed, unpacked
from step_audio.steps.worker_client import BROKEN

NICENESS = 5  # below the LLM and the server, which must never wait for a recording to be decoded


class Step(Protocol):
    """What a worker does. One request's failure is its own."""

    def submit(self, inputs: Tensors, reply: Reply) -> None:
        """Have it done, in a thread of the step's; `reply` is called once, unless this raises."""


def load(name: str, runtime: Runtime) -> Step:
    """Imported here: each worker needs its own libraries alone. Raises StepAudioError."""
    if name == "audio_featurizer":
        from step_audio.steps.featurizer import FeaturizerStep

        return FeaturizerStep(runtime)
    if name == "prompt_builder":
        from step_audio.steps.prompt_builder import PromptBuilderStep

        return PromptBuilderStep(runtime)
    from step_audio.steps.encoder_engine import AudioEncoderStep

    return AudioEncoderStep(runtime)


def main(name: str, runtime_file: str, descriptor: str) -> None:
    """Works until the stub hangs up."""
    logging.basicConfig(format=f"{name}: %(levelname)s: %(message)s")
    os.nice(NICENESS)
    channel = Channel(socket.socket(fileno=int(descriptor)))

    def send(number: int, result: Tensors | Failed) -> None:
        frame = Frame.of(result if isinstance(result, Failed) else packed(result))
        try:
            channel.send(number, frame)
        except OSError:  # the stub is gone, and nobody wants it
            os._exit(0)
        finally:
            frame.close()

    try:
        step = load(name, Runtime.load(runtime_file))
    except Exception as error:
        send(BROKEN, Failed.of(error))
        raise SystemExit(1) from None
    while True:
        try:
            number, inputs = channel.receive()
        except EOFError:
            os._exit(0)  # at once, whatever is being computed

        def reply(result: Tensors | Exception, number: int = number) -> None:
            send(number, Failed.of(result) if isinstance(result, Exception) else result)

        try:
            step.submit(unpacked(inputs), reply)
        except Exception as error:
            reply(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
