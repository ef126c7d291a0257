"""What a build says of its results: the encoder's plan against ONNX Runtime, the engine's tokens against torch."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lazy import Lazy
from stand_ins import StandIns
from step_audio.checkpoint import Checkpoint, expected_tensors, to_float32
from step_audio.config import ModelConfig
from step_audio.errors import ArtefactError, StepAudioError
from step_audio.mel import log_mel
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.convert.small_tokenizer import build_tokenizer
from step_audio_build.convert.write_checkpoint import write_checkpoint
from step_audio_build.planning.profiles import load_profile
from step_audio_build.stages.check import CheckStage, Verdict, questions
from step_audio_build.stages.layout import Layout
from step_audio_build.tools import encoder_plan, subprocess_runner
from step_audio_build.tools.encoder_plan import PlanJob, build_plan, compare, fixed_clips, require_parity, shapes
from waiting import wait_until

torch, reference_check = Lazy("torch"), Lazy("step_audio_build.tools.reference_check")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checks") / "tiny"
    make_tiny(directory, dtype="float32", layers=3, audio_layers=1)
    return directory


@pytest.fixture(scope="module")
def reference(tiny):
    from reference import Reference

    return Reference(tiny)


def continued(model, words, ids, table, count):
    inputs = torch.cat([words, torch.from_numpy(table)])[torch.tensor(ids)][None]
    with torch.no_grad():
        return model.generate(
            inputs_embeds=inputs, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0].tolist()


@pytest.fixture(scope="module")
def answer(reference):
    """A prompt of words and rows of a table, and the tokens that transformers continues it with."""
    words = reference.weights["model.embed_tokens.weight"]
    vocab, hidden = words.shape
    table = np.random.default_rng(0).standard_normal((5, hidden)).astype(np.float32)
    ids = np.array([*range(40, 50), *range(vocab, vocab + 5), 60, 61], np.int32)
    return ids, table, continued(reference.model, words, ids, table, 20)


@pytest.mark.long
def test_the_checkpoint_chooses_as_transformers_does(tiny, answer, monkeypatch):
    ids, table, tokens = answer
    monkeypatch.setattr("step_audio_build.tools.reference_check.HEAD_ROWS", 100)  # several blocks of the vocabulary
    layers: list[tuple[int, int]] = []
    checked = reference_check.check_tokens(tiny, ids, table, tokens, lambda done, total: layers.append((done, total)))
    assert [token.best for token in checked] == tokens == [token.token for token in checked]
    assert all(token.shortfall == 0 for token in checked)
    assert layers[-1] == (3, 3)


def test_a_wrong_token_is_seen_and_weighed(tiny, reference, answer):
    ids, table, tokens = answer
    changed = [*tokens[:4], (tokens[4] + 1) % 100, *tokens[5:]]
    checked = reference_check.check_tokens(tiny, ids, table, changed)
    words = torch.cat([reference.weights["model.embed_tokens.weight"], torch.from_numpy(table)])
    with torch.no_grad():
        logits = reference.model(inputs_embeds=words[torch.tensor([*ids, *changed[:4]])][None]).logits[0, -1]
    assert checked[4].best == tokens[4] and checked[3].shortfall == 0
    assert checked[4].shortfall == pytest.approx(float(logits[tokens[4]] - logits[changed[4]]), rel=1e-3)


@pytest.mark.parametrize("fault", ["gate and up", "queries", "table"])
def test_a_conversion_gone_wrong_agrees_with_next_to_nothing(fault, tiny, reference, answer, tmp_path):
    """The mistakes that a converter can make: the checkpoint no longer says what the engine says."""
    ids, table, tokens = answer
    checkpoint = Checkpoint(tiny)
    config = ModelConfig.from_directory(tiny)
    weights = {name: to_float32(checkpoint.read(name)) for name in expected_tensors(config)}
    for n in range(config.text.num_hidden_layers):
        layer = f"model.layers.{n}"
        if fault == "gate and up":
            gate, up = f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"
            weights[gate], weights[up] = weights[up], weights[gate]
        elif fault == "queries":  # of another rank
            name = f"{layer}.self_attn.q_proj.weight"
            weights[name] = np.roll(weights[name], len(weights[name]) // 4, axis=0)
    if fault == "table":
        table = table[::-1]
    write_checkpoint(tmp_path / "wrong", config, weights, build_tokenizer())
    checked = reference_check.check_tokens(tmp_path / "wrong", ids, table, tokens)
    assert sum(token.token == token.best for token in checked) / len(checked) < 0.5


def plan_job(tmp_path, **others) -> PlanJob:
    values = {
        "onnx": tmp_path / "encoder.onnx",
        "plan": tmp_path / "encoder.plan",
        "timing_cache": tmp_path / "times",
        "report": tmp_path / "parity.json",
        "precision": "bfloat16",
        "clips": 4,
        "n_mels": 128,
        "max_frames": 3000,
        "length_rule": "L",
    }
    return PlanJob(**values | others)


@pytest.mark.parametrize(
    ("precision", "flag"),
    [
        ("bfloat16", {"set": "BuilderFlag.BF16"}),
        ("float16", {"set": "BuilderFlag.FP16"}),
        ("float32", {"clear": "BuilderFlag.TF32"}),
    ],
)
def test_what_tensorrt_is_told(precision, flag, tmp_path, monkeypatch):
    machine = StandIns(tmp_path / "machine", monkeypatch)
    job = plan_job(tmp_path, precision=precision)
    build_plan(job)
    told = [{key: value for key, value in call.items() if key != "name"} for call in machine.calls("tensorrt")]
    assert told == [
        {"pool": "MemoryPoolType.WORKSPACE", "size": 1 << 30},
        flag,
        {"shape": ["mel", [1, 128, 3], [4, 128, 2502], [4, 128, 3000]]},
        {"shape": ["frames", [1], [4], [4]]},
        {"cache": ""},
    ]
    assert job.partial.read_bytes() == str(job.onnx).encode() and not job.plan.exists()
    assert job.timing_cache.read_bytes() == b"+"


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"errors": ["node Foo", "node Bar"]}, "TensorRT cannot read encoder.onnx: node Foo; node Bar"),
        ({"profile": -1}, "refuses the encoder's range of shapes"),
        ({"no_plan": True}, "built no plan of the encoder"),
    ],
)
def test_tensorrt_refuses(behaviour, message, tmp_path, monkeypatch):
    StandIns(tmp_path / "machine", monkeypatch).tell("tensorrt", **behaviour)
    with pytest.raises(StepAudioError, match=message):
        build_plan(plan_job(tmp_path))


def test_a_timing_cache_of_another_device_is_not_used(tmp_path, monkeypatch):
    machine = StandIns(tmp_path / "machine", monkeypatch)
    build_plan(plan_job(tmp_path))
    machine.forget_calls()
    build_plan(plan_job(tmp_path))
    machine.tell("tensorrt", other_device=True)
    build_plan(plan_job(tmp_path))
    assert [call["cache"] for call in machine.calls("tensorrt") if "cache" in call] == ["+", "++", ""]


def test_a_short_encoder_is_tuned_for_what_it_takes(tmp_path):
    assert shapes(plan_job(tmp_path, max_frames=400))["mel"] == ((1, 128, 3), (4, 128, 400), (4, 128, 400))


def test_the_clips_of_the_comparison(tmp_path):
    mel, frames = fixed_clips(plan_job(tmp_path))
    assert mel.shape == (3, 128, 2502) and frames.tolist() == [2502, 836, 12]
    np.testing.assert_array_equal(mel, fixed_clips(plan_job(tmp_path))[0])
    assert np.isfinite(log_mel(np.zeros(16_000, np.float32), 128)).all() and mel.std() > 0.1


class Table:
    """An engine that knows its answers; `clips` bounds what it is given at once."""

    def __init__(self, answers: np.ndarray, clips: int):
        self.answers, self.clips, self.at = answers, clips, 0

    def run(self, features, frames):
        assert len(features) == len(frames) <= self.clips
        self.at += len(frames)
        return self.answers[self.at - len(frames) : self.at]


def test_numbers_of_the_comparison(tmp_path):
    """Against a computation by hand; what lies behind a clip's own rows does not count."""
    theirs = np.random.default_rng(0).standard_normal((3, 313, 8)).astype(np.float32)
    ours = theirs.copy()
    ours[0, 0, 0] += 0.5
    ours[1, 105:] = 99.0  # 836 frames are 105 rows
    job = plan_job(tmp_path, clips=2)
    parity = compare(job, Table(ours, 2), Table(theirs, 2))
    assert parity.clips == 3 and parity.rows == 313 + 105 + 2
    values = parity.rows * 8
    assert parity.max_error == pytest.approx(0.5, rel=1e-6) and parity.mean_error == pytest.approx(0.5 / values)
    a, b = ours[0, 0].astype(np.float64), theirs[0, 0].astype(np.float64)
    assert parity.min_cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-5)


