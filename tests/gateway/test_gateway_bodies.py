"""What a body holds is counted before it is taken apart, and before it is checked."""

from __future__ import annotations

import base64
import json

import pytest

from gateway_calls import CHAT, HELLO, TOOL
from gateway_fixture import FakeClient, shared, wav
from step_audio_gateway import errors, json_body
from step_audio_gateway.json_body import MAX_MARKS, too_much
from step_audio_gateway.realtime.faults import Fault

MESSAGE = {"role": "nobody", "content": "x"}
TEXT = {"type": "nothing", "text": "x"}


async def post(body: bytes):
    fake = FakeClient()
    async with shared(fake) as client:
        response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    return response, fake


def repeated(entry, count: int) -> str:
    return ", ".join([json.dumps(entry)] * count)


def taken_apart(monkeypatch) -> list[int]:
    """Lengths of the bodies that are."""
    lengths: list[int] = []
    parse = json_body.from_json

    def counted(body, **options):
        lengths.append(len(body))
        return parse(body, **options)

    monkeypatch.setattr(json_body, "from_json", counted)
    return lengths


@pytest.mark.parametrize(
    "body",
    [
        f'{{"messages": [{repeated(MESSAGE, 40_000)}]}}'.encode(),
        f'{{"messages": [{{"role": "user", "content": [{repeated(TEXT, 40_000)}]}}]}}'.encode(),
        b'{"messages": [' + b"[]," * 60_000 + b"[]]}",
        b'{"messages": [' + b"{}," * 60_000 + b"{}]}",
        b'{"a": [' + b"1," * 110_000 + b"1]}",
        b'{"a\\\\": [' + b'"\\",[{",' * 110_000 + b"1]}",
        f'{{"messages": {json.dumps(HELLO)}, "stop": [{repeated("x", 110_000)}]}}'.encode(),
        f'{{"messages": {json.dumps(HELLO)}, "tools": [{repeated(TOOL, 30_000)}]}}'.encode(),
    ],
    ids=["messages", "parts", "lists", "objects", "numbers", "texts with marks", "stop", "tools"],
)
async def test_too_much_of_anything_is_not_taken_apart(body, monkeypatch):
    lengths = taken_apart(monkeypatch)
    response, fake = await post(body)
    assert response.status_code == 400 and not fake.begun and lengths == []
    assert response.json()["error"]["message"] == f"the body has more than {MAX_MARKS} braces, brackets and commas"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [MESSAGE] * 5000},
        {"messages": [{"role": "user", "content": [TEXT] * 5000}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 5000}]},
        {"messages": HELLO, "tools": [TOOL] * 5000},
    ],
    ids=["messages", "parts", "calls", "tools"],
)
async def test_more_than_a_conversation_holds_is_not_checked(body):
    """The entries have other faults, too, which would be told."""
    response, fake = await post(json.dumps(body).encode())
    error = response.json()["error"]
    assert response.status_code == 400 and not fake.begun and error["param"] == "messages"
    assert error["message"].startswith("messages and tools hold 500") and "at most 4096" in error["message"]


def recording(data: str) -> str:
    return f'{{"type": "input_audio", "input_audio": {{"data": "{data}", "format": "wav"}}}}'


async def test_more_than_recordings_take_is_not_taken_apart(monkeypatch):
    """What takes several times as long as a recording, which may be as long."""
    monkeypatch.setattr(json_body, "MAX_COST", 700_000)
    monkeypatch.setattr(json_body, "SPARE", 100_000)
    lengths = taken_apart(monkeypatch)
    base64, user = "QUJD" * 100_000, '{"messages": [{"role": "user", "content": %s}]'
    texts = [r"\n" * 60_000, r"\u4e2d" * 20_000, "猫" * 40_000]
    texts += [base64 + more for more in (r"\ud83d\ude00", "猫", r"\n" * 2000)]
    bodies = [user % f'"{text}"}}' for text in texts]
    bodies.append(user % f'"x", "{base64}" : 1}}')
    bodies.append(user % f'"x"}}, "stop": [{repeated("x" * 10, 10_000)}]}}')
    for body in bodies:
        response, fake = await post(body.encode())
        assert response.status_code == 400 and not fake.begun and lengths == [], body[-20:]
        assert response.json()["error"]["message"].startswith("the body has too much text beside recordings")
    for data in (
        "QUJD" * 170_000,
        ("QUJD" * 19 + r"\n") * 2000,
        "QUJD" * 80_000 + r"QUJ\/",
        "data:audio/wav;base64," + base64,
    ):
        await post(f'{{"messages": [{{"role": "user", "content": [{recording(data)}]}}]}}'.encode())
    assert len(lengths) == 4


