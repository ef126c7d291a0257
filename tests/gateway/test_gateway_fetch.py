"""Recordings from the web: what is fetched, and the many ways to be sent to the server's own network."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway_fixture import FakeClient, http, wav
from step_audio_client import Audio
from step_audio_gateway.errors import ApiError
from step_audio_gateway.fetch import Fetcher

PUBLIC = "93.184.215.14"


class Web:
    """Hosts and what they answer; remembers the requests that reached it."""

    def __init__(self, addresses: dict[str, list[str]], answer):
        self.addresses = addresses
        self.answer = answer
        self.requests: list[httpx.Request] = []

    async def resolve(self, host: str) -> list[str]:
        if host not in self.addresses:
            raise OSError
        return self.addresses[host]

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        result = self.answer(request)
        return await result if asyncio.iscoroutine(result) else result

    def fetcher(self, *allowed: str, timeout: float = 5) -> Fetcher:
        return Fetcher(allowed, timeout, self.resolve, httpx.MockTransport(self.handle))


def reply(content: bytes) -> httpx.Response:
    async def stream():
        yield content

    return httpx.Response(200, content=stream())


def ok(request: httpx.Request) -> httpx.Response:
    return reply(b"RIFF")


async def refused(fetcher: Fetcher, url: str, size: int = 100) -> str:
    with pytest.raises(ApiError) as caught:
        await fetcher.fetch(url, size, "messages[0]")
    return caught.value.detail


async def test_the_connection_goes_to_the_address_that_was_checked():
    web = Web({"a.example": [PUBLIC]}, ok)
    assert await web.fetcher("a.example").fetch("https://A.Example/x.wav?y=1", 100, "") == b"RIFF"
    (request,) = web.requests
    assert request.url == f"https://{PUBLIC}/x.wav?y=1" and request.headers["host"] == "a.example"
    assert request.extensions["sni_hostname"] == "a.example" and request.headers["accept-encoding"] == "identity"


async def test_ipv6():
    web = Web({"a.example": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c"]}, ok)
    assert await web.fetcher("*").fetch("https://a.example/", 100, "") == b"RIFF"
    assert web.requests[0].url.host == "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


@pytest.mark.parametrize(
    "url, said",
    [
        ("http://a.example/", "must be data: or https:"),
        ("ftp://a.example/", "must be data: or https:"),
        ("https://a.example:8443/", "on the standard port"),
        ("https://user:word@a.example/", "without user name"),
        ("https://a.example@b.example/", "without user name"),
        ("https:///x", "must be data: or https:"),
        ("https://b.example/", "b.example is not among the allowed hosts"),
        ("https://xa.example/", "not among"),
        ("https://a.example.b.example/", "not among"),
        ("https://10.0.0.1/", "not among"),
        ("https://[::1]/", "not among"),
        ("https://[", "not among"),
        ("https://\x00/", "cannot be fetched"),
    ],
)
async def test_urls_that_are_refused(url, said):
    web = Web({"a.example": [PUBLIC]}, ok)
    assert said in await refused(web.fetcher("a.example"), url)
    assert not web.requests


async def test_wild_cards():
    web = Web({"x.a.example": [PUBLIC]}, ok)
    assert await web.fetcher("*.a.example").fetch("https://x.a.example/", 100, "")
    assert "not among" in await refused(web.fetcher("*.a.example"), "https://xa.example/")
    assert "not among" in await refused(web.fetcher("*.a.example"), "https://a.example/")
    assert "switched off" in await refused(web.fetcher(), "https://x.a.example/")


@pytest.mark.parametrize("address", ["10.1.2.3", "fec0::1", "64:ff9b::a00:1", "fe80::1%eth0"])
async def test_one_address_that_is_not_public_is_enough(address):
    """All of them: test_gateway_public_addresses.py."""
    web = Web({"a.example": [PUBLIC, address]}, ok)
    assert "not a public address" in await refused(web.fetcher("*"), "https://a.example/")
    assert not web.requests


@pytest.mark.parametrize("host", ["metadata.google.internal", "Instance-Data.", "printer.local", "x.localhost"])
async def test_names_that_are_not_public(host):
    """Whatever they stand for, in a redirect, too."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": f"https://{host}/"})

    web = Web({"a.example": [PUBLIC], host.lower().rstrip("."): [PUBLIC]}, answer)
    for url in (f"https://{host}/", "https://a.example/"):
        assert "not a public address" in await refused(web.fetcher("*"), url)
    assert [request.headers["host"] for request in web.requests] == ["a.example"]


