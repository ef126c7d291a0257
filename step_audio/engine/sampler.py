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

import numpy as np

from step_audio.arrays import Float32Array, Float64Array, IndexArray, Int32Array
from step_audio.engine.request import SamplingParams

MAX_TOP_K = 1024
_MASK64 = 2**64 - 1


class NoToken(ValueError):
    """Every token is forbidden, or the logits are not numbers."""


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


def largest(row: Float32Array, k: int) -> IndexArray:
    """Ids of the k largest values, falling; the lower id first among equals. -inf may be left out.

    A partition of 158,720 values takes 1.7 ms. The k-th largest of the maxima of disjoint groups is a lower
    bound of the k-th largest value, leaves few candidates, and is found in one pass: 0.06 ms.
    """
    columns = max(512, 4 * k)
    rows = row.size // columns
    if rows < 2:
        return np.argsort(-row, kind="stable")[:k]
    maxima = row[: rows * columns].reshape(rows, columns).max(0)
    bound = np.partition(maxima, columns - k)[columns - k]
    # Under a guide few are above -inf, and then all of these are fewer than k.
    candidates = np.flatnonzero(row >= bound if bound > -np.inf else row > bound)
    order: IndexArray = candidates[np.argsort(-row[candidates], kind="stable")[:k]]
    return order


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
        self.normalize_log_probs = normalize_log_probs
        self.penalized = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
        if self.penalized:
            self._ids, self._counts = np.unique(prompt[prompt < vocab_size], return_counts=True)
            self._place = {int(token): place for place, token in enumerate(self._ids)}
            self._seen = len(self._ids)

    def draw(self, row: Float32Array, history: Int32Array) -> tuple[int, float, float]:
        """The next token, its log-probability, and its share of the cumulative one (0.0 unless asked for).

        row: float32 [vocab], overwritten; history: int32, prompt and answer so far. Raises NoToken if
        nothing can be drawn, and then only this answer is at fault.
        """
        if self.penalized:
            self._penalize(row)
        if self.end_id is not None and self.drawn < self.params.min_tokens:
            row[self.end_id] = -np.inf
        for word in self.bad_words:
            if len(word) == 1 or _ends_with(history, word[:-1]):
                row[word[-1]] = -np.inf
        if self.within > -math.inf:
            row[row < row.max() + self.within] = -np.inf
        if self.top_k == 1:
            token = int(row.argmax())
            best = row[token]
        elif self.top_k:
            order = largest(row, self.top_k)
            best = row[order[0]] if order.size else -np.inf
        else:
            best = row.max()
        if not np.isfinite(best):
            raise NoToken("no token has a finite logit")
        total = self._total(row, best) if self.log_probs or not self.top_k else 1.0
        within = 1.0  # mass of the top_k, relative to the best token
        if self.top_k > 1:
            cumulative = np.cumsum(np.exp((row[order] - best) * self.scale), dtype=np.float64)
            within = cumulative[-1]
            token = int(order[_reach(cumulative, self._threshold() * within)])
        elif not self.top_k:
            token = self._draw_from_all(row, best, total)
        self._accept(token)
        if not self.log_probs:
            return token, 0.0, 0.0
        log_prob = float((row[token] - best) * self.scale)
        plain = log_prob - float(np.log(total))
        return token, log_prob - float(np.log(within)) if self.normalize_log_probs and self.top_k else plain, plain

    def _threshold(self) -> float:
        return uniform(self.seed, self.drawn) * self.top_p

    def _total(self, row: Float32Array, best: np.float32) -> float:
        weights = row - best
        weights *= np.float32(self.scale)
        np.exp(weights, out=weights)
        return float(weights.sum(dtype=np.float64))

    def _draw_from_all(self, row: Float32Array, best: np.float32, total: float) -> int:
        """top_p without top_k: most draws end within the first few tokens, so sort no more than needed."""
        threshold = self._threshold() * total
        for count in (64, MAX_TOP_K, row.size):
            order = largest(row, min(count, row.size))
            cumulative = np.cumsum(np.exp((row[order] - best) * self.scale), dtype=np.float64)
            if cumulative[-1] >= threshold:
                break
        return int(order[_reach(cumulative, threshold)])

    def _penalize(self, row: Float32Array) -> None:
        """Touches seen tokens only. The row stays unscaled: order and thresholds do not depend on the scale."""
        params = self.params
        ids, counts = self._ids[: self._seen], self._counts[: self._seen]
        with np.errstate(over="ignore", invalid="ignore"):  # then no token has a finite logit
            values = row[ids] * np.float32(self.scale)
            factor = np.float32(params.repetition_penalty)
            values = np.where(values < 0, values * factor, values / factor)
            values -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
            row[ids] = values / np.float32(self.scale)

    def _accept(self, token: int) -> None:
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


def _ends_with(history: Int32Array, words: list[int]) -> bool:
    return len(words) <= len(history) and history[len(history) - len(words) :].tolist() == words


def _reach(cumulative: Float64Array, threshold: float) -> int:
    """First place whose sum reaches the threshold; rounding must not carry it past the end."""
    return min(int(np.searchsorted(cumulative, threshold)), len(cumulative) - 1)
