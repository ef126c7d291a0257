"""A checked request to the client library's options; what cannot be honoured is refused by its name."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from step_audio.sampling_parameters import offered
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatOptions, MindPaced, RawOptions, Sampling, Thinking
from step_audio_client.mind_paced import conflicts
from step_audio_gateway.defaults import Defaults
from step_audio_gateway.errors import refused
from step_audio_gateway.forms import guide_of
from step_audio_gateway.messages import ChatMessage
from step_audio_gateway.schemas import AnswerRequest, ChatRequest, NamedToolChoice
from step_audio_gateway.thinking import asked_of_thinking, thinking_of

Options = TypeVar("Options", bound=RawOptions)

PUBLISHED_EOT = 151665  # <|EOT|> in the published tokenizer; callers of any checkpoint send it


def check_mind_paced(request: ChatRequest, options: ChatOptions, separate: bool) -> None:
    """Raises ApiError with the first parameter that does not go with Mind-Paced Speaking.

    `separate`: thought and answer come apart.
    """
    if options.mind_paced is None:
        return
    names = ["n"] if request.n is not None and request.n > 1 else []
    if options.thinking != Thinking():  # as the caller calls it
        names += [name.partition(".")[0] for name in asked_of_thinking(request)]
    if names := [*names, *conflicts(options)]:
        raise refused(f"{names[0]} does not go with mind_paced_speaking", names[0], "unsupported_parameter")
    if not separate:
        said = "mind_paced_speaking needs separate_reasoning: thought and answer come interleaved"
        raise refused(said, "separate_reasoning", "unsupported_parameter")


def answers_at_once(request: ChatRequest) -> int:
    """How many generations run side by side for it: thought and answer of a mind-paced one do."""
    pace = request.mind_paced_speaking
    return 2 if pace and pace.mode in ("think_first", "speak_first") else request.n or 1


def split_final_message(
    messages: list[ChatMessage], proceed: bool | None, new_turn: bool | None
) -> tuple[list[ChatMessage], bool]:
    """The messages to send, and whether the last one is to be continued. `proceed`: continue_final_message;
    `new_turn`: add_generation_prompt.

    A last assistant message with text is continued unless something says otherwise; one without text and calls is
    a place for the answer, and left out. Raises ApiError.
    """
    last = messages[-1]
    if len(messages) > 1 and last.role == "assistant" and last.said is None and not last.calls and not proceed:
        messages = messages[:-1]
        last = messages[-1]
    if proceed and new_turn:
        raise refused("continue_final_message needs add_generation_prompt to be false", "continue_final_message")
    if proceed and not last.open:
        raise refused(
            "continue_final_message needs a last message of the assistant's with content",
            "continue_final_message",
        )
    if proceed is None:
        proceed = last.open and not new_turn and (last.eot is not True or new_turn is False)
    if new_turn is False and not proceed:
        raise refused(
            "add_generation_prompt false needs a last message of the assistant's to continue", "add_generation_prompt"
        )
    return messages, proceed


def chat_options(
    request: ChatRequest, tokenizer: Tokenizer, proceed: bool, separate: bool, defaults: Defaults, timeout: float | None
) -> list[ChatOptions]:
    """One for each of the request's answers. Where thought and answer do not come apart, stop strings hold for both.
    Raises ApiError."""
    common = raw_options(request, tokenizer, defaults, timeout, request.top_logprobs)
    choice, guide = _tool_choice(request), common.guide
    if guide and guide.name == "response_format" and choice not in ("auto", "none"):
        guide = None  # it is one for text, of which there will be none
    options = ChatOptions(
        **vars(common) | {"logprobs": bool(request.logprobs), "guide": guide},
        tools=tuple(tool.model_dump(exclude_unset=True) for tool in request.tools or ()),
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        stop_in_thought=not separate,
        thinking=thinking_of(request, defaults),
        continue_final_message=proceed,
        mind_paced=MindPaced(**dict(pace)) if (pace := request.mind_paced_speaking) else None,
    )
    return for_each_answer(request, options)


def raw_options(
    request: AnswerRequest, tokenizer: Tokenizer, defaults: Defaults, timeout: float | None, top_logprobs: int | None
) -> RawOptions:
    """Raises ApiError."""
    return RawOptions(
        sampling=dataclasses.replace(_sampling(request, defaults), top_logprobs=top_logprobs or None),
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        stop_token_ids=tuple(_stop_token_ids(request.stop_token_ids or [], tokenizer)),
        bad_words=tuple(request.bad_words or ()),
        ignore_eos=bool(request.ignore_eos),
        guide=guide_of(request),
        skip_special_tokens=request.skip_special_tokens is not False,
        timeout=timeout,
    )


def for_each_answer(request: AnswerRequest, options: Options) -> list[Options]:
    """They differ in the seed."""
    sampling = options.sampling
    return [dataclasses.replace(options, sampling=sampling.with_seed_after(i)) for i in range(request.n or 1)]


def _sampling(request: AnswerRequest, defaults: Defaults) -> Sampling:
    values: dict[str, Any] = {}
    for one in offered("http"):
        names = (one.name, *one.aliases)
        if one.name in defaults.sampling and not request.model_fields_set.intersection(names):
            values[one.name] = defaults.sampling[one.name]
            continue
        given = {name: value for name in names if one.asks(value := getattr(request, name))}
        if len({*given.values()}) > 1:
            raise refused(f"{' and '.join(given)} differ: send one of them", one.name)
        if given:
            values[one.name] = next(iter(given.values()))
    return Sampling(**values)


def _tool_choice(request: ChatRequest) -> str:
    names = {tool.function.name for tool in request.tools or ()}
    choice = request.tool_choice or "auto"
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        if name not in names:
            raise refused(f"tool_choice names {name!r}, which is not among the tools", "tool_choice")
        return name
    if choice == "required" and not names:
        raise refused("tool_choice is required, but there are no tools", "tool_choice")
    return choice


def _stop_token_ids(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    found = []
    for token in ids:
        if token > tokenizer.max_id:
            if token != PUBLISHED_EOT:
                raise refused(f"stop_token_ids: {token} is not in the vocabulary", "stop_token_ids")
            token = tokenizer.special.eot
        found.append(token)
    return found
