"""Files of forms: in memory alone, within the bounds of all bodies, and no longer than they are needed."""

from __future__ import annotations

import asyncio
import tempfile

import pytest
from starlette.datastructures import UploadFile

from gateway_fixture import REPLY, FakeClient, http, wav
from metrics_page import figure

LARGE = wav(60, 16_000)  # 1.9 MB: more than what is usually kept in memory


@pytest.fixture
def no_files(monkeypatch):
    """As on a machine where nothing but the work directory can be written to."""

    def fail(*args, **kwargs):
        raise PermissionError("no file can be made here")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, fail)


@pytest.mark.parametrize("path", ["transcriptions", "translations"])
async def test_no_file_is_made(path, no_files):
    fake = FakeClient()
    async with http(fake) as client:
        response = await client.post(f"/v1/audio/{path}", files={"file": LARGE, "other": LARGE})
    assert response.status_code == 200, response.text
    assert fake.messages[0]["content"][0]["audio"].data == LARGE


async def test_an_upload_counts_as_long_as_it_is_answered():
    """Towards the bytes in flight, whatever its parts are called."""
    fake = FakeClient(lambda messages, options: [60.0, *REPLY])
    async with http(fake, max_body_bytes=3_000_000, max_bytes_in_flight=3_000_000) as client:

        def send(**files: bytes):
            return asyncio.ensure_future(client.post("/v1/audio/transcriptions", files=files))

        first = send(file=LARGE)
        while not fake.begun:
            await asyncio.sleep(0.01)
        assert figure((await client.get("/metrics")).text, BYTES) > len(LARGE)
        second = await send(file=LARGE)
        assert (second.status_code, second.json()["error"]["code"]) == (429, "server_busy")
        large = await send(file=LARGE, other=LARGE)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        first.cancel()
        await asyncio.wait([first])
        assert figure((await client.get("/metrics")).text, BYTES) == 0


BYTES = "step_audio_body_bytes_in_flight"


async def test_the_form_s_copy_is_given_back_before_the_answer(monkeypatch):
    closed = []
    close = UploadFile.close

    async def counted(file):
        closed.append(fake.begun)
        await close(file)

    monkeypatch.setattr(UploadFile, "close", counted)
    fake = FakeClient()
    async with http(fake) as client:
        assert (await client.post("/v1/audio/transcriptions", files={"file": LARGE})).status_code == 200
    assert closed[0] == 0


async def send_fields(count: int, kind: str):
    """`kind`: of the fields beside the file, or of the whole form."""
    values = {f"field{i}": "x" for i in range(count)}
    fake = FakeClient()
    async with http(fake) as client:
        if kind == "urlencoded":
            response = await client.post("/v1/audio/transcriptions", data=values)
        elif kind == "fields":
            response = await client.post("/v1/audio/transcriptions", data=values, files={"file": wav(1)})
        else:
            files = {name: value.encode() for name, value in values.items()}
            response = await client.post("/v1/audio/transcriptions", files={"file": wav(1)} | files)
    return response, fake


@pytest.mark.parametrize("kind, most", [("fields", 1000), ("files", 999), ("urlencoded", 1000)])
async def test_a_form_has_a_thousand_fields_at_most(kind, most):
    response, fake = await send_fields(most, kind)
    error = response.json().get("error", {})
    if kind == "urlencoded":  # which has no files
        assert (response.status_code, error["param"]) == (400, "file")
    else:
        assert response.status_code == 200, response.text
    response, fake = await send_fields(most + 1, kind)
    error = response.json()["error"]
    assert response.status_code == 400 and not fake.begun
    assert error["param"] is None and "1000" in error["message"]
