"""The sampling parameters: one declaration, which everything that takes, offers or explains them follows.

A field of `SamplingParameters` is a parameter: its name, type and default are the client library's, the rest is what
`parameter` is told. Made from it: the client library's `Sampling` and its tensors, the HTTP request's fields, the
flags of `step-audio chat` and `eval`, the page's controls, the inputs of the ensemble and those of the LLM that only
the CPU's has, with the outputs that belong to them. Compared with it by tests: the engine's `SamplingParams`, NVIDIA's
inputs in the LLM's config.pbtxt, and the table of docs/reference/requests.md. A further parameter is a field here, and
its work in `step_audio.engine`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import numpy as np

T = TypeVar("T")
Value = int | float | bool | None
Place = Literal["http", "command"]  # the OpenAI-compatible API; `step-audio chat` and `eval`

EVERYWHERE: frozenset[Place] = frozenset(("http", "command"))
INT32 = 2**31 - 1
MAX_TOP_LOGPROBS = 20  # OpenAI's


@dataclass(frozen=True)
class Slider:
    """A control of the page: all values of the range, `step` apart."""

    step: float


@dataclass(frozen=True)
class Box:
    """A control of the page: an empty field for a number; `placeholder` says what silence means."""

    placeholder: str


@dataclass(frozen=True)
class Output:
    """An output of the ensembles and of tensorrt_llm; `rank`: its dimensions beside the batch's, of any size."""

    name: str
    dtype: type[np.generic]
    rank: int


@dataclass(frozen=True)
class Facts:
    """What is told of a parameter beside its name, type and default."""

    text: str  # what it does, in a line
    input: str  # of the ensemble step_audio_r1 and of tensorrt_llm
    dtype: type[np.generic]  # of that input
    nvidia: bool = True  # an input of NVIDIA's backend (TensorRT-LLM 1.2.1), too; else only the CPU's takes it
    outputs: tuple[Output, ...] = ()  # that it brings, where NVIDIA's backend has none of them either
    draws: bool = False  # chooses among several tokens: means nothing at temperature 0, and is then not sent
    nothing: tuple[Value, ...] = ()  # values that ask for nothing: they are not sent
    at_least: float | None = None  # bounds of what the HTTP door accepts
    above: float | None = None
    at_most: float | None = None
    places: Collection[Place] = EVERYWHERE
    aliases: tuple[str, ...] = ()  # other names at the HTTP door
    control: Slider | Box | None = None  # of the page


@dataclass(frozen=True, kw_only=True)
class Parameter(Facts):
    """One row of the list."""

    name: str
    default: Value  # None: nothing is sent, and the engine's own default holds

    @property
    def kind(self) -> type[int] | type[float] | type[bool]:
        """Of its values in Python."""
        if issubclass(self.dtype, np.integer):
            return int
        return float if issubclass(self.dtype, np.floating) else bool

    def asks(self, value: Value) -> bool:
        """Whether the value asks for anything."""
        return value is not None and value not in self.nothing


def parameter(default: T, text: str, input: str, dtype: type[np.generic], **facts: Any) -> T:
    """A field of `SamplingParameters`; `facts` are those of `Facts`."""
    return field(default=default, metadata={"facts": Facts(text, input, dtype, **facts)})


@dataclass(frozen=True)
class SamplingParameters:
    """How an answer is drawn. The defaults are those of the model card's examples."""

    max_tokens: int | None = parameter(
        None,
        "tokens of the answer, its thought included; default: what is left of the context",
        "request_output_len",
        np.int32,
        at_least=1,
        at_most=INT32,
        aliases=("max_completion_tokens",),
        control=Box("what fits"),
    )
    temperature: float = parameter(
        0.7,
        "how much chance there is in the choice of a token; 0: none, the likeliest is taken",
        "temperature",
        np.float32,
        draws=True,
        at_least=0,
        at_most=2,
        control=Slider(0.05),
    )
    top_p: float = parameter(
        1.0,
        "draw from the likeliest tokens that together have this probability",
        "runtime_top_p",
        np.float32,
        draws=True,
        above=0,
        at_most=1,
        control=Slider(0.05),
    )
    top_k: int | None = parameter(
        None,
        "draw from this many of the likeliest tokens; 0 or -1: from all",
        "runtime_top_k",
        np.int32,
        draws=True,
        nothing=(0, -1),
        at_least=-1,
        at_most=INT32,
    )
    min_p: float | None = parameter(
        None,
        "draw from tokens with at least this share of the likeliest one's probability; 0: all",
        "min_p",
        np.float32,
        nvidia=False,
        draws=True,
        nothing=(0,),
        at_least=0,
        at_most=1,
        control=Slider(0.01),
    )
    min_tokens: int | None = parameter(
        None,
        "the answer does not end before this many tokens",
        "min_tokens",
        np.int32,
        nothing=(0,),
        at_least=0,
        at_most=INT32,
    )
    repetition_penalty: float | None = parameter(
        None,
        "on tokens that prompt or answer have already; 1: none, below 1: a reward",
        "repetition_penalty",
        np.float32,
        above=0,
        at_most=10,
    )
    presence_penalty: float | None = parameter(
        None,
        "taken off the logits of tokens that prompt or answer have already",
        "presence_penalty",
        np.float32,
        at_least=-2,
        at_most=2,
    )
    frequency_penalty: float | None = parameter(
        None,
        "the same, once for each time that the token has occurred",
        "frequency_penalty",
        np.float32,
        at_least=-2,
        at_most=2,
    )
    seed: int | None = parameter(
        None,
        "the same seed draws the same answer; default: a fresh one",
        "seed",
        np.uint64,
        draws=True,
        at_least=-(2**63),
        at_most=2**63 - 1,
        control=Box("random"),
    )
    logprobs: bool = parameter(
        False,
        "log-probabilities of the answer's tokens",
        "return_log_probs",
        np.bool_,
        nothing=(False,),
        places=(),
    )
    top_logprobs: int | None = parameter(
        None,
        "the same of the likeliest tokens in each place of the answer, so many",
        "num_top_log_probs",
        np.int32,
        nvidia=False,
        outputs=(Output("top_log_prob_ids", np.int32, 3), Output("top_log_probs", np.float32, 3)),
        nothing=(0,),
        at_least=0,
        at_most=MAX_TOP_LOGPROBS,
        places=(),
    )


def _row(entry: Any) -> Parameter:
    return Parameter(**vars(entry.metadata["facts"]), name=entry.name, default=entry.default)


PARAMETERS: tuple[Parameter, ...] = tuple(map(_row, fields(SamplingParameters)))


def offered(place: Place) -> tuple[Parameter, ...]:
    """The parameters that can be set there."""
    return tuple(one for one in PARAMETERS if place in one.places)
