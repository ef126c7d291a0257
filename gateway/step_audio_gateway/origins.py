"""Without API keys, who may not ask all the same: pages of others, in the browser of somebody who may.

A browser sends a form to wherever a page says, with the page's Origin; and a name that its owner has just pointed to
this machine (DNS rebinding) makes another's page one of this server's own, which its Host tells. Keys keep both out.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from step_audio_gateway.errors import ApiError
from step_audio_gateway.settings import GatewaySettings

_PORTS = (":80", ":443")


class Origins:
    """What the settings allow. Names are looked at where the server listens on this machine alone."""

    def __init__(self, settings: GatewaySettings):
        self._pages = {origin.lower() for origin in settings.allowed_origins}
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._local = _is_local(settings.host)

    def check(self, method: str, headers: Headers) -> None:
        """Raises ApiError: 403."""
        host = headers.get("host", "").lower()
        if self._local and not self._known(_name(host)):
            raise ApiError(403, f"this server has no name {_name(host)!r}: see --allowed-hosts", code="foreign_host")
        origin = headers.get("origin", "").lower()
        allowed = not origin or self._pages.intersection((origin, "*"))
        if method == "POST" and not allowed and _without_port(origin.partition("://")[2]) != _without_port(host):
            raise ApiError(403, f"pages of {origin} may not call: see --allowed-origins", code="foreign_origin")

    def _known(self, name: str) -> bool:
        """Names without a dot are of the network that one is in: nobody elsewhere can point them anywhere."""
        return "*" in self._hosts or name in self._hosts or "." not in name or _is_address(name)


def _is_local(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _without_port(host: str) -> str:
    return next((host.removesuffix(port) for port in _PORTS if host.endswith(port)), host)
