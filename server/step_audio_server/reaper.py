"""Clears up behind a `step-audio serve` that was killed: `python -m step_audio_server.reaper LEADER PREFIX SECONDS`.

It waits for the end of its standard input, which is that of its parent. Without it the server would stay and hold the
ports; stopped, it leaves a model's process that computes, and shared memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from step_audio.settings import children_environment
from step_audio_server import processes


class Reaper:
    """For the session that `leader` began, the shared memory regions of `prefix`, and those of ranks.

    `patience`: seconds that the processes have to end by themselves.
    """

    def __init__(self, leader: int, prefix: str, patience: float):
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "step_audio_server.reaper", str(leader), prefix, str(patience)],
            env=children_environment(),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """There is nothing left to clear up."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def main(leader: int, prefix: str, patience: float) -> None:
    os.nice(5)
    while os.read(0, 1024):
        pass
    regions = processes.ranks_regions(processes.session(leader))
    processes.kill([leader], signal.SIGTERM)
    deadline = time.monotonic() + patience
    while processes.session(leader) and time.monotonic() < deadline:
        time.sleep(0.1)
    regions |= processes.end_session(leader)
    processes.remove_regions(prefix, regions)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
