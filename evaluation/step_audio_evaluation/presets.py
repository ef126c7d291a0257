"""How answers were drawn in the published evaluations (Step-Audio-R1's and Step-Audio 2's repositories)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_BENCHMARK: Mapping[str, Any] = {"max_tokens": 32_000, "temperature": 0.7, "repetition_penalty": 1.0}
_DESCRIPTION: Mapping[str, Any] = {"max_tokens": 2048, "temperature": 0.7, "top_p": 0.9}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mmau": _BENCHMARK,
        "mmsu": _BENCHMARK,
        "spoken-mqa": _BENCHMARK,
        "big-bench-audio": _BENCHMARK,
        "wild-speech": _BENCHMARK,
        "mmar": {**_BENCHMARK, "repetition_penalty": 1.07},
        "caption": {"max_tokens": 1024, "temperature": 0.5, "top_p": 0.9},
        "song": _DESCRIPTION,
        "speaker-traits": _DESCRIPTION,
        "step-audio-2": {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.05},
    }
)
GREEDY: Mapping[str, Any] = MappingProxyType({"temperature": 0.0})
