"""POST /tokenize and /detokenize: prompts to tokens and back, in vLLM's shapes."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from step_audio.chat_template import Template
from step_audio.tokenizer import Tokenizer
from step_audio_client import Sampling
from step_audio_client.tokens import TokenRequest
from step_audio_gateway.audio_parts import client_messages
from step_audio_gateway.chat import FAILURES
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import refused
from step_audio_gateway.json_body import JsonRoute
from step_audio_gateway.messages import ChatMessage, RefusalPart, TextPart
from step_audio_gateway.nulls import Lenient
from step_audio_gateway.options import split_final_message
from step_audio_gateway.published import REFUSED_DETOKENIZE, REFUSED_TOKENIZE, check_published
from step_audio_gateway.schemas import Tool


class TokenizeRequest(Lenient):
    """Either a prompt or messages. Unknown keys are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="a name of /v1/models; may be left out")
    prompt: str | None = Field(None, description="as it is: names of control tokens in it are those tokens")
    messages: list[ChatMessage] = Field([], description="as of /v1/chat/completions, without recordings")
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = Field(None, description="as of /v1/chat/completions; false opens no turn")
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = Field(None, description="is ignored: the tokenizer adds none")
    return_token_strs: bool | None = False


class TokenizeReply(BaseModel):
    """`token_strs`: as the vocabulary writes them, each byte as one visible character."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Lenient):
    """Unknown keys are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="a name of /v1/models; may be left out")
    tokens: list[NonNegativeInt] = Field(fail_fast=True)


class DetokenizeReply(BaseModel):
    """The tokens' text, control tokens by their names; what is no UTF-8 is U+FFFD."""

    prompt: str


def tokenization_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=FAILURES, tags=["tokens"])

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeReply:
        """The tokens of a prompt, or of what the model is given for messages that it is to think about."""
        request.state.log["model"] = await gateway.model_name(body.model)
        check_published(body.model_extra, REFUSED_TOKENIZE)
        if (body.prompt is None) != bool(body.messages):
            raise refused("send either prompt or messages", "prompt")
        tokenizer, limit = await gateway.client.tokenizer(), (await gateway.client.serving_info())["max_seq_len"]
        if body.prompt is None:
            ids = await _of_messages(gateway, body, tokenizer)
        else:
            ids = await asyncio.to_thread(_of_prompt, body.prompt, tokenizer, limit)
        strings = await asyncio.to_thread(_strings, ids, tokenizer) if body.return_token_strs else None
        return TokenizeReply(count=len(ids), max_model_len=limit, tokens=ids, token_strs=strings)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeReply:
        """The text of tokens."""
        request.state.log["model"] = await gateway.model_name(body.model)
        check_published(body.model_extra, REFUSED_DETOKENIZE)
        tokenizer = await gateway.client.tokenizer()
        if body.tokens and (most := max(body.tokens)) > tokenizer.max_id:
            raise refused(f"tokens: {most} is not in the vocabulary", "tokens")
        return DetokenizeReply(prompt=await asyncio.to_thread(tokenizer.decode, body.tokens))

    return router


def _of_prompt(prompt: str, tokenizer: Tokenizer, limit: int) -> list[int]:
    """Of a prompt that is surely too long nothing is encoded: that could take minutes. Raises ApiError."""
    if (least := tokenizer.least_tokens(prompt)) > limit:
        message = f"prompt: it has at least {least} tokens and the model's context is {limit}"
        raise refused(message, "prompt", "context_length_exceeded")
    return tokenizer.encode_raw(prompt)


def _strings(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token_string(id_) for id_ in ids]


async def _of_messages(gateway: Gateway, body: TokenizeRequest, tokenizer: Tokenizer) -> list[int]:
    """Raises ApiError, RequestError."""
    contents = (message.content for message in body.messages if isinstance(message.content, list))
    if any(not isinstance(part, (TextPart, RefusalPart)) for content in contents for part in content):
        raise refused("messages: the positions of recordings have no tokens: leave them out", "messages")
    closed = body.add_generation_prompt is False and not body.messages[-1].open
    new_turn = None if closed else body.add_generation_prompt
    messages, proceed = split_final_message(body.messages, body.continue_final_message, new_turn)
    info = await gateway.client.serving_info()
    sent, _ = await client_messages(messages, info["limits"], gateway.fetcher)
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]
    template = Template("of the server", info["chat_template"])
    asked = TokenRequest(sent, Sampling(), tools, proceed)
    opens = not proceed and not closed
    return await asyncio.to_thread(
        asked.prompt_ids, tokenizer, info["vocab_size"], template, opens, info["max_seq_len"]
    )
