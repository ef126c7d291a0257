"""What every Python step of the repository does the same way: read optional inputs, answer with errors.

`pb_utils` is handed in, because that module exists only inside Triton's Python backend.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from step_audio.errors import InvalidRequest, StepAudioError

INTERNAL_ERROR = "internal error; the server's log has the details"

log = logging.getLogger(__name__)


def optional(pb_utils: Any, request: Any, name: str) -> np.ndarray | None:
    """The input's array with its batch dimension, None if it was not sent. Raises InvalidRequest for a batch:
    the ensemble sends one request at a time, and Triton batches by handing over several."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    array = tensor.as_numpy()
    if len(array) != 1:
        raise InvalidRequest(f"{name}: a batch of {len(array)}, send one request at a time")
    return array


def guarded(pb_utils: Any, work: Callable[[Any], list], request: Any) -> Any:
    """`work(request)`'s tensors as a response; a failure becomes this one request's error, its neighbours go on."""
    try:
        return pb_utils.InferenceResponse(work(request))
    except Exception as error:
        return failed(pb_utils, error)


def failed(pb_utils: Any, error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(readable(error)))


def readable(error: Exception) -> str:
    """What a client may see: our own errors as they are, of any other only that there was one."""
    if isinstance(error, StepAudioError):
        return str(error)
    log.error("a step failed", exc_info=error)
    return INTERNAL_ERROR
