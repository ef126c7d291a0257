"""What is wrong with a client's events, of each kind: a code and a place for each, and nothing is changed."""

from __future__ import annotations

from realtime_fixture import pcm
from session_fixture import message, session, talking

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CREATE, UPDATE, ANSWER_IT = "conversation.item.create", "session.update", "response.create"


VALUE, UNKNOWN, MISSING = "invalid_value", "unknown_parameter", "missing_required_parameter"
TEXT, HEARD = {"type": "input_text", "text": "a"}, {"type": "input_audio", "audio": pcm(0.5)}
WRONG = [
    (UPDATE, {}, MISSING, "session"),
    (UPDATE, {"session": "x"}, VALUE, "session"),
    *(
        (UPDATE, session(path, value), code, f"session.{path}")
        for path, value, code in [
            ("type", "transcription", VALUE), ("instructions", 5, VALUE), ("output_modalities", [], VALUE),
            ("output_modalities", "text", VALUE), ("audio", "x", VALUE), ("audio.colour", 1, UNKNOWN),
            ("audio.input", [], VALUE), ("audio.input.colour", 1, UNKNOWN), ("audio.input.format", "pcm16", VALUE),
            ("audio.input.format.type", "audio/opus", VALUE), ("audio.input.format.rate", 44_100, VALUE),
            ("audio.input.noise_reduction", {"type": "near_field"}, VALUE),
            ("audio.input.transcription", True, VALUE), ("audio.input.transcription.language", 5, VALUE),
            ("audio.input.transcription.keywords", ["x"], UNKNOWN), ("audio.input.turn_detection", "none", VALUE),
            ("audio.output.colour", 1, UNKNOWN), ("audio.output.voice", 5, VALUE), ("audio.output.speed", 9, VALUE),
            ("audio.output.format.type", "x", VALUE), ("tools", {}, VALUE), ("tool_choice", "any", VALUE),
            ("tool_choice", 5, VALUE), ("parallel_tool_calls", "x", VALUE), ("max_output_tokens", 0, VALUE),
            ("max_output_tokens", "many", VALUE), ("max_output_tokens", 1.5, VALUE), ("truncation", "on", VALUE),
            ("truncation", 5, VALUE), ("reasoning", "high", VALUE), ("reasoning.effort", "x", VALUE),
            ("reasoning.colour", 1, UNKNOWN), ("thinking", True, VALUE), ("thinking.budget_tokens", -1, VALUE),
            ("mind_paced_speaking.mode", "x", VALUE), ("include", "reasoning", VALUE), ("prompt", {"id": "p"}, VALUE),
            ("tracing", True, VALUE), ("tracing.group_id", 5, VALUE), ("temperature", -1, VALUE),
            ("colour", "red", UNKNOWN), ("id", "sess_1", UNKNOWN),
        ]
    ),
    (UPDATE, session("include", ["logprobs"]), VALUE, "session.include[0]"),
    (UPDATE, session("output_modalities", ["audio"]), VALUE, "session.output_modalities"),
    (UPDATE, session("tools", [TOOL, {"type": "mcp"}]), VALUE, "session.tools[1].type"),
    (UPDATE, session("tools", [{"type": "function"}]), MISSING, "session.tools[0].name"),
    (UPDATE, session("tool_choice", {"type": "function"}), MISSING, "session.tool_choice.name"),
    (UPDATE, session("truncation", {"type": "retention_ratio", "retention_ratio": 2}), VALUE,
     "session.truncation.retention_ratio"),
    (UPDATE, session("model", "gpt"), "model_not_found", "session.model"),
    *(
        (UPDATE, session("audio.input.turn_detection", given), code, f"session.audio.input.turn_detection.{key}")
        for given, code, key in [
            ({"threshold": 0.5}, MISSING, "type"), ({"type": "x"}, VALUE, "type"),
            ({"type": "server_vad", "threshold": 2}, VALUE, "threshold"),
            ({"type": "server_vad", "prefix_padding_ms": -1}, VALUE, "prefix_padding_ms"),
            ({"type": "server_vad", "silence_duration_ms": "x"}, VALUE, "silence_duration_ms"),
            ({"type": "server_vad", "create_response": 5}, VALUE, "create_response"),
            ({"type": "server_vad", "eagerness": "low"}, UNKNOWN, "eagerness"),
            ({"type": "semantic_vad", "eagerness": "x"}, VALUE, "eagerness"),
            ({"type": "semantic_vad", "idle_timeout_ms": 5_000}, UNKNOWN, "idle_timeout_ms"),
        ]
    ),
    ("input_audio_buffer.append", {}, MISSING, "audio"),
    ("input_audio_buffer.append", {"audio": 5}, VALUE, "audio"),
    ("input_audio_buffer.append", {"audio": "%"}, VALUE, "audio"),
    ("input_audio_buffer.append", {"audio": "AAAA"}, VALUE, "audio"),  # three bytes
    ("input_audio_buffer.commit", {}, "input_audio_buffer_commit_empty", None),
    (CREATE, {}, MISSING, "item"),
    (CREATE, {"item": {}}, VALUE, "item.type"),
    (CREATE, {"item": {"type": "mcp_call"}}, VALUE, "item.type"),
    (CREATE, {"item": {"type": "item_reference", "id": "a"}}, VALUE, "item.type"),
    (CREATE, message("tool"), VALUE, "item.role"),
    (CREATE, {"item": {"type": "message", "role": "user", "content": "hello"}}, VALUE, "item.content"),
    (CREATE, message("user", {}), MISSING, "item.content[0].type"),
    (CREATE, message("user", {"type": "input_text"}), MISSING, "item.content[0].text"),
    (CREATE, message("user", TEXT, {"type": "input_image"}), VALUE, "item.content[1].type"),
    (CREATE, message("user", {"type": "output_text", "text": "a"}), VALUE, "item.content[0].type"),
    (CREATE, message("assistant", TEXT), VALUE, "item.content[0].type"),
    (CREATE, message("system", HEARD), VALUE, "item.content[0].type"),
    (CREATE, message("user", {"type": "input_audio"}), MISSING, "item.content[0].audio"),
    (CREATE, message("user", {"type": "input_audio", "audio": "%"}), VALUE, "item.content[0].audio"),
    (CREATE, message("user", {"type": "input_audio", "audio": "AAAA"}), VALUE, "item.content[0].audio"),
    (CREATE, message("user", TEXT, id=""), VALUE, "item.id"),
    (CREATE, message("user", TEXT, id="x" * 65), VALUE, "item.id"),
    (CREATE, message("user", TEXT, id="there"), "item_create_duplicate_item_id", "item.id"),
    (CREATE, message("user", TEXT) | {"previous_item_id": "no"}, "item_create_invalid_previous_item_id",
     "previous_item_id"),
    (CREATE, {"item": {"type": "function_call"}}, MISSING, "item.name"),
    (CREATE, {"item": {"type": "function_call", "name": "f", "arguments": {}}}, VALUE, "item.arguments"),
    (CREATE, {"item": {"type": "function_call_output", "output": "x"}}, MISSING, "item.call_id"),
    (CREATE, {"item": {"type": "function_call_output", "call_id": "no", "output": "x"}},
     "item_create_invalid_call_id", "item.call_id"),
    *(
        (f"conversation.item.{what}", about | more, code, param)
        for what, about in [
            ("retrieve", {}), ("delete", {}), ("truncate", {"content_index": 0, "audio_end_ms": 0})
        ]
        for more, code, param in [
            ({}, MISSING, "item_id"), ({"item_id": 5}, VALUE, "item_id"),
            ({"item_id": "no"}, f"item_{what}_invalid_item_id", "item_id"),
        ]
    ),
    ("conversation.item.truncate", {"item_id": "there", "content_index": 0, "audio_end_ms": 0},
     "item_truncate_invalid_item_id", "item_id"),
    ("conversation.item.truncate", {"item_id": "there", "content_index": -1, "audio_end_ms": 0}, VALUE,
     "content_index"),
    ("conversation.item.truncate", {"item_id": "there", "content_index": 0, "audio_end_ms": "x"}, VALUE,
     "audio_end_ms"),
    *(
        (ANSWER_IT, {"response": given}, code, f"response{key}")
        for given, code, key in [
            ("x", VALUE, ""), ({"conversation": "new"}, VALUE, ".conversation"), ({"metadata": 5}, VALUE, ".metadata"),
            ({"metadata": {"a": 5}}, VALUE, ".metadata.a"), ({"metadata": {"a": "x" * 513}}, VALUE, ".metadata.a"),
            ({"metadata": {str(i): "" for i in range(17)}}, VALUE, ".metadata"), ({"input": "x"}, VALUE, ".input"),
            ({"input": [{"type": "x"}]}, VALUE, ".input[0].type"), ({"max_output_tokens": 0}, VALUE,
            ".max_output_tokens"), ({"input": [message("user", {"type": "input_text"})["item"]]}, MISSING,
            ".input[0].content[0].text"), ({"tools": [{}]}, MISSING, ".tools[0].type"),
            ({"input": [{"type": "item_reference", "id": "no"}]}, "item_retrieve_invalid_item_id", ".input[0].id"),
            ({"colour": "red"}, UNKNOWN, ".colour"), ({"model": "tiny"}, UNKNOWN, ".model"),
            ({"audio": {"input": {}}}, UNKNOWN, ".audio.input"), ({"type": "realtime"}, UNKNOWN, ".type"),
            ({"audio": {"output": {"speed": 9}}}, VALUE, ".audio.output.speed"),
            ({"output_modalities": ["audio"]}, VALUE, ".output_modalities"),
        ]
    ),
    ("response.cancel", {}, "response_cancel_not_active", None),
    ("response.cancel", {"response_id": "no"}, "response_cancel_not_active", None),
    ("response.cancel", {"response_id": 5}, VALUE, "response_id"),
    ("no.such", {}, VALUE, "type"),
]  # fmt: skip


async def test_what_is_wrong_with_an_event_is_told_and_changes_nothing():
    async with talking() as talk:
        await talk.send(CREATE, **message("user", TEXT, id="there"))
        before = talk.session.config
        for i, (kind, event, code, param) in enumerate(WRONG):
            error = await talk.error(kind, **{"event_id": str(i)} | event)
            assert (error["code"], error["param"]) == (code, param), (kind, event, error)
            assert error["event_id"] == str(i) and error["type"] == "invalid_request_error"
            assert "instance of" not in error["message"], "names of ours"
        assert talk.session.config is before and not talk.fake.asked
        await talk.send(ANSWER_IT, response=None, event_id=None)
        assert (await talk.answered())["status"] == "completed", "null is as nothing"
