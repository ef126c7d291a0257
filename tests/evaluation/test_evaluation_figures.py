"""Intervals and differences of what was counted."""

import math

import pytest

from step_audio_evaluation.statistics import bootstrap_ratio, mcnemar, paired_difference, wilson

# -- figures


def test_wilson():
    # Newcombe 1998, table I.
    for successes, trials, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        found = wilson(successes, trials)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert wilson(20, 20).high == 1.0


def test_wilson_holds_what_it_promises():
    trials, share = 60, 0.9
    weights = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
    held = sum(w for k, w in enumerate(weights) if wilson(k, trials).low <= share <= wilson(k, trials).high)
    assert 0.93 < held < 0.98


def test_bootstrap_of_a_share_is_near_its_wilson_interval():
    right = [1] * 80 + [0] * 20
    drawn, formula = bootstrap_ratio(right, [1] * 100, seed=3), wilson(80, 100)
    assert drawn == bootstrap_ratio(right, [1] * 100, seed=3)
    assert abs(drawn.low - formula.low) < 0.02 and abs(drawn.high - formula.high) < 0.02
    assert bootstrap_ratio([0, 0], [3, 4], 0).high == 0


def test_bootstrap_weighs_by_words():
    """One long recording full of errors: a mean of rates would say 0.5."""
    found = bootstrap_ratio([9, 0] * 30, [9, 1] * 30, seed=0)
    assert found.low < 0.9 < found.high and found.low > 0.8


def test_paired_difference():
    first, second = [True] * 50 + [False] * 10, [True] * 35 + [False] * 15 + [True] * 3 + [False] * 7
    found = paired_difference(first, second, seed=0)
    assert (found.pairs, found.only_first, found.only_second) == (60, 15, 3)
    assert found.value == pytest.approx(0.2) and 0 < found.interval.low < 0.2 < found.interval.high
    assert found.p == pytest.approx(0.00754, abs=1e-5)  # binom.test(3, 18)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0
