"""What clients send to /v1/completions: OpenAI's request, with vLLM's additions under vLLM's names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from step_audio.sampling_parameters import INT32, MAX_TOP_LOGPROBS
from step_audio_gateway.schemas import MAX_ANSWERS, AnswerRequest

MAX_TOKENS = 16  # OpenAI's default, and everybody's

# A list ends with its first fault: one for each of a hundred thousand ids would take seconds.
Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[Annotated[int, Field(strict=True, ge=0, le=INT32)]], Field(min_length=1, fail_fast=True)]
_Several = Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True)


def _prompt_tag(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else None
    return "<texts>" if isinstance(first, str) else "<lists>" if isinstance(first, list) else "<ids>"


class CompletionRequest(AnswerRequest):
    """A prompt that the caller has laid out, and how the model goes on with it. Unknown keys are ignored. What is known
    and cannot be honoured is refused by its name."""

    prompt: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[list[Text], _Several, Tag("<texts>")]
        | Annotated[Ids, Tag("<ids>")]
        | Annotated[list[Ids], _Several, Tag("<lists>")],
        Discriminator(_prompt_tag),
    ] = Field(
        description="a text, token ids, or several of either, each of which is answered; names of control tokens in a "
        "text are those tokens"
    )
    max_tokens: int | None = Field(None, ge=1, le=INT32, description=f"default: {MAX_TOKENS}")
    echo: bool | None = Field(False, description="the prompt goes before its text; not with logprobs")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="of every generated token, and of so many of the likeliest in its place; on GPUs only 0",
    )

    @property
    def prompts(self) -> list[str | list[int]]:
        """All of them."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        return [prompt] if isinstance(prompt[0], int) else [*prompt]
