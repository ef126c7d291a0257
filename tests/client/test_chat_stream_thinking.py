"""Thought that is off, prefilled or bounded: what is asked of the server, generation by generation."""

from __future__ import annotations

import pytest

from chat_stream_fixture import OFF, QUESTION, SMILE, Model, reply, tokens
from fake_triton import EOT, TOKENIZER
from step_audio_client import ChatOptions, RequestError, Sampling, Thinking

# Thinking


def test_thinking_off_is_a_prefill():
    model = Model(tokens("Yes"))
    reply(model, ChatOptions(thinking=OFF))
    (request,) = model.requests
    assert request.messages == [*QUESTION, {"role": "assistant", "content": "<think>\n\n</think>\n"}]
    assert request.continue_final_message


@pytest.mark.parametrize(
    "own, sent",
    [
        ("The", "<think>\n\n</think>\nThe"),
        ("<think>\n", "<think>\n\n</think>\n"),
        ("<think>\nWell,\n", "<think>\nWell,\n</think>\n"),
        ("<think>\nWell.\n</think>\nThe", "<think>\nWell.\n</think>\nThe"),
    ],
)
def test_thinking_off_closes_the_thought_of_a_prefill(own, sent):
    model = Model(tokens("Yes"))
    messages = [*QUESTION, {"role": "assistant", "content": own}]
    whole, _ = reply(model, ChatOptions(thinking=OFF, continue_final_message=True), messages)
    assert (whole.reasoning, whole.content) == ("", "Yes")
    assert model.requests[0].messages[-1]["content"] == sent


def test_a_prefill_with_a_recording_is_refused():
    messages = [*QUESTION, {"role": "assistant", "content": [{"type": "audio"}, {"type": "text", "text": "So"}]}]
    with pytest.raises(RequestError, match="holds more than text"):
        reply(Model(), ChatOptions(continue_final_message=True), messages)


def test_a_prefill_of_the_caller_decides():
    messages = [*QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "<think>\n"}], "eot": False}]
    model = Model(tokens("hm\n</think>\nYes"))
    whole, _ = reply(model, ChatOptions(continue_final_message=True), messages)
    assert (whole.reasoning, whole.content) == ("hm", "Yes")
    assert model.requests[0].messages[-1] == {"role": "assistant", "content": "<think>\n", "eot": False}


THOUGHT = tokens("one two three four")


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("own", [None, "<think>\nOkay,\n"])
def test_a_budget_closes_the_thought(seed, own):
    messages = QUESTION if own is None else [*QUESTION, {"role": "assistant", "content": own}]
    model = Model([*THOUGHT, *THOUGHT], tokens("Yes.", "<|EOT|>"), seed=seed)
    sampling = Sampling(max_tokens=50, min_tokens=5, seed=9)
    budget = len(THOUGHT) + 1
    options = ChatOptions(sampling, thinking=Thinking(budget=budget), continue_final_message=own is not None)
    whole, _ = reply(model, options, messages)
    thought = TOKENIZER.decode([*THOUGHT, THOUGHT[0]])
    assert (whole.reasoning, whole.content) == (thought, "Yes.")
    assert whole.raw == f"{thought}\n</think>\nYes."
    first, second = model.requests
    assert model.left_early == [True, False]
    assert second.messages == [
        *QUESTION, {"role": "assistant", "content": f"{own or '<think>' + chr(10)}{thought}\n</think>\n"},
    ]  # fmt: skip
    assert second.continue_final_message and (second.sampling.max_tokens, second.sampling.min_tokens) == (
        50 - budget,
        0,
    )
    assert first.sampling.max_tokens == 50 and second.sampling.seed == 9
    usage = whole.usage
    assert (usage.prompt_tokens, usage.reasoning_tokens) == (101, budget)
    assert usage.completion_tokens == budget + len(tokens("Yes.", "<|EOT|>")) == len(whole.token_ids)


def test_a_thought_within_its_budget_is_one_generation():
    model = Model(tokens("so\n</think>\nA long answer, longer than the budget"))
    whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=8)))
    assert len(model.requests) == 1 and whole.content.endswith("budget")


def test_a_budget_that_ends_inside_the_marker_or_a_character():
    for tail in ("\n</thi", "\n\n"):
        ids = [*THOUGHT, *tokens(tail)]
        model = Model([*ids, *THOUGHT], tokens("Yes"))
        whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=len(ids))))
        assert (whole.reasoning, whole.content) == ("one two three four", "Yes")
        assert model.requests[1].messages[-1]["content"] == "<think>\none two three four\n</think>\n"
    model = Model([*THOUGHT, *SMILE], tokens("Yes"))
    whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=len(THOUGHT) + 1)))
    assert (whole.reasoning, whole.content) == ("one two three four", "Yes")


def test_budgets_at_the_edges():
    model = Model(tokens("Yes"))
    assert reply(model, ChatOptions(thinking=Thinking(budget=0)))[0].content == "Yes"
    assert model.requests[0].messages[-1]["content"] == "<think>\n\n</think>\n"
    model = Model(list(THOUGHT))  # as many tokens as may be made at all: no answer will fit
    whole, _ = reply(model, ChatOptions(Sampling(max_tokens=4), thinking=Thinking(budget=4)))
    assert (len(model.requests), whole.finish_reason, whole.content) == (1, "length", "")
    assert "</think>" not in whole.raw
    model = Model([*THOUGHT[:3], EOT])  # the model itself gave up
    whole, _ = reply(model, ChatOptions(thinking=Thinking(budget=20)))
    assert (len(model.requests), whole.finish_reason) == (1, "stop")
