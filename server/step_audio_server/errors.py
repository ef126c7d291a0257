"""What can go wrong with a server, for people."""

from step_audio.errors import StepAudioError


class ServerError(StepAudioError):
    """tritonserver could not be found or started, or it died."""
