"""Triton backend `tensorrtllm` for machines without a GPU: moves tensors, the rest is `step_audio`.

Triton takes this file for every model whose configuration says `backend: "tensorrtllm"` when
`--backend-directory` holds it; in NVIDIA's image that name is their C++ backend.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import triton_python_backend_utils as pb_utils

from step_audio.arrays import AnyArray
from step_audio.errors import StepAudioError
from step_audio.steps import dlpack
from step_audio.steps.memory import give_back, reuse_blocks, tidier
from step_audio.steps.tensors import triton_error
from step_audio.steps.trtllm.backend import TrtllmBackend
from step_audio.steps.trtllm.metrics import readings
from step_audio.steps.trtllm.response import Send
from step_audio.tracing import given

TABLE = "prompt_embedding_table"
OF_THE_ENGINE_S_TYPE = (TABLE, "lora_weights")


class TritonPythonModel:
    """Triton's entry: hands requests to `TrtllmBackend`, and its answers and counters back."""

    def initialize(self, args: dict[str, str]) -> None:
        reuse_blocks()
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        try:
            self.backend = TrtllmBackend(parameters)
        except StepAudioError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.bfloat16 = any(i["name"] == TABLE and i["data_type"] == "TYPE_BF16" for i in config["input"])
        self.labels = {"model": args["model_name"], "version": args["model_version"]}
        self.gauges: dict[tuple[str, str], pb_utils.Metric] = {}
        self.closing = threading.Event()
        self.reporter = threading.Thread(target=self._report, daemon=True)
        self.reporter.start()

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            names = set(request.requested_output_names())
            send = _send(sender, names)
            try:
                tensors = {tensor.name(): _array(tensor, self.bfloat16) for tensor in request.inputs()}
            except Exception as error:  # of this request's inputs
                send(None, error, True)
                continue
            context = given(request.parameters()) if self.backend.traced else None
            self.backend.submit(request.request_id(), tensors, names, send, sender.is_cancelled, context)

    def finalize(self) -> None:
        self.closing.set()
        self.reporter.join()
        self.backend.shutdown()

    def _report(self) -> None:
        """Gauges of the engine, under the C++ backend's names; only what changed is sent, for a set costs 50 us."""
        families: dict[str, pb_utils.MetricFamily] = {}
        last: dict[tuple[str, str], float] = {}
        while not self.closing.wait(self.backend.stats_period):
            for reading in readings(self.backend.stats()):
                key = (reading.family, reading.value_of)
                if key not in self.gauges:
                    if reading.family not in families:
                        families[reading.family] = pb_utils.MetricFamily(
                            name=reading.family, description=reading.description, kind=pb_utils.MetricFamily.GAUGE
                        )
                    self.gauges[key] = families[reading.family].Metric(
                        labels={**self.labels, reading.label: reading.value_of}
                    )
                if last.get(key) != reading.value:
                    self.gauges[key].set(reading.value)
                    last[key] = reading.value


def _array(tensor: pb_utils.Tensor, bfloat16: bool) -> AnyArray:
    if tensor.name() not in OF_THE_ENGINE_S_TYPE:
        return tensor.as_numpy()
    # Copies, for the memory is Triton's again when the request has been taken.
    table = dlpack.bfloat16_bits(tensor.to_dlpack()) if bfloat16 else tensor.as_numpy().copy()
    give_back(tensor)
    tidier().saw(table.nbytes)
    return table


def _send(sender: pb_utils.ResponseSender, names: AbstractSet[str]) -> Send:
    def send(tensors: dict[str, AnyArray] | None, error: Exception | None, final: bool) -> None:
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        if error is not None:
            sender.send(pb_utils.InferenceResponse(error=triton_error(pb_utils, error)), flags=flags)
        elif tensors is not None:
            outputs = [pb_utils.Tensor(name, array) for name, array in tensors.items() if name in names]
            sender.send(pb_utils.InferenceResponse(outputs), flags=flags)

    return send
