"""POST /v1/audio/translations: what is said in a recording, in English."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from step_audio_gateway.chat import FAILURES
from step_audio_gateway.core import Gateway
from step_audio_gateway.languages import name_of
from step_audio_gateway.published import REFUSED_TRANSLATION
from step_audio_gateway.recordings import Task, UploadForm, question_of, reply_to
from step_audio_gateway.responses import Transcription, VerboseTranscription


def translation_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(responses=FAILURES, tags=["audio"])

    @router.post(
        "/v1/audio/translations",
        response_model=Transcription | VerboseTranscription,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def create_translation(request: Request, form: UploadForm) -> Response:
        """What is said in a recording, in English, whole. The model gives no times.

        `language` is the recording's. Sampling parameters are those of /v1/chat/completions, but that nothing is left
        to chance by default.
        """
        question = question_of(gateway.settings.translation_prompt, name_of(form.language), form.prompt)
        task = Task("translate", question, "english", REFUSED_TRANSLATION)
        return await reply_to(gateway, request, task, form)

    return router
