"""The rank files of a TensorRT-LLM checkpoint while they are written: side by side, in one pass, resumable.

Each file's header is known before its first tensor, so tensors are only ever appended. After each tensor a line
in a journal holds the running SHA-256 of every file; a later run re-reads what is there, keeps what agrees and
goes on behind it. Until all is written and on the disk the files have `.partial` names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from step_audio.arrays import AnyArray
from step_audio.config import DType
from step_audio.safetensors import byte_size, safetensors_header
from step_audio_build.artefacts.manifest import Identity, OutputFile, require_same, sync_directory, write_atomically

JOURNAL = "convert.journal"
CHUNK = 16 << 20  # bytes, when re-reading


@dataclass(frozen=True)
class Written:
    """A tensor that all ranks have: its sources' hashes, and each rank file's hash up to its end."""

    name: str
    sources: dict[str, str]
    ranks: list[str]


class RankFiles:
    """`rank0.safetensors` ... of `tp` ranks, each holding `tensors` (name, shape within a rank) in this order.

    Use as a context manager. `written` lists the tensors that an interrupted run left in good order; append the
    others in order, calling `commit` after each, then `finish`. Raises ArtefactError when the directory holds an
    unfinished conversion of another identity.
    """

    def __init__(
        self, directory: Path, identity: Identity, tp: int, dtype: DType, tensors: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        self.directory = directory
        self.identity = identity
        self.names = [f"rank{rank}.safetensors" for rank in range(tp)]
        self.written: list[Written] = []
        self._tensors = [name for name, _ in tensors]
        self._ends = _ends(dtype, tensors)
        self._header = safetensors_header({name: (dtype, shape) for name, shape in tensors})
        self._files: list[FileIO] = []
        self._hashes: list[hashlib._Hash] = []

    @property
    def total_bytes(self) -> int:
        return len(self.names) * (len(self._header) + self._ends[-1])

    @property
    def done_bytes(self) -> int:
        return sum(file.tell() for file in self._files)

    def __enter__(self) -> RankFiles:
        kept = self._read_journal()
        self._files = [_open(self.directory, name) for name in self.names]
        with ThreadPoolExecutor(len(self.names)) as pool:
            states = list(pool.map(lambda rank: self._check(rank, kept), range(len(self.names))))
        good = min(map(len, states))  # states[rank][n] is the hash behind the header and n tensors
        if good:
            self.written = kept[: good - 1]
            self._hashes = [state[good - 1] for state in states]
        else:
            self._hashes = [hashlib.sha256(self._header) for _ in self._files]
        for file in self._files:
            if not good:
                file.seek(0)
                file.write(self._header)
            file.seek(len(self._header) + (self._ends[len(self.written) - 1] if self.written else 0))
            file.truncate()
        lines = [self.identity.model_dump_json(), *(json.dumps(vars(entry)) for entry in self.written)]
        write_atomically(self.directory / JOURNAL, "\n".join(lines) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def append(self, rank: int, data: AnyArray) -> None:
        """The next rows of the tensor at hand. Different ranks may be appended to from different threads."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        done = 0
        while done < len(raw):
            done += self._files[rank].write(raw[done:])
        self._hashes[rank].update(raw)

    def commit(self, name: str, sources: dict[str, str]) -> None:
        """Tensor `name` is complete in every rank; `sources` holds the SHA-256 of each tensor it was made from."""
        entry = Written(name, sources, [digest.hexdigest() for digest in self._hashes])
        self.written.append(entry)
        expected = len(self._header) + self._ends[len(self.written) - 1]
        assert name == self._tensors[len(self.written) - 1] and {f.tell() for f in self._files} == {expected}, name
        with (self.directory / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(vars(entry)) + "\n")

    def finish(self) -> list[OutputFile]:
        """Bring the files to the disk and give them their names. The journal stays, for `invalidate`."""
        for name, file in zip(self.names, self._files, strict=True):
            os.fsync(file.fileno())
            os.replace(self.directory / f"{name}.partial", self.directory / name)
        sync_directory(self.directory)
        return [
            OutputFile(name=name, size=file.tell(), sha256=digest.hexdigest())
            for name, file, digest in zip(self.names, self._files, self._hashes, strict=True)
        ]

    def _read_journal(self) -> list[Written]:
        """The tensors that the last run wrote; none when there was no run, or a kill cut its first line short."""
        try:
            lines = (self.directory / JOURNAL).read_text(encoding="utf-8").splitlines()
            found = Identity.model_validate_json(lines[0])
        except (FileNotFoundError, IndexError, ValidationError):
            return []
        require_same(found, self.identity, self.directory)
        kept = []
        for line, name in zip(lines[1:], self._tensors, strict=False):
            try:
                entry = Written(**json.loads(line))
            except (ValueError, TypeError):
                break  # the line that a kill cut short
            if entry.name != name:
                break
            kept.append(entry)
        return kept

    def _check(self, rank: int, kept: list[Written]) -> list[hashlib._Hash]:
        """Running hashes of one file at the ends of header, first tensor, ... as far as they agree with `kept`."""
        file = self._files[rank]
        file.seek(0)
        if file.read(len(self._header)) != self._header:
            return []
        digest = hashlib.sha256(self._header)
        states = [digest.copy()]
        position = 0
        for entry, end in zip(kept, self._ends, strict=False):
            while position < end and (chunk := file.read(min(CHUNK, end - position))):
                digest.update(chunk)
                position += len(chunk)
            if digest.hexdigest() != entry.ranks[rank]:
                break
            states.append(digest.copy())
        return states


def journal_exists(directory: Path) -> bool:
    return (directory / JOURNAL).is_file()


def invalidate(directory: Path) -> None:
    """Remove the journal, once the manifest is there."""
    (directory / JOURNAL).unlink(missing_ok=True)


def _open(directory: Path, name: str) -> FileIO:
    """The partial file, empty or as an interrupted run left it; one killed while renaming left the final name."""
    partial = directory / f"{name}.partial"
    if not partial.exists() and (directory / name).exists():
        os.replace(directory / name, partial)
    return FileIO(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+")


def _ends(dtype: DType, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> list[int]:
    """Where each tensor's bytes end, counted from the end of the header."""
    return list(itertools.accumulate(byte_size(dtype, shape) for _, shape in tensors))
