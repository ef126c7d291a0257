"""`download`: a checkpoint from the Hugging Face hub at one commit, only when there is room for all that follows."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from step_audio.checkpoint import INDEX_FILE, expected_tensors, read_weight_map
from step_audio.checkpoint_faults import checkpoint_faults, require_whole
from step_audio.config import CONFIG_FILES, ModelConfig
from step_audio.errors import CheckpointError
from step_audio.progress import Progress
from step_audio.safetensors import byte_size
from step_audio_build.artefacts.artefact import finish, require_space
from step_audio_build.artefacts.manifest import Identity, read_manifest, require_same, sha256_file
from step_audio_build.stages.hub import in_words
from step_audio_build.stages.layout import DTYPE, BuildJob

FORMAT = 1
COMMIT = re.compile(r"[0-9a-f]{40}")
ABBREVIATED = re.compile(r"[0-9a-f]{7,39}")
# Weights, configuration and tokenizer; a repository's pictures and code of its own are of no use here.
WANTED = re.compile(r"[^/]+\.(safetensors|json|jinja|tiktoken|txt|model)")

OFFLINE = "copy the checkpoint to this machine and give --checkpoint DIR"


@dataclass(frozen=True)
class RemoteFile:
    """A file of the model on the hub; `size` in bytes."""

    name: str
    size: int
    sha256: str | None  # of large files only, as the hub states it


class DownloadStage:
    """The checkpoint from the Hugging Face hub, at one commit, with its hashes checked. Resumes where it stopped."""

    name = "download"
    needs_gpu = False

    def __init__(self, job: BuildJob, endpoint: str | None = None):
        self.job = job
        self.endpoint = endpoint

    @property
    def model(self) -> str:
        """HF_ID@REVISION, where there is something to be downloaded."""
        assert self.job.settings.model is not None
        return self.job.settings.model

    @cached_property
    def remote(self) -> tuple[str, list[RemoteFile]]:
        """The commit, and its files that are wanted. Raises CheckpointError when the hub cannot be asked."""
        from huggingface_hub import HfApi

        repository, revision = self.model.split("@")
        with in_words(self.model, OFFLINE):
            info = HfApi(endpoint=self.endpoint).model_info(repository, revision=revision, files_metadata=True)
        files = [
            RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
            if WANTED.fullmatch(file.rfilename)
        ]
        names = {file.name for file in files}
        if names.isdisjoint(CONFIG_FILES):
            raise CheckpointError(f"{repository} has neither {' nor '.join(CONFIG_FILES)}; is it a Step-Audio model?")
        if "tokenizer.json" not in names and not names >= {"vocab.json", "merges.txt"}:
            raise CheckpointError(f"{repository} has neither tokenizer.json nor vocab.json with merges.txt")
        if not any(name.endswith(".safetensors") for name in names):
            raise CheckpointError(f"{repository} has no .safetensors file")
        if info.sha is None:
            raise CheckpointError(f"the hub names no commit of {repository}; is the endpoint a hub?")
        return info.sha, files

    @cached_property
    def faults(self) -> list[str]:
        """What a later stage would stumble over: of a checkpoint that is here, or by the index of one that is not."""
        if self.job.settings.model is None:
            return checkpoint_faults(self.job.checkpoint)
        here = self.manifest_path.is_file()  # and was found whole
        return [] if here or INDEX_FILE not in {file.name for file in self.remote[1]} else self._remote_faults()

    def _remote_faults(self) -> list[str]:
        """A revision may lack shards, or be of another kind of model: seen before tens of gigabytes are fetched."""
        with self._small_file(INDEX_FILE) as path:
            try:
                placed = read_weight_map(path)
            except CheckpointError as error:
                return [f"{self.model}: {error}"]
        if absent := sorted(set(placed.values()) - {file.name for file in self.remote[1]}):
            return [f"{self.model} lacks {absent[0]}, which its {INDEX_FILE} names: choose another revision"]
        if missing := [name for name in expected_tensors(self.job.model) if name not in placed]:
            return [f"{self.model} has no {missing[0]}: it is not a Step-Audio-R1 model, or not all of it"]
        return []

    @property
    def manifest_path(self) -> Path:
        return self.job.checkpoint / "download.manifest.json"

    def finished(self) -> bool:
        """With --checkpoint: that directory is whole. Raises CheckpointError where it is not."""
        if self.job.settings.model is None:
            if self.faults:
                raise CheckpointError("; ".join(self.faults))
            return True
        manifest = read_manifest(self.manifest_path)
        if manifest is None:
            return False
        asked = self._identity(str(manifest.identity.settings.get("commit", "")))
        require_same(manifest.identity, asked, self.job.checkpoint)
        manifest.check(self.job.checkpoint)
        return True

    def size(self) -> int:
        """What is still to be fetched: the client goes on in the file that an interrupted run was at."""
        if self.job.settings.model is None:
            return 0
        missing = sum(file.size for file in self.remote[1] if not _is_there(self.job.checkpoint, file))
        begun = sum(path.stat().st_size for path in (self.job.checkpoint / ".cache").rglob("*.incomplete"))
        return max(missing - begun, 0)

    def size_unasked(self) -> int:
        """About that, without a word from the hub: the model's tensors in 16 bits, less the weights that are there."""
        if self.job.settings.model is None:
            return 0
        whole = sum(byte_size(DTYPE, shape) for shape in expected_tensors(self.job.model).values())
        found = [*self.job.checkpoint.glob("*.safetensors"), *(self.job.checkpoint / ".cache").rglob("*.incomplete")]
        return max(whole - sum(path.stat().st_size for path in found), 0)

    def describe(self) -> list[str]:
        if self.job.settings.model is None:
            return [f"use {self.job.checkpoint}"]
        commit, files = self.remote
        return [f"fetch {len(files)} files of {self.model} (commit {commit}) to {self.job.checkpoint}"]

    def peek(self) -> ModelConfig:
        """The model's configuration before anything is downloaded; it tells how large everything else becomes."""
        name = next(name for name in CONFIG_FILES if any(file.name == name for file in self.remote[1]))
        with self._small_file(name) as path:
            return ModelConfig.from_directory(path.parent)

    @contextlib.contextmanager
    def _small_file(self, name: str) -> Iterator[Path]:
        """One of the model's, for a look at it."""
        from huggingface_hub import hf_hub_download

        repository, commit = self.model.split("@")[0], self.remote[0]
        with tempfile.TemporaryDirectory() as directory:
            with in_words(self.model, OFFLINE):
                hf_hub_download(repository, name, revision=commit, local_dir=directory, endpoint=self.endpoint)
            yield Path(directory) / name

    def run(self) -> None:
        """What an interrupted run has fetched is kept: whole files, and the beginning of the one it was at."""
        from huggingface_hub import hf_hub_download

        if self.finished():
            return
        commit, files = self.remote
        target = self.job.checkpoint
        require_space(target, self.size(), "the download")
        total = sum(file.size for file in files)
        target.mkdir(parents=True, exist_ok=True)
        progress = Progress("download")
        done = 0
        for file in sorted(files, key=lambda file: file.size):
            with in_words(self.model, OFFLINE):
                hf_hub_download(
                    self.model.split("@")[0],
                    file.name,
                    revision=commit,
                    local_dir=target,
                    endpoint=self.endpoint,
                )
            self._check(file)
            done += file.size
            progress(done, total)
        require_whole(target)
        finish(
            self.manifest_path,
            self._identity(commit),
            target,
            [file.name for file in files],
            {},
        )

    def _identity(self, commit: str) -> Identity:
        """A branch or tag is followed once: what it pointed to then is what the directory holds."""
        repository, revision = self.model.split("@")
        if COMMIT.fullmatch(revision):
            commit = revision
        settings = {"repository": repository, "revision": revision, "commit": commit}
        return Identity(kind="download", format=FORMAT, source=[], settings=settings)

    def _check(self, file: RemoteFile) -> None:
        path = self.job.checkpoint / file.name
        size = path.stat().st_size
        if size != file.size or (file.sha256 and sha256_file(path) != file.sha256):
            path.unlink()
            raise CheckpointError(f"{file.name} arrived damaged ({size} of {file.size} bytes); run the command again")

    def invalidate(self) -> None:
        """Nothing: a commit's files do not change."""


