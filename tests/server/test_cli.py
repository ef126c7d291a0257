"""The command: help for every subcommand, and one line with status 1 for whatever goes wrong."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from export_fixture import export_nothing
from step_audio.config import ModelConfig
from step_audio_gateway import vllm_flags as HTTP_FLAGS
from step_audio_server.commands import cli
from step_audio_server.commands import vllm_flags as FLAGS
from step_audio_server.launch.ports import free_ports
from step_audio_server.serve import Service
from step_audio_server.settings import ServeSettings

COMMANDS = (
    "serve", "gateway", "chat", "talk", "demo", "doctor", "plan", "build", "make-tiny", "convert", "export-encoder",
    "eval", "train",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The smallest checkpoint, made by the command itself."""
    output = tmp_path_factory.mktemp("checkpoints") / "tiny"
    sizes = "--hidden-size 32 --intermediate-size 32 --layers 1 --heads 4 --kv-heads 2 --dtype float32"
    assert cli.main(["make-tiny", "--output", str(output), *sizes.split()]) == 0
    return output


@pytest.fixture
def fails(capsys):
    """Run a command that must fail; its one line."""

    def run(*arguments) -> str:
        capsys.readouterr()  # of what went before
        assert cli.main([str(argument) for argument in arguments]) == 1
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if not re.match(r"(decoder|encoder):", line)]
        assert captured.out == "" and len(lines) == 1, captured.err
        assert lines[0].startswith("step-audio: ")
        return lines[0]

    return run


class Served(Exception):
    """What would have been served: settings, and those of the gateway."""


@pytest.fixture
def serves(monkeypatch):
    """Run `step-audio serve` or `gateway` up to where it would begin; the settings."""

    def run(*arguments) -> tuple:
        def begin(*settings):
            raise Served(*settings)

        monkeypatch.setattr("step_audio_server.serve.Service", lambda settings, echo, gateway: begin(settings, gateway))
        monkeypatch.setattr("step_audio_gateway.server.serve", begin)
        with pytest.raises(Served) as begun:
            cli.main([str(argument) for argument in arguments])
        return begun.value.args

    return run


def test_a_command_line_of_vllm_s(serves, tmp_path):
    """What means the same is understood under vLLM's name, and what is so in any case is taken."""
    settings, gateway = serves(
        "serve", tmp_path,
        *("--served-model-name", "R1", "--host", "0.0.0.0", "--port", 8100, "--api-key", "a", "b"),
        *("--tensor-parallel-size", 2, "--max-model-len", 4096, "--max-num-seqs", 8, "--max-num-batched-tokens", 512),
        *("--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--dtype", "bfloat16"),
        *("--limit-mm-per-prompt", '{"audio": 3, "image": 0}', "--root-path", "/speech"),
        *("--trust-remote-code", "--enable-auto-tool-choice", "--interleave-mm-strings", "--no-enable-log-requests"),
    )  # fmt: skip
    assert (settings.checkpoint, settings.tp, settings.max_seq_len, settings.dtype) == (tmp_path, 2, 4096, "bfloat16")
    assert (settings.max_batch_size, settings.max_num_tokens, settings.limits.max_audios) == (8, 512, 3)
    assert not settings.kv_cache_reuse and not settings.chunked_context
    assert (gateway.served_model_name, gateway.api_key, gateway.root_path) == (("R1",), ("a", "b"), "/speech")
    assert (gateway.host, gateway.port) == ("0.0.0.0", 8100)


