"""`engine`: `trtllm-build`, into a directory that gets its name when all ranks are there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from step_audio.errors import ArtefactError
from step_audio_build.artefacts.artefact import (
    as_source,
    finish,
    finished,
    fresh_partial,
    publish,
    require_space,
    required,
)
from step_audio_build.artefacts.manifest import Identity
from step_audio_build.planning import host_memory
from step_audio_build.planning.gpus import installed_version, require
from step_audio_build.stages.layout import BuildJob
from step_audio_build.stages.quantized import rank_names
from step_audio_build.tools import subprocess_runner
from step_audio_build.tools.trtllm_build import command

FORMAT = 1
# Where things lie decides nothing about an engine's content; a timing cache and workers only how soon it is there.
NOT_CONTENT = ("--checkpoint_dir", "--output_dir", "--input_timing_cache", "--output_timing_cache", "--workers")


class EngineStage:
    """The converted decoder to TensorRT-LLM engines, one for each rank, by `trtllm-build`.

    They run on the kind of GPU and with the TensorRT that built them; `identity` says which.
    """

    name = "engine"
    needs_gpu = True

    def __init__(self, job: BuildJob):
        self.job = job

    def identity(self) -> Identity:
        gpu = require(self.job.profile)
        decoder = required(self.job.layout.decoder / "manifest.json", "convert")
        return Identity(
            kind="engine",
            format=FORMAT,
            source=[as_source("the converted decoder", decoder)],
            settings=flags(self.command(self.job.layout.engine))
            | {
                "precision": self.job.profile.precision,
                "kv_cache_dtype": self.job.profile.kv_cache_dtype,
                "gpus": self.job.profile.gpus,
                "gpu": gpu.name,
                "sm": gpu.sm,
                "tensorrt_llm": installed_version("tensorrt_llm"),
                "tensorrt": installed_version("tensorrt"),
            },
        )

    def command(self, output: Path) -> list[str]:
        job = self.job
        cache = job.layout.timing_cache("decoder")
        return command(job.profile, job.plan, job.layout.decoder, output, cache, self.workers)

    @property
    def workers(self) -> int:
        """Ranks to build at once: what was asked for, or what fits into memory. One is tried in any case."""
        if (asked := self.job.settings.workers) is not None:
            return min(asked, self.job.profile.gpus)
        return max(host_memory.workers_that_fit(self.job.plan), 1)

    def finished(self) -> bool:
        layout = self.job.layout
        return finished(layout.manifest(self.name), self.identity(), layout.own) is not None

    def size(self) -> int:
        return self.job.profile.gpus * self.job.plan.weights

    def describe(self) -> list[str]:
        return [" ".join(self.command(self.job.layout.engine))]

    def run(self) -> None:
        job, layout = self.job, self.job.layout
        identity, tools = self.identity(), self._tools()
        for reason in job.plan.reasons:
            job.echo(f"engine: {reason}")
        self._tell_of_memory()
        require_space(layout.own, self.size(), "the engine")
        partial = fresh_partial(layout.engine)
        try:
            subprocess_runner.run(self.command(partial), layout.log(self.name), job.echo)
            self._check(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # trtllm-build cannot go on in it, and it may be tens of GB
            raise
        publish(partial, layout.engine)
        names = [f"{layout.engine.name}/{path.name}" for path in layout.engine.iterdir()]
        job.echo("engine: hashing")
        finish(layout.manifest(self.name), identity, layout.own, names, tools)

    def _tools(self) -> dict[str, str | None]:
        """For the manifest. Asked for before the work: nvidia-smi may fail, and would cost a finished engine."""
        versions = {name: installed_version(name) for name in ("tensorrt_llm", "tensorrt")}
        return versions | {"driver": require(self.job.profile).driver}

    def _tell_of_memory(self) -> None:
        workers, ranks, plan = self.workers, self.job.profile.gpus, self.job.plan
        needed, (_, available) = host_memory.build_memory(plan, workers), host_memory.memory()
        found = f"{needed / 1e9:.1f} GB of memory at least, {available / 1e9:.1f} GB are available"
        if needed > available:
            self.job.echo(f"engine: {workers} of {ranks} ranks at once take {found}: the kernel may kill trtllm-build")
        elif workers < ranks:
            self.job.echo(f"engine: {workers} of {ranks} ranks at once, which take {found}")

    def _check(self, directory: Path) -> None:
        """`trtllm-build` may end well and leave less than was asked for. Raises ArtefactError."""
        log = self.job.layout.log(self.name)
        missing = [name for name in rank_names(self.job.profile.gpus, ".engine") if not (directory / name).is_file()]
        try:
            built = json.loads((directory / "config.json").read_text(encoding="utf-8"))["build_config"]
        except (OSError, ValueError, KeyError):
            missing.append("config.json")
        if missing:
            raise ArtefactError(f"trtllm-build left no {', '.join(missing)}; log: {log}")
        wanted = self.job.plan.build
        for name in ("max_batch_size", "max_seq_len", "max_num_tokens", "max_prompt_embedding_table_size"):
            if built.get(name) != getattr(wanted, name):
                raise ArtefactError(
                    f"trtllm-build made an engine with {name} {built.get(name)}, {getattr(wanted, name)} was asked "
                    f"for; log: {log}"
                )
        if (rank := max_lora_rank(built)) != wanted.max_lora_rank:
            raise ArtefactError(
                f"trtllm-build made an engine with max_lora_rank {rank}, {wanted.max_lora_rank} was asked for; "
                f"log: {log}"
            )

    def invalidate(self) -> None:
        self.job.layout.manifest(self.name).unlink(missing_ok=True)


def max_lora_rank(build_config: Mapping[str, Any]) -> int:
    """Of an engine's config.json; 0: it takes no adapters."""
    if not (build_config.get("plugin_config") or {}).get("lora_plugin"):
        return 0
    return int((build_config.get("lora_config") or {}).get("max_lora_rank", 0))


def flags(argv: list[str]) -> dict[str, str]:
    """Flag -> value, without those that decide nothing about the engine."""
    out: dict[str, str] = {}
    name = ""
    for argument in argv[1:]:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            out[name] = value
        else:
            out[name] = f"{out[name]} {argument}".strip()
    return {name: value for name, value in out.items() if name not in NOT_CONTENT}
