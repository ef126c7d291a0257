import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from engine_fixture import VOCAB, batch, model, prompt, write_engine
from lazy import Lazy
from step_audio.checkpoint import from_float32, to_float32
from step_audio.engine.executor import TokenEmbedding
from step_audio.engine.int8_weights import ROWS_AT_ONCE, quantised
from step_audio.errors import ArtefactError

openvino = "step_audio.engine.openvino_executor"
OpenVinoExecutor, rotary_tables = Lazy(f"{openvino}:OpenVinoExecutor"), Lazy(f"{openvino}:rotary_tables")
TorchExecutor = Lazy("step_audio.engine.torch_executor:TorchExecutor")


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 2e-4), ("bf16", 0.5)])
def test_openvino_equals_torch_on_ragged_batches(precision, tolerance):
    spec, weights = model()
    embed = TokenEmbedding(weights)
    ours, theirs = (kind(spec, weights, 10, precision, 2) for kind in (OpenVinoExecutor, TorchExecutor))
    a, b, c = prompt(100), prompt(40), prompt(1)
    steps = [
        [("a", 0, a[:50])],  # a prompt's first chunk
        [("c", 0, c), ("a", 50, a[50:90]), ("b", 0, b[:33])],  # a decoding neighbour, the next chunk, a new prompt
        [("a", 90, a[90:91]), ("b", 33, b[33:34])],  # decoding only
        [("b", 34, b[34:]), ("a", 91, a[91:])],
    ]
    for step in steps:
        got, expected = (executor.forward(batch(embed, *step)).copy() for executor in (ours, theirs))
        assert got.shape == (len(step), VOCAB) and got.dtype == np.float32
        assert np.abs(got - expected).max() < tolerance


def test_threads_may_change_from_step_to_step(monkeypatch):
    """Each number has a graph of its own; all go on with what the others have put into the cache."""
    spec, weights = model()
    embed, ids = TokenEmbedding(weights), prompt(60)
    monkeypatch.setattr(f"{openvino}.TINY_BYTES", 0)
    monkeypatch.setattr(f"{openvino}.os.cpu_count", lambda: 8)
    ours, theirs = OpenVinoExecutor(spec, weights, 10, "f32", 0), TorchExecutor(spec, weights, 10, "f32", 1)
    ways = []
    choose = ours._quickest.choose
    monkeypatch.setattr(ours._quickest, "choose", lambda size: ways.append(choose(size)) or ways[-1])
    for begin, end in [(0, 40), *((at, at + 1) for at in range(40, 60))]:
        step = batch(embed, ("a", begin, ids[begin:end]))
        assert np.abs(ours.forward(step) - theirs.forward(step)).max() < 2e-4
    assert set(ways) == {0, 1}


def test_matrices_of_8_bits_hardly_change_the_logits():
    spec, weights = model()
    embed, ids = TokenEmbedding(weights), prompt(60)
    stored, rounded = (OpenVinoExecutor(spec, weights, 10, "f32", 1, int8) for int8 in (False, True))
    for step in (batch(embed, ("a", 0, ids[:59])), batch(embed, ("a", 59, ids[59:]))):
        exact, got = stored.forward(step)[0], rounded.forward(step)[0]
        assert not np.array_equal(exact, got)
        assert np.linalg.norm(exact - got) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_to_8_bits_errs_by_half_a_scale_at_most(dtype):
    rows = np.random.default_rng(0).standard_normal((ROWS_AT_ONCE + 3, 64), np.float32)
    rows[5] = 0
    matrix = from_float32(rows, dtype)
    values, scales = quantised(matrix)
    error = np.abs(values * scales - to_float32(matrix))
    assert values.dtype == np.int8 and (error <= scales * 0.501).all() and not error[5].any()
    assert (np.abs(values).max(1) == 127).sum() == len(rows) - 1


def test_chunks_do_not_change_the_logits():
    spec, weights = model()
    embed, ids = TokenEmbedding(weights), prompt(100)
    executor = OpenVinoExecutor(spec, weights, 10, "f32", 2)
    whole = executor.forward(batch(embed, ("a", 0, ids))).copy()
    for begin, end in ((0, 7), (7, 64), (64, 65), (65, 100)):
        parts = executor.forward(batch(embed, ("a", begin, ids[begin:end])))
    assert np.abs(parts - whole).max() < 1e-4


def test_embedding_takes_audio_positions_from_their_own_table():
    _, weights = model()
    embed = TokenEmbedding(weights)
    one, two = np.full((2, 64), 1, np.float32), np.full((3, 64), 2, np.float32)
    ids = np.array([5, VOCAB, VOCAB + 1, 6, VOCAB + 2, VOCAB, 7], np.int32)
    rows = embed(ids, [(slice(0, 3), one), (slice(3, 6), two)])
    assert np.array_equal(rows[[0, 3, 6]], weights.vocab_embedding[[5, 6, 7]])
    assert rows[:, 0].tolist()[1:3] == [1, 1] and rows[:, 0].tolist()[4:6] == [2, 2]


def test_rotary_tables_are_exact_far_out():
    cos, sin = rotary_tables(65_536, 16, 1e6)
    angle = 65_535 * 1e6 ** (-2 * 3 / 16)
    assert cos[65_535, 0, 0, 3] == pytest.approx(np.cos(angle), abs=1e-6)
    assert sin[65_535, 0, 0, 8 + 3] == pytest.approx(np.sin(angle), abs=1e-6)


def test_other_block_sizes_are_refused():
    spec, weights = model()
    with pytest.raises(ArtefactError, match="tokens_per_block is 64"):
        OpenVinoExecutor(replace(spec, tokens_per_block=64), weights, 4, "f32", 2)


@pytest.mark.processes
def test_a_signal_after_two_executors_have_gone(tmp_path):
    """In a process of its own: where OpenVINO's signal stacks are left in place, this one dies of the signal."""
    code = (
        "import faulthandler, signal, sys\n"
        "from pathlib import Path\n"
        "faulthandler.enable()\n"
        "from step_audio.engine.openvino_executor import OpenVinoExecutor\n"
        "from step_audio.engine.trtllm_checkpoint import load_engine\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "model = load_engine(Path(sys.argv[1]))\n"
        "one, two = (OpenVinoExecutor(*model, 4, 'f32', 1) for _ in range(2))\n"
        "del one\n"
        "del two\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
    )
    command = [sys.executable, "-c", code, write_engine(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
