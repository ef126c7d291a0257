"""`chat` against the running server: what only a real one can tell."""

from __future__ import annotations

from fake_triton import TOKENIZER
from reference import sine_speech
from step_audio.tokenizer import IncrementalDecoder
from step_audio_client import Audio, ChatOptions, Sampling, Thinking, user

QUESTION = [user(Audio(sine_speech(2, seed=5)), "and", Audio(sine_speech(1, seed=6)), "What?")]
GREEDY = Sampling(max_tokens=24, temperature=0)


async def collect(client, options, messages=QUESTION):
    return [delta async for delta in client.chat(messages, options)]


def test_audio_tokens_are_those_of_the_recordings(ask):
    """25 and 13 positions (2 s and 1 s at 12.5 Hz, rounded up), and two marks each."""

    async def usages(client):
        tools = ({"type": "function", "function": {"name": "f", "description": "猫"}},)
        kinds = (ChatOptions(GREEDY), ChatOptions(GREEDY, tools=tools), ChatOptions(GREEDY, thinking=Thinking("off")))
        return [(await collect(client, options))[-1].usage for options in kinds]

    usages = ask(usages)
    assert [usage.audio_tokens for usage in usages] == [25 + 13 + 4] * 3
    assert len({usage.prompt_tokens for usage in usages}) == 3


def test_a_budget_on_a_server(ask):
    """The thought is what one generation begins with; the answer is what its text leads to."""

    async def both(client):
        deltas = await collect(client, ChatOptions(GREEDY, thinking=Thinking(budget=10), logprobs=True))
        whole = await client.complete(QUESTION, GREEDY)
        thought = "".join(delta.reasoning for delta in deltas)
        messages = [*QUESTION, {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n"}]
        rest = Sampling(max_tokens=14, temperature=0)
        answer = await client.complete(messages, rest, continue_final_message=True)
        return deltas, whole, answer

    deltas, whole, answer = ask(both)
    ids = [token for delta in deltas for token in delta.token_ids]
    assert ids == whole.token_ids[:10] + answer.token_ids
    # Without the halves of characters that no token completes.
    decoder = IncrementalDecoder(TOKENIZER)
    assert "".join(delta.content for delta in deltas) == decoder.push(answer.token_ids)
    usage = deltas[-1].usage
    assert (usage.reasoning_tokens, usage.completion_tokens, deltas[-1].finish_reason) == (10, 24, "length")
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    logprobs = [entry.logprob for delta in deltas for entry in delta.logprobs]
    assert len(logprobs) == 24 and max(logprobs) <= 0


def test_stop_tokens_end_the_answer(ask):
    async def run(client):
        whole = await client.complete(QUESTION, GREEDY)
        token = whole.token_ids[6]
        stopped = await collect(client, ChatOptions(GREEDY, stop_token_ids=(token,)))
        return whole, token, stopped

    whole, token, stopped = ask(run)
    ids = [each for delta in stopped for each in delta.token_ids]
    assert ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert stopped[-1].finish_reason == "stop"


def test_a_stop_string_ends_the_answer(ask):
    async def run(client):
        options = ChatOptions(GREEDY, thinking=Thinking("off"))
        text = "".join(delta.content for delta in await collect(client, options))
        stop = text[len(text) // 2 :][:3]
        deltas = await collect(client, ChatOptions(GREEDY, thinking=Thinking("off"), stop=(stop,)))
        return text, stop, "".join(delta.content for delta in deltas), deltas[-1]

    text, stop, shown, last = ask(run)
    assert stop and shown == text[: text.index(stop)]
    assert last.finish_reason == "stop" and last.usage.completion_tokens < 24


def test_min_p_decides_what_may_be_drawn(ask):
    """At 1 only the likeliest token is left, however hot it is; without it the same seed goes elsewhere."""

    async def run(client):
        greedy = await client.complete(QUESTION, GREEDY)
        hot = {"max_tokens": 24, "temperature": 2.0, "seed": 3}
        drawn = [await client.complete(QUESTION, Sampling(**hot, min_p=min_p)) for min_p in (1.0, None)]
        spoken = await collect(client, ChatOptions(Sampling(**hot, min_p=1.0), thinking=Thinking("off")))
        silent = await collect(client, ChatOptions(GREEDY, thinking=Thinking("off")))
        return greedy, *drawn, *("".join(delta.raw for delta in deltas) for deltas in (spoken, silent))

    greedy, one, all_, spoken, silent = ask(run)
    assert one.token_ids == greedy.token_ids != all_.token_ids
    assert spoken == silent
