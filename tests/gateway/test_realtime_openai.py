"""WS /v1/realtime over a real socket, asked by OpenAI's own Python package."""

from __future__ import annotations

import json

from gateway_fixture import ANSWER, THOUGHT, USAGE
from realtime_fixture import by_hand, connected, pcm, say, take, until
from step_audio_client import ChatDelta, Thinking, Unavailable

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
SPOKEN = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]


async def test_a_written_question_is_answered_in_openais_order(url, fake):
    async with connected(url) as connection:
        session = await by_hand(connection, instructions="Be brief.")
        assert (session.type, session.instructions, session.output_modalities) == ("realtime", "Be brief.", ["text"])
        assert connection.created.session.audio.input.format.rate == 24_000, "Pipecat insists on it"
        assert session.id == connection.created.session.id and session.model == "tiny"
        await say(connection, "hello")
        added, done = await take(connection), await take(connection)
        assert (added.type, done.type) == ("conversation.item.added", "conversation.item.done")
        assert added.previous_item_id is None and added.item.content[0].text == "hello"
        await connection.response.create(response={"metadata": {"client_event_id": "e1"}})
        events = await until(connection, "response.done")
    assert [event.type for event in events] == SPOKEN
    assert len({event.event_id for event in events}) == len(events)
    created, last = events[0].response, events[-1].response
    assert created.status == "in_progress" and created.metadata == last.metadata == {"client_event_id": "e1"}
    assert {event.response_id for event in events[1:-1] if hasattr(event, "response_id")} == {created.id, last.id}
    item = last.output[0]
    assert {event.item_id for event in events[3:8]} == {item.id} and events[2].previous_item_id == added.item.id
    assert (last.status, item.status, item.content[0].text) == ("completed", "completed", ANSWER)
    usage = last.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (20, 6, 26)
    details = usage.input_token_details
    assert (details.audio_tokens, details.text_tokens, details.cached_tokens) == (13, 7, 16)
    hello = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
    assert fake.messages == [{"role": "system", "content": "Be brief."}, hello]


async def test_a_turn_by_hand_is_heard_and_stays_in_the_history(url, fake):
    async with connected(url) as connection:
        await by_hand(connection)
        for _ in range(4):
            await connection.input_audio_buffer.append(audio=pcm(0.1))
        await connection.input_audio_buffer.commit()
        committed, added, _ = await until(connection, "conversation.item.done")
        assert committed.type == "input_audio_buffer.committed" and committed.item_id == added.item.id
        await connection.response.create()
        answer = (await until(connection, "response.done"))[-1].response.output[0]
        ((heard,),) = [message["content"] for message in fake.messages]
        assert len(heard["audio"].data) == 44 + 0.4 * 24_000 * 2
        await say(connection, "and?")
        assert (await take(connection)).previous_item_id == answer.id
        await connection.response.create()
        await until(connection, "response.done")
        assert [message["role"] for message in fake.messages] == ["user", "assistant", "user"]
        assert fake.messages[1]["content"] == [{"type": "text", "text": ANSWER}]


async def test_errors_name_codes_that_clients_go_by(url):
    async with connected(url) as connection:
        await by_hand(connection)

        async def refused(**event) -> tuple[str, str, str | None]:
            await connection.send({"event_id": "mine", **event})
            error = (await until(connection, "error"))[-1].error
            assert error.event_id == "mine" and error.message
            return error.code, error.type, error.param

        wrong = "invalid_request_error"
        assert await refused(type="response.cancel") == ("response_cancel_not_active", wrong, None)
        assert await refused(type="input_audio_buffer.commit") == ("input_audio_buffer_commit_empty", wrong, None)
        for what in ("delete", "retrieve"):
            said = await refused(type=f"conversation.item.{what}", item_id="nobody")
            assert said == (f"item_{what}_invalid_item_id", wrong, "item_id")
        assert await refused(type="no.such") == ("invalid_value", wrong, "type")
        assert await refused(type="input_audio_buffer.append", audio="!") == ("invalid_value", wrong, "audio")
        assert await refused(type="input_audio_buffer.append") == ("missing_required_parameter", wrong, "audio")
        session = {"type": "realtime", "audio": {"input": {"format": {"type": "audio/mp3"}}}}
        code, _, param = await refused(type="session.update", session=session)
        assert (code, param) == ("invalid_value", "session.audio.input.format.type")
        code, _, param = await refused(type="session.update", session={"colour": "red"})
        assert (code, param) == ("unknown_parameter", "session.colour")
        session = {"type": "realtime", "output_modalities": ["audio"]}
        code, _, param = await refused(type="session.update", session=session)
        assert (code, param) == ("invalid_value", "session.output_modalities"), "there is no voice"
        code, *_ = await refused(type="conversation.item.truncate", item_id="a", content_index=0, audio_end_ms=1)
        assert code == "item_truncate_invalid_item_id"
        await connection._connection.send("{")
        assert (await take(connection)).error.code == "invalid_json"
        await connection._connection.send(b"\x00")
        assert (await take(connection)).error.code == "invalid_json"
        await say(connection, "still here")
        await until(connection, "conversation.item.done")


