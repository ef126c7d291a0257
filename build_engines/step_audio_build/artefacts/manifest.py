"""What an artefact was made from and what it consists of: `manifest.json` beside it, written last.

An artefact without its manifest is unfinished. One whose `source` or `settings` differ from what is asked for
belongs to another build, and is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from step_audio.checkpoint import Checkpoint
from step_audio.config import CONFIG_FILES, Strict
from step_audio.errors import ArtefactError


class SourceFile(Strict):
    """An input as it was when it was read. `sha256` is of the header for .safetensors, else of the whole file."""

    name: str
    size: int
    mtime_ns: int
    sha256: str


class OutputFile(Strict):
    """A file of an artefact: `name` relative to its directory, `size` in bytes."""

    name: str
    size: int
    sha256: str


class Identity(Strict):
    """What decides an artefact's content. Two builds of equal identity have equal bytes."""

    kind: str  # "decoder", "encoder", or what a stage of the build makes
    format: int  # raised when a newer release writes something else from the same inputs
    source: list[SourceFile]
    settings: Mapping[str, JsonValue]

    def difference(self, asked: Identity) -> str | None:
        """What sets this artefact apart from the one asked for, in words; None when nothing does."""
        if (self.kind, self.format) != (asked.kind, asked.format):
            return f"it is a {self.kind} of format {self.format}, not a {asked.kind} of format {asked.format}"
        for key in sorted({*self.settings, *asked.settings}):
            if self.settings.get(key) != asked.settings.get(key):
                return f"it was made with {key} {self.settings.get(key)}, not {asked.settings.get(key)}"
        ours, theirs = ({file.name: file for file in identity.source} for identity in (self, asked))
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                return f"it was made from another checkpoint, or {name} has changed since"
        return None


class Manifest(Strict):
    """What an artefact was made from, with what, and the files it has. Written last: without it nothing is finished."""

    identity: Identity
    tensors_sha256: str  # over the names and hashes of all source tensors, in reading order
    tools: dict[str, str]
    outputs: list[OutputFile]

    def check(self, directory: Path) -> None:
        """Every output is there with its size. Raises ArtefactError."""
        for output in self.outputs:
            path = directory / output.name
            if not path.is_file():
                raise ArtefactError(f"{output.name} is missing in {directory}; delete the directory and build it again")
            if path.stat().st_size != output.size:
                raise ArtefactError(
                    f"{path} has {path.stat().st_size} bytes instead of {output.size}; "
                    "delete the directory and build it again"
                )


def read_manifest(path: Path) -> Manifest | None:
    """None when there is no manifest. Raises ArtefactError for one that cannot be understood."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise ArtefactError(f"{path} is damaged or of another release; delete it and build again") from None


def require_same(found: Identity, asked: Identity, where: Path) -> None:
    """Raises ArtefactError when what lies at `where` is not what is asked for."""
    if difference := found.difference(asked):
        raise ArtefactError(f"{where} is of another build: {difference}; delete it or choose another output")


def source_files(checkpoint: Checkpoint, tensors: Iterable[str]) -> list[SourceFile]:
    """The checkpoint's config and the weight files that hold `tensors`, as they are now."""
    files = []
    for name in CONFIG_FILES:
        path = checkpoint.directory / name
        if path.is_file():
            stat = path.stat()
            files.append(SourceFile(name=name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256_file(path)))
            break  # the one that ModelConfig reads
    for name in sorted({checkpoint.tensors[tensor].file.name for tensor in tensors}):
        file = checkpoint.files[name]
        files.append(SourceFile(name=name, size=file.size, mtime_ns=file.mtime_ns, sha256=file.header_sha256))
    return files


def tool_versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in ("step-audio-triton", "numpy", *packages)}


def combine_hashes(hashes: Iterable[tuple[str, str]]) -> str:
    """One SHA-256 over (name, SHA-256) pairs in the order given."""
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in hashes).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """`path` holds either what it held or all of `content`, also after a power cut; text is UTF-8."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames within `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