@pytest.mark.parametrize(("cosine", "good"), [(0.995, True), (0.98, False), (float("nan"), False)])
def test_parity_that_is_asked_for(cosine, good, tmp_path):
    theirs = np.ones((3, 313, 8), np.float32)
    parity = compare(plan_job(tmp_path), Table(theirs, 4), Table(theirs, 4)).model_copy(update={"min_cosine": cosine})
    if good:
        require_parity(parity)
    else:
        with pytest.raises(StepAudioError, match="another --encoder-precision than bfloat16"):
            require_parity(parity)


def test_report_is_written_for_a_plan_that_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoder_plan, "build_plan", lambda job: None)
    theirs = np.ones((3, 313, 8), np.float32)
    monkeypatch.setattr(encoder_plan, "OnnxEncoderEngine", lambda path: Table(theirs, 4))
    monkeypatch.setitem(
        sys.modules,
        "step_audio.steps.tensorrt_encoder",
        type("module", (), {"TensorRTEncoderEngine": staticmethod(lambda path: Table(-theirs, 4))}),
    )
    job = plan_job(tmp_path)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    assert encoder_plan.main([str(tmp_path / "job.json")]) == 1
    assert "error: the encoder's plan differs from ONNX Runtime: cosine -1.0" in capsys.readouterr().out
    assert json.loads(job.report.read_text())["min_cosine"] == pytest.approx(-1)


