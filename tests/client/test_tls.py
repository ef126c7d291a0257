"""TLS of the client library: who is trusted, what is refused, and in which words."""

from __future__ import annotations

from contextlib import asynccontextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from certificates import Authority
from fake_triton import TOKENIZER, Fake, message, script
from step_audio_client import RequestError, StepAudioClient, Tls, Unavailable, user


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "others")


@asynccontextmanager
async def serving(authority: Authority, name: str = "localhost", mutual: bool = False):
    """Its port; `name`: that in its certificate."""
    cert, key = (path.read_bytes() for path in authority.issue(name))
    root = authority.ca.read_bytes() if mutual else None
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Fake(script(message(5, final=True))), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)], root, mutual))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def ask(address: str, tls: Tls | None = None) -> list[int]:
    async with StepAudioClient(address, TOKENIZER, tls=tls) as client:
        return (await client.complete([user("x")], timeout=30)).token_ids


async def test_a_trusted_server_answers(ours):
    async with serving(ours) as port:
        assert await ask(f"grpcs://localhost:{port}", Tls(ours.ca)) == [5]


async def test_a_server_of_another_name(ours):
    async with serving(ours, "triton.example") as port:
        assert await ask(f"grpcs://localhost:{port}", Tls(ours.ca, name="triton.example")) == [5]
        with pytest.raises(Unavailable, match=NOT_TRUSTED.format(port=port)):
            await ask(f"grpcs://localhost:{port}", Tls(ours.ca))


NOT_TRUSTED = "^the certificate of the server at grpcs://localhost:{port} is not trusted here, or for another name$"


async def test_an_untrusted_server(ours, others):
    async with serving(ours) as port:
        for tls in (None, Tls(others.ca)):
            with pytest.raises(Unavailable, match=NOT_TRUSTED.format(port=port)):
                await ask(f"grpcs://localhost:{port}", tls)


async def test_no_plain_text_to_a_server_with_tls(ours):
    async with serving(ours) as port:
        with pytest.raises(Unavailable, match=f"^no server answers at localhost:{port}$"):
            await ask(f"localhost:{port}")


async def test_a_server_that_wants_our_certificate(ours, others):
    async with serving(ours, mutual=True) as port:
        assert await ask(f"grpcs://localhost:{port}", ours.client()) == [5]
        for cert in ((), others.issue("stranger")):
            with pytest.raises(RequestError, match=f"^no server answers at grpcs://localhost:{port}$"):
                await ask(f"grpcs://localhost:{port}", Tls(ours.ca, *cert))


@pytest.mark.parametrize(
    ("address", "files", "error"),
    [
        ("host:1", {"ca": True}, "certificates are for addresses such as grpcs://host:1"),
        ("grpcs://host:1", {"cert": True}, "a certificate and its key belong together: give both or none"),
        ("grpcs://host:1", {"key": True}, "a certificate and its key belong together: give both or none"),
    ],
)
def test_files_that_do_not_belong_together(ours, address, files, error):
    with pytest.raises(ValueError, match=f"^{error}$"):
        StepAudioClient(address, tls=Tls(**{name: ours.ca for name in files}))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        StepAudioClient("grpcs://host:1", tls=Tls(tmp_path / "nowhere.pem"))
