"""`step-audio bench` against a server with a model."""

import json
import os

import pytest

from step_audio.errors import StepAudioError
from step_audio_benchmark.perf_analyzer import find
from step_audio_server.commands.bench import CACHE
from step_audio_server.commands.cli import main

COMMON = ["--requests", "2", "--rounds", "2", "--output-tokens", "12", "--clip-seconds", "0.5", "1"]


def run(tmp_path, *arguments):
    """Exit status and results; none where nothing could be measured."""
    status = main(["bench", "--output", str(tmp_path / "out"), *arguments])
    results = tmp_path / "out" / "results.json"
    return status, json.loads(results.read_text()) if results.exists() else None


def test_both_doors_of_a_running_server(listener, url, tmp_path, capsys):
    triton = f"http://127.0.0.1:{listener.ports.http}"
    status, results = run(
        tmp_path, "--url", listener.address, "--http", url, "--triton-http", triton, "--pid", str(os.getpid()),
        "--concurrency", "1", "2", "--first-token-within", "1000", *COMMON,
    )  # fmt: skip
    assert status == 0
    cells = results["cells"]
    assert [(cell["target"], cell["level"]["concurrency"], cell["round"]) for cell in cells] == [
        (target, level, number) for number in (0, 1) for level in (1, 2) for target in ("gRPC", "HTTP")
    ]
    for cell in cells:
        made = cell["figures"]
        assert made["failed"] == 0 and made["requests"] == 2 and made["goodput"] == made["requests_rate"]
        assert made["tokens_rate"] == pytest.approx(12 * made["requests_rate"])
        assert 0 < made["first_token.p50"] < made["first_token.p99"] * 1.001
        # Each request brought a recording of its own, so nothing of it was cached.
        assert cell["stages"]["audio_encoder"]["requests"] >= 1 and cell["stages"]["tensorrt_llm"]["requests"] >= 2
        assert cell["processor_seconds"]["stub of tensorrt_llm"] >= 0 and cell["processor_seconds"]["this client"] > 0
    requests = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_text().splitlines()]
    assert len(requests) == 16 and {one["output_tokens"] for one in requests} == {12}
    assert all(sum(tokens for _, tokens in one["pieces"]) == 12 for one in requests)
    assert {one["audio_seconds"] for one in requests} == {0.5, 1.0}
    report = (tmp_path / "out" / "report.md").read_text()
    told = capsys.readouterr().out
    assert "HTTP / gRPC" in told and told.strip() in report and results["machine"]["commit"] in report
    assert (tmp_path / "out" / "latency.svg").is_file()
    assert results["machine"]["commit"] in (tmp_path / "out" / "sheet.md").read_text()


def test_an_open_loop_of_text_with_questions_that_come_again(listener, tmp_path):
    status, results = run(
        tmp_path, "--url", listener.address, "--rate", "50", "--requests", "6", "--rounds", "1",
        "--clip-seconds", "0", "--distinct", "2", "--output-tokens", "5", "--sampled",
    )  # fmt: skip
    assert status == 0 and [cell["level"]["rate"] for cell in results["cells"]] == [50.0]
    assert results["workload"]["sampling"]["top_k"] == 50 and results["cells"][0]["figures"]["audio_rate"] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--clip-seconds", "0", "5"], "--clip-seconds 0 stands alone"),
        (["--http", "http://127.0.0.1:9"], "does not answer as an OpenAI-compatible API"),
        (["--audio", "/nowhere/a.wav", "--url", "127.0.0.1:9"], "/nowhere/a.wav"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, text, tmp_path, capsys):
    assert main(["bench", "--output", str(tmp_path), *arguments]) == 1
    assert text in capsys.readouterr().err


def test_perf_analyzer_beside_our_own_load(listener, tmp_path, capsys):
    """The real one. It is fetched once, from the packages' index."""
    try:
        find(CACHE)
    except StepAudioError as error:
        pytest.skip(str(error))
    status, results = run(
        tmp_path, "--url", listener.address, "--perf-analyzer", "--concurrency", "2",
        "--requests", "4", "--rounds", "1", "--output-tokens", "12", "--clip-seconds", "0.5", "1",
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    ours, theirs = results["cells"]
    assert (ours["target"], theirs["target"]) == ("gRPC", "perf_analyzer")
    assert theirs["figures"]["requests"] == 4 and theirs["figures"]["failed"] == 0
    assert theirs["figures"]["tokens_rate"] > 0 and theirs["figures"]["first_token.p50"] > 0
    requests = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_text().splitlines()]
    assert sorted(one["audio_seconds"] for one in requests if one["target"] == "perf_analyzer") == [0.5, 0.5, 1.0, 1.0]
    assert "perf_analyzer / gRPC" in capsys.readouterr().out


def test_perf_analyzer_says_what_is_wrong(listener, tmp_path, capsys):
    """With a stand-in on PATH, as where the SDK's image has it."""
    program = tmp_path / "bin" / "perf_analyzer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'error: Failed to init manager inputs'\necho 'Usage: x'\nexit 99\n")
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        status = main(["bench", "--output", str(tmp_path), "--url", listener.address, "--perf-analyzer", *COMMON])
    assert status == 1 and "perf_analyzer: error: Failed to init manager inputs" in capsys.readouterr().err


@pytest.mark.server
def test_a_server_of_its_own_beside_the_bare_engine(checkpoint, tmp_path, capsys):
    status, results = run(
        tmp_path, "--checkpoint", str(checkpoint), "--engine", "--doors", "grpc", "--concurrency", "2", *COMMON
    )
    assert status == 0
    assert [cell["target"] for cell in results["cells"]] == ["engine alone", "gRPC"] * 2
    alone, served = results["cells"][:2]
    assert alone["figures"]["tokens_rate"] > 0 and served["processor_seconds"]["stub of tensorrt_llm"] > 0
    requests = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_text().splitlines()]
    prompts = {
        way: sorted(one["prompt_tokens"] for one in requests if one["target"] == way)
        for way in ("engine alone", "gRPC")
    }
    assert all(abs(a - b) < 15 for a, b in zip(*prompts.values(), strict=True))  # prompts of one length, nearly
    assert "gRPC / engine alone" in capsys.readouterr().out
