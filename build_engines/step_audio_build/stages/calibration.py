"""The text that NVIDIA's quantiser calibrates fp8 and awq with, looked at before anything is built.

It asks for it when the whole model is on the GPUs already (tensorrt_llm/quantization/quantize_by_modelopt.py @585c756,
`quantize_and_export`), and tells what it is given by its name (`get_calib_dataloader` there):

    scienceqa, science_qa   within it: questions about pictures, which no model of ours takes
    cnn_dailymail           within it, also of a folder: configuration 3.0.0, column `article`
    a folder                column `text` of the split `train`, as Hugging Face's `datasets` (3.1.0) finds them
    all else                refused, but for `pileval`, a file of a site that is not the hub
"""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

from step_audio.errors import CheckpointError
from step_audio.safetensors import is_lfs_pointer, pull
from step_audio_build.stages.hub import in_words

DEFAULT_DATA = "abisee/cnn_dailymail"  # the data set's whole name: later clients of the hub take no other
NEWS, CONFIGURATION = "cnn_dailymail", "3.0.0"
PICTURES = re.compile("science_?qa", re.IGNORECASE)
KINDS = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tsv", ".txt")  # of files, the compressed ones as well
# `datasets` takes files for a split by such words in their names, or all for `train` where no name has any.
TRAIN = re.compile(r"(?:^|[-._ 0-9/])train(?:ing)?(?:[-._ 0-9/]|$)")
OTHER_SPLIT = re.compile(r"(?:^|[-._ 0-9/])(?:test|testing|eval|evaluation|validation|valid|val|dev)(?:[-._ 0-9/]|$)")
PARQUET = b"PAR1"  # a file's first and last bytes
FLAG = "--calibration-data"
ELSEWHERE = (
    f"where it can, run `hf download {DEFAULT_DATA} --repo-type dataset --local-dir DIR/{NEWS}`, bring that folder "
    f"here, and give {FLAG} DIR/{NEWS}"
)


def calibration_fault(data: str, endpoint: str | None = None) -> str | None:
    """What would keep the quantiser from reading `data`, a folder or a name, and what to do about it; else None.

    Asks the hub about a data set that is not here, and for nothing of it.
    """
    if PICTURES.search(data):
        return f"{FLAG} {data}: by this name the quantiser takes it for questions about pictures: give it another"
    place = Path(data)
    if place.is_dir():
        return _folder_fault(place)
    if place.exists():
        return f"{FLAG} {data} is a file, and the quantiser takes a folder: give the one that it is in"
    if NEWS not in data or place.is_absolute():
        return (
            f"there is no folder {data}, and of data sets elsewhere fp8 and awq can be calibrated with {DEFAULT_DATA} "
            f"alone: give {FLAG} a folder whose files have a column `text`"
        )
    return None if _cached(data) else _hub_fault(data, endpoint)


def _hub_fault(name: str, endpoint: str | None) -> str | None:
    from huggingface_hub import HfApi

    try:
        with in_words(name, ELSEWHERE):
            HfApi(endpoint=endpoint).dataset_info(name)
    except CheckpointError as error:
        return f"text for calibration: {error}"
    place = cache = _cache()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return f"text for calibration: {cache} is not writable by user {os.geteuid()}: set HF_HOME to a folder that is"
    return None


def _cache() -> Path:
    """Of `datasets`, as its config.py finds it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets").expanduser()


def _cached(name: str) -> bool:
    """Whether an earlier run has brought it: then it is read without the hub, too."""
    return any(_cache().glob(f"{name.replace('/', '___')}/{CONFIGURATION}/*/*/*-train*.arrow"))


def _folder_fault(place: Path) -> str | None:
    news = NEWS in str(place)
    described = (place / "README.md").is_file()  # may name each split's files itself
    try:
        files = sorted(path for path in place.rglob("*") if _is_data(path.relative_to(place)) and path.is_file())
        if not files:
            return f"{FLAG} {place} has no file that `datasets` reads: give the folder of {', '.join(KINDS)}"
        if pointers := [path for path in files if is_lfs_pointer(path)]:
            return f"{FLAG}: {pointers[0].name} is a git-lfs pointer, not the file: {pull(place)}"
        named = [path for path in files if TRAIN.search(path.relative_to(place).as_posix())]
        if news:
            named = [path for path in named if path.relative_to(place).parts[0] == CONFIGURATION]
            if not named or not described:
                return (
                    f"{FLAG} {place}: by this name it is {DEFAULT_DATA} to the quantiser, and it lacks "
                    f"{f'{CONFIGURATION}/train-*.parquet' if described else 'README.md'}: give the folder another "
                    f"name, or run `hf download {DEFAULT_DATA} --repo-type dataset --local-dir {place}`"
                )
        elif not (named or described) and any(OTHER_SPLIT.search(path.relative_to(place).as_posix()) for path in files):
            return f"{FLAG} {place} has no split `train`: give a folder with those files alone that are to be read"
        for path in named or files:
            if fault := _file_fault(path, "article" if news else "text", column=not described or news):
                return f"{FLAG}: {path} {fault}"
    except OSError as error:
        return f"{FLAG}: {error.filename} cannot be read ({error.strerror}): chmod -R a+rX {place}"
    return None


def _is_data(name: Path) -> bool:
    return any(kind in name.suffixes for kind in KINDS) and not any(part.startswith(".") for part in name.parts)


def _file_fault(path: Path, name: str, column: bool) -> str | None:
    """`name`: of the column that is read, looked for where that is asked for and a glance at the file shows it."""
    if not path.stat().st_size:
        return "is empty: bring it again"
    found: object = None
    if path.suffix == ".parquet":
        with path.open("rb") as file:
            if (footer := _footer(file.read(4), path)) is None:
                return "is no whole Parquet file: bring it again"
        # Of the schema's names, each has its length before it (Thrift's compact protocol).
        found = [name] if bytes([len(name)]) + name.encode() in footer else []
    elif path.suffix in (".csv", ".tsv", ".jsonl", ".json"):
        with path.open(encoding="utf-8", errors="replace") as text:
            line = text.readline(1 << 20)
        if path.suffix in (".csv", ".tsv"):
            found = next(csv.reader([line], delimiter="\t" if path.suffix == ".tsv" else ","), [])
        else:
            try:
                found = json.loads(line)
            except ValueError:  # an array or an object over several lines
                found = None
    if column and isinstance(found, list | dict) and name not in found and not _rows(found):
        return f"has no column `{name}`: rename the one that has the text"
    return None


def _rows(found: list[object] | dict[str, object]) -> bool:
    """An array of objects on one line, which is not looked into."""
    return isinstance(found, list) and bool(found) and isinstance(found[0], dict)


def _footer(begins: bytes, path: Path) -> bytes | None:
    """The Parquet file's metadata, None where it has none: it was cut off, or is something else."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if begins != PARQUET or size < 12:
            return None
        file.seek(-8, os.SEEK_END)
        length, ends = int.from_bytes(file.read(4), "little"), file.read(4)
        if ends != PARQUET or length > size - 12:
            return None
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)
