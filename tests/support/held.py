"""What the processes of a server hold."""

from __future__ import annotations

from pathlib import Path

from step_audio_server.processes import SHARED_MEMORY, role, tree

SHARED = "/dev/shm"
MIB = 1 << 20


def held(leader: int, prefix: str) -> dict[str, float]:
    """MiB by role of `leader` and the processes below it, and of the shared memory whose names begin with `prefix`.

    A process's share of what is resident (PSS).
    """
    found: dict[str, float] = {}
    for pid in sorted(tree(leader)):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        found[role(pid)] = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    found[SHARED] = sum(path.stat().st_blocks * 512 for path in SHARED_MEMORY.glob(f"{prefix}*")) / MIB
    return found
