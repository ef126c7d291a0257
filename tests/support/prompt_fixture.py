"""Messages, rendered."""

from step_audio.chat_template import Control
from step_audio.conversation import AudioPlace, Text

VOCAB_SIZE = 700  # padding rows included
TOOL = {"type": "function", "function": {"name": "wetter", "description": "Für eine Stadt", "parameters": {"x": [1]}}}
TOOL_JSON = (
    '{"type": "function", "function": {"name": "wetter", "description": "Für eine Stadt", "parameters": {"x": [1]}}}'
)
AUDIO = {"type": "audio"}


def text(content):
    return {"type": "text", "text": content}


def spell(segments) -> str:
    """Segments as one string, audio as the templates write it."""
    spelling = {Text: lambda s: s.text, Control: lambda s: s.name, AudioPlace: lambda s: "<audio_patch>"}
    return "".join(spelling[type(segment)](segment) for segment in segments)
