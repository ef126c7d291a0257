"""A client that takes responses, and a stream to it."""

import threading
import time
from collections.abc import Callable

from step_audio.engine.request import SequenceOutput
from step_audio.steps.tensors import Failed
from step_audio.steps.trtllm.request import ResponseOptions
from waiting import SECONDS


def options(**given: bool) -> ResponseOptions:
    names = ("streaming", "exclude_input", "log_probs", "perf_metrics", "num_input_tokens", "num_output_tokens")
    defaults = dict.fromkeys(names, False) | {"streaming": True, "several_answers": True}
    return ResponseOptions(**(defaults | given))


def index(tensors: dict, name: str) -> int:
    """Left out where there is only one."""
    return tensors[name].item() if name in tensors else 0


class Client:
    """Takes what is sent; `slow` seconds a response, or a function that draws them."""

    def __init__(self, slow: float | Callable[[], float] = 0, fails: bool = False):
        self.responses: list[tuple[dict | None, str | None, bool]] = []
        self.done = threading.Event()
        self._changed = threading.Condition()
        self.slow, self.fails = slow, fails

    def __call__(self, tensors, error, final) -> None:
        time.sleep(self.slow() if callable(self.slow) else self.slow)
        with self._changed:
            self.responses.append((tensors, error, final))
            self._changed.notify_all()
        if final:
            self.done.set()
        if self.fails:
            raise RuntimeError("the client is gone")

    def wait(self) -> "Client":
        assert self.done.wait(SECONDS), "no final response"
        time.sleep(0.02)  # for what must not follow
        assert all(any(response) for response in self.responses), "Triton refuses a response of nothing"
        assert all(tensors is not None for tensors, error, _ in self.responses if not error)
        assert [final for *_, final in self.responses] == [False] * (len(self.responses) - 1) + [True]
        return self

    def wait_for(self, count: int) -> None:
        """So many responses."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.responses) >= count, SECONDS), "no response"

    def tokens(self, row: int = 0, sequence: int = 0) -> list[int]:
        return [
            token
            for tensors, *_ in self.responses
            if tensors and (index(tensors, "batch_index"), index(tensors, "sequence_index")) == (row, sequence)
            for token in tensors["output_ids"].reshape(-1).tolist()
        ]

    @property
    def errors(self) -> list[str]:
        return [Failed.of(error).text for _, error, _ in self.responses if error]


def output(*tokens: int, sequence: int = 0, finished=None, final: bool = False, **others) -> SequenceOutput:
    values = {"log_probs": [], "cum_log_prob": 0.0} | others
    return SequenceOutput("id", sequence, list(tokens), finished=finished, final=final, **values)
