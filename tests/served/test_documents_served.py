"""What the documents show is done as it stands, on the small model: curl, Python, `step-audio chat`, the picture."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import step_audio_client
from browser import needs_browser
from document_fixture import NAMES, blocks, lines, our_commands
from paths import ROOT
from scripts import script_of

SUM = ROOT / "examples/sum.wav"
THOUGHT, ANSWER = "I hear: what is forty eight plus thirty four. 48+34. 48+30=78, 78+4=82.", "48 plus 34 is 82."


def curl(page: str, url: str, model: str = "R1") -> str:
    """The output of the page's call of the chat route."""
    (block,) = [text for text in blocks(ROOT / page, "sh") if re.match(r"curl .*/v1/chat/completions", text)]
    here = re.sub(r'"model": "[^"]*"', f'"model": "{model}"', block.replace("http://localhost:9999", url))
    done = subprocess.run(["bash", "-euc", here], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_s_curl_has_the_readme_s_answer(url):
    (block,) = blocks(ROOT / "README.md", "json")
    answer, shown = json.loads(curl("README.md", url)), json.loads(block)
    assert shown["model"] == "listener-19m"
    for reply in (answer, shown):
        del reply["id"], reply["created"], reply["model"]
    assert answer == shown
    message = shown["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)


def test_the_guide_s_curl_streams(url, monkeypatch):
    monkeypatch.setenv("STEP_AUDIO_API_KEY", "none")
    events = [line.removeprefix("data: ") for line in curl("docs/deploy.md", url).splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert any(delta.get("reasoning_content") for delta in deltas)


def python_blocks() -> list[tuple[str, str]]:
    """The reference has signatures, too, which are no programs."""
    found = [(name, text) for name in NAMES for text in blocks(ROOT / name, "python")]
    return [(name, text) for name, text in found if not re.match(r"@|(async )?def |class |\w+ = (Literal|\()", text)]


@pytest.mark.parametrize("page, text", python_blocks(), ids=lambda value: value.partition("\n")[0][:40])
def test_python_runs(page, text, url, listener, tmp_path, monkeypatch, capsys):
    """With what the text around it takes for granted: a recording, somebody who speaks."""
    (tmp_path / "question.wav").write_bytes(SUM.read_bytes())
    monkeypatch.chdir(tmp_path)
    spoken: list[str] = []
    names = vars(step_audio_client) | {
        "Path": Path,
        "base64_wav": base64.b64encode(SUM.read_bytes()).decode(),
        "base64_pcm16": base64.b64encode(SUM.read_bytes()[44:]).decode(),
        "pcm16": SUM.read_bytes()[44:] + bytes(64_000),
        "recording": Path("question.wav"),
        "speak": spoken.append,
        "text": f"{THOUGHT}\n</think>\n{ANSWER}",
    }
    here = text.replace("http://localhost:9999", url).replace("127.0.0.1:8001", listener.address)
    code = compile(here, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    done = eval(code, names)
    if done is not None:
        asyncio.run(asyncio.wait_for(done, 120))
    assert (capsys.readouterr().out + "".join(spoken)).strip()


def chat_commands() -> list[list[str]]:
    found = [given for name in NAMES for words in lines(ROOT / name) for given in our_commands(words)]
    # With certificates, tests/served/test_tls_served.py does it.
    return [given for given in found if given[0] == "chat" and "--ca" not in given]


@pytest.mark.parametrize("given", chat_commands(), ids=shlex.join)
def test_chat_answers(given, listener, tmp_path):
    (tmp_path / "question.wav").write_bytes(SUM.read_bytes())
    given = [Path(word).name if word.endswith(".wav") else word for word in given]
    command = [sys.executable, "-m", "step_audio_server", *given, "--url", listener.address, "--max-tokens", "100"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_fields_of_mind_paced_speaking_are_taken(url):
    (block,) = blocks(ROOT / "docs/mind-paced-speaking.md", "json")
    body = json.loads(block) | {"messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_tokens": 50}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    told = reply.json()["choices"][0]["mind_paced_speaking"]
    page = (ROOT / "docs/mind-paced-speaking.md").read_text("utf-8")
    assert told.keys() <= set(re.findall(r"`(\w+)`", page))


@needs_browser
@pytest.mark.browser
def test_the_picture_can_be_taken(url, tmp_path, monkeypatch):
    picture = script_of("docs/picture.py")
    assert picture.PICTURE.stat().st_size < 200_000
    monkeypatch.setattr(picture, "PICTURE", tmp_path / "playground.png")
    assert picture.take(url, tmp_path) == ANSWER
    assert (tmp_path / "playground.png").stat().st_size < 200_000
