"""How an answer is drawn: the caller's words to the engine's inputs."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from step_audio.arrays import AnyArray
from step_audio.sampling_parameters import PARAMETERS, Parameter, SamplingParameters
from step_audio_client.errors import RequestError, UnsupportedParameter
from step_audio_client.wire import scalar


@dataclass(frozen=True)
class Sampling(SamplingParameters):
    """How the next token is chosen. Defaults are those of the model card's examples.

    `temperature` 0 is greedy. The engine itself samples only when top_k or top_p is set and ignores a lone
    temperature, so `top_p` is always sent along. `step_audio.sampling_parameters` says what each does.
    """

    def with_seed(self) -> Sampling:
        """With one that is known, so that the answer can be drawn again."""
        if self.seed is not None or self.temperature == 0:
            return self
        return replace(self, seed=secrets.randbits(63))

    def with_seed_after(self, n: int) -> Sampling:
        """With the seed that is `n` behind its own, for another draw; as it is where it has none."""
        return self if self.seed is None else replace(self, seed=(self.seed + n) % 2**64)  # the engine's: not negative

    def behind(self, tokens: int) -> Sampling:
        """For the rest of an answer that has so many already."""
        if not tokens:
            return self
        rest = replace(
            self,
            max_tokens=None if self.max_tokens is None else self.max_tokens - tokens,
            min_tokens=None if self.min_tokens is None else max(self.min_tokens - tokens, 0),
        )
        return rest.with_seed_after(tokens)  # not the numbers once more that the first tokens were drawn with

    def inputs(self) -> dict[str, AnyArray]:
        """Under the names of the `tensorrt_llm` model, each of shape [1, 1]. Raises RequestError."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {self.max_tokens}", "max_tokens")
        # To the engine no seed is seed 0: everybody would always get the same answer.
        tensors = {one.input: _tensor(one, value) for one, value in self.with_seed()._asked()}
        if self.temperature == 0:
            tensors["runtime_top_k"] = scalar(1, np.int32)
        return tensors

    def check_supported(self, names: Collection[str]) -> None:
        """`names`: the parameters that the served LLM takes. Raises UnsupportedParameter."""
        for one, _ in self._asked():
            if one.name not in names:
                raise UnsupportedParameter(one.name)

    def _asked(self) -> list[tuple[Parameter, float]]:
        values = [(one, getattr(self, one.name)) for one in PARAMETERS if self.temperature != 0 or not one.draws]
        return [(one, value) for one, value in values if one.asks(value)]


def _tensor(one: Parameter, value: float) -> AnyArray:
    if issubclass(one.dtype, np.integer):
        limits = np.iinfo(one.dtype)
        if not limits.min <= value <= limits.max:  # numpy 1 would wrap it round
            raise RequestError(f"{one.name} {value} is out of range", one.name)
    return scalar(value, one.dtype)
