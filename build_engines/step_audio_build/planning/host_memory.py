"""The memory of the machine that builds, and how much of it `trtllm-build` takes."""

from __future__ import annotations

from pathlib import Path

from step_audio_build.planning.memory_plan import MemoryPlan

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2: the limits of a container

# Of its weights, "typically at least": those of the network, and those within the engine
# (docs.nvidia.com/deeplearning/tensorrt/latest/architecture/how-trt-works.html, "The Build Phase").
COPIES = 2


def build_memory(plan: MemoryPlan, workers: int) -> int:
    """At least this many bytes, with so many ranks at once."""
    return COPIES * plan.weights * workers


def workers_that_fit(plan: MemoryPlan) -> int:
    """Ranks that can be built at once, 0 where there is too little memory for a single one."""
    return min(plan.profile.gpus, memory()[1] // max(build_memory(plan, 1), 1))


def memory() -> tuple[int, int]:
    """Bytes: total, available. The machine's, or the container's where that is less."""
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    total, available = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    limit = _number(CGROUP / "memory.max")
    if limit is not None and limit < total:
        total, available = limit, max(min(available, limit - _used()), 0)
    return total, available


def _used() -> int:
    """By the container, without cached files: those that a stage before has just written make room when asked to."""
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        lines = []
    cached = sum(int(size) for name, size in map(str.split, lines) if name in ("active_file", "inactive_file"))
    return max((_number(CGROUP / "memory.current") or 0) - cached, 0)


def _number(path: Path) -> int | None:
    """None for what is not there, and for "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
