"""The memory plan against hand calculations, files that the converter writes, and what others published."""

import math

import numpy as np
import pytest
from safetensors import safe_open

from published_config import NESTED
from step_audio.clips import SAMPLE_RATE, split_clips
from step_audio.config import ModelConfig
from step_audio.mel import frame_count, token_count
from step_audio_build.commands.plan import PUBLISHED, report
from step_audio_build.commands.profiles_page import PAGE
from step_audio_build.convert.convert_decoder import convert_decoder
from step_audio_build.planning import memory_sizes as sizes
from step_audio_build.planning.memory_plan import decode_bound, kv_fraction, plan
from step_audio_build.planning.profiles import (
    Gpu,
    Profile,
    audio_positions,
    audio_rows,
    audio_seconds,
    load_profile,
    profile_names,
)

TEXT, AUDIO = PUBLISHED.text, PUBLISHED.audio
GIB, MIB = 1 << 30, 1 << 20
H100 = Gpu(name="H100", memory_bytes=81559 * MIB, bandwidth=3.35e12, sm=90, nvlink=True)


def profile(**changes) -> Profile:
    values = {"name": "test", "gpu": H100, "gpus": 4, "max_seq_len": 16_384, "max_batch_size": 32}
    return Profile(**(values | {"max_audio_seconds": 600} | changes))


# Weights


def test_model_of_the_plan_is_the_published_one():
    assert ModelConfig.from_dict(NESTED) == PUBLISHED


def test_one_rank_and_the_encoder_are_the_published_bytes():
    encoder = sizes.encoder_bytes(AUDIO, clips=0) - sizes.OTHER_PROCESS
    assert encoder == 2 * (636_968_960 + 18_030_848)
    assert sizes.weight_bytes(TEXT, 1, "bfloat16") == 2 * 32_832_033_792
    assert sizes.weight_bytes(TEXT, 1, "bfloat16") + encoder == 66_974_067_200


