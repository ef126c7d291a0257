"""What vLLM takes of each GPU, against calculations by hand."""

import pytest

from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.profiles import Gpu, load_profile, profile_names
from step_audio_build.planning.vllm_plan import plan_vllm, weight_bytes
from step_audio_server.commands.cli import main

MIB = 1 << 20
LAYER, EMBEDDING, NORM = 487_605_248, 158_720 * 5120, 5120  # parameters; of a layer two norms
ENCODER = 2 * (636_968_960 + 18_030_848) + 512 * MIB  # and its process
SCORES = 2 * 4 * 20 * 1500**2 + 16 * 4 * 1500 * 1280  # bytes a clip


def by_hand(gpus: int, heads: int, inner: int, batch: int) -> tuple[int, int]:
    """Bytes of one rank: weights, and a step of 8,192 positions."""
    weights = 2 * (2 * EMBEDDING // gpus + NORM + 64 * ((LAYER - 2 * NORM) // gpus + 2 * NORM))
    layer = 2 * 8192 * (3 * 5120 + 3 * inner + (2 * heads + 2 * max(8 // gpus, 1)) * 128)
    logits = (2 + 4) * batch * 158_720
    step = layer + logits + 256 * MIB + 2 * 8192 * 5120 + 8 * 4 * batch * 158_720 + 1024 * MIB
    return weights, step


def test_4xl40s_16k_by_hand():
    """Of 46,068 MiB 0.9 would leave the encoder too little."""
    found = plan_vllm(load_profile("4xL40S-16k"), PUBLISHED)
    weights, step = by_hand(4, 10, 6912, 32)
    outside = (600 + 800) * MIB
    assert (found.weights, found.step, found.communication) == (weights, step, 400 * MIB)
    assert found.encoder == ENCODER + 4 * SCORES and found.outside == outside
    total = 46_068 * MIB
    assert 0.89 * total + found.encoder + outside <= total < 0.9 * total + found.encoder + outside
    assert found.utilization == 0.89
    left = int(0.89 * total) - weights - step - 400 * MIB
    assert found.kv_tokens == left // (64 * 1024 * 16) * 16 == 364_592
    assert found.kv_wanted == 32 * 16_384 * 64 * 1024
    assert found.fits and round(found.full_requests, 2) == 22.25


def test_an_encoder_on_the_processor_takes_nothing_of_a_gpu():
    """Then 0.9 of 46,068 MiB is left, and 0.96 at most."""
    found = plan_vllm(load_profile("4xL40S-16k"), PUBLISHED, encoder_on_gpu=False)
    outside = (600 + 800) * MIB
    assert (found.encoder, found.utilization) == (0, 0.9)
    assert found.free == 46_068 * MIB - int(0.9 * 46_068 * MIB) - outside
    assert "audio encoder" not in found.table()
    assert plan_vllm(load_profile("4xL40S-16k"), PUBLISHED, 0.96, encoder_on_gpu=False).fits
    (reason,) = plan_vllm(load_profile("4xL40S-16k"), PUBLISHED, 0.97, encoder_on_gpu=False).reasons
    assert "too little for the driver: at most 0.96." in reason


def test_1xh200_65k_by_hand():
    found = plan_vllm(load_profile("1xH200-65k"), PUBLISHED)
    weights, step = by_hand(1, 40, 27_648, 128)
    assert (found.weights, found.step, found.communication, found.utilization) == (weights, step, 0, 0.9)
    left = int(0.9 * 143_771 * MIB) - weights - step
    assert found.kv_tokens == left // (256 * 1024 * 16) * 16 == 251_776
    assert found.fits and round(found.full_requests, 2) == 3.84


def test_one_rank_has_the_published_bytes():
    assert weight_bytes(PUBLISHED.text, 1) == 2 * 32_832_033_792


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_fits(name):
    found = plan_vllm(load_profile(name), PUBLISHED)
    assert found.fits and found.free >= 0


def refused(name: str = "4xL40S-16k", utilization: float | None = None, **changes) -> str:
    return " ".join(plan_vllm(load_profile(name).model_copy(update=changes), PUBLISHED, utilization).reasons)


def test_what_does_not_fit_is_refused_with_a_sentence():
    small = Gpu(name="A10", memory_bytes=20 << 30, bandwidth=0.6e12, sm=86, nvlink=False)
    assert "0 tokens, less than one request of 16,384: take more GPUs" in refused(gpu=small)
    assert "profile 4xL40S-16k is of fp8, and vLLM is given bfloat16 here." in refused(precision="fp8")
    assert "0.2 GB too little for the audio encoder and the driver: at most 0.89." in refused(utilization=0.895)
    assert "less than one request" in refused(utilization=0.4)
    assert "more than the model's 65536 positions" in refused(max_seq_len=100_000)
    assert "divis" in refused(gpus=3) or "split" in refused(gpus=3)


def test_the_command(capsys):
    assert main(["plan", "--llm", "vllm", "--profile", "4xL40S-16k"]) == 0
    said = capsys.readouterr().out
    assert "22.25 requests of full length" in said and "| of each GPU, computed" in said
    assert main(["plan", "--llm", "vllm", "--profile", "4xL40S-16k", "--gpu-memory-utilization", "0.4"]) == 1
    assert "less than one request" in capsys.readouterr().out
    tight = ["plan", "--llm", "vllm", "--profile", "4xL40S-16k", "--gpu-memory-utilization", "0.9"]
    assert main(tight) == 1
    assert main([*tight, "--encoder-device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["plan", "--llm", "vllm"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(profile_names())


@pytest.mark.parametrize(
    "flags",
    [
        ["--gpu-memory-utilization", "2", "--llm", "vllm"],
        ["--gpu-memory-utilization", "0.5"],
        ["--encoder-device", "cpu"],
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, capsys):
    assert main(["plan", *flags]) != 0
    assert flags[0] in capsys.readouterr().err
