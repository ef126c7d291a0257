"""Triton model `lease`: ends answers whose clients are gone; what it knows is `step_audio.steps.leases`.

It shows the counters of the run directory, too, for it is the one model that always computes nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from step_audio.counters import LEASES_EXPIRED, Counters
from step_audio.serving_info import LLM
from step_audio.steps.counter_report import CounterReport
from step_audio.steps.leases import Leases, Reason
from step_audio.steps.tensors import Tensors, triton_error

log = logging.getLogger(__name__)


class TritonPythonModel:
    """Triton's name for it."""

    def initialize(self, args: dict[str, str]) -> None:
        logging.basicConfig(format="lease: %(levelname)s: %(message)s")
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        run_dir = Path(parameters["run_dir"])
        counters = Counters(run_dir, "lease", [(LEASES_EXPIRED, reason) for reason in Reason])
        self.leases = Leases(
            _stop,
            float(parameters["max_seconds_without_lease"]),
            lambda reason: counters.count(LEASES_EXPIRED, reason),
        )
        self.report = CounterReport(pb_utils, run_dir)

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[None]:
        for request in requests:
            holder = _Holder(request)
            try:
                inputs: Tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                self.leases.handle(request.request_id(), inputs, holder)
            except Exception as error:  # this request's own
                holder.end(error)
        return [None] * len(requests)

    def finalize(self) -> None:
        self.report.close()
        self.leases.close()


class _Holder:
    """A request, answered by its sender: at once, or when its lease ends."""

    def __init__(self, request: pb_utils.InferenceRequest):
        self.sender = request.get_response_sender()

    def is_gone(self) -> bool:
        return self.sender.is_cancelled()

    def end(self, answer: Tensors | Exception) -> None:
        """Never raises: whose client is gone cannot be answered."""
        if isinstance(answer, Exception):
            response = pb_utils.InferenceResponse(error=triton_error(pb_utils, answer))
        else:
            response = pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, np.asarray(array)) for name, array in answer.items()]
            )
        try:
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:
            log.warning("a response could not be sent", exc_info=True)


def _stop(request_id: str) -> None:
    one = np.ones((1, 1), np.int32)
    required = ("input_ids", "input_lengths", "request_output_len")  # by the model's configuration, not read
    request = pb_utils.InferenceRequest(
        model_name=LLM,
        request_id=request_id,
        requested_output_names=["output_ids", "sequence_length"],
        inputs=[pb_utils.Tensor(name, one) for name in required] + [pb_utils.Tensor("stop", one.astype(bool))],
    )
    for _ in request.exec(decoupled=True):
        pass