async def test_a_fault_of_a_long_body_is_found_without_its_recordings(monkeypatch):
    """To read all of it, and to find the place of the fault, takes twice as long as any other body."""
    monkeypatch.setattr(json_body, "LONG", 100_000)
    lengths = taken_apart(monkeypatch)
    data = base64.b64encode(wav(4, 16000)).decode()
    whole = f'{{"messages": [{{"role": "user", "content": [{recording(data)}, {recording(data)}]}}]}}'
    cut_off = whole[: whole.rindex(data) + 1000]
    for body in (whole[:-1], whole + "x", cut_off, whole.replace("}, {", "} {"), whole.replace("[{", "[NaN, {", 1)):
        response, fake = await post(body.encode())
        assert response.status_code == 400 and not fake.begun
        assert response.json()["error"]["message"].startswith("the body is not valid JSON, recordings left out: ")
    assert max(lengths) < 2000 and len(lengths) == 5
    response, fake = await post(whole.encode())
    assert response.status_code == 200 and lengths[-1] == len(whole)
    assert [part["audio"].data for part in fake.messages[0]["content"]] == [base64.b64decode(data)] * 2


LONG = "QUJD" * 50_000


@pytest.mark.parametrize(
    "path, body",
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]}),
        (CHAT, {"messages": HELLO, "guided_json": {"data": LONG}}),
        (CHAT, {"messages": HELLO, "model": LONG}),
        (CHAT, {"messages": HELLO, "anything": LONG}),
        ("/v1/responses", {"input": LONG}),
        ("/v1/responses", {"input": "hello", "metadata": {"audio": LONG}}),
        ("/v1/completions", {"prompt": LONG}),
        ("/tokenize", {"prompt": LONG}),
        (CHAT, [LONG]),
    ],
)
async def test_only_recordings_are_long(path, body, monkeypatch):
    monkeypatch.setattr(json_body, "MAX_BESIDE", 100_000)
    async with shared(FakeClient()) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the body has more than 100000 bytes beside recordings"


async def test_recordings_may_be_long_wherever_they_are(monkeypatch):
    monkeypatch.setattr(json_body, "MAX_BESIDE", 10_000)
    recorded = base64.b64encode(wav(2, 8000)).decode()
    url = f"data:audio/wav;base64,{recorded}"
    parts = [
        {"type": "input_audio", "input_audio": {"data": recorded}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "audio", "audio": recorded},
    ]
    items = [{"role": "user", "content": [*parts, {"type": "input_file", "file_data": url}]}]
    call = {"type": "function_call", "call_id": "c", "name": "hear"}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_data": url}]}
    files = [{"type": "file", "file": {"file_data": url}}]
    async with shared(FakeClient()) as client:
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": parts + files}]}),
            ("/v1/responses", {"input": items}),
            ("/v1/responses", {"input": [*HELLO, call, output]}),
        ):
            response = await client.post(path, json=body)
            assert response.status_code == 200, response.text


@pytest.mark.parametrize("number", ["7" * 4000, "7" * 401, "-" + "7" * 4000, "0." + "7" * 4000, "1e" + "0" * 4000])
@pytest.mark.parametrize("before", [0, 100_000 - 300])
async def test_numbers_of_thousands_of_digits_are_not_read(number, before, monkeypatch):
    """The time for each grows with the square of its length. A text may have them."""
    monkeypatch.setattr(json_body, "PIECE", 100_000)
    lengths = taken_apart(monkeypatch)
    text = "7" * (70_000 if before == 0 else 4000)
    body = f'{{"messages": [{{"role": "user", "content": "{text}"}}], "seed": {" " * before}%s}}'
    response, _ = await post((body % number).encode())
    assert response.status_code == 400 and lengths == []
    assert response.json()["error"]["message"] == "the body has a number of more than 400 digits"
    await post((body % ("7" * 400)).encode())
    assert len(lengths) == 1


