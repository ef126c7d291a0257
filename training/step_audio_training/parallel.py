"""The batches of one step computed side by side, by processes that share the weights.

One thread each: on a CPU that is faster than several threads on one batch, which wait for each other at every layer.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
from torch import multiprocessing, nn

from step_audio.errors import StepAudioError
from step_audio_training.collation import TrainingBatch

Losses = Callable[[TrainingBatch, bool], dict[str, float]]
"""Of a batch, and whether the encoder learns: adds to the gradients, and returns figures."""


class SideBySide:
    """`losses` of several batches, each by a process of its own but the first, which is the caller's."""

    def __init__(self, model: nn.Module, losses: Losses, processes: int):
        """`processes` that compute, this one counted. Where there are others, the model is on the CPU, and its weights
        are shared from now on."""
        self.parameters, self.losses = list(model.parameters()), losses
        self.threads = torch.get_num_threads()
        self.others: list[tuple[Connection, list[torch.Tensor]]] = []
        self.processes: list[BaseProcess] = []
        if processes == 1:
            return
        torch.set_num_threads(1)
        model.share_memory()
        context = multiprocessing.get_context("fork")
        for _ in range(processes - 1):
            gradients = [torch.zeros_like(parameter).share_memory_() for parameter in self.parameters]
            ours, theirs = context.Pipe()
            self.others.append((ours, gradients))
            self.processes.append(context.Process(target=self._serve, args=(theirs, gradients), daemon=True))
            self.processes[-1].start()
            theirs.close()

    def compute(self, batches: Sequence[TrainingBatch], encoder_learns: bool) -> dict[str, float]:
        """The mean of their gradients lies in the parameters then; returns the mean of their figures.

        Raises StepAudioError where one of the processes has ended.
        """
        sent = []
        with _ended_is_told():
            for (connection, gradients), batch in zip(self.others, batches[1:], strict=False):
                connection.send((batch, encoder_learns))
                sent.append((connection, gradients))
        rest = [batches[0], *batches[1 + len(sent) :]]
        figures = [self.losses(batch, encoder_learns) for batch in rest]
        for connection, gradients in sent:
            with _ended_is_told():
                figures.append(connection.recv())
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if parameter.grad is not None:
                    parameter.grad += gradient
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= len(batches)
        return {name: sum(row[name] for row in figures) / len(figures) for name in figures[0]}

    def close(self) -> None:
        """The other processes end. They are told so: one begun since, which makes data, holds their pipes open."""
        for connection, _ in self.others:
            with suppress(OSError):  # it has ended, or has been told
                connection.send(None)
            connection.close()
        for process in self.processes:
            process.join()
        torch.set_num_threads(self.threads)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The others wait: this process has all threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        yield
        torch.set_num_threads(before)

    def _serve(self, connection: Connection, gradients: Sequence[torch.Tensor]) -> None:
        """In a process of its own, until the other ends. Signals are the training's affair, which ends it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for ours, _ in self.others:  # else nobody would ever hear that the first process has ended
            ours.close()
        torch.set_num_threads(1)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        while True:
            try:
                wanted = connection.recv()
            except EOFError:
                return
            if wanted is None:
                return
            batch, encoder_learns = wanted
            for gradient in gradients:
                gradient.zero_()
            connection.send(self.losses(batch, encoder_learns))


@contextmanager
def _ended_is_told() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise StepAudioError(
            "a process of the training was killed, for memory perhaps; the same command goes on from the last state "
            "saved, and --processes 1 needs less memory"
        ) from error
