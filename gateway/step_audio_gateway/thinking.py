"""How long the model may think, under everyone's names for it; none of them is overruled by another."""

from __future__ import annotations

from step_audio_client import Thinking
from step_audio_gateway.defaults import Defaults
from step_audio_gateway.errors import refused, unsupported
from step_audio_gateway.schemas import ChatRequest


def thinking_of(request: ChatRequest, defaults: Defaults) -> Thinking:
    """Where the request says nothing of it, the server's default; a mind-paced answer has its own ways of thinking.

    A number of tokens goes before an effort. Raises ApiError for words that contradict each other.
    """
    if request.reasoning is not None and request.reasoning.exclude:
        raise unsupported("reasoning.exclude", "leave reasoning_content unread, or switch thinking off")
    switches, budgets, efforts = _switches(request), _budgets(request), _efforts(request)
    on = [name for name, value in switches.items() if value]
    off = [name for name, value in switches.items() if not value]
    if on and off:
        raise refused(f"{on[0]} switches thinking on, and {off[0]} switches it off", on[0])
    if off:
        if budgets:
            name = next(iter(budgets))
            raise refused(f"{name} needs thinking to be on, and {off[0]} switches it off", name)
        return Thinking("off")
    if len(set(budgets.values())) > 1:
        raise refused(f"{' and '.join(budgets)} differ: send one of them", next(iter(budgets)))
    if budgets:
        return Thinking("on", next(iter(budgets.values())))
    if len(set(efforts.values())) > 1:
        raise refused(f"{' and '.join(efforts)} differ: send one of them", next(iter(efforts)))
    if efforts:
        return Thinking("on", defaults.efforts.get(next(iter(efforts.values()))))
    if request.mind_paced_speaking is not None:
        return Thinking()
    return Thinking("on", defaults.thinking.budget) if on else defaults.thinking


def asked_of_thinking(request: ChatRequest) -> list[str]:
    """What of the request is about it, by name."""
    return [*_switches(request), *_budgets(request)]


def _switches(request: ChatRequest) -> dict[str, bool]:
    control, kwargs = request.thinking, request.chat_template_kwargs
    said: dict[str, bool | None] = {"enable_thinking": request.enable_thinking}
    if control is not None and "mode" in control.model_fields_set:
        said["thinking.mode"] = control.mode == "on"
    if control is not None and control.type is not None:
        said["thinking.type"] = control.type != "disabled"
    if kwargs is not None:
        said["chat_template_kwargs.enable_thinking"] = kwargs.enable_thinking
        said["chat_template_kwargs.thinking"] = kwargs.thinking
    if request.reasoning is not None:
        said["reasoning.enabled"] = request.reasoning.enabled
    said |= {name: effort != "none" for name, effort in _efforts(request).items()}
    return {name: value for name, value in said.items() if value is not None}


def _efforts(request: ChatRequest) -> dict[str, str]:
    said = {"reasoning_effort": request.reasoning_effort}
    if request.reasoning is not None:
        said["reasoning.effort"] = request.reasoning.effort
    return {name: effort for name, effort in said.items() if effort is not None}


def _budgets(request: ChatRequest) -> dict[str, int | None]:
    """None: without a bound."""
    said: dict[str, int | None] = {}
    if request.thinking is not None and request.thinking.budget_tokens is not None:
        said["thinking.budget_tokens"] = request.thinking.budget_tokens
    if (budget := request.thinking_token_budget) is not None:
        said["thinking_token_budget"] = None if budget < 0 else budget
    if (kwargs := request.chat_template_kwargs) is not None and kwargs.thinking_budget is not None:
        said["chat_template_kwargs.thinking_budget"] = kwargs.thinking_budget
    if request.reasoning is not None and request.reasoning.max_tokens is not None:
        said["reasoning.max_tokens"] = request.reasoning.max_tokens
    return said
