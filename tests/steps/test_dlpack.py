"""bfloat16 over DLPack, against torch, which speaks it natively."""

import numpy as np
import pytest

from lazy import Lazy
from step_audio.steps import dlpack

torch = Lazy("torch")

SHAPES = [(1,), (0,), (3, 0, 2), (1, 7, 64), (2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_reads_what_is_written(shape):
    values = torch.randn(shape, generator=torch.manual_seed(0)).to(torch.bfloat16)
    bits = values.view(torch.int16).numpy().view(np.uint16)
    read = torch.from_dlpack(dlpack.bfloat16_capsule(bits.copy()))  # the copy lives as long as the tensor
    assert read.dtype == torch.bfloat16 and read.shape == values.shape and torch.equal(read, values)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_torch_writes_is_read(shape):
    values = torch.randn(shape, generator=torch.manual_seed(1)).to(torch.bfloat16)
    bits = dlpack.bfloat16_bits(torch.utils.dlpack.to_dlpack(values))
    np.testing.assert_array_equal(bits, values.view(torch.int16).numpy().view(np.uint16))


def test_a_view_is_read_from_where_it_begins():
    values = torch.arange(12, dtype=torch.float32).to(torch.bfloat16).reshape(3, 4)[1:]
    bits = dlpack.bfloat16_bits(torch.utils.dlpack.to_dlpack(values))
    np.testing.assert_array_equal(bits, values.contiguous().view(torch.int16).numpy().view(np.uint16))


def test_memory_is_given_back():
    for _ in range(3):
        torch.from_dlpack(dlpack.bfloat16_capsule(np.zeros((4, 4), np.uint16)))
    assert not dlpack._alive


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
def test_other_types_are_refused(dtype):
    values = torch.zeros(3, dtype=getattr(torch, dtype))
    with pytest.raises(ValueError, match="bfloat16"):
        dlpack.bfloat16_bits(torch.utils.dlpack.to_dlpack(values))