@pytest.mark.parametrize("way", [["DIR"], ["--model", "DIR"], ["--checkpoint", "DIR"]])
def test_the_model_s_directory(serves, fails, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert serves("serve", *way)[0].checkpoint == Path("DIR")
    assert "give one of them" in fails("serve", "DIR", "--checkpoint", "OTHER")


@pytest.mark.parametrize(
    ("said", "audios"), [("5", 5), ("audio=5", 5), ("image=0,audio=5", 5), ('{"audio": 5}', 5), ('{"audio": 0}', 0)]
)
def test_how_many_recordings(serves, said, audios, tmp_path, monkeypatch):
    assert serves("serve", tmp_path, "--max-audios", said)[0].limits.max_audios == audios
    monkeypatch.setenv("STEP_AUDIO_LIMIT_MM_PER_PROMPT", said)
    assert serves("serve", tmp_path)[0].limits.max_audios == audios


@pytest.mark.parametrize(
    "said", ["many", "audio=many", '{"image": 1}', '{"audio": ', "audio=2,video=1", "-1", "video=0"]
)
def test_no_number_of_recordings(fails, said, tmp_path):
    assert "max_audios: " in fails("serve", tmp_path, f"--limit-mm-per-prompt={said}")


@pytest.mark.parametrize(
    ("flag", "value"),
    [*((flag, []) for flag in [*HTTP_FLAGS.REFUSED, *FLAGS.REFUSED]), (next(iter(FLAGS.REFUSED)), ["1"])],
)
def test_what_means_something_else_is_refused_by_name(fails, flag, value, tmp_path):
    told = fails("serve", tmp_path, flag, *value)
    assert told == f"step-audio: {flag} is no flag of this server's: {(HTTP_FLAGS.REFUSED | FLAGS.REFUSED)[flag]}"


def test_flags_that_are_named_are_there():
    """In what is told instead, and in the list of those that are the same."""
    (parser,) = [
        choices["serve"]
        for a in cli._parser()._actions
        if isinstance(choices := a.choices, dict) and "serve" in choices
    ]
    known = {flag for action in parser._actions if action.help != argparse.SUPPRESS for flag in action.option_strings}
    told = " ".join([*HTTP_FLAGS.REFUSED.values(), *FLAGS.REFUSED.values()])
    named = set(re.findall(r"--[a-z-]+", re.sub(r"`step-audio [^`]*`", "", told)))
    assert named and {*named, *HTTP_FLAGS.SAME, *FLAGS.SAME} <= known
    assert not known.intersection([*HTTP_FLAGS.REFUSED, *FLAGS.REFUSED, *HTTP_FLAGS.ALWAYS, *FLAGS.ALWAYS])


def test_the_gateway_alone(serves, fails):
    (settings,) = serves("gateway", "--root-path", "/a/b", "--enable-auto-tool-choice", "--port", 8100)
    assert (settings.root_path, settings.port) == ("/a/b", 8100)
    assert "--log-content" in fails("gateway", "--enable-log-requests")
    for path in ("speech", "/speech/", "/", "/a//b", "/a?b"):
        assert "root_path: " in fails("gateway", "--root-path", path)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*filter(None, [command]), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: step-audio" in text and "%(" not in text
    if not command:
        assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        "", "fly", "convert --checkpoint x", "serve --checkpoint x --tp many", "chat --colour red",
        "serve --checkpoint x --length-rule L-1", "make-tiny --output x --heads 0", "make-tiny --output x --layers -1",
    ],
)  # fmt: skip
def test_wrong_arguments_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_make_tiny(tiny):
    text = ModelConfig.from_directory(tiny).text
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads, text.dtype) == (32, 1, 2, "float32")


def test_make_tiny_refuses(tmp_path, fails):
    output = ["make-tiny", "--output", tmp_path / "tiny"]
    assert "hidden-size 64 is not a multiple of --heads 7" in fails(*output, "--heads", 7)
    assert "num_key_value_heads 3" in fails(*output, "--kv-heads", 3)
    assert "odd" in fails(*output, "--hidden-size", 24, "--heads", 8)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mine.txt").touch()
    assert "not empty" in fails(*output)


