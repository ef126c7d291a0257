"""Draw the next token from a row of logits the way TensorRT-LLM's decoder does.

In this order, as its kernels have it (`penaltyKernels.cu`, `banBadWords.cu`, `samplingTopKKernels.cu`):
temperature; repetition, presence and frequency penalty, over prompt and answer, ids beyond the vocabulary
skipped; end_id suppressed up to min_tokens; bad words; tokens of less than min_p times the best one's probability
out (`decodingCommon.cu`); then tokens by falling probability until their sum reaches u * top_p of the (top_k's)
total, u uniform in (0, 1].

Log-probabilities are over the whole vocabulary, after all of the above. With `normalize_log_probs` and a
top_k they are relative to the top_k tokens instead, so 0 for greedy; the cumulative one never is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from step_audio.arrays import Float32Array, IndexArray, Int32Array
from step_audio.engine.request import SamplingParams, TopLogProbs

MAX_TOP_K = 1024
_MASK64 = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1], a function of its arguments alone, so no neighbour in the batch can move it.

    splitmix64 (Steele, Lea, Flood 2014) applied to the seed and then to the position.
    """
    state = seed
    for step in (0, position + 1):
        state = (state + (step + 1) * 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return ((state >> 11) + 1) * 2.0**-53


class Draw(NamedTuple):
    """What came of one row of logits."""

    token: int
    log_prob: float  # of the token, and its share of the cumulative one; both 0.0 unless asked for
    cumulative: float
    top: TopLogProbs | None  # unless asked for


def largest(rows: Sequence[Float32Array], k: int) -> tuple[IndexArray, Float32Array]:
    """Ids and values of each row's k largest, falling, the lower id first among equals: [rows, k] each.

    What is -inf is at the end, and then its ids mean nothing. A partition of 158,720 values takes 1.7 ms. The k-th
    largest of the maxima of disjoint groups is a lower bound of the k-th largest value, leaves few candidates, and
    is found in one pass: 0.06 ms.
    """
    size = rows[0].size
    k = min(k, size)
    groups = max(1, size // max(512, 4 * k))
    columns = size // groups
    maxima = np.empty((len(rows), columns), np.float32)
    for row, out in zip(rows, maxima, strict=True):
        row[: groups * columns].reshape(groups, columns).max(0, out=out)
    bounds = np.partition(maxima, columns - k, axis=1)[:, columns - k].tolist()
    # Under a guide few are above -inf, and then all of these are fewer than k.
    candidates = [
        np.flatnonzero(row >= bound if bound > -math.inf else row > bound)
        for row, bound in zip(rows, bounds, strict=True)
    ]
    width = max(k, *(len(found) for found in candidates))
    ids = np.zeros((len(rows), width), np.intp)
    values = np.full((len(rows), width), -np.inf, np.float32)
    for place, (row, found) in enumerate(zip(rows, candidates, strict=True)):
        ids[place, : len(found)] = found
        values[place, : len(found)] = row[found]
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)


class TokenSampler:
    """The drawing of one answer: its parameters and what it has drawn so far.

    prompt: int32 [n], counted by the penalties; index: place among the request's answers.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Int32Array,
        vocab_size: int,
        *,
        index: int = 0,
        end_id: int | None = None,
        bad_words: list[list[int]] | None = None,
        log_probs: bool = False,
        top_log_probs: int = 0,
        normalize_log_probs: bool = True,
    ):
        top_k, top_p = params.top_k, params.top_p
        if params.temperature == 0 or (top_k == 0 and top_p == 0):
            top_k = 1
        self.top_k = min(top_k, MAX_TOP_K, vocab_size)
        self.top_p = top_p or 1.0
        # The GPU kernel's own guard against division by zero; 1 is left exactly alone.
        self.scale = 1.0 if params.temperature == 1 else 1.0 / (params.temperature + 1e-6)
        # How far below the best logit one may be; the row is not scaled.
        self.within = math.log(params.min_p) / self.scale if params.min_p else -math.inf
        self.seed = params.seed + index
        self.params = params
        self.drawn = 0
        self.end_id = end_id
        self.bad_words = bad_words or []
        self.log_probs = log_probs
        self.top_log_probs = top_log_probs
        self.normalize_log_probs = normalize_log_probs
        self.forbids = bool((end_id is not None and params.min_tokens) or self.bad_words or params.min_p)
        self.penalized = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
        if self.penalized:
            self._ids, self._counts = np.unique(prompt[prompt < vocab_size], return_counts=True)
            self._place = {int(token): place for place, token in enumerate(self._ids)}
            self._seen = len(self._ids)

    def counts(self) -> tuple[IndexArray, IndexArray]:
        """The tokens that penalties count, and how often each was there."""
        return self._ids[: self._seen], self._counts[: self._seen]

    def forbid(self, row: Float32Array, history: Int32Array) -> None:
        """Take out of the row [vocab] what may not come next; history: int32, prompt and answer so far."""
        if self.end_id is not None and self.drawn < self.params.min_tokens:
            row[self.end_id] = -np.inf
        for word in self.bad_words:
            if len(word) == 1 or _ends_with(history, word[:-1]):
                row[word[-1]] = -np.inf
        if self.within > -math.inf:
            row[row < row.max() + self.within] = -np.inf

    def threshold(self) -> float:
        """The share of the sum over what may be drawn, at which the next token is reached."""
        return uniform(self.seed, self.drawn) * self.top_p

    def accept(self, token: int) -> None:
        self.drawn += 1
        if not self.penalized:
            return
        place = self._place.setdefault(token, self._seen)
        if place == self._seen:
            if place == len(self._ids):  # grow by doubling
                room = max(place, 64)
                self._ids = np.concatenate([self._ids, np.zeros(room, self._ids.dtype)])
                self._counts = np.concatenate([self._counts, np.zeros(room, self._counts.dtype)])
            self._ids[place] = token
            self._seen += 1
        self._counts[place] += 1


def penalize(rows: Sequence[Float32Array], samplers: Sequence[TokenSampler]) -> None:
    """Apply the samplers' penalties to their rows of logits [vocab], in place.

    Touches seen tokens only. Rows stay unscaled: order and thresholds do not depend on the scale.
    """
    which = [
        (row, sampler, *sampler.counts()) for row, sampler in zip(rows, samplers, strict=True) if sampler.penalized
    ]
    if not which:
        return
    lengths = [len(ids) for _, _, ids, _ in which]

    def each(values: Iterable[float]) -> Float32Array:
        return np.repeat(np.fromiter(values, np.float32, len(which)), lengths)

    scale = each(sampler.scale for _, sampler, _, _ in which)
    factor = each(sampler.params.repetition_penalty for _, sampler, _, _ in which)
    with np.errstate(over="ignore", invalid="ignore"):  # then no token has a finite logit
        values = np.concatenate([row[ids] for row, _, ids, _ in which]) * scale
        values = np.where(values < 0, values * factor, values / factor)
        counts = np.concatenate([counts for _, _, _, counts in which]).astype(np.float32)
        values -= each(sampler.params.frequency_penalty for _, sampler, _, _ in which) * counts
        values -= each(sampler.params.presence_penalty for _, sampler, _, _ in which)
        values /= scale
    begin = 0
    for (row, _, ids, _), length in zip(which, lengths, strict=True):
        row[ids] = values[begin : begin + length]
        begin += length


def draw(rows: Sequence[Float32Array], samplers: Sequence[TokenSampler]) -> list[Draw | None]:
    """The next token of each sampler from its row of logits [vocab]; None where none has a finite logit.

    What one answer draws does not depend on who else is in the batch.
    """
    drawn: list[Draw | None] = [None] * len(samplers)
    by_top_k: dict[int, list[int]] = {}
    for place, sampler in enumerate(samplers):
        by_top_k.setdefault(sampler.top_k, []).append(place)
    for top_k, places in by_top_k.items():
        group, its_rows = [samplers[place] for place in places], [rows[place] for place in places]
        if top_k > 1:
            outcomes = _draw_limited(its_rows, group)
        elif top_k:
            outcomes = [_draw_best(*pair) for pair in zip(group, its_rows, strict=True)]
        else:
            outcomes = [_draw_from_all(*pair) for pair in zip(group, its_rows, strict=True)]
        for place, outcome in zip(places, outcomes, strict=True):
            drawn[place] = outcome
    return drawn


def _draw_best(sampler: TokenSampler, row: Float32Array) -> Draw | None:
    token = int(row.argmax())
    return _outcome(sampler, row, token, float(row[token]), 1.0)


def _draw_limited(rows: list[Float32Array], samplers: list[TokenSampler]) -> list[Draw | None]:
    """For samplers of one and the same top_k, greater than 1."""
    ids, values = largest(rows, samplers[0].top_k)
    scales = np.array([sampler.scale for sampler in samplers], np.float32)
    with np.errstate(invalid="ignore"):  # a row of -inf, which `_outcome` finds
        cumulative = np.cumsum(np.exp((values - values[:, :1]) * scales[:, None]), axis=1, dtype=np.float64)
    within = cumulative[:, -1]
    thresholds = np.array([sampler.threshold() for sampler in samplers]) * within
    reached = (cumulative < thresholds[:, None]).sum(1)  # never the end: no threshold is above the last sum
    tokens = ids[np.arange(len(rows)), reached].tolist()
    return [
        _outcome(*drawing)
        for drawing in zip(samplers, rows, tokens, values[:, 0].tolist(), within.tolist(), strict=True)
    ]


def _draw_from_all(sampler: TokenSampler, row: Float32Array) -> Draw | None:
    """top_p without top_k: most draws end within the first few tokens, so sort no more than needed."""
    best = float(row.max())
    if not math.isfinite(best):
        return None
    total = _total(row, best, sampler.scale)
    threshold = sampler.threshold() * total
    for count in (64, MAX_TOP_K, row.size):
        ids, values = largest([row], count)
        cumulative = np.cumsum(np.exp((values[0] - np.float32(best)) * np.float32(sampler.scale)), dtype=np.float64)
        if cumulative[-1] >= threshold:
            break
    # Rounding must not carry it past the end.
    reached = min(int(np.searchsorted(cumulative, threshold)), len(cumulative) - 1)
    return _outcome(sampler, row, int(ids[0, reached]), best, 1.0)


def _outcome(sampler: TokenSampler, row: Float32Array, token: int, best: float, within: float) -> Draw | None:
    """best: the row's largest logit; within: mass of the top_k, relative to the best token."""
    if not math.isfinite(best):
        return None
    sampler.accept(token)
    if not (sampler.log_probs or sampler.top_log_probs):
        return Draw(token, 0.0, 0.0, None)
    log_prob = (float(row[token]) - best) * sampler.scale
    total = math.log(_total(row, best, sampler.scale))
    mass = math.log(within) if sampler.normalize_log_probs and sampler.top_k else total
    top = None
    if sampler.top_log_probs:
        ids, values = (found[0].tolist() for found in largest([row], sampler.top_log_probs))
        top = [(i, (v - best) * sampler.scale - mass) for i, v in zip(ids, values, strict=True) if v > -math.inf]
    return Draw(token, log_prob - mass, log_prob - total, top)


def _total(row: Float32Array, best: float, scale: float) -> float:
    weights = row - np.float32(best)
    weights *= np.float32(scale)
    np.exp(weights, out=weights)
    return float(weights.sum(dtype=np.float64))


def _ends_with(history: Int32Array, words: list[int]) -> bool:
    return len(words) <= len(history) and history[len(history) - len(words) :].tolist() == words
