"""Memory, shared memory, disk, ports, permissions: what any machine needs, and how much of it a profile does."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from pathlib import Path

from step_audio.checkpoint_faults import checkpoint_faults
from step_audio.errors import ArtefactError
from step_audio_build.planning import host_memory
from step_audio_build.planning.memory_plan import MemoryPlan
from step_audio_build.planning.profiles import Profile
from step_audio_build.stages.calibration import calibration_fault
from step_audio_build.stages.repository import read_built
from step_audio_server.doctor.finding import Finding, fault, in_words, ok, warning
from step_audio_server.processes import SHARED_MEMORY

SHM_NEEDED = 2 << 30  # bytes; a container's default of 64 MB is filled by one long recording
LITTLE_DISK = 1 << 30  # bytes; the small model's artefacts and logs take less


def memory(plan: MemoryPlan | None) -> Finding:
    """`plan`: of a build that is still to be done."""
    total, available = host_memory.memory()
    found = f"{in_words(available)} of {in_words(total)} available"
    if plan is None:
        return ok("memory", found)
    workers, ranks = host_memory.workers_that_fit(plan), plan.profile.gpus
    if not workers:
        needed = in_words(host_memory.build_memory(plan, 1))
        return fault("memory", found, f"building takes {needed} for each rank: end other programs, add memory")
    if workers < ranks:
        needed = in_words(host_memory.build_memory(plan, ranks))
        return warning("memory", found, f"room for building {workers} of {ranks} ranks at once: {needed} for all")
    return ok("memory", found)


def shared_memory(needed_here: bool) -> Finding:
    """`needed_here`: for a profile, whose server cannot do with less."""
    space = shutil.disk_usage(SHARED_MEMORY)
    found = f"{in_words(space.free)} of {in_words(space.total)} free"
    if space.free >= SHM_NEEDED:
        return ok("/dev/shm", found)
    if space.total >= SHM_NEEDED:
        return warning("/dev/shm", found, "see what fills it with ls -l /dev/shm; killed servers leave step_audio_*")
    echo = fault if needed_here else warning
    return echo("/dev/shm", found, "give the container more, --shm-size=16g; recordings and ranks pass through it")


def disk(work_dir: Path, to_write: int | None) -> Finding:
    """`to_write`: what a profile's build has still to write; None without a profile."""
    place = _existing(work_dir)
    free = shutil.disk_usage(place).free
    needed = max(to_write or 0, LITTLE_DISK)
    found = f"{in_words(free)} free in {place}"
    if free >= needed:
        return ok("disk", found)
    advice = f"{in_words(needed)} are needed: free some, or choose another --work-dir"
    return (warning if to_write is None else fault)("disk", found, advice)


def ports(wanted: dict[str, int]) -> Finding:
    """`wanted`: flag -> port. A port in use may well be this server's own."""
    taken = {flag: port for flag, port in wanted.items() if not _free(port)}
    if taken:
        flags = ", ".join(f"{flag} ({port})" for flag, port in taken.items())
        return warning("ports", f"in use: {', '.join(map(str, taken.values()))}", f"another server here? else {flags}")
    return ok("ports", f"{', '.join(map(str, sorted(wanted.values())))} are free")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def permissions(work_dir: Path) -> Finding:
    """Of the folder that a server writes to."""
    user = f"user {os.geteuid()}"
    place = _existing(work_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        advice = f"chown -R {os.geteuid()} {place}, or choose another --work-dir"
        return fault("permissions", f"{place} is not writable by {user}", advice)
    return ok("permissions", f"{place} is writable by {user}")


def checkpoint(directory: Path) -> list[Finding]:
    """All that conversion, check and serving will read of it."""
    faults = checkpoint_faults(directory)
    if not faults:
        return [ok("checkpoint", f"{directory} is whole")]
    return [fault("checkpoint", said, "mend it first: a late stage of the build would fail") for said in faults]


def calibration(data: str, script: Path) -> list[Finding]:
    """Of a build to fp8 or awq: NVIDIA's quantiser, and the text that it reads."""
    findings = []
    if not script.is_file():
        findings.append(fault("calibration", f"{script} is not there", "the image has it; else give --quantize-script"))
    if said := calibration_fault(data):
        what, _, advice = said.rpartition(": ")
        findings.append(fault("calibration", what or said, advice))
    return findings or [ok("calibration", data)]


def engines(profile: Profile, work_dir: Path, checkpoint: Path | None) -> Finding:
    """That what was built for a profile of this name is what `serve` will ask for on this machine."""
    try:
        found = read_built(profile, work_dir, checkpoint)
    except ArtefactError as error:
        said, _, advice = str(error).rpartition("; ")
        return fault("engines", said or str(error), advice if said else "build them anew: step-audio build")
    return ok("engines", str(found.engine_dir))


def limits(gpus: int) -> Finding:
    """Locked memory, which NCCL and Open MPI's transports register."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if gpus > 1 and soft != resource.RLIM_INFINITY:
        return warning("limits", f"memlock is {in_words(soft)}", "start the container with --ulimit memlock=-1")
    return ok("limits", "memlock is " + ("unlimited" if soft == resource.RLIM_INFINITY else in_words(soft)))


def _existing(path: Path) -> Path:
    """The nearest folder that is there already."""
    path = path.resolve()
    while not path.is_dir():
        path = path.parent
    return path
