"""How a test looks at a running engine: until it is idle, and slowly."""

import time

import numpy as np

from engine_fixture import HIDDEN
from waiting import wait_until

TABLE = np.zeros((4, HIDDEN), np.float32)  # a prompt table of four rows


def idle(engine):
    """Every block back, nobody active."""
    wait_until(lambda: not (engine.stats().active_requests or engine.stats().kv_blocks_used), "the end of all")
    return engine.stats()


class SlowExecutor:
    """Gives a test time to act between steps."""

    def __init__(self, inner, seconds):
        self.inner, self.seconds = inner, seconds

    def forward(self, batch):
        time.sleep(self.seconds)
        return self.inner.forward(batch)
