"""The computed figures of docs/performance.md, by the formulas that it names."""

from __future__ import annotations

import re

from pytest import approx

from paths import ROOT
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.memory_plan import decode_bound, plan
from step_audio_build.planning.profiles import load_profile

PAGE = (ROOT / "docs/performance.md").read_text("utf-8")
CONTEXT = 2000
KV_BYTES = 64 * 2 * 8 * 128 * 2  # of one position: layers, keys and values, heads, their size, bfloat16


def rows(page: str) -> list[list[str]]:
    (table,) = re.findall(r"<!-- begin computed -->\n(.*?)<!-- end -->", page, re.S)
    return [[cell.strip().replace(",", "") for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]


def test_bounds_are_bytes_by_bandwidth():
    found = rows(PAGE)
    assert [(row[0], row[1]) for row in found] == [
        (f"4x{gpu}-65k", n) for gpu, most in (("L40S", "29"), ("H100", "32")) for n in ["1", "8", most]
    ]
    for name, width, step, rate, slow_step, slow_rate in found:
        profile, count = load_profile(name), int(width)
        made, bandwidth = plan(profile, PUBLISHED), profile.gpu.bandwidth
        weights = made.weights - 2 * (158_720 - 1) * 5120
        seconds = (weights + made.prompt_table + count * CONTEXT * KV_BYTES / profile.gpus) / bandwidth
        tables = 2 * made.table_copies * count / made.build.max_batch_size / bandwidth
        assert step == f"{seconds * 1000:.1f}" and rate == f"{count / seconds:.0f}"
        assert slow_step == f"{(seconds + tables) * 1000:.1f}" and slow_rate == f"{count / (seconds + tables):.0f}"
        assert seconds + tables == approx(1 / decode_bound(made, PUBLISHED, CONTEXT, count, made.table_rows))


def test_prefill_and_encoder_are_operations_by_rate():
    decoder, encoder = 2 * (64 * 487_605_248 + 812_646_400), 2 * 636_968_960 * 1251
    for place, rate in enumerate((181e12, 989e12)):
        times = [encoder / rate, 350 * decoder / (4 * rate), 15_000 * decoder / (4 * rate)]
        said = [
            line.split("|")[2 + place].split()
            for line in PAGE.splitlines()
            if line.startswith(("| encoder,", "| prefill of"))
        ]
        for seconds, (number, unit) in zip(times, said, strict=True):
            digits = len(number.partition(".")[2])
            assert number == f"{seconds * (1000 if unit == 'ms' else 1):.{digits}f}", (seconds, number)
