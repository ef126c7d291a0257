"""Which voice the settings ask for."""

from __future__ import annotations

from step_audio_gateway.settings import BUILT_IN, GatewaySettings
from step_audio_gateway.speech.built_in import BuiltInVoice
from step_audio_gateway.speech.server import SpeechServer
from step_audio_gateway.speech.voice import SpeechVoice


def voice_of(settings: GatewaySettings) -> SpeechVoice | None:
    """None: there is none. Raises SettingsError."""
    match settings.speech:
        case None:
            return None
        case value if value == BUILT_IN:
            return BuiltInVoice()
        case url:
            return SpeechServer(url, settings)
