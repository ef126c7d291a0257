"""The gateway before a client library that plays a script: recordings, and a last message to be continued."""

from __future__ import annotations

import base64
import json

import pytest

from audio_fixture import encode, tone
from gateway_calls import CHAT, HELLO, WAV, WAV64, ask, asked, refusal
from gateway_fixture import LIMITS, FakeClient, shared, wav
from step_audio_client import Audio

LONG_MP3 = base64.b64encode(encode("mp3", "libmp3lame", tone(62.5, 8000), 8000)).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": WAV64, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{WAV64}"}},
        {"type": "input_audio", "input_audio": {"data": "\n".join([WAV64[:77], WAV64[77:]])}},
        {"type": "file", "file": {"file_data": f"data:audio/wav;base64,{WAV64}", "filename": "a.wav"}},
        {"type": "file", "file": {"file_data": WAV64, "file_id": None}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/x-wav;base64,{WAV64}"}},
        {"type": "audio", "audio": WAV64},
        {"type": "audio", "audio": f"data:audio/wav;base64,{WAV64}"},
    ],
)
async def test_audio_parts(part):
    fake = await asked(messages=[{"role": "human", "content": [part, {"type": "text", "text": "who?"}, part]}])
    audio = {"type": "audio", "audio": Audio(WAV)}
    assert fake.messages == [{"role": "human", "content": [audio, {"type": "text", "text": "who?"}, audio]}]


@pytest.mark.parametrize(
    "part, said",
    [
        ({"type": "audio", "audio": "%%%%"}, "neither base64 nor a URL"),
        ({"type": "audio", "audio": ""}, "empty"),
        ({"type": "audio_url", "audio_url": {"url": "data:audio/wav,abc"}}, "must be base64"),
        ({"type": "audio_url", "audio_url": {"url": f"data:{'A' * 300};base64,{WAV64}"}}, "must be base64"),
        ({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64{WAV64}"}}, "must be base64"),
        ({"type": "audio_url", "audio_url": {"url": WAV64}}, "must be a data: or https: URL"),
        ({"type": "audio_url", "audio_url": {"url": "https://example.com/a.wav"}}, "switched off"),
        ({"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}}, "switched off"),
        ({"type": "input_audio", "input_audio": {"data": "https://example.com/a.wav"}}, "go into audio_url"),
        ({"type": "file", "file": {"file_data": "https://example.com/a.wav"}}, "go into audio_url"),
        ({"type": "file", "file": {"file_data": "%%%%"}}, "neither base64 nor a URL"),
        ({"type": "audio", "audio": base64.b64encode(wav(62.5, 8000)).decode()}, "62.5 s of audio, the limit is 60 s"),
        ({"type": "audio", "audio": LONG_MP3}, "s of audio, the limit is 60 s"),
    ],
)
async def test_audio_that_is_refused(part, said):
    assert said in (await refusal(messages=[{"role": "user", "content": [part]}]))[0]


@pytest.mark.parametrize(
    "file, param, said",
    [
        ({"file_id": "file-1"}, ".file_id", "no files are kept: send file_data"),
        ({"file_id": "file-1", "file_data": WAV64}, ".file_id", "no files are kept: send file_data"),
        ({"filename": "a.wav"}, ".file_data", "required"),
        ({"file_data": WAV64, "channel": 64}, ".channel", "less than"),
    ],
)
async def test_files_that_are_not_here(file, param, said):
    message, named = await refusal(messages=[{"role": "user", "content": [{"type": "file", "file": file}]}])
    assert named == f"messages[0].content[0].file{param}" and said in message


async def test_limits_of_count_and_size():
    part = {"type": "audio", "audio": WAV64}
    assert "5 recordings, the limit is 4" in (await refusal(messages=[{"role": "user", "content": [part] * 5}]))[0]
    part = {"type": "audio", "audio": "A" * (LIMITS["max_audio_bytes"] * 4 // 3 + 8)}
    response = await ask(FakeClient(), messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 413 and response.json()["error"]["code"] == "audio_too_large"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_too_large(declared):
    async with shared(FakeClient(), max_body_bytes=1000) as client:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()

        async def pieces():
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        headers = {"Content-Type": "application/json"}
        response = await client.post(CHAT, content=body if declared else pieces(), headers=headers)
    assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"
    assert "x-request-id" in response.headers


PREFILL = {"role": "assistant", "content": "<think>\n"}


@pytest.mark.parametrize(
    "last, flags, proceeds",
    [
        (PREFILL, {}, True),
        (PREFILL | {"eot": False}, {}, True),
        (PREFILL | {"eot": True}, {}, False),
        (PREFILL | {"eot": False}, {"continue_final_message": True, "add_generation_prompt": False}, True),
        (PREFILL, {"continue_final_message": True}, True),
        (PREFILL, {"add_generation_prompt": False}, True),
        (PREFILL, {"add_generation_prompt": True}, False),
        (PREFILL, {"continue_final_message": False}, False),
    ],
)
async def test_a_last_assistant_message(last, flags, proceeds):
    fake = await asked(messages=[*HELLO, last], **flags)
    assert fake.options.continue_final_message is proceeds
    assert fake.messages == [*HELLO, PREFILL]


async def test_a_last_assistant_message_without_content_is_a_place_for_the_answer():
    fake = await asked(messages=[*HELLO, {"role": "assistant", "content": None}])
    assert fake.messages == HELLO and not fake.options.continue_final_message


async def test_continuations_that_cannot_be():
    assert (await refusal(messages=HELLO, continue_final_message=True))[1] == "continue_final_message"
    assert (await refusal(messages=HELLO, add_generation_prompt=False))[1] == "add_generation_prompt"
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert (await refusal(messages=[*HELLO, PREFILL], **both))[1] == "continue_final_message"


async def test_the_published_end_of_turn_is_this_tokenizers():
    fake = FakeClient()
    assert (await ask(fake, stop_token_ids=[151665])).status_code == 200
    assert fake.options.stop_token_ids == ((await fake.tokenizer()).special.eot,)
