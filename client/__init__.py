"""Asyncio client of a served Step-Audio-R1: recordings and messages in, text out as it is made.

async with StepAudioClient("127.0.0.1:8001") as client:
    async for delta in client.generate([user("What do you hear?", Path("question.wav"))]):
        print(delta.text, end="")
"""

from step_audio_client.client import Delta, Generation, StepAudioClient, Usage
from step_audio_client.errors import RequestError, ServerBusy
from step_audio_client.messages import Audio, user
from step_audio_client.sampling import Sampling

__all__ = ["Audio", "Delta", "Generation", "RequestError", "Sampling", "ServerBusy", "StepAudioClient", "Usage", "user"]
