"""`vllm serve`'s flags for HTTP, requests and logs: which are ours, too, and what becomes of the others."""

from __future__ import annotations

# Of the same name and meaning.
SAME = (
    "--host", "--port", "--root-path", "--served-model-name", "--api-key", "--allowed-origins",
    "--allowed-media-domains", "--ssl-certfile", "--ssl-keyfile",
)  # fmt: skip

# What they ask for is so in any case.
ALWAYS = {
    "--enable-auto-tool-choice": "tools of the request may be called",
    "--enable-prompt-tokens-details": "usage has them",
    "--enable-request-id-headers": "every reply has X-Request-Id",
    "--disable-log-requests": "texts are logged with --log-content alone",
    "--no-enable-log-requests": "texts are logged with --log-content alone",
}

_PARSERS = "thoughts and calls are read in the model's own notation, always: leave it out"
_ORIGINS = "pages of --allowed-origins may send any header, by GET and POST, and no cookies are looked at"
_TLS = "put a proxy before it"
_ONE_LINE = "there is one line for each request, for probes only with --log-level debug"

REFUSED = {
    "--reasoning-parser": _PARSERS,
    "--tool-call-parser": _PARSERS,
    "--tool-parser-plugin": _PARSERS,
    "--default-chat-template-kwargs": "use --default-thinking",
    "--trust-request-chat-template": "requests bring no templates: use --chat-template",
    "--chat-template-content-format": "templates are given texts: leave it out",
    "--response-role": "replies are the assistant's",
    "--tool-server": "calls are handed to the caller, who runs the tools",
    "--enable-log-requests": "use --log-content",
    "--enable-log-outputs": "use --log-content",
    "--max-log-len": "use --log-content, or leave it out",
    "--uvicorn-log-level": "use --log-level",
    "--log-config-file": "use --log-level",
    "--disable-uvicorn-access-log": _ONE_LINE,
    "--disable-access-log-for-endpoints": _ONE_LINE,
    "--enable-force-include-usage": "ask for it with stream_options.include_usage",
    "--enable-server-load-tracking": "see /metrics",
    "--uds": "use --host and --port",
    "--allow-credentials": _ORIGINS,
    "--allowed-methods": _ORIGINS,
    "--allowed-headers": _ORIGINS,
    "--allowed-local-media-path": "recordings come with requests, or from --allowed-media-domains",
    "--ssl-ca-certs": _TLS,
    "--ssl-cert-reqs": _TLS,
    "--ssl-ciphers": _TLS,
    "--enable-ssl-refresh": _TLS,
    "--middleware": "no code is taken in: put a proxy before it",
    "--disable-fastapi-docs": "there is /openapi.json alone, which tells what every caller can try: leave it out",
    "--api-server-count": "start `step-audio gateway` several times",
}
