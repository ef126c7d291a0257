"""What travels between a step's stub and its worker."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from step_audio.arrays import AnyArray
from step_audio.errors import Code, InvalidRequest, StepAudioError

# Of one step, or of the LLM: more gets an error.
MAX_PENDING = 1024  # requests that wait or are worked on
MAX_PENDING_BYTES = 2 << 30  # of their inputs, which are kept until they are answered; one alone may have more
INTERNAL_ERROR = "internal error; the server's log has the details"

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Bfloat16:
    """A tensor of a type that numpy does not have: its bits."""

    bits: npt.NDArray[np.uint16]


Tensor = npt.NDArray[Any] | Bfloat16 | list[bytes]  # the last one is BYTES, flat; in a stub, large ones are views
Tensors = dict[str, Tensor]  # by name, with their batch dimension
Reply = Callable[[Tensors | Exception], None]


@dataclass(frozen=True)
class Failed:
    """A request's error on its way back."""

    code: Code
    text: str
    param: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """What a client may see: errors that are meant for it as they are, of any other only that there was one."""
        if isinstance(error, StepAudioError) and error.code is not Code.INTERNAL:
            return cls(error.code, str(error), error.param)
        if not (isinstance(error, StepAudioError) and str(error) == INTERNAL_ERROR):  # it has been logged
            log.error("a step failed", exc_info=error)
        return cls(Code.INTERNAL, INTERNAL_ERROR)

    def error(self) -> StepAudioError:
        return StepAudioError(self.text, self.param, self.code)


def triton_error(pb_utils: Any, error: Exception) -> Any:
    """As Triton is to send it: `pb_utils.TritonError`."""
    failed = Failed.of(error)
    text = failed.code.put_before(failed.text, failed.param)
    return pb_utils.TritonError(text, getattr(pb_utils.TritonError, failed.code.triton))


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """For `Frame.of`: byte strings as buffers, which are not copied into the pickle."""
    return {
        name: [pickle.PickleBuffer(element) for element in tensor] if isinstance(tensor, list) else tensor
        for name, tensor in tensors.items()
    }


def unpacked(message: Mapping[str, Any]) -> Tensors:
    """What `packed` made, received: byte strings, none of them views."""
    return {
        name: [bytes(element) for element in tensor] if isinstance(tensor, list) else tensor
        for name, tensor in message.items()
    }


def byte_strings(inputs: Tensors, name: str) -> list[bytes]:
    """The elements of a BYTES tensor; none where it was not sent."""
    value = inputs.get(name, [])
    assert isinstance(value, list)  # Triton has checked its type
    return value


def one(inputs: Tensors, name: str) -> bytes | None:
    """The only element of a BYTES tensor, None where it was not sent. Raises InvalidRequest for a batch."""
    values = byte_strings(inputs, name)
    if len(values) > 1:
        raise InvalidRequest(f"{name}: a batch of {len(values)}, send one request at a time", name)
    return values[0] if values else None


def row(inputs: Tensors, name: str) -> npt.NDArray[Any] | None:
    """A tensor without its batch dimension, None where it was not sent. Raises InvalidRequest for a batch: an ensemble
    sends one request at a time, and Triton batches by handing over several."""
    value = inputs.get(name)
    if value is None:
        return None
    assert isinstance(value, np.ndarray)
    if len(value) != 1:
        raise InvalidRequest(f"{name}: a batch of {len(value)}, send one request at a time", name)
    inner: AnyArray = value[0]
    return inner


def scalar(inputs: Tensors, name: str) -> Any:
    """As `row`, of a tensor that holds one value. Raises InvalidRequest, too, for one that does not."""
    value = row(inputs, name)
    if value is None:
        return None
    if value.size != 1:
        raise InvalidRequest(f"{name}: {value.size} values, send one", name)
    return value.item()


def required(inputs: Tensors, name: str) -> AnyArray:
    """As `row`. Raises InvalidRequest, too, for one that was not sent."""
    value = row(inputs, name)
    if value is None:
        raise InvalidRequest(f"missing required input '{name}'", name)
    return value
