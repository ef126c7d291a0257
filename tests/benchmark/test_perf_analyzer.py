"""What perf_analyzer is given and what is read of its export; the program itself runs in tests/served/test_bench.py."""

import base64
import json
import os
import shutil
import subprocess
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from audio_fixture import tone
from step_audio.audio import decode_audio, encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import StepAudioError
from step_audio_benchmark import perf_analyzer
from step_audio_benchmark.load import Level
from step_audio_benchmark.perf_analyzer import LIBRARIES, NAME, PerfAnalyzer, find, input_data, read_export
from step_audio_benchmark.workload import Workload


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "speech.wav"
    path.write_bytes(encode_wav(tone(1.0, SAMPLE_RATE)[0]))
    return Workload((path,), (0.25,), 9, text="What?")


def test_input_data_is_json_with_the_tensors_of_each_request(workload):
    first, second = json.loads(json.dumps(input_data(workload.questions(2), workload)))["data"]
    assert json.loads(first["messages"]["content"][0])[0]["content"][1] == {"type": "text", "text": "What?"}
    packed = base64.b64decode(first["audio"]["content"]["b64"])
    assert int.from_bytes(packed[:4], "little") == len(packed) - 4 and first["audio"]["shape"] == [1]
    assert len(decode_audio(packed[4:])) == 0.25 * SAMPLE_RATE
    assert first["request_output_len"] == first["min_tokens"] == {"content": [9], "shape": [1]}
    assert first["streaming"]["content"] == [True] and first["audio"] != second["audio"]
    (text,) = input_data(Workload((), (), 9).questions(1), Workload((), (), 9))["data"]
    assert "audio" not in text


def test_the_export_is_read_although_it_is_no_json(workload):
    audio = b'RIFF\x00\xee"timestamp":5,\x80'
    request = (
        b'{"timestamp":1000000000,"request_inputs":{"audio":"'
        + audio
        + b'"},"response_timestamps":[%s],"response_outputs":[]}'
    )
    export = b'{"experiments":[{"requests":[' + b",".join([
        request % b"1500000000,1750000000,2000000000", request % b"",
    ]) + b']}],"version":"2.51.0"}'  # fmt: skip
    with pytest.raises(UnicodeDecodeError):
        json.loads(export)
    whole, nothing = read_export(export, workload.questions(1), 9)
    assert whole.first_token == 0.5 and whole.pieces == [(1.5, 1), (1.75, 4), (2.0, 4)] and whole.ended == 2.0
    assert whole.audio_seconds == 0.25 and whole.token_seconds == 0.5 / 8
    assert nothing.error == "no response" and not nothing.pieces


STAND_IN = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = --profile-export-file ] && export=$2; shift; done
echo one >> "$0.runs"
echo "No valid requests"
[ $(wc -l < "$0.runs") -gt {bad} ] && cp "$0.good" "$export" || cp "$0.bad" "$export"
"""
REQUEST = b'{"timestamp":1000000000,"request_inputs":{},"response_timestamps":[2000000000],"response_outputs":[]}'
EXPORT = b'{"experiments":[{"requests":[%s],"window_boundaries":[1,2]}],"version":"2.51.0","service_kind":"triton"}'


@pytest.mark.parametrize(("bad", "runs"), [(0, 1), (3, 4), (4, 4)])
@pytest.mark.parametrize(
    ("export", "fault"),
    [
        (EXPORT % b"", "has no requests: ask for more with --requests"),
        (b"", "is cut off: measure again"),
        (b'{"experiments":[{"requests":[' + REQUEST, "is cut off: measure again"),
        ((EXPORT % (REQUEST + b"," + REQUEST))[:170], "is cut off: measure again"),
    ],
)
async def test_a_level_without_an_export_is_run_again(workload, tmp_path, bad, runs, export, fault):
    program = tmp_path / "perf_analyzer"
    program.write_text(STAND_IN.format(bad=bad))
    program.chmod(0o755)
    Path(f"{program}.good").write_bytes(EXPORT % REQUEST)
    Path(f"{program}.bad").write_bytes(export)
    way = PerfAnalyzer(program, {"PATH": os.environ["PATH"]}, "host:8001")
    asked = way.run(Level(concurrency=1), workload.questions(1), workload, lambda: None)
    if bad < runs:
        assert [record.first_token for record in (await asked).records] == [1.0]
    else:
        with pytest.raises(StepAudioError, match=f"its export {fault}. Its last words: No valid requests"):
            await asked
    assert Path(f"{program}.runs").read_text().split() == ["one"] * runs


def test_levels_are_its_own_options(tmp_path):
    way = PerfAnalyzer(tmp_path / "perf_analyzer", {}, "host:8001")
    closed = way.command(Level(concurrency=8), 40, tmp_path / "in", tmp_path / "out")
    assert (
        closed[closed.index("--concurrency-range") + 1] == "8" and closed[closed.index("--request-count") + 1] == "40"
    )
    opened = way.command(Level(rate=2.5), 40, tmp_path / "in", tmp_path / "out")
    assert opened[-4:] == ["--request-rate-range", "2.5", "--request-distribution", "poisson"]


def test_what_was_fetched_outlives_the_environment_and_mends_itself(tmp_path, monkeypatch):
    """The cache is shared by all environments of a user: nothing in it may point into one of them."""
    environment, fetched = tmp_path / "environment", []
    (environment / "pytriton").mkdir(parents=True)
    (environment / "nvidia_pytriton.libs").mkdir()
    for name in ("libb64-98cb6333.so.0d", "libcudart-09529672.so.12.6.77"):
        (environment / "nvidia_pytriton.libs" / name).write_text(name)

    def download(command, **options):
        fetched.append(command[-1])
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "tritonclient.whl", "w") as wheel:
            wheel.writestr(f"tritonclient-2.51.0.data/data/bin/{NAME}", "#!/bin/sh")
        return subprocess.CompletedProcess(command, 0)

    spec = ModuleSpec("pytriton", None, origin=str(environment / "pytriton" / "__init__.py"))
    monkeypatch.setattr(perf_analyzer, "find_spec", lambda name: spec)
    monkeypatch.setattr(perf_analyzer.subprocess, "run", download)
    monkeypatch.setenv("PATH", "")
    program, variables = find(tmp_path / "cache")
    moved = environment.rename(tmp_path / "elsewhere")
    assert find(tmp_path / "cache") == (program, variables) and len(fetched) == 1
    assert all((Path(variables["LD_LIBRARY_PATH"]) / name).read_text() for name in LIBRARIES)
    moved.rename(environment)
    library = program.parent / next(iter(LIBRARIES))
    library.unlink()
    library.symlink_to(tmp_path / "gone")  # as earlier versions left it
    assert find(tmp_path / "cache")[0] == program and len(fetched) == 2 and library.is_file()
    shutil.rmtree(environment)
    assert find(tmp_path / "cache")[0] == program and len(fetched) == 2
