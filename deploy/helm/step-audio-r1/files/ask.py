"""Asks the gateway at $GATEWAY for one short answer, streamed, and prints it. Exit status 1 where there is none."""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT = 120  # seconds


def lines(path, body=None):
    """The reply's lines. `body`: JSON to post."""
    keys = [key.strip() for key in os.environ.get("API_KEYS", "").splitlines()]
    key = next((key for key in keys if key and not key.startswith("#")), None)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["GATEWAY"] + path, data, headers)
    unverified = ssl._create_unverified_context()  # the certificate is for the name that users know
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=unverified) as reply:
        for line in reply:
            yield line.decode().strip()


def ask():
    model = json.loads("".join(lines("/v1/models")))["data"][0]["id"]
    print(f"model: {model}\nanswer: ", end="")
    question = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 32,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    tokens = 0
    for line in lines("/v1/chat/completions", question):
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise ValueError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            print(delta.get("reasoning_content") or delta.get("content") or "", end="", flush=True)
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    print(f"\n{tokens} tokens")
    if not tokens:
        raise ValueError("the stream ended without a token")


try:
    ask()
except urllib.error.HTTPError as error:
    sys.exit(f"{error.url} answered {error.code}: {error.read().decode(errors='replace')}")
except (OSError, ValueError) as error:
    sys.exit(f"no answer: {error}")