@pytest.mark.processes
def test_a_child_that_leaves_others_behind(tmp_path):
    """What it has started ends with it, and its output is kept."""
    script = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    subprocess_runner.run([sys.executable, "-c", script], tmp_path / "log")
    command, pid = (tmp_path / "log").read_text().splitlines()
    assert command.startswith("$ ")
    status = Path(f"/proc/{pid}/status")
    wait_until(lambda: not status.exists() or "zombie" in status.read_text())


@pytest.mark.processes
def test_gpus_have_the_numbers_that_nvidia_smi_gives_them(tmp_path, monkeypatch):
    """Those that were looked at; what the user has set for CUDA holds."""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    show = ["sh", "-c", "echo $CUDA_DEVICE_ORDER"]
    subprocess_runner.run(show, tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines()[1] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    subprocess_runner.run(show, tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines()[1] == "FASTEST_FIRST"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no-such-program"], "no-such-program is not installed"),
        (["sh", "-c", "echo fine; echo Error: broken; echo bye; exit 3"], "sh ended with status 3: Error: broken; log"),
        (["sh", "-c", "kill -9 $$"], "sh was killed by SIGKILL: it printed nothing"),
    ],
)
def test_how_a_child_failed(argv, message, tmp_path):
    with pytest.raises(StepAudioError, match=message):
        subprocess_runner.run(argv, tmp_path / "log")


# Keys and values in FP8

FP8 = {"precision": "fp8", "kv_cache_dtype": "fp8", "fp8_kv_cache_despite_faults": True}


def check_stage(tmp_path, **changes) -> CheckStage:
    profile = load_profile("4xH100-16k").model_copy(update=changes)
    return CheckStage(SimpleNamespace(profile=profile, echo=lambda line: None, layout=Layout(tmp_path, profile)))


def test_keys_and_values_in_fp8_are_asked_about_a_long_text(tmp_path):
    plain, long = (questions(load_profile("4xH100-16k").model_copy(update=changes)) for changes in ({}, FP8))
    assert list(plain) == ["text", "audio"] and list(long) == ["text", "audio", "long"]
    assert len(long["long"][0]["content"].split()) > 1500


def test_one_question_gone_wrong_is_enough_with_keys_and_values_in_fp8(tmp_path):
    verdict = Verdict(
        tokens=72, agreement=0.8, lowest=0.3, largest_shortfall=9, repeatable=True, load_seconds=1, answers={}
    )
    check_stage(tmp_path)._tell(verdict)
    with pytest.raises(ArtefactError, match=r"with keys and values in FP8 .* 30% .*: leave kv_cache_dtype out"):
        check_stage(tmp_path, **FP8)._tell(verdict)
    check_stage(tmp_path, **FP8)._tell(verdict.model_copy(update={"lowest": 0.7}))