def test_four_ranks_by_hand():
    """487,605,248 parameters a layer, of them 2 x 5,120 in norms; embedding whole, lm_head by rows."""
    layer = (487_605_248 - 2 * 5120) // 4 + 2 * 5120
    parameters = 812_646_400 + 64 * layer + 5120 + 812_646_400 // 4
    assert sizes.weight_bytes(TEXT, 4, "bfloat16") == 2 * parameters


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_weights_are_what_the_converter_writes(checkpoint, tmp_path, tp):
    convert_decoder(checkpoint, tmp_path, tp, "bfloat16")
    for rank in range(tp):
        with safe_open(tmp_path / f"rank{rank}.safetensors", "np") as file:
            written = sum(2 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        assert written == sizes.weight_bytes(ModelConfig.from_directory(checkpoint).text, tp, "bfloat16")


# Of a rank of four, the linear layers [outputs, inputs]; then lm_head, embedding, norms, biases, in bfloat16.
LINEAR = {"qkv": (1792, 5120), "dense": (5120, 1280), "fc": (6912, 5120), "gate": (6912, 5120), "proj": (5120, 6912)}
REST = 2 * (39_680 * 5120 + 158_720 * 5120 + 5120 + 64 * (2 * 5120 + 1792))


@pytest.mark.parametrize(
    "precision, bytes_of",
    [
        ("int8", lambda out, inner: out * inner + 2 * out),
        ("int4", lambda out, inner: out * inner / 2 + 2 * out),
        ("fp8", lambda out, inner: out * inner + 4 + 4),
        ("awq", lambda out, inner: out * inner / 2 + 2 * out * inner / 128 + 2 * inner),
    ],
)
def test_quantised_weights_by_hand(precision, bytes_of):
    by_hand = REST + 64 * sum(bytes_of(*shape) for shape in LINEAR.values())
    assert sizes.weight_bytes(TEXT, 4, precision) == by_hand


def test_fp8_kv_cache_brings_its_scales():
    with_scales = sizes.weight_bytes(TEXT, 4, "fp8", "fp8")
    assert with_scales == sizes.weight_bytes(TEXT, 4, "fp8") + 64 * 8


# Adapters


def test_an_adapter_of_rank_16_by_hand():
    """A page of a rank of four: slots as wide as A and B of k (5,120 and 256); q and o two slots for each rank, k and v
    one, each of the MLP's three (5,120 and 6,912) three."""
    assert sizes.lora_bytes(TEXT, 4, 16) == 2 * 5376 * 16 * (2 + 1 + 1 + 2 + 3 * 3) * 64


def test_adapters_take_their_place_before_the_kv_cache():
    without, with_ = (plan(profile(max_lora_rank=rank, max_loras=2), PUBLISHED) for rank in (0, 16))
    page = sizes.lora_bytes(TEXT, 4, 16)
    assert without.lora == without.lora_fraction == 0 and "adapters" not in without.table()
    assert with_.lora == 3 * page and "| adapters" in with_.table()
    before = with_.free + with_.table_copies + with_.kv_cache + with_.lora
    assert 2 * page <= with_.lora_fraction * before <= 3 * page
    assert with_.kv_cache < without.kv_cache and with_.free > 0 and with_.build.max_lora_rank == 16


# KV cache and prompt table


@pytest.mark.parametrize("tp, kib", [(1, 256), (2, 128), (4, 64), (8, 32)])
def test_kv_cache_of_a_token(tp, kib):
    assert sizes.kv_bytes_per_token(TEXT, tp, "bfloat16") == kib * 1024
    assert sizes.kv_bytes_per_token(TEXT, tp, "fp8") == kib * 512


def test_kv_heads_are_copied_to_more_ranks_than_heads():
    few = TEXT.model_copy(update={"num_key_value_heads": 4})
    assert sizes.kv_bytes_per_token(few, 8, "bfloat16") == sizes.kv_bytes_per_token(few, 4, "bfloat16")


def test_kv_cache_of_65_536_tokens_is_16_gib():
    assert 65_536 * sizes.kv_bytes_per_token(TEXT, 1, "bfloat16") == 16 * GIB


def test_prompt_table_row_is_10_kib():
    """And 16 sequences of 4,096 rows 0.67 GB."""
    assert sizes.prompt_table_bytes(TEXT, 1) == 10 * 1024
    assert round(sizes.prompt_table_bytes(TEXT, 65_536) / 1e9, 2) == 0.67


@pytest.mark.parametrize("seconds", [0.02, 1, 24.99, 25, 25.01, 120, 611.3])
def test_rows_are_what_the_featurizer_makes(seconds):
    clips = split_clips(np.zeros(math.ceil(seconds * SAMPLE_RATE), np.float32))
    rows = sum(token_count(frame_count(len(clip))) for clip in clips)
    assert audio_rows(seconds) == rows
    assert audio_positions(seconds) == rows + 2 * len(clips)


def test_85_minutes_are_the_most_that_65_536_positions_hold():
    assert audio_rows(25) == 313
    assert audio_positions(5100) == 204 * 315 < 65_536 < audio_positions(5300)


@pytest.mark.parametrize("rows", [1, 13, 312, 313, 314, 7512, 16_384])
def test_seconds_of_so_many_rows(rows):
    seconds = audio_seconds(rows)
    assert audio_rows(seconds) <= rows < audio_rows(seconds + 1)


# Bounds against published logs


def llama(**changes):
    return TEXT.model_copy(update={"num_key_value_heads": changes["num_attention_heads"]} | changes)


LLAMA_7B = llama(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, head_dim=128, vocab_size=32_000)
QWEN_HALF_B = llama(
    hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2, head_dim=64,
    vocab_size=151_936,
)  # fmt: skip


@pytest.mark.parametrize(
    "text, batch, tokens, logged",
    [
        (LLAMA_7B, 4096, 8192, 928.77),  # TensorRT-LLM docs/source/performance/perf-benchmarking.md
        (QWEN_HALF_B, 2048, 8192, 773.51),  # TensorRT-LLM issue 1188, its defaults
        (QWEN_HALF_B, 1, 512, 43.26),  # there, made small
    ],
)
def test_activations_are_at_least_the_logged(text, batch, tokens, logged):
    assert sizes.activation_bytes(text, 1, tokens, batch) >= logged * MIB


@pytest.mark.parametrize(
    "text, batch, length, runtime, decoder",
    [(LLAMA_7B, 4096, 4098, 1.14, 4.35), (QWEN_HALF_B, 2048, 32_768, 2.66, 5.76)],
)
def test_buffers_are_at_least_the_logged(text, batch, length, runtime, decoder):
    """GB there are GiB."""
    assert sizes.buffer_bytes(text, batch, length) >= (runtime + decoder) * GIB


def test_activations_by_hand():
    """8,192 positions: 3 x 5120 + 3 x 6912 + 1792 + 1280 numbers of two bytes; then logits and workspaces."""
    by_hand = 2 * 8192 * 39_168 + 6 * 32 * 158_720 + 256 * MIB
    assert sizes.activation_bytes(TEXT, 4, 8192, 32) == by_hand


def test_concurrency_that_the_vllm_fork_logged():
    """Its "Maximum concurrency for 65,536 tokens: 4.76x" on four L40S at 0.85 of their memory.

    It splits the embedding too, has the encoder on every GPU and one process on each.
    """
    usable = 0.85 * (46_068 * MIB - sizes.DRIVER_RESERVE)
    weights = 2 * (32_832_033_792 / 4 + 636_968_960 + 18_030_848)
    beside = sizes.activation_bytes(TEXT, 4, 8192, 128) + sizes.RANK_PROCESS + sizes.NCCL
    tokens = (usable - weights - beside) / sizes.kv_bytes_per_token(TEXT, 4, "bfloat16")
    assert tokens / 65_536 == pytest.approx(4.76, rel=0.05)
    assert f"would hold {tokens / 65_536:.2f}\n" in PAGE.read_text(encoding="utf-8")


# The plan


# Bytes of GPU 0. Weights of a rank as above; activations and buffers 2 x 8,192 x (3 x 5,120 + 3 x 27,648 / ranks +
# 96 x 128 / ranks) + 6 x batch x 158,720 + 256 MiB and 48 x batch x (158,720 + length); the encoder's 655 million
# parameters twice, 4 clips x (8 x 20 x 1,500^2 + 64 x 1,500 x 1,280), 512 MiB; (1,800 + 512 x (ranks - 1)) MiB and
# 40 MB a rank. The table: batch x 7,512 rows x 10,240; left is what the GPU has besides these. Of that `fraction`, at
# most (left - table) / (left + encoder), in blocks of 32 tokens.
BY_HAND = {
    "4xH100-16k": {
        "weights": 17_635_977_216, "activations": 1_209_597_952, "encoder": 3_778_390_528, "runtime": 3_658_049_536,
        "table": 2_461_532_160, "left": 56_777_262_592, "fraction": 0.85, "tokens": 736_384, "kib": 64,
    },
    "8xL40S-65k": {
        "weights": 9_631_295_488, "activations": 1_359_542_272, "encoder": 3_778_390_528, "runtime": 5_965_533_184,
        "table": 4_230_758_400, "left": 23_340_279_296, "fraction": 0.70, "tokens": 498_592, "kib": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_parts_add_up_by_hand(name):
    hand = BY_HAND[name]
    found = plan(load_profile(name), PUBLISHED)
    assert found.fits
    parts = ("weights", "activations", "encoder", "runtime")
    assert {part: getattr(found, part) for part in parts} == {part: hand[part] for part in parts}
    assert found.prompt_table == found.table_copies == hand["table"]
    left = found.profile.gpu.memory_bytes - hand["table"] - sum(hand[part] for part in parts)
    assert left == hand["left"]
    assert (found.kv_fraction, found.kv_tokens) == (hand["fraction"], hand["tokens"])
    assert found.kv_cache == hand["tokens"] * hand["kib"] * 1024
    assert found.free == left - found.kv_cache - hand["table"] > 0


def test_running_requests_cannot_exceed_the_plan():
    """Where the encoder loads last: what the KV cache leaves then holds it and every running request's table."""
    for name in profile_names():
        found = plan(load_profile(name), PUBLISHED)
        left = found.profile.gpu.memory_bytes - found.weights - found.prompt_table - found.activations - found.runtime
        assert (1 - found.kv_fraction) * left >= found.encoder + found.table_copies
        assert found.table_copies == 10_240 * found.build.max_batch_size * found.table_rows


def test_an_engine_of_other_limits_gets_its_own_share():
    """As serving asks: of what the engine was built for."""
    wish = load_profile("8xL40S-65k")
    assert kv_fraction(wish, PUBLISHED, 55, 7512) == 0.7
    assert kv_fraction(wish, PUBLISHED, 32, 13_107) < 0.71 and kv_fraction(wish, PUBLISHED, 55, 752) > 0.8
    assert kv_fraction(wish, PUBLISHED, 128, 60_000) == 0, "a table that leaves nothing"


def test_four_l40s_hold_about_what_their_users_saw():
    """17.6 GB of weights; the fork had 4.76 requests of 65,536 tokens where we, with a prompt table, plan for less."""
    found = plan(load_profile("4xL40S-65k"), PUBLISHED)
    assert round(found.weights / 1e9, 1) == 17.6
    assert 3 < found.full_requests < 4.76


@pytest.mark.parametrize(
    "length, batch, kv_fraction, fits", [(65_536, 1, 0.75, False), (32_768, 2, 0.75, True), (4096, 1, 0.75, True)]
)
def test_one_gpu_of_80_gb(length, batch, kv_fraction, fits):
    """Others ran 32,768 tokens with two sequences, and 4,096 with one; 65,536 take 17.2 GB of KV cache alone."""
    found = plan(
        profile(gpus=1, max_seq_len=length, max_batch_size=batch, max_audio_seconds=120, kv_fraction=kv_fraction),
        PUBLISHED,
    )
    assert found.fits == fits
    assert fits or found.reasons[0].startswith("with 1 sequence the KV cache would hold ")
    assert fits or found.reasons[0].endswith(" tokens, less than one request of 65,536.")


def test_model_larger_than_the_gpu():
    small = H100.model_copy(update={"memory_bytes": 48 * GIB})
    found = plan(profile(gpus=1, gpu=small), PUBLISHED)
    assert not found.fits and found.kv_tokens == 0 and found.free < 0
    assert "GB are missing" in found.reasons[0]
    assert found.summary() == "does not fit"


@pytest.mark.parametrize("name", ["1xH200-65k", "2xH100-65k", "4xL40S-16k", "4xH20-65k"])
def test_no_larger_batch(name):
    """Every batch is tried here, and judged by the conditions as they are written."""
    wish = load_profile(name)
    found = plan(wish, PUBLISHED)
    rows = audio_rows(wish.max_audio_seconds)

    def holds(batch):
        table = 10_240 * batch * rows
        left = wish.gpu.memory_bytes - found.weights - found.encoder - found.runtime - table
        left -= sizes.activation_bytes(TEXT, wish.gpus, 8192, batch) + sizes.buffer_bytes(TEXT, batch, wish.max_seq_len)
        share = min(wish.kv_fraction, math.floor(100 * (left - table) / (left + found.encoder)) / 100)
        tokens = int(share * left / (32 * 262_144 / wish.gpus)) * 32
        return tokens >= max(wish.max_seq_len, batch * rows) and batch * rows * 5120 < 2**31

    batch = max(batch for batch in range(1, wish.max_batch_size + 1) if holds(batch))
    assert (found.build.max_batch_size, found.table_rows) == (batch, rows)
    assert found.build.max_prompt_embedding_table_size == batch * rows


def test_a_lower_batch_says_why():
    found = plan(load_profile("4xL40S-65k"), PUBLISHED)
    assert found.fits and found.build.max_batch_size < 128
    assert found.reasons[0].startswith(f"{found.build.max_batch_size} sequences instead of 128: ")
    assert "the KV cache would hold" in found.reasons[0]
    assert "TensorRT takes 419,430" in plan(load_profile("4xH100-65k"), PUBLISHED).reasons[0]


def test_the_table_is_no_larger_than_asked():
    """It costs memory twice, and time in each step."""
    found = plan(profile(max_seq_len=4096, max_batch_size=2, max_audio_seconds=60), PUBLISHED)
    assert found.table_rows == audio_rows(60) and found.audio_seconds == 60


def test_a_fraction_that_leaves_too_little_is_lowered():
    found = plan(profile(kv_fraction=0.97), PUBLISHED)
    assert found.fits and found.kv_fraction == 0.89
    assert found.reasons == (
        "kv_fraction 0.89 instead of 0.97: the rest is for the prompt tables of running requests, and for the audio "
        "encoder when it loads last.",
    )
    assert plan(profile(kv_fraction=0.5), PUBLISHED).kv_fraction == 0.5


def test_longer_than_the_model():
    short = PUBLISHED.model_copy(update={"text": TEXT.model_copy(update={"max_position_embeddings": 8192})})
    found = plan(profile(), short)
    assert not found.fits and "model's 8192 positions" in found.reasons[0]


def test_so_many_gpus_are_no_split():
    found = plan(profile(gpus=3), PUBLISHED)
    assert not found.fits and "possible numbers: 1, 2, 4, 8" in found.reasons[0]
    assert report(found, PUBLISHED)[0].endswith("does not fit")


def test_table_shows_all_parts():
    found = plan(load_profile("4xL40S-16k"), PUBLISHED)
    lines = found.table().splitlines()
    assert len({len(line) for line in lines}) == 1
    shown = [float(line.split("|")[2]) for line in lines[2:]]
    assert sum(shown[:-1]) == pytest.approx(shown[-1], abs=0.05)
    assert shown[-1] == round(46_068 * MIB / 1e9, 2)


# Bandwidth


@pytest.mark.parametrize("name, low, high", [("4xH100-16k", 5.4, 5.7), ("4xL40S-16k", 20.6, 21.7)])
def test_time_of_a_token_at_least(name, low, high):
    """About 16 GB and a table of 2.5 and 2.2 GB at 3.35 and 0.864 TB/s, in ms."""
    assert low < 1000 / decode_bound(plan(load_profile(name), PUBLISHED), PUBLISHED) < high


def test_bound_by_hand():
    weights = 2 * (64 * ((487_605_248 - 10_240) // 4 + 10_240) + 5120 + 158_720 * 5120 // 4 + 5120)
    found = plan(load_profile("4xH100-65k"), PUBLISHED)
    table = 55 * 7512 * 10_240
    assert decode_bound(found, PUBLISHED) == pytest.approx(3.35e12 / (weights + table))
    assert decode_bound(found, PUBLISHED, 65_536) == pytest.approx(3.35e12 / (weights + table + 4 * GIB))
    full = decode_bound(found, PUBLISHED, sequences=55, rows=7512)
    assert full == pytest.approx(3.35e12 / (weights + 3 * table)), "cleared, read, written"
    assert f"at least {1000 / full:.1f} ms when all 55 have 600 s of audio" in "\n".join(report(found, PUBLISHED))
