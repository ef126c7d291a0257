"""Recordings from the web, for `audio_url` with https.

A server that fetches what it is told to can be sent to its own network (SSRF). So: https and port 443 only, hosts
from a list, addresses that are public. The name is resolved once and the connection goes to the address that was
checked, so that a name cannot mean another machine a moment later. Redirects go through the same checks.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cache

import httpx

from step_audio_gateway.errors import ApiError, refused
from step_audio_gateway.public_addresses import is_public, is_public_name

MAX_REDIRECTS = 3

Resolve = Callable[[str], Awaitable[list[str]]]


class Fetcher:
    """`allowed`: `host`, `*.domain`, or `*` for every public host; empty refuses all. `timeout` in seconds for one
    recording, redirects included. `resolve` and `transport` are for tests."""

    def __init__(
        self,
        allowed: Sequence[str],
        timeout: float,
        resolve: Resolve | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self._allowed = [pattern.lower() for pattern in allowed]
        self._timeout = timeout
        self._resolve = resolve or _resolve
        self._transport = transport

    async def fetch(self, url: str, max_bytes: int, param: str) -> bytes:
        """The recording's bytes. Raises ApiError, which names `param`."""
        if not self._allowed:
            raise refused(
                "audio_url: fetching is switched off here; send the audio as a data: URL or as input_audio", param
            )
        try:
            async with (
                asyncio.timeout(self._timeout),
                # No proxy of the environment's, which would resolve for itself. No connection is used twice: it
                # would be found by its address, and has proved the name of the host it was made for.
                httpx.AsyncClient(
                    transport=self._transport,
                    trust_env=False,
                    verify=_certificates(),
                    limits=httpx.Limits(max_keepalive_connections=0),
                ) as client,
            ):
                return await self._follow(client, url, max_bytes, param)
        except TimeoutError:
            raise refused(f"audio_url: not fetched within {self._timeout:g} s", param) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError, OSError) as error:
            raise refused(f"audio_url: cannot be fetched ({type(error).__name__})", param) from None

    async def _follow(self, client: httpx.AsyncClient, url: str, max_bytes: int, param: str) -> bytes:
        target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            host = self._allowed_host(target, param)
            request = client.build_request(
                "GET",
                target.copy_with(host=await self._public_address(host, param)),
                headers={"Host": host, "Accept-Encoding": "identity"},  # unpacking could make any amount of data
                extensions={"sni_hostname": host},  # the certificate is checked against the name
            )
            response = await client.send(request, stream=True)
            try:
                if response.is_redirect:
                    target = target.join(response.headers.get("location", ""))
                    continue
                if response.status_code != 200:
                    raise refused(f"audio_url: the host answered with status {response.status_code}", param)
                return await _read(response, max_bytes, param)
            finally:
                await response.aclose()
        raise refused(f"audio_url: more than {MAX_REDIRECTS} redirects", param)

    def _allowed_host(self, url: httpx.URL, param: str) -> str:
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        if url.scheme != "https" or url.port not in (None, 443) or url.userinfo or not host:
            raise refused("audio_url: must be data: or https: on the standard port, without user name", param)
        for pattern in self._allowed:
            if pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:])):
                return host
        raise refused(f"audio_url: {host} is not among the allowed hosts", param)

    async def _public_address(self, host: str, param: str) -> str:
        not_public = refused(f"audio_url: {host} is not a public address", param)
        if not is_public_name(host):
            raise not_public
        try:
            addresses = await self._resolve(host)
        except OSError:
            addresses = []
        if not addresses:
            raise refused(f"audio_url: {host} is not known", param)
        if not all(map(is_public, addresses)):  # one private among them is reason enough
            raise not_public
        return addresses[0]


@cache
def _certificates() -> ssl.SSLContext:
    """Loaded once: it takes 25 ms, in which everybody waits."""
    return httpx.create_ssl_context(trust_env=False)


async def _resolve(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def _read(response: httpx.Response, max_bytes: int, param: str) -> bytes:
    too_large = ApiError(413, f"audio_url: larger than {max_bytes} bytes", param, "audio_too_large")
    stated = response.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise too_large
    data = bytearray()
    async for block in response.aiter_raw():
        data += block
        if len(data) > max_bytes:
            raise too_large
    return bytes(data)