async def test_a_name_that_changes_its_mind():
    """Each connection goes to an address that was looked at; a later answer of the resolver does not reach it."""
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def resolve(host: str) -> list[str]:
        return next(answers)

    web = Web({}, lambda request: httpx.Response(302, headers={"location": "/again"}))
    fetcher = Fetcher(["*"], 5, resolve, httpx.MockTransport(web.handle))
    assert "not a public address" in await refused(fetcher, "https://a.example/")
    assert [request.url.host for request in web.requests] == [PUBLIC]


@pytest.mark.parametrize(
    "where, allowed, said",
    [
        ("https://b.example/y", "*", None),
        ("https://b.example/y", "a.example", "b.example is not among the allowed hosts"),
        ("https://inner.example/", "*", "not a public address"),
        ("http://b.example/", "*", "must be data: or https:"),
        ("//127.0.0.1/", "*", "127.0.0.1 is not known"),
        ("file:///etc/passwd", "*", "must be data: or https:"),
        ("/again", "*", "more than 3 redirects"),
    ],
)
async def test_every_redirect_is_checked(where, allowed, said):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers["host"] == "a.example":
            return httpx.Response(302, headers={"location": where})
        return ok(request)

    web = Web({"a.example": [PUBLIC], "b.example": ["8.8.8.8"], "inner.example": ["10.0.0.1"]}, answer)
    if said is None:
        assert await web.fetcher(allowed).fetch("https://a.example/", 100, "") == b"RIFF"
        assert [request.url.host for request in web.requests] == [PUBLIC, "8.8.8.8"]
    else:
        assert said in await refused(web.fetcher(allowed), "https://a.example/")
        assert {request.url.host for request in web.requests} == {PUBLIC}


async def test_numbers_that_are_addresses():
    """The real resolver reads these as 127.0.0.1."""
    fetcher = Fetcher(["*"], 5, transport=httpx.MockTransport(ok))
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:7f00:1]"):
        assert "not a public address" in await refused(fetcher, f"https://{host}/")


async def test_size_and_time():
    async def endless():
        while True:
            yield b"x" * 60

    def stated(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-length": "101"}, content=endless())

    web = Web({"a.example": [PUBLIC]}, stated)
    assert "larger than 100 bytes" in await refused(web.fetcher("*"), "https://a.example/")
    web.answer = lambda request: httpx.Response(200, content=endless())
    assert "larger than 100 bytes" in await refused(web.fetcher("*"), "https://a.example/")

    async def late(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return ok(request)

    web.answer = late
    assert "not fetched within 0.05 s" in await refused(web.fetcher("*", timeout=0.05), "https://a.example/")
    web.answer = lambda request: httpx.Response(404)
    assert "status 404" in await refused(web.fetcher("*"), "https://a.example/")


async def test_through_the_gateway():
    web = Web({"a.example": [PUBLIC]}, lambda request: reply(wav()))
    fake = FakeClient()
    async with http(fake, web.fetcher("a.example")) as client:
        part = {"type": "audio_url", "audio_url": {"url": "https://a.example/a.wav"}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        assert fake.messages[0]["content"] == [{"type": "audio", "audio": Audio(wav())}]
        part["audio_url"]["url"] = "https://b.example/a.wav"
        error = (await client.post("/v1/chat/completions", json=body)).json()["error"]
        assert error["param"] == "messages[0].content[0]"
