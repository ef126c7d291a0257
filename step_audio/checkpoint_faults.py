"""What a checkpoint's directory lacks of all that conversion, check and serving read of it, found out beforehand."""

from __future__ import annotations

from pathlib import Path

from step_audio.checkpoint import Checkpoint
from step_audio.config import ModelConfig
from step_audio.errors import CheckpointError
from step_audio.generation_config import pace_of, suggestions_of
from step_audio.safetensors import is_lfs_pointer, pull
from step_audio.tokenizer import Tokenizer, check_vocabulary

READ = ("*.safetensors", "*.json", "*.txt")  # what of a directory is read at all


def checkpoint_faults(directory: Path) -> list[str]:
    """One sentence for each, with what to do; none for a whole checkpoint. Of weights only the headers are read."""
    if not directory.is_dir():
        return [f"checkpoint directory {directory} does not exist"]
    try:
        files = sorted(file for pattern in READ for file in directory.glob(pattern))
        if astray := [file.name for file in files if file.is_symlink() and not file.exists()]:
            return [
                f"{astray[0]} is a link to a file that is not here, as in a hub's cache without its blobs: give a "
                "directory that holds the files themselves, such as `hf download MODEL --local-dir DIR` makes"
            ]
        if folders := [file.name for file in files if file.is_dir()]:
            return [f"{folders[0]} is a folder, where a file of that name is read: move it away"]
        pointers = [file.name for file in files if is_lfs_pointer(file)]
    except OSError as error:
        return [f"{error.filename} cannot be read ({error.strerror}): chmod -R a+rX {directory}"]
    if pointers:  # all else follows from it
        more = f" and {len(pointers) - 1} more are git-lfs pointers" if pointers[1:] else " is a git-lfs pointer"
        return [f"{pointers[0]}{more}, not the file: {pull(directory)}"]
    found: list[str] = []
    for look in (_weights, _tokenizer, pace_of, suggestions_of):
        try:
            look(directory)
        except CheckpointError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def require_whole(directory: Path) -> None:
    """Raises CheckpointError with all that it lacks."""
    if faults := checkpoint_faults(directory):
        raise CheckpointError("; ".join(faults))


def _weights(directory: Path) -> None:
    Checkpoint(directory).verify(ModelConfig.from_directory(directory))


def _tokenizer(directory: Path) -> None:
    """The one that the check asks with, and that goes into the server's work directory."""
    tokenizer = Tokenizer.from_directory(directory)
    tokenizer.special  # noqa: B018  (raises for another family's)
    check_vocabulary(tokenizer, ModelConfig.from_directory(directory).text.vocab_size)
