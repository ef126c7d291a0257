"""POST /v1/audio/transcriptions: what is said in a recording, in its own language."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from step_audio_gateway.chat import FAILURES, events_of
from step_audio_gateway.core import Gateway
from step_audio_gateway.languages import name_of
from step_audio_gateway.published import REFUSED_FORM
from step_audio_gateway.recordings import Task, UploadForm, question_of, reply_to
from step_audio_gateway.responses import Transcription, VerboseTranscription


def transcription_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(responses=FAILURES, tags=["audio"])
    event = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}
    others = {"text/plain": {"schema": {"type": "string"}}} | events_of(event)

    @router.post(
        "/v1/audio/transcriptions",
        response_model=Transcription | VerboseTranscription,
        responses={200: {"content": others}},
    )
    async def create_transcription(
        request: Request, form: UploadForm, stream: Annotated[bool, Form()] = False
    ) -> Response:
        """What is said in a recording. The model gives no times: there are no segments, words and subtitles.

        Sampling parameters are those of /v1/chat/completions, but that nothing is left to chance by default.
        """
        spoken = name_of(form.language)
        question = question_of(gateway.settings.transcription_prompt, spoken, form.prompt)
        task = Task("transcribe", question, (spoken or "").lower(), REFUSED_FORM)
        return await reply_to(gateway, request, task, form, stream)

    return router
