"""Messages between stub and worker: what is sent comes out, whatever way it goes."""

import socket

import numpy as np

from step_audio.steps.channel import INLINE, Channel, Frame
from step_audio.steps.tensors import packed, unpacked


def received(message):
    ours, theirs = socket.socketpair()
    frame = Frame.of(packed(message))
    Channel(ours).send(7, frame)
    frame.close()
    number, got = Channel(theirs).receive()
    assert number == 7
    return unpacked(got)


def test_small_and_large_messages_come_out_as_they_were():
    for size in (0, 1, INLINE, INLINE + 1, 3 * INLINE):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        numbers = np.arange(size, dtype=np.float32).reshape(1, -1)
        got = received({"audio": [b"first", data, memoryview(data)], "mel": numbers, "frames": np.int32([[3]])})
        assert got["audio"] == [b"first", data, data] and {type(string) for string in got["audio"]} == {bytes}
        np.testing.assert_array_equal(got["mel"], numbers)
        assert got["mel"].dtype == np.float32 and got["frames"].tolist() == [[3]]
        got["mel"] += 1  # whoever gets an array may work in it


def test_arrays_that_may_only_be_read_are_sent_too():
    frozen = np.arange(INLINE, dtype=np.int32)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(received({"ids": frozen, "mel": np.zeros(INLINE)})["ids"], frozen)