def test_convert(tiny, tmp_path, fails, capsys):
    output = tmp_path / "rank files"
    command = ["convert", "--checkpoint", str(tiny), "--output", str(output)]
    for _ in range(2):  # the second time there is nothing to do
        assert cli.main([*command, "--tp", "2"]) == 0
        assert "TensorRT-LLM checkpoint for 2 ranks" in capsys.readouterr().err
        assert {path.name for path in output.iterdir()} == {
            "config.json", "rank0.safetensors", "rank1.safetensors", "manifest.json"
        }  # fmt: skip
    assert json.loads((output / "config.json").read_text())["mapping"]["tp_size"] == 2
    assert "another build" in fails(*command, "--tp", 1)
    other = ["convert", "--checkpoint", tiny, "--output", tmp_path / "other", "--tp"]
    for tp in (3, 0, -1):
        assert str(tp) in fails(*other, tp)
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_export_encoder(tiny, tmp_path, fails, monkeypatch):
    export_nothing(monkeypatch)
    output = tmp_path / "encoder.onnx"
    command = ["export-encoder", "--checkpoint", str(tiny), "--output", str(output)]
    assert cli.main(command) == 0
    assert output.is_file() and output.with_suffix(".manifest.json").is_file()
    assert "length_rule L, not L-2" in fails(*command, "--length-rule", "L-2")


@pytest.mark.parametrize("command", ["serve", "convert", "export-encoder"])
def test_no_checkpoint(command, tmp_path, fails):
    output = [] if command == "serve" else ["--output", tmp_path / "out"]
    assert "nowhere does not exist" in fails(command, "--checkpoint", tmp_path / "nowhere", *output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--tp 0", "tp: "),
        ("--grpc-port 70000", "grpc_port: "),
        ("--max-seq-len 40000", "32768 positions"),
        ("--kv-cache-tokens 100", "kv_cache_tokens 100"),
        ("--chat-template nowhere.jinja", "chat_template: "),
        ("--max-audios -1", "limits.max_audios: "),
        ("--max-num-tokens 4", "max_num_tokens 4"),
    ],
)
def test_serve_refuses_before_it_builds(tiny, tmp_path, fails, arguments, text):
    line = fails("serve", "--checkpoint", tiny, "--work-dir", tmp_path / "work", *arguments.split())
    assert text in line and "Value error" not in line
    assert not (tmp_path / "work").exists()


def test_a_file_where_a_folder_should_be(tiny, tmp_path, fails):
    (tmp_path / "file").touch()
    line = fails("convert", "--checkpoint", tiny, "--output", tmp_path / "file" / "ranks", "--tp", 1)
    assert "Not a directory" in line and "file" in line


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("export-encoder --checkpoint {tiny} --output {new}", "torch", "build"),
        ("serve --checkpoint {tiny} --work-dir {new}", "torch", "cpu"),  # and not build, lest openvino is missing next
        ("train --output {new} --whisper {tiny}/model.bin", "torch", "train"),
        pytest.param(
            "train --output {new} --whisper {tiny}/model.bin", "transformers", "train", marks=pytest.mark.long
        ),  # torch is loaded before it
        pytest.param("eval --output {new} --against-torch {tiny}", "transformers", "train", marks=pytest.mark.long),
    ],
)
def test_a_package_that_is_not_installed(command, module, extra, tiny, tmp_path, monkeypatch, fails):
    """The advice names the extra that brings it."""

    def importers() -> list[str]:  # of what is missing
        users = ("step_audio.encoder", "step_audio_training", "step_audio_evaluation")
        return [name for name in sys.modules if name.startswith(users)]

    for name in importers():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    line = fails(*command.format(tiny=tiny, new=tmp_path / "new").split())
    for name in importers():  # these know each other, not those that come back
        del sys.modules[name]
    assert line == f"step-audio: this command needs {module}: pip install -e '.[{extra}]'"


