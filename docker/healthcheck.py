"""Exit status 0 when the gateway says that the model is served. For HEALTHCHECK; the standard library alone."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request

PORT = os.environ.get("STEP_AUDIO_PORT", "9999")
SCHEME = "https" if os.environ.get("STEP_AUDIO_SSL_CERTFILE") else "http"


def main() -> int:
    try:
        # To ourselves the gateway need not prove who it is.
        context = ssl._create_unverified_context() if SCHEME == "https" else None
        with urllib.request.urlopen(f"{SCHEME}://127.0.0.1:{PORT}/ready", timeout=4, context=context):
            return 0
    except OSError as error:  # refused, or answered with 503: HTTPError is one of them
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
