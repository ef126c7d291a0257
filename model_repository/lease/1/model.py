"""Triton model `lease`: ends answers whose clients are gone; what it knows is `step_audio.steps.leases`.

It shows the counters of the run directory, too, for it is the one model that always computes nothing."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from step_audio.counters import LEASES_EXPIRED, Counters
from step_audio.steps.counter_report import CounterReport
from step_audio.steps.leases import Leases, Reason

LLM = "tensorrt_llm"


class TritonPythonModel:
    """Triton's name for it."""

    def initialize(self, args):
        run_dir = Path(json.loads(args["model_config"])["parameters"]["run_dir"]["string_value"])
        counters = Counters(run_dir, "lease", [(LEASES_EXPIRED, reason) for reason in Reason])
        self.leases = Leases(_stop, lambda reason: counters.count(LEASES_EXPIRED, reason))
        self.report = CounterReport(pb_utils, run_dir)

    def execute(self, requests):
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy().reshape(-1)[0].item() for tensor in request.inputs()}
            self.leases.handle(request.request_id(), inputs["open"], inputs.get("seconds"), _Holder(request))
        return None

    def finalize(self):
        self.report.close()
        self.leases.close()


class _Holder:
    """Who holds a lease: the request that opened it."""

    def __init__(self, request):
        self.sender = request.get_response_sender()

    def is_gone(self):
        return self.sender.is_cancelled()

    def end(self, error=None):
        response = None if error is None else pb_utils.InferenceResponse(error=pb_utils.TritonError(error))
        arguments = () if response is None else (response,)
        self.sender.send(*arguments, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _stop(request_id):
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
