"""The versions that everything here is written for: docker/versions.env, where the reasons are too."""

from __future__ import annotations

TENSORRT_LLM_VERSION = "1.2.1"
TENSORRT_VERSION = "10.14.1.48"
CUDA_VERSION = "13.1"
DRIVER_VERSION = "590.44.01"

# Older branches on which cuda-compat-13-1 works, NVIDIA's CUDA 13.1 driver libraries, which the image carries: those of
# NVIDIA_REQUIRE_CUDA in NVIDIA's CUDA 13.1.1 image (rapidsai/deployment source/custom-docker.md shows it), for
# data-centre and workstation cards. NVIDIA's entrypoint puts the libraries before the driver's where it has to.
COMPATIBLE_BRANCHES = (535, 550, 570, 575, 580)
ENTRYPOINT = "/opt/nvidia/nvidia_entrypoint.sh"

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