async def test_one_answer_at_a_time_which_can_be_cancelled(url, fake, play):
    play(ChatDelta(content="Well", raw="Well"), 60.0)
    async with connected(url) as connection:
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        await until(connection, "response.output_text.delta")
        await connection.response.create()
        assert (await until(connection, "error"))[-1].error.code == "conversation_already_has_active_response"
        await connection.response.cancel()
        events = await until(connection, "response.done")
        cancelled = events[-1].response
        assert (cancelled.status, cancelled.status_details.reason) == ("cancelled", "client_cancelled")
        assert [event.type for event in events] == SPOKEN[6:]
        assert cancelled.output[0].status == "incomplete" and cancelled.output[0].content[0].text == "Well"
        await connection.response.cancel()
        assert (await take(connection)).error.code == "response_cancel_not_active"
        play(ChatDelta(content="Yes", raw="Yes"), ChatDelta(finish_reason="stop", usage=USAGE))
        await connection.response.create()
        assert (await until(connection, "response.done"))[-1].response.status == "completed"
        assert [part["content"][0]["text"] for part in fake.messages] == ["hello", "Well"]
    assert fake.begun == fake.closed


async def test_items_have_the_clients_ids_and_places(url, fake):
    async with connected(url) as connection:
        await by_hand(connection)

        async def create(item_id: str, role: str, behind: str | None = None) -> str | None:
            kind = "output_text" if role == "assistant" else "input_text"
            item = {"id": item_id, "type": "message", "role": role, "content": [{"type": kind, "text": item_id}]}
            await connection.conversation.item.create(item=item, previous_item_id=behind)
            events = await until(connection, "conversation.item.done")
            assert events[0].item.id == item_id
            return events[0].previous_item_id

        assert await create("a", "user") is None
        assert await create("c", "user") == "a"
        assert await create("b", "assistant", "a") == "a"
        assert await create("s", "system", "root") is None
        await connection.response.create()
        await until(connection, "response.done")
        assert [m["content"][0]["text"] for m in fake.messages] == ["s", "a", "b", "c"]
        await connection.conversation.item.delete(item_id="b")
        assert (await take(connection)).type == "conversation.item.deleted"
        await connection.conversation.item.create(
            item={
                "id": "heard",
                "type": "message",
                "role": "user",
                "content": [{"type": "input_audio", "audio": pcm(1)}],
            }
        )
        await until(connection, "conversation.item.done")
        await connection.conversation.item.retrieve(item_id="heard")
        assert (await take(connection)).item.content[0].audio == pcm(1)


async def test_a_function_call_and_what_it_brought(url, fake):
    async with connected(url) as connection:
        await by_hand(connection, tools=[TOOL])
        await say(connection, "the weather?")
        await connection.response.create()
        events = await until(connection, "response.done")
        kinds = [event.type for event in events if event.type.startswith("response.")]
        assert kinds[2:4] == ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
        known = next(
            event.item
            for event in events
            if event.type == "conversation.item.added" and event.item.type == "function_call"
        )
        call = events[-1].response.output[0]
        assert known.call_id == call.call_id and (call.name, json.loads(call.arguments)) == (
            "weather",
            {"city": "Paris"},
        )
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        await connection.conversation.item.create(item=output)
        await connection.response.create()
        assert (await until(connection, "response.done"))[-1].response.output[0].content[0].text == ANSWER
        _, calling, told = fake.messages
        assert calling["tool_calls"][0]["id"] == told["tool_call_id"] == call.call_id and told["content"] == "sunny"


async def test_the_thought_is_told_where_it_is_asked_for(url):
    async with connected(url) as connection:
        await by_hand(connection, include=["reasoning"])
        await say(connection, "hello")
        await connection.response.create()
        events = await until(connection, "response.done")
        thought, message = events[-1].response.output
        assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == THOUGHT
        assert (thought.type, message.content[0].text) == ("reasoning", ANSWER)
        assert [e.item.id for e in events if e.type == "conversation.item.added"][-1] == message.id
        places = {e.output_index for e in events if getattr(e, "item_id", None) == message.id}
        assert places == {1}, "the thought is the first item"


async def test_settings_of_the_session_and_of_one_answer(url, fake):
    async with connected(url) as connection:
        await by_hand(connection, thinking={"mode": "off"}, max_output_tokens=9, temperature=0.5)
        await say(connection, "hello")
        await connection.response.create()
        await until(connection, "response.done")
        assert fake.options.thinking == Thinking("off")
        assert (fake.options.sampling.max_tokens, fake.options.sampling.temperature) == (9, 0.5)
        await connection.response.create(response={"conversation": "none", "instructions": "Guess.", "input": []})
        last = (await until(connection, "response.done"))[-1].response
        assert last.conversation_id is None and fake.messages == [{"role": "system", "content": "Guess."}]
        await connection.response.create()
        await until(connection, "response.done")
        assert [message["role"] for message in fake.messages] == ["user", "assistant"], "that answer is not part of it"


async def test_a_failed_answer_is_no_end_of_the_session(url, play):
    play(Unavailable("gone"))
    async with connected(url) as connection:
        await by_hand(connection)
        await say(connection, "hello")
        await connection.response.create()
        failed = (await until(connection, "response.done"))[-1].response
        assert (failed.status, failed.status_details.error.code) == ("failed", "unavailable")
        await connection.response.create(response={"input": []})
        empty = (await until(connection, "response.done"))[-1].response
        assert empty.status_details.error.code == "conversation_empty"
