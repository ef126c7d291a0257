"""What was said in a turn, in words, beside its answer: asked of the same model, without a thought."""

from __future__ import annotations

from step_audio_client import ChatOptions, Sampling, Thinking, user
from step_audio_gateway.languages import name_of
from step_audio_gateway.realtime.beginnings import audio_of
from step_audio_gateway.realtime.desk import Desk
from step_audio_gateway.realtime.faults import TOLD, Fault
from step_audio_gateway.realtime.items import ConversationItem
from step_audio_gateway.realtime.response import event
from step_audio_gateway.realtime.session_config import InputTranscription
from step_audio_gateway.recordings import most_tokens, question_of
from step_audio_gateway.responses import TranscriptionUsage

_KIND = "conversation.item.input_audio_transcription"


async def transcribe(desk: Desk, item: ConversationItem, how: InputTranscription) -> None:
    """Of an item with one recording. Deltas, then the whole, or why there is none; the item keeps the words."""
    (part,) = item.parts
    assert part.recording is not None
    place = {"item_id": item.id, "content_index": 0}
    settings = desk.gateway.settings
    try:
        question = question_of(settings.transcription_prompt, name_of(how.language), how.prompt)
        options = ChatOptions(
            sampling=Sampling(temperature=0.0, max_tokens=most_tokens(part.recording.seconds)),
            thinking=Thinking("off"),
            timeout=settings.request_timeout,
        )
        usage, text = None, ""
        async with desk.answer([user(audio_of(part.recording, part.heard), question)], options, 1) as deltas:
            async for _, delta in deltas:
                usage = delta.usage or usage
                if delta.content:
                    text += delta.content
                    desk.emit(event(f"{_KIND}.delta", **place, delta=delta.content))
    except TOLD as error:
        fault = Fault.of(error)
        about = {"type": fault.kind, "code": fault.code, "message": str(fault), "param": None}
        desk.emit(event(f"{_KIND}.failed", **place, error=about))
        return
    part.text = text.strip()
    counted = TranscriptionUsage.of(usage)
    seconds = {"type": "duration", "seconds": part.recording.seconds}  # where nothing was counted
    told = counted.model_dump() if counted else seconds
    desk.emit(event(f"{_KIND}.completed", **place, transcript=part.text, usage=told))
