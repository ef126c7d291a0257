"""`repository`: what serving on GPUs needs, as one manifest over all stages; and how serving finds it again."""

from __future__ import annotations

import json
from pathlib import Path

from step_audio.artefacts import Artefacts
from step_audio.config import CONFIG_FILES
from step_audio.errors import ArtefactError
from step_audio.mel import LengthRule
from step_audio.tokenizer import Tokenizer, check_vocabulary
from step_audio.tokenizer_info import xgrammar_tokenizer_info
from step_audio_build.artefacts.artefact import as_source, finish, finished, required
from step_audio_build.artefacts.manifest import Identity, SourceFile, read_manifest, sha256_file, write_atomically
from step_audio_build.planning.gpus import installed_version, require
from step_audio_build.planning.profiles import Profile
from step_audio_build.stages.layout import DTYPE, BuildJob, Layout

FORMAT = 1
PARTS = ("encoder", "engine", "check")
# Of a profile, what serving must ask for as it was built. Precision is a matter of the build alone, and the engine says
# it; kv_fraction one of the launch.
SHAPE = ("gpus", "max_seq_len", "max_batch_size", "max_num_tokens", "max_audio_seconds", "encoder_batch_clips")


class RepositoryStage:
    """One manifest over all that serving needs, written when its parts are found to be of one build.

    `identity` raises ArtefactError, naming the stage to run again, when they are not.
    """

    name = "repository"
    needs_gpu = False

    def __init__(self, job: BuildJob):
        self.job = job

    def identity(self) -> Identity:
        """Of all parts, after they have been found to be of one build. Raises ArtefactError."""
        job, layout = self.job, self.job.layout
        manifests = {name: required(layout.manifest(name), name) for name in PARTS}
        for name in ("encoder", "engine"):
            checked = {source.name: source for source in manifests["check"].identity.source}
            if checked[name] != as_source(name, manifests[name]):
                raise ArtefactError(
                    f"the {name} is not the one that was checked; run `step-audio build --from check` again"
                )
        ours, theirs = (manifests[name].identity.settings for name in ("encoder", "engine"))
        for key in ("gpu", "sm", "tensorrt"):
            if ours.get(key) != theirs.get(key):
                raise ArtefactError(
                    f"encoder and engine are of different builds: {key} {ours.get(key)} and {theirs.get(key)}; "
                    "run `step-audio build --from encoder` again"
                )
        settings = {
            **{key: getattr(job.profile, key) for key in SHAPE},
            "length_rule": job.settings.length_rule,
            **{key: theirs[key] for key in ("gpu", "sm", "tensorrt", "tensorrt_llm")},
        }
        source = [_config_file(job.checkpoint), *(as_source(name, manifests[name]) for name in PARTS)]
        return Identity(kind="build", format=FORMAT, source=source, settings=settings)

    def finished(self) -> bool:
        layout = self.job.layout
        return finished(layout.manifest(self.name), self.identity(), layout.work) is not None

    def size(self) -> int:
        return 0

    def describe(self) -> list[str]:
        layout = self.job.layout
        return [f"write {layout.tokenizer}, {layout.xgrammar_tokenizer_info} and {layout.manifest(self.name)}"]

    def run(self) -> None:
        job, layout = self.job, self.job.layout
        identity = self.identity()
        tokenizer = Tokenizer.from_directory(job.checkpoint)
        check_vocabulary(tokenizer, job.model.text.vocab_size)
        write_atomically(layout.tokenizer, tokenizer.to_json())
        write_atomically(layout.xgrammar_tokenizer_info, xgrammar_tokenizer_info(tokenizer))
        names = [layout.tokenizer.name, layout.xgrammar_tokenizer_info.name]
        tools = {name: installed_version(name) for name in ("tensorrt_llm", "tensorrt")}
        finish(layout.manifest(self.name), identity, layout.work, names, tools)

    def invalidate(self) -> None:
        self.job.layout.manifest(self.name).unlink(missing_ok=True)


def _config_file(checkpoint: Path) -> SourceFile:
    """The model's configuration by its content: it names the checkpoint that all of this was made from."""
    for name in CONFIG_FILES:
        if (path := checkpoint / name).is_file():
            return SourceFile(name=name, size=path.stat().st_size, mtime_ns=0, sha256=sha256_file(path))
    raise ArtefactError(f"{checkpoint} has neither {' nor '.join(CONFIG_FILES)}")


def read_built(
    profile: Profile, work_dir: Path, checkpoint: Path | None = None, length_rule: LengthRule | None = None
) -> Artefacts:
    """What `step-audio build` made for `profile` in `work_dir`, for serving on this machine.

    `checkpoint`, `length_rule`: what it must have been made from and with, where they are given.

    Raises ArtefactError where something is missing, of another build or checkpoint, or for other GPUs or another
    release of TensorRT-LLM than this machine has. What a build leaves to choose (precision) is as it was built.
    """
    layout = Layout(work_dir, profile)
    again = f"run `step-audio build --profile {profile.name}` again"
    manifest = read_manifest(layout.manifest("repository"))
    if manifest is None:
        raise ArtefactError(
            f"there are no engines of profile {profile.name} in {work_dir}; "
            f"run `step-audio build --profile {profile.name} --checkpoint DIR --work-dir {work_dir}` first"
        )
    manifest.check(work_dir)
    built = manifest.identity
    parts = {name: required(layout.manifest(name), name) for name in PARTS}
    for name, part in parts.items():
        if as_source(name, part) not in built.source:
            raise ArtefactError(f"{layout.own}: the {name} has been built anew since; {again}")
        part.check(layout.own)
    for key in SHAPE:
        if built.settings[key] != (value := getattr(profile, key)):
            raise ArtefactError(f"{layout.own} was built with {key} {built.settings[key]}, not {value}; {again}")
    gpu = require(profile)
    here = {"gpu": gpu.name, "sm": gpu.sm} | {name: installed_version(name) for name in ("tensorrt_llm", "tensorrt")}
    for key, value in here.items():
        if built.settings[key] != value:
            raise ArtefactError(f"{layout.own} was built for {key} {built.settings[key]}, this is {value}; {again}")
    if length_rule not in (None, built.settings["length_rule"]):
        raise ArtefactError(
            f"{layout.own} was built with length rule {built.settings['length_rule']}, not {length_rule}; {again}"
        )
    if checkpoint is not None and _config_file(checkpoint) not in built.source:
        raise ArtefactError(f"{layout.own} was built from another checkpoint than {checkpoint}; {again}")
    built_with = json.loads((layout.engine / "config.json").read_text(encoding="utf-8"))["build_config"]
    return Artefacts(
        engine_dir=layout.engine,
        encoder_file=layout.encoder_plan,
        tokenizer_file=layout.tokenizer,
        xgrammar_tokenizer_info_file=layout.xgrammar_tokenizer_info,
        table_dtype=DTYPE,
        max_prompt_table_rows=built_with["max_prompt_embedding_table_size"] // built_with["max_batch_size"],
        tokens_per_block=built_with["plugin_config"]["tokens_per_block"],
    )
