"""Two brains on the real server: the same words as from one, blocks shared, and both slots free when it is over."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from raw_triton import active
from step_audio_client import ChatOptions, MindPaced, RequestError, Sampling, StepAudioClient, Thinking
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.tokens import TokenRequest
from step_audio_evaluation.held_out import held_out
from waiting import until

GREEDY = Sampling(temperature=0)
LONG = [{"role": "user", "content": "Tell me a long story. " * 20}]  # to the random checkpoint, which never ends


@pytest.fixture(scope="module")
def questions():
    return [item.request() for item in held_out(["arithmetic"], 8, seed=11)]


def with_client(service, use):
    async def run():
        async with StepAudioClient(service.address) as client:
            return await asyncio.wait_for(use(client), 120)

    return asyncio.run(run())


async def answer(client, messages, **options):
    """Thought, speech, and the last delta."""
    deltas = [delta async for delta in client.chat(messages, ChatOptions(sampling=GREEDY, **options))]
    return "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas), deltas[-1]


def test_greedy_modes_agree_with_one_generation(listener, questions):
    """A segment longer than the thought: think-first is think-before-speak, and both are the plain answer."""

    async def use(client):
        for question in questions:
            plain = await answer(client, question)
            for pace in (MindPaced("think_first", think_tokens=1000), MindPaced("think_before_speak")):
                assert (await answer(client, question, mind_paced=pace))[:2] == plain[:2]
            without_thought = await answer(client, question, thinking=Thinking("off"))
            assert (await answer(client, question, mind_paced=MindPaced("no_think")))[:2] == without_thought[:2]

    with_client(listener, use)


def test_the_pace_is_the_model_s_where_nobody_says(listener, questions):
    async def use(client):
        assert (await client.serving_info())["mind_paced_speaking"] == {"think_tokens": 16, "speak_tokens": 2}
        said = await answer(client, questions[0], mind_paced=MindPaced())
        assert said[1] == (await answer(client, questions[0], mind_paced=MindPaced("speak_first", 16, 2)))[1]
        *pieces, _ = said[2].speech.segments
        assert [piece.thought_tokens for piece in pieces] == [16 * n for n in range(len(pieces))] and len(pieces) > 1
        assert all(piece.spoken_tokens <= 2 for piece in pieces)

    with_client(listener, use)


@pytest.mark.parametrize("mode", ["speak_first", "think_first"])
def test_with_tools_the_thought_decides_and_calls_come_whole(listener, mode):
    items = [item for item in held_out(["tool_call"], 8, seed=5) if item.kind == "tool_call"]

    async def use(client):
        async def whole(item, **options):
            deltas = [d async for d in client.chat(item.request(), ChatOptions(GREEDY, tools=item.tools, **options))]
            calls = [(one.name, one.arguments) for d in deltas for one in d.tool_calls]
            return calls, "".join(d.content for d in deltas), deltas[-1].finish_reason

        plain = [await whole(item) for item in items]
        assert [await whole(item, mind_paced=MindPaced(mode)) for item in items] == plain
        assert any(finish == "tool_calls" for _, _, finish in plain)

    with_client(listener, use)


def test_ids_behind_a_prepared_prompt_go_on_as_the_generation_did(listener, questions):
    """The other way to the same: cut anywhere, Articulation's prompt gives the tokens that come next."""

    async def ids(client, run, prompt: PreparedPrompt, suffix_ids=()):
        request = PreparedRequest(prompt, replace(GREEDY, max_tokens=200), suffix_ids)
        return [token async for tokens in client._tokens(run, request) for token in tokens.token_ids]

    async def use(client):
        for question in questions[:4]:
            run = client._pipeline.run()
            prompt = await client._pipeline.prepare(run, TokenRequest(question, GREEDY))
            whole = await ids(client, run, prompt)
            assert whole == (await client.complete(question, GREEDY)).token_ids
            for cut in (1, len(whole) // 2, len(whole) - 2):
                assert await ids(client, run, prompt, whole[:cut]) == whole[cut:]

    with_client(listener, use)


@pytest.mark.parametrize("rate", [None, 40])
@pytest.mark.parametrize("mode", ["think_first", "speak_first"])
def test_speech_within_the_thought(listener, questions, mode, rate):
    async def use(client):
        pace = MindPaced(mode, think_tokens=12, speak_tokens=3, speech_rate=rate)
        return await asyncio.gather(*(answer(client, question, mind_paced=pace) for question in questions))

    for thought, speech, last in with_client(listener, use):
        timing = last.speech
        assert thought.startswith("I hear: ") and speech.endswith(".")
        assert timing.thought_before == (12 if mode == "think_first" else 0) and len(timing.segments) > 1
        assert timing.segments[0].thought_tokens < timing.thought_tokens
        spoken = sum(segment.spoken_tokens for segment in timing.segments)
        assert last.usage.completion_tokens - spoken - timing.thought_tokens in (0, 1)  # a stop word, which is no text
        assert all(0 < segment.reused_blocks < segment.total_blocks for segment in timing.segments[1:])


@pytest.mark.parametrize("mode", ["think_first", "speak_first"])
def test_greedy_answers_are_the_same_alone_and_all_at_once(listener, questions, mode):
    """All at once, a message has several tokens, and segments wait for each other."""
    pace = MindPaced(mode, think_tokens=12, speak_tokens=3)

    async def use(client):
        alone = [await answer(client, question, mind_paced=pace) for question in questions]
        together = await asyncio.gather(*(answer(client, question, mind_paced=pace) for question in questions * 3))
        return alone * 3, together

    for one, other in zip(*with_client(listener, use), strict=True):
        assert other[1] == one[1] and other[2].finish_reason == one[2].finish_reason
        made_of = [[(s.thought_tokens, s.spoken_tokens) for s in last.speech.segments] for *_, last in (one, other)]
        assert made_of[0] == made_of[1]


def test_a_prompt_is_shared_between_segments(listener, questions):
    """Of a long one nine blocks of ten are there already, segment by segment."""
    history = []
    for _ in range(24):  # 24 earlier turns with their recordings
        history += [questions[0][0], {"role": "assistant", "content": "forty one and seven is forty eight."}]

    async def use(client):
        options = ChatOptions(
            sampling=Sampling(temperature=0, max_tokens=40),  # what is said is no part of what is shared
            mind_paced=MindPaced("speak_first", think_tokens=12, speak_tokens=3),
        )
        return [delta async for delta in client.chat(history + questions[1], options)]

    *_, last = with_client(listener, use)
    assert last.usage.prompt_tokens > 1000 and len(last.speech.segments) > 1
    for segment in last.speech.segments[1:]:
        assert segment.reused_blocks / segment.total_blocks >= 0.9


# Ends


async def until_free(service) -> None:
    """No slot is taken, as the server's gauge says, which is up to 50 ms late."""
    await until(lambda: not active(service))


PHASES = {  # mode, and after how many characters of thought and speech
    "before the first token": (MindPaced("speak_first", 8, 4), 0, 0),
    "while only one thinks": (MindPaced("think_first", 8, 4), 3, 0),
    "while both are at work": (MindPaced("speak_first", 2000, 1000), 0, 2),
    "between two segments": (MindPaced("speak_first", 8, 4), 12, 6),
    "while a segment is played": (MindPaced("speak_first", 8, 4, speech_rate=3), 12, 2),
    "while one goes on alone": (MindPaced("think_before_speak", 8, 4), 5, 0),
}


MOST = 20_000  # tokens: two brains make thousands a second


@pytest.mark.parametrize("how", ["break", "cancel", "stop"])
@pytest.mark.parametrize("phase", PHASES)
def test_leaving_frees_both_slots(service, phase, how):
    pace, thought, spoken = PHASES[phase]
    options = ChatOptions(sampling=Sampling(max_tokens=MOST, temperature=0), mind_paced=pace)

    async def use(client):
        seen = [0, 0]
        deltas = client.chat(LONG, options, request_id=f"{phase}-{how}")

        async def listen():
            async for delta in deltas:
                seen[0] += len(delta.reasoning)
                seen[1] += len(delta.content)
                if how != "stop" and seen[0] >= thought and seen[1] >= spoken and thought + spoken:
                    return None
            return delta

        task = asyncio.create_task(listen())
        if how == "stop" or not thought + spoken:
            # The gauge alone may be of the server's own looking whether the LLM still answers.
            await until(lambda: client._pipeline._open and active(service))
        else:
            await asyncio.wait({task})
        if how == "stop":
            await client.stop(f"{phase}-{how}")
            last = await task
            assert last.finish_reason == "stop", last.usage  # an end, as if the model had made it
            assert last.usage.completion_tokens < MOST  # and nobody else has gone on
        elif how == "cancel" or not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await deltas.aclose()
        await until_free(service)

    with_client(service, use)


def test_a_fault_of_the_engine_ends_both(service):
    """A sum of tokens that no engine has room for is refused; the brain that was at work ends with it."""

    async def use(client):
        options = ChatOptions(
            sampling=Sampling(max_tokens=MOST, temperature=0), mind_paced=MindPaced("speak_first", 8, 4)
        )
        generate, number = client._tokens, 0

        async def faulty(run, request):
            nonlocal number
            number += 1
            if number == 3:  # Articulation's second
                request = replace(request, suffix_ids=(2**31 - 1,))
            async with contextlib.aclosing(generate(run, request)) as stream:
                async for tokens in stream:
                    yield tokens

        client._tokens = faulty
        with pytest.raises(RequestError) as caught:
            async for _ in client.chat(LONG, options):
                pass
        assert "input_ids" in str(caught.value) or "vocabulary" in str(caught.value)
        await until_free(service)

    with_client(service, use)


def test_what_does_not_fit_is_said_before_anything_is_sent(service):
    async def use(client):
        with pytest.raises(RequestError, match="logprobs does not go with mind_paced_speaking"):
            await answer(client, LONG, mind_paced=MindPaced(), logprobs=True)

    with_client(service, use)
