"""What the stages of a build share: how one's output is named as the next one's input, and how it is put in place."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from step_audio.errors import ArtefactError
from step_audio_build.artefacts.manifest import (
    Identity,
    Manifest,
    OutputFile,
    SourceFile,
    read_manifest,
    require_same,
    sha256_file,
    sync_directory,
    tool_versions,
    write_atomically,
)


def as_source(name: str, manifest: Manifest) -> SourceFile:
    """A finished artefact as the input of another. Its content counts, not when or where it was written."""
    digest = hashlib.sha256(manifest.identity.model_dump_json().encode())
    for output in manifest.outputs:
        digest.update(output.model_dump_json().encode())
    size = sum(output.size for output in manifest.outputs)
    return SourceFile(name=name, size=size, mtime_ns=0, sha256=digest.hexdigest())


def finished(manifest_path: Path, identity: Identity, directory: Path) -> Manifest | None:
    """The manifest of a complete artefact of `identity`, None where there is none.

    Raises ArtefactError when an artefact of another identity is there, or a file of it is missing.
    """
    if manifest := read_manifest(manifest_path):
        require_same(manifest.identity, identity, manifest_path)
        manifest.check(directory)
    return manifest


def required(manifest_path: Path, stage: str) -> Manifest:
    """Raises ArtefactError naming the stage to run when the artefact is not there."""
    manifest = read_manifest(manifest_path)
    if manifest is None:
        raise ArtefactError(f"{manifest_path} is missing; run `step-audio build --from {stage}` first")
    return manifest


def finish(
    manifest_path: Path,
    identity: Identity,
    directory: Path,
    names: Iterable[str],
    tools: dict[str, str | None],
    tensors_sha256: str = "",
) -> Manifest:
    """Write the manifest of files that are in place; `names` are relative to `directory`."""

    def output(name: str) -> OutputFile:
        path = directory / name
        return OutputFile(name=name, size=path.stat().st_size, sha256=sha256_file(path))

    with ThreadPoolExecutor(8) as pool:  # tens of GB; hashing is outside the GIL
        outputs = list(pool.map(output, sorted(names)))
    manifest = Manifest(
        identity=identity,
        tensors_sha256=tensors_sha256,
        tools=tool_versions() | {name: value for name, value in tools.items() if value is not None},
        outputs=outputs,
    )
    write_atomically(manifest_path, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def fresh_partial(target: Path) -> Path:
    """An empty directory to fill beside `target`; what a stopped run left in it is gone."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, target: Path) -> None:
    """`partial`, a directory or a file, becomes `target`; an older one without a manifest is replaced."""
    for path in sorted(partial.iterdir()) if partial.is_dir() else [partial]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(partial, target)
    sync_directory(target.parent)


def require_space(directory: Path, needed: int, what: str) -> None:
    """Raises ArtefactError when the disk of `directory`, which need not exist yet, has less than `needed` bytes."""
    free = free_space(directory)
    if needed > free:
        raise ArtefactError(
            f"{what}: {needed / 1e9:.1f} GB are needed, {directory} has {free / 1e9:.1f} GB free; "
            "free space or choose another --work-dir"
        )


def free_space(directory: Path) -> int:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
