"""What can go wrong with a server, for people."""

from step_audio.errors import StepAudioError


class ServerError(StepAudioError):
    """tritonserver could not be found or started, or it died."""


class ServerCrashed(ServerError):
    """It was ended by a signal, or gave up, while it loaded: not by its configuration, and the next start may work."""
