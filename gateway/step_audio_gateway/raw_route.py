"""POST /v1/completions: raw prompts, for those who bring their own template."""

from __future__ import annotations

import asyncio
import dataclasses

from fastapi import APIRouter, Request
from starlette.responses import Response

from step_audio_client import RawOptions, RawPrompt
from step_audio_gateway.asking import logged, replied
from step_audio_gateway.chat import FAILURES, events_of
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import refused, unsupported
from step_audio_gateway.generations import unless_gone
from step_audio_gateway.json_body import JsonRoute
from step_audio_gateway.options import for_each_answer, raw_options
from step_audio_gateway.published import REFUSED_COMPLETIONS, check_published
from step_audio_gateway.raw_reply import RawCompletion, TextCompletion
from step_audio_gateway.raw_request import MAX_TOKENS, CompletionRequest
from step_audio_gateway.schemas import MAX_ANSWERS


def raw_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=FAILURES, tags=["completions"])
    streamed = events_of({"$ref": "#/components/schemas/TextCompletion"}, end="[DONE]")

    @router.post("/v1/completions", response_model=TextCompletion, responses={200: {"content": streamed}})
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """What the model writes behind one or several raw prompts, whole or, with `stream`, as server-sent events."""
        request.state.names = {"messages": "prompt", "top_logprobs": "logprobs"}
        fields, n, log_content = request.state.log, body.n or 1, gateway.settings.log_content
        model = await gateway.model_name(body.model)
        fields |= {"model": model, "stream": bool(body.stream)}
        check_published(body.model_extra, REFUSED_COMPLETIONS)
        if body.echo and body.logprobs is not None:
            raise refused("echo does not go with logprobs: only generated tokens have them", "echo")
        if (count := len(body.prompts) * n) > MAX_ANSWERS:
            raise refused(f"n: {len(body.prompts)} prompts with {n} texts each are {count}, at most {MAX_ANSWERS}", "n")
        request.state.admitted.answers(count)
        adapter = await gateway.adapter(model)
        options = [dataclasses.replace(option, adapter=adapter) for option in await _options(gateway, body)]
        prompts = await unless_gone(request.receive, _prompts(gateway, body))
        bounded = await unless_gone(request.receive, gateway.client.bounded(options[0]))
        options = [dataclasses.replace(option, guide=bounded.guide) for option in options]
        if log_content:
            fields["prompts"] = body.prompts
        echoed = await unless_gone(request.receive, _echoed(gateway, prompts)) if body.echo else [""] * len(prompts)
        completion = RawCompletion(model, echoed, n, logprobs=body.logprobs is not None)
        fields["completion"] = completion.id
        deltas = logged(gateway.texts(prompts, options), request, log_content, n)
        return await replied(request, completion, deltas, body.stream, body.stream_options)

    return router


async def _options(gateway: Gateway, body: CompletionRequest) -> list[RawOptions]:
    """Raises ApiError, RequestError."""
    tokenizer, info = await gateway.client.tokenizer(), await gateway.client.serving_info()
    if body.logprobs and "top_logprobs" not in info["sampling_parameters"]:
        raise unsupported("logprobs", "the served LLM's backend tells the chosen token's alone: use 0")
    options = raw_options(body, tokenizer, gateway.defaults, gateway.settings.request_timeout, body.logprobs)
    if options.sampling.max_tokens is None:
        options = dataclasses.replace(options, sampling=dataclasses.replace(options.sampling, max_tokens=MAX_TOKENS))
    return for_each_answer(body, dataclasses.replace(options, logprobs=body.logprobs is not None))


async def _prompts(gateway: Gateway, body: CompletionRequest) -> list[RawPrompt]:
    """Raises RequestError."""
    tokenizer, info = await gateway.client.tokenizer(), await gateway.client.serving_info()
    several = len(body.prompts) > 1
    return [
        await asyncio.to_thread(RawPrompt.of, prompt, tokenizer, info, f"prompt[{i}]" if several else "prompt")
        for i, prompt in enumerate(body.prompts)
    ]


async def _echoed(gateway: Gateway, prompts: list[RawPrompt]) -> list[str]:
    tokenizer = await gateway.client.tokenizer()
    return [await asyncio.to_thread(tokenizer.decode, prompt.ids.tolist()) for prompt in prompts]