def unread(arguments: list[str], stream: str, lines: int = 0) -> tuple[int, str]:
    """Run a command whose `stream` is a pipe that is closed after so many lines: exit status, and the other stream."""
    ours, theirs = os.pipe()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "step_audio_server", *arguments], text=True, env=buffered, **streams
    ) as running:
        os.close(theirs)
        with os.fdopen(ours) as reader:
            for _ in range(lines):
                reader.readline()
        other = running.stdout or running.stderr
        text = other.read()
    return running.returncode, text


@pytest.mark.parametrize("arguments", ["--help", "plan", "doctor --json"])
@pytest.mark.processes
def test_nobody_reads_what_is_printed(arguments):
    """`step-audio plan | true`: silent, with the status of who dies of SIGPIPE."""
    assert unread(arguments.split(), "stdout") == (141, "")


@pytest.mark.processes
def test_one_line_is_read():
    """`step-audio plan | head -1`: silent, be all written before the pipe is closed or not."""
    status, errors = unread(["plan"], "stdout", lines=1)
    assert status in (0, 141) and errors == ""


@pytest.mark.parametrize(
    "arguments", ["make-tiny --output {new} --layers 1", "convert --checkpoint {new} --output {new}"]
)
@pytest.mark.processes
def test_nobody_reads_the_messages(arguments, tmp_path):
    """`step-audio build ... 2>&1 | true`, with and without a fault to tell of."""
    assert unread(arguments.format(new=tmp_path / "new").split(), "stderr") == (141, "")


@pytest.mark.processes
def test_a_full_disk_behind_stdout():
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "step_audio_server", "plan"], stdout=full, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (1, "step-audio: No space left on device\n")


@pytest.mark.processes
def test_what_is_printed_into_nothing():
    """`step-audio plan >&-`: there is no stdout, which is nobody's fault."""
    ran = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m step_audio_server plan >&-'], stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_server_is_stopped_when_nobody_reads_the_messages(tiny, tmp_path, monkeypatch):
    """`step-audio serve ... 2>&1 | head -1`"""
    stopped = []
    service = Service(ServeSettings.create(checkpoint=tiny, work_dir=tmp_path), echo=_nobody_reads)
    monkeypatch.setattr(
        service, "start", lambda: setattr(service, "server", SimpleNamespace(stop=lambda: stopped.append(1)))
    )
    with pytest.raises(BrokenPipeError):
        service.run()
    assert stopped == [1]


def _nobody_reads(line: str) -> None:
    raise BrokenPipeError


def test_chat_refuses(tmp_path, fails):
    (port,) = free_ports(1)
    assert "nothing to ask" in fails("chat")
    assert "nowhere.wav" in fails("chat", "--audio", tmp_path / "nowhere.wav")
    assert "nowhere has neither tokenizer.json" in fails("chat", "--text", "x", "--tokenizer", tmp_path / "nowhere")
    line = fails("chat", "--text", "x", "--url", f"127.0.0.1:{port}")
    assert line == f"step-audio: no server answers at 127.0.0.1:{port}"


def test_talk_refuses(tmp_path, fails):
    assert "--whole is about recordings" in fails("talk", "--whole")
    assert "nowhere.wav" in fails("talk", "--audio", tmp_path / "nowhere.wav")
    (tmp_path / "text.wav").write_text("no audio")
    assert "not an audio file" in fails("talk", "--audio", tmp_path / "text.wav")


@pytest.mark.parametrize("question", ["", " "])
def test_demo_refuses_to_ask_nothing(question, tmp_path, fails):
    assert "--ask is empty: say what to ask" in fails("demo", "--ask", question, "--work-dir", tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.processes
def test_the_module_is_the_command(tmp_path):
    """Without Triton, torch or a server's packages in sight: help must come at once."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "step_audio_server", "--help"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    assert ran.returncode == 0 and "Step-Audio-R1 on Triton" in ran.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in ran.stderr.splitlines()}
    assert not loaded & {"torch", "grpc", "openvino", "onnxruntime"}
