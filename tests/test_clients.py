"""The suite of clients, as far as it goes without them: pins, scripts and the page agree."""

from __future__ import annotations

import json
import re

import pytest

from paths import ROOT

CLIENTS = ROOT / "tests/clients"
PAGE = (ROOT / "docs/clients.md").read_text("utf-8")
SCRIPTS = sorted(path.name for path in CLIENTS.glob("with_*"))
# In the page's order.
PACKAGES = {
    "openai for Python": "openai.txt",
    "openai for JavaScript": "openai",
    "OpenAI agents for JavaScript": "@openai/agents-realtime",
    "LangChain": "langchain.txt",
    "LiteLLM": "litellm.txt",
    "instructor": "instructor.txt",
    "AI SDK": "ai",
    "LiveKit agents": "livekit.txt",
    "Pipecat": "pipecat.txt",
}


def test_every_environment_is_pinned():
    for file in (CLIENTS / "requirements").glob("*.txt"):
        lines = file.read_text("utf-8").splitlines()
        assert lines and all("==" in line for line in lines), file.name
    named = json.loads((CLIENTS / "package.json").read_text("utf-8"))["dependencies"]
    lock = json.loads((CLIENTS / "package-lock.json").read_text("utf-8"))["packages"]
    assert {name: lock[f"node_modules/{name}"]["version"] for name in named} == named
    assert all(one.get("integrity") for path, one in lock.items() if path)


def test_every_script_has_its_client():
    """And the page has a line for each."""
    listed = re.findall(r'Client\("([^",]+)[^"]*", "(with_\w+\.\w+)"', (CLIENTS / "run_all.py").read_text("utf-8"))
    assert sorted(script for _, script in listed) == SCRIPTS
    assert {client for client, _ in listed} == set(re.findall(r"^\| ([\w ]+?)(?:,[^|]*)? \| `", PAGE, re.M))


@pytest.mark.parametrize("client", PACKAGES)
def test_the_page_is_of_these_versions_and_nothing_failed(client):
    rows = re.findall(rf"^\| {client}[^|]*\| (\S+) +\| ([^|]*?) +\| ([^|]*?) +\|$", PAGE, re.M)
    assert len(rows) > 3 and {end for *_, end in rows} == {"ok"}
    pins = PACKAGES[client]
    source = (
        (CLIENTS / "requirements" / pins).read_text("utf-8")
        if pins.endswith(".txt")
        else re.search(rf'"{pins}": .*', (CLIENTS / "package.json").read_text("utf-8"))[0]
    )
    for version, _, _ in rows:
        assert re.search(rf'(==|: "){re.escape(version)}\b', source), (client, version)
