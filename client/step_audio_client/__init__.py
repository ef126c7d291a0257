"""Asyncio client of a served Step-Audio-R1: recordings and messages in, text out as it is made.

```python
async with StepAudioClient("127.0.0.1:8001") as client:
    async for delta in client.generate([user("What do you hear?", Path("question.wav"))]):
        print(delta.text, end="")
```

`ReplyParser` (streamed) and `parse_reply` (whole) take that text apart: thought, answer, tool calls.
"""

from step_audio_client.audio_report import AudioReport
from step_audio_client.chat_types import (
    ChatDelta,
    ChatOptions,
    ChatUsage,
    Guide,
    MindPaced,
    PaceMode,
    RawOptions,
    Segment,
    SpeechTiming,
    Thinking,
    TokenLogprob,
    TopLogprob,
    TtsContent,
)
from step_audio_client.client import Delta, Generation, StepAudioClient, Usage
from step_audio_client.counts import Counts
from step_audio_client.errors import (
    ContextTooLong,
    InvalidGuide,
    RequestError,
    RequestTimeout,
    ServerBusy,
    ServerFailed,
    Unavailable,
    UnsupportedParameter,
)
from step_audio_client.messages import Audio, Beginning, HeardClips, user
from step_audio_client.raw import RawPrompt
from step_audio_client.realtime import RealtimeError, RealtimeSession
from step_audio_client.realtime_events import (
    AudioDelta,
    CallRequested,
    RealtimeEvent,
    ReasoningDelta,
    ResponseCreated,
    ResponseDone,
    SessionError,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
    Transcript,
    TurnTimes,
)
from step_audio_client.reasoning import ReasoningSplitter, reasoning_ended
from step_audio_client.replies import Reply, ReplyDelta, ReplyParser, parse_reply
from step_audio_client.sampling import Sampling
from step_audio_client.tls import Tls
from step_audio_client.tool_calls import ToolCall, ToolCallParser
from step_audio_client.tts import TtsParser

__all__ = [
    "Audio",
    "AudioDelta",
    "AudioReport",
    "Beginning",
    "CallRequested",
    "ChatDelta",
    "ChatOptions",
    "ChatUsage",
    "ContextTooLong",
    "Counts",
    "Delta",
    "Generation",
    "Guide",
    "HeardClips",
    "InvalidGuide",
    "MindPaced",
    "PaceMode",
    "RawOptions",
    "RawPrompt",
    "RealtimeError",
    "RealtimeEvent",
    "RealtimeSession",
    "ReasoningDelta",
    "ReasoningSplitter",
    "Reply",
    "ReplyDelta",
    "ReplyParser",
    "RequestError",
    "RequestTimeout",
    "ResponseCreated",
    "ResponseDone",
    "Sampling",
    "Segment",
    "ServerBusy",
    "ServerFailed",
    "SessionError",
    "SpeechStarted",
    "SpeechStopped",
    "SpeechTiming",
    "StepAudioClient",
    "TextDelta",
    "Thinking",
    "Tls",
    "TokenLogprob",
    "ToolCall",
    "ToolCallParser",
    "TopLogprob",
    "Transcript",
    "TtsContent",
    "TtsParser",
    "TurnTimes",
    "Unavailable",
    "UnsupportedParameter",
    "Usage",
    "parse_reply",
    "reasoning_ended",
    "user",
]