def with_whole_commit(model: str, work_dir: Path, endpoint: str | None = None) -> str:
    """HF_ID@REVISION, a commit's first digits made all 40 of it: so the same commit has one directory, however it is
    written.

    Of what is downloaded in `work_dir` already, or else by the hub. Names of branches and tags stay as they are, also
    those that look like digits. Raises CheckpointError where no commit begins so, or several do.
    """
    from huggingface_hub import HfApi, errors

    repository, revision = model.split("@")
    if not ABBREVIATED.fullmatch(revision):
        return model
    commits = _downloaded(repository, revision, work_dir)
    if not commits:
        api = HfApi(endpoint=endpoint)
        with in_words(model, OFFLINE):
            try:
                sha = api.model_info(repository, revision=revision).sha or ""
                commits = {sha if sha.startswith(revision) else revision}
            except errors.RevisionNotFoundError:  # it takes a commit's name whole, or not at all
                listed = api.list_repo_commits(repository)
                commits = {commit.commit_id for commit in listed if commit.commit_id.startswith(revision)}
    if len(commits) != 1:
        found = f"{len(commits)} commits begin so" if commits else "no commit begins so"
        raise CheckpointError(f"{model}: {found}; give all 40 digits")
    return f"{repository}@{commits.pop()}"


def _downloaded(repository: str, revision: str, work_dir: Path) -> set[str]:
    """Commits of this model in a work directory whose first digits these are."""
    found = set()
    for path in work_dir.glob(f"{repository.split('/')[1]}-{revision[:12]}*/download.manifest.json"):
        settings = manifest.identity.settings if (manifest := read_manifest(path)) else {}
        if settings.get("repository") == repository and settings.get("revision") == settings.get("commit"):
            found.add(str(settings["commit"]))
    return {commit for commit in found if commit.startswith(revision)}


def _is_there(directory: Path, file: RemoteFile) -> bool:
    path = directory / file.name
    return path.is_file() and path.stat().st_size == file.size
