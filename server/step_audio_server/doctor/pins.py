"""The versions that everything here is written for: docker/versions.env, where the reasons are too."""

from __future__ import annotations

TENSORRT_LLM_VERSION = "1.2.1"
TENSORRT_VERSION = "10.14.1.48"
CUDA_VERSION = "13.1"
DRIVER_VERSION = "590.44.01"

# Any 13.x program runs on a driver that was made for another 13.x, but for what is new in its own (NVIDIA, CUDA
# Compatibility, "Minor Version Compatibility"); 580 is the first of them.
OLDEST_DRIVER = "580"


def numbers(version: str) -> tuple[int, ...]:
    """ "590.44.01" -> (590, 44, 1), which compare as versions do; what is not a number ends it."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
