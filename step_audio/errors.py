"""The errors that a person is meant to read.

Every message names what is wrong and what to change, in one line, without paths of the server's
machine: an edge may hand `str(error)` to a client as it is. Anything else that is raised is a fault
of ours and reaches a client only as "internal error".
"""


class StepAudioError(Exception):
    """Base of every error whose text is meant for a person."""


class InvalidRequest(StepAudioError):
    """The request cannot be served as it is; the text says what to change."""


class AudioTooLong(InvalidRequest):
    """A recording is longer than what was allowed for it."""


class Overloaded(StepAudioError):
    """The queue is full; the same request may succeed later."""


class NotCached(StepAudioError):
    """Recordings were named by content hash alone, and their embeddings are not in the cache, or no longer."""

    TEXT = "the recordings' embeddings are not in the encoder's cache: send mel, too"

    def __init__(self) -> None:
        super().__init__(self.TEXT)


class CheckpointError(StepAudioError):
    """A checkpoint directory lacks something, or its parts contradict each other."""


class ArtefactError(StepAudioError):
    """A built artefact (rank files, ONNX, engine directory) is missing, incomplete or of another build."""


class SettingsError(StepAudioError):
    """A setting is out of range, unknown or unreadable, or two of them contradict each other."""