MANY = 20_000


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/detokenize", {"tokens": [-1] * MANY}, "tokens[0]"),
        (CHAT, {"messages": HELLO, "guided_choice": [1] * MANY}, "guided_choice"),
        (CHAT, {"messages": HELLO, "stream_options": dict.fromkeys(map(str, range(MANY)), 1)}, "stream_options.0"),
        (CHAT, {"messages": HELLO, "thinking": dict.fromkeys(map(str, range(MANY)), 1)}, "thinking.0"),
        ("/v1/responses", {"input": "hello", "include": [1] * MANY}, "include[0]"),
        ("/v1/responses", {"input": "hello", "text": dict.fromkeys(map(str, range(MANY)), 1)}, "text.0"),
        ("/v1/completions", {"prompt": [-1] * MANY}, "prompt[0]"),
    ],
    ids=["ids", "choices", "options", "controls", "names", "formats", "prompts"],
)
async def test_not_every_fault_is_looked_for(path, body, param, monkeypatch):
    """Each has its text, made in one go with all others."""
    counts: list[int] = []
    tell = errors.from_validation

    def counted(error):
        counts.append(len(error.errors()))
        return tell(error)

    monkeypatch.setattr(errors, "from_validation", counted)
    async with shared(FakeClient()) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param)
    assert 1 <= counts[0] < 5000


KEYS = dict.fromkeys(map(str, range(MANY)), 1)


@pytest.mark.parametrize(
    "session, param",
    [
        (KEYS, "session.0"),
        ({"audio": KEYS}, "session.audio.0"),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", **KEYS}}}},
            "session.audio.input.turn_detection",
        ),
        ({"reasoning": KEYS}, "session.reasoning.0"),
        ({"tools": [1] * MANY}, "session.tools[0]"),
        ({"tools": [{}] * (MANY // 2)}, "session.tools[0]"),
        ({"include": ["x"] * MANY}, "session.include[0]"),
    ],
    ids=["keys", "audio", "turns", "reasoning", "numbers", "tools", "names"],
)
async def test_not_every_fault_of_a_session_is_looked_for(session, param, monkeypatch):
    counts = [1]
    tell = Fault.of_validation

    def counted(error, *values):
        counts.append(len(error.errors()))
        return tell(error, *values)

    monkeypatch.setattr(Fault, "of_validation", counted)
    async with shared(FakeClient()) as client:
        response = await client.post("/v1/realtime/client_secrets", json={"session": {"type": "realtime"} | session})
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param)
    assert max(counts) < 10


async def test_long_texts_and_recordings_are_no_fault(monkeypatch):
    """However many marks are in them."""
    text = '{"a": [1, "\\\\", "b"]}, ' * 20_000
    response, fake = await post(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())
    assert response.status_code == 200 and fake.messages[0]["content"] == text
    data = "QUJD" * 400_000
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    lengths = taken_apart(monkeypatch)
    await post(json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode())
    assert len(lengths) == 1


@pytest.mark.parametrize(
    "text, count",
    [
        ('{"a": [1, 2]}', 3),
        ('{"a,[{": "b\\",["}', 1),
        ('["\\\\", "\\\\\\"["]', 2),
        ('["\\\\\\\\,,", "a\\\\"]', 2),
        ('["unfinished [[[', 1),
    ],
)
def test_marks_within_texts_do_not_count(text, count, monkeypatch):
    monkeypatch.setattr(json_body, "MAX_MARKS", count)
    assert too_much(text.encode()) is None
    monkeypatch.setattr(json_body, "MAX_MARKS", count - 1)
    assert "braces, brackets and commas" in (too_much(text.encode()) or "")


@pytest.mark.parametrize(
    "field", ["model", "messages", "chat_template_kwargs", "tool_choice", "stop", "stream_options"]
)
async def test_no_error_says_more_than_a_line(field):
    long = "x" * 70_000
    for value in (long, [long], {long: long}, [{"role": long}], {"type": "function", "function": {"name": long}}):
        response, _ = await post(json.dumps({"messages": HELLO} | {field: value}).encode())
        if response.status_code != 200:
            assert len(response.content) < 2000, field
