"""`step-audio chat --mode`: two columns on a terminal, two streams elsewhere, figures and refusals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from step_audio_client.chat import speech_figures
from step_audio_client.chat_types import Segment, SpeechTiming
from step_audio_evaluation.held_out import held_out
from step_audio_server.commands import cli
from step_audio_server.launch.ports import free_ports
from terminal import Terminal

FIGURES = re.compile(
    r"first word after \d+\.\d\d s with (?P<before>\d+) tokens thought before it"
    r"(, thought over after \d+\.\d\d s with (?P<thought>\d+))?, segments: (?P<segments>\d+)"
    r"(, underruns: (?P<underruns>\d+) \(\d+\.\d\d s\))?, KV blocks reused: \d+ of \d+, finish: (?P<finish>\w+)"
)


@pytest.fixture(scope="module")
def question(tmp_path_factory):
    """A sum, spoken."""
    (item,) = held_out(["arithmetic"], 1, seed=11)
    recording = tmp_path_factory.mktemp("question") / "sum.wav"
    recording.write_bytes(item.audio[0])
    return recording


def command(service, *arguments) -> list[str]:
    words = ["chat", "--url", service.address, "--temperature", "0", *arguments]
    return [sys.executable, "-m", "step_audio_server", *map(str, words)]


def ask(service, question, *arguments) -> tuple[str, str, re.Match]:
    """Answer, thought, figures."""
    ran = subprocess.run(command(service, "--audio", question, *arguments), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    thought, _, figures = ran.stderr.rstrip("\n").rpartition("\n")
    match = FIGURES.fullmatch(figures)
    assert match, figures
    return ran.stdout, thought, match


def test_thought_and_answer_apart(listener, question):
    """Into pipes: the whole thought on stderr, the whole answer on stdout, however they came."""
    plain = subprocess.run(command(listener, "--audio", question), capture_output=True, text=True, timeout=120)
    answer, thought, figures = ask(listener, question, "--mode", "think-before-speak")
    assert (answer, thought) == (plain.stdout, plain.stderr.splitlines()[0])
    assert figures["segments"] == "1" and figures["before"] == figures["thought"] != "0"

    pace = ("--think-tokens", 12, "--speak-tokens", 3)
    answer, thought, figures = ask(listener, question, "--mode", "speak-first", *pace)
    assert thought.startswith("I hear: ") and "\n" not in thought and answer.endswith(".\n")
    assert figures["before"] == "0" and int(figures["segments"]) > 1 and figures["underruns"] is None
    _, _, figures = ask(listener, question, "--mode", "think-first", *pace, "--speech-rate", 1000)
    assert figures["before"] == "12" and int(figures["underruns"]) > 0

    answer, thought, figures = ask(listener, question, "--mode", "no-think")
    assert answer.endswith(".\n") and thought == "" and figures["thought"] is None


def on_terminal(arguments: list[str], columns: int, lines: int) -> tuple[int, Terminal, str]:
    """Exit status, what the terminal showed, stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        arguments, stdout=theirs, stderr=subprocess.PIPE, env={**environment, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        data = b""
        with contextlib.suppress(OSError):  # closed at the other end
            while piece := os.read(ours, 65536):
                data += piece
        errors = process.stderr.read().decode()
    os.close(ours)
    terminal = Terminal(columns, lines)
    terminal.write(data.decode())
    return process.returncode, terminal, errors


def test_two_columns_on_a_terminal(listener, question):
    pace = ("--mode", "think-first", "--think-tokens", 1000)  # so that the words do not hang on the clock
    answer, thought, _ = ask(listener, question, *pace)
    status, terminal, errors = on_terminal(command(listener, "--audio", question, *pace), 60, 24)
    assert status == 0 and FIGURES.fullmatch(errors.strip())
    left, right = (" ".join(" ".join(row.partition(" | ")[n] for row in terminal.rows).split()) for n in (0, 2))
    assert (left, right) == (thought, answer.strip())
    assert any(text.startswith("I hear") for text in terminal.dim)
    assert terminal.rows[0].startswith(thought[:20]) and answer.startswith(terminal.rows[0].partition(" | ")[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--think-tokens 5", "--think-tokens needs --mode"),
        ("--speak-tokens 5 --speech-rate 3", "--speak-tokens needs --mode"),
        ("--speech-rate 3", "--speech-rate needs --mode"),
        ("--mode speak-first --think-tokens 0", "mind_paced_speaking: think_tokens must be at least 1, not 0"),
        ("--mode think-first --speech-rate 0", "mind_paced_speaking: speech_rate must be a number above 0, not 0"),
        ("--mode speak-first --prefix x", "continue_final_message does not go with mind_paced_speaking"),
    ],
)
def test_refusals(arguments, said, capsys):
    """Before any server is asked."""
    (port,) = free_ports(1)
    assert cli.main(["chat", "--url", f"127.0.0.1:{port}", "--text", "hello", *arguments.split()]) == 1
    assert capsys.readouterr() == ("", f"step-audio: {said}\n")


def test_figures_of_what_did_not_happen():
    timing = SpeechTiming(None, 3, 3, None, 0, 0.0, ())
    assert speech_figures(timing, played=False) == "nothing said, segments: 0, KV blocks reused: 0 of 0"
    segment = Segment(0.1, 0, 0.25, 0.5, 4, total_blocks=5, reused_blocks=3)
    timing = SpeechTiming(0.25, 0, 40, 1.0, 2, 0.126, (segment, segment))
    assert speech_figures(timing, played=True) == (
        "first word after 0.25 s with 0 tokens thought before it, thought over after 1.00 s with 40, "
        "segments: 2, underruns: 2 (0.13 s), KV blocks reused: 6 of 10"
    )
