"""Certificates for a test, by the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from step_audio_client import Tls

NEW = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
BOTH = ("-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", "basicConstraints=CA:FALSE")


class Authority:
    """Somebody who signs certificates; all files are in `folder`."""

    def __init__(self, folder: Path):
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command")
        folder.mkdir(parents=True)
        self.folder = folder
        self.ca, self._key = folder / "ca.pem", folder / "ca.key"
        self._openssl("-keyout", self._key, "-out", self.ca, "-subj", "/CN=ca")

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for a host `name`, good for servers and clients."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        signed = ("-CA", self.ca, "-CAkey", self._key, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")
        self._openssl(*signed, *BOTH, "-keyout", key, "-out", cert)
        return cert, key

    def client(self, **values) -> Tls:
        """Who trusts this authority and has a certificate of it."""
        return Tls(self.ca, *self.issue("client"), **values)

    def _openssl(self, *words: str | Path) -> None:
        subprocess.run(["openssl", *NEW, *map(str, words)], check=True, capture_output=True)
