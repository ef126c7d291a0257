"""TLS on the way to a server: whom we trust, and who we are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

SCHEME = "grpcs://"


@dataclass(frozen=True)
class Tls:
    """PEM files for servers at `grpcs://` addresses.

    `ca`: certificates of those who may have signed a server's (default: the public ones that come with gRPC).
    `cert`, `key`: ours, for servers that want one (mutual TLS). `name`: that in the server's certificate, where it is
    not the address's.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str | None = None

    def check(self, address: str) -> None:
        """Raises ValueError where the files do not fit together or to `address`, OSError where one cannot be read."""
        if not address.startswith(SCHEME) and self != Tls():
            raise ValueError(f"certificates are for addresses such as {SCHEME}{address}")
        if (self.cert is None) != (self.key is None):
            raise ValueError("a certificate and its key belong together: give both or none")
        self.credentials()

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError."""
        ca, key, cert = (None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)
