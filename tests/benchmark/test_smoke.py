"""`make bench-smoke` runs what docs/benchmarks.md tells people to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from paths import ROOT
from scripts import script_of
from step_audio_server.commands.cli import _parser


@pytest.fixture(scope="module")
def smoke():
    return script_of("benchmarks/smoke.py")


def test_it_runs_the_page_s_commands_of_both_tools(smoke):
    found = list(smoke.commands(smoke.PAGE.read_text("utf-8")))
    assert [words[0] for words in found] == ["step-audio", "aiperf"]
    bench, aiperf = found
    assert _parser().parse_args(bench[1:]).perf_analyzer
    assert aiperf[1] == "profile" and "ignore_eos:true" in aiperf
    assert (ROOT / aiperf[aiperf.index("--tokenizer") + 1] / "tokenizer.json").is_file()
    asked = " ".join(word for words in found for word in words)
    assert smoke.GRPC in asked and smoke.HTTP in asked
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "bench-smoke: " in makefile and "benchmarks/smoke.py" in makefile


def test_only_addresses_and_folders_are_replaced(smoke):
    page = (
        "```sh\naiperf profile --url http://127.0.0.1:9999 \\\n  --output-artifact-dir figures/aiperf  # comment\n```\n"
    )
    (words,) = smoke.commands(page)
    made = smoke.here(words, "127.0.0.1:1", "http://127.0.0.1:2", Path("/tmp/x"), Path("/env/bin/aiperf"))
    assert made == [
        "/env/bin/aiperf",
        "profile",
        "--url",
        "http://127.0.0.1:2",
        "--output-artifact-dir",
        "/tmp/x/aiperf",
    ]
    (words,) = smoke.commands("```sh\nstep-audio bench --output figures --url 127.0.0.1:8001 --perf-analyzer\n```\n")
    made = smoke.here(words, "127.0.0.1:1", "http://127.0.0.1:2", Path("/tmp/x"), Path("/env/bin/aiperf"))
    assert made[1:] == ["bench", "--output", "/tmp/x", "--url", "127.0.0.1:1", "--perf-analyzer"]
    assert list(smoke.commands("```sh\nstep-audio bench --output figures\n```\n")) == []
