"""The command line and the environment of programs that run as one process, a rank, for each GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby

from step_audio_build.planning.gpus import NUMBERED

# PMIx: the way around failures of MPI_Init_thread in containers (tensorrtllm_backend docs/multimodal.md@r26.07).
MPI_ENVIRONMENT = {"PMIX_MCA_gds": "hash", **NUMBERED}


def mpirun(ranks: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Several command lines as one job, a rank each.

    `mpirun` by its bare name: by an absolute path, Open MPI would put its own folder first on the ranks' PATH (its
    pull request #4867), and with it, perhaps, another python3. Without `--bind-to none` it ties a rank and all that it
    starts, a server's Python models included, to one core or socket (orterun(1), "Mapping, Ranking, and Binding").
    """
    command = ["mpirun", *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "--bind-to", "none"]
    for number, (rank, equal) in enumerate(groupby(ranks)):
        command += [*([":"] if number else []), "-n", f"{len(list(equal))}", *rank]
    return tuple(command)
