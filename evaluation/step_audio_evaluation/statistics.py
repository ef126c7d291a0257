"""How sure a figure is: intervals that hold the true value in 95 of 100 evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # of the normal distribution, for 95 %
DRAWS = 4000  # of a bootstrap


@dataclass(frozen=True)
class Interval:
    """A confidence interval of 95 %."""

    low: float
    high: float

    @property
    def in_percent(self) -> str:
        """
        >>> Interval(0.5, 0.6275).in_percent
        '50.0 to 62.7'
        """
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}"


def wilson(successes: float, trials: int) -> Interval:
    """Of a share (Wilson 1927): unlike the textbook's, it stays within 0 to 1 and holds at 0 and at all.

    `successes` is no whole number where it is the mean of several rounds.

    >>> wilson(0, 0)
    Interval(low=0.0, high=1.0)
    """
    if not trials:
        return Interval(0.0, 1.0)
    share = successes / trials
    spread = Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Interval(max(centre - half, 0.0), min(centre + half, 1.0))


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int) -> Interval:
    """Of a sum over a sum, such as errors over words: whole recordings are drawn anew (Efron 1979).

    The same seed gives the same interval. The denominators are positive, and there is at least one.
    """
    pairs = np.array([numerators, denominators], np.float64)
    random = np.random.default_rng(seed)
    picked = random.integers(0, pairs.shape[1], (DRAWS, pairs.shape[1]))
    sums = pairs[:, picked].sum(axis=2)
    low, high = np.percentile(sums[0] / sums[1], (2.5, 97.5))
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """Of two shares of right answers to the same questions: the first less the second."""

    pairs: int
    only_first: int  # questions that only the first way got right
    only_second: int
    value: float
    interval: Interval
    p: float  # how likely a split as uneven as this one is if both ways are equally good (McNemar's exact test)


def paired_difference(first: Sequence[bool], second: Sequence[bool], seed: int) -> Difference:
    """`first[n]` and `second[n]`: whether question n was answered right in the two ways."""
    changes = [int(a) - int(b) for a, b in zip(first, second, strict=True)]
    up, down = changes.count(1), changes.count(-1)
    interval = bootstrap_ratio(changes, [1] * len(changes), seed)
    return Difference(len(changes), up, down, sum(changes) / len(changes), interval, mcnemar(up, down))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of so many changes in either direction (McNemar 1947).

    >>> mcnemar(5, 0)
    0.0625
    """
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << n))
