"""Requests as nobody should send them, drawn from the models' configurations: any input, shape and value."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from audio_fixture import wav
from repository_fixture import build, declared, parse

KINDS = {
    "TYPE_INT32": np.int32, "TYPE_INT64": np.int64, "TYPE_UINT8": np.uint8, "TYPE_UINT64": np.uint64,
    "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_, "TYPE_STRING": np.object_,
}  # fmt: skip
LEAKS = re.compile(r"Traceback|\.py\b|Error\(|(/\w+){2,}|shm_region|internal error|worker|_0_0\b")

HELLO = [{"role": "user", "content": "hello"}]
AUDIO = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "what?"}]}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SOUND = wav(np.random.default_rng(0).normal(0, 300, 8000).astype("<i2").tobytes())
DEEP = b"[" * 5000 + b"]" * 5000


def _floats(*values: float, rate: int = 16_000) -> bytes:
    return wav(np.resize(np.array(values, "<f4"), 2000).tobytes(), rate, bits=32, tag=3)


STRINGS = [
    *(json.dumps(value).encode() for value in (HELLO, AUDIO, [TOOL], [TOOL] * 5000, [], {}, None, 7, [7], [[]],
      HELLO * 2, [{"role": "user", "content": []}], [{"role": "assistant", "tool_calls": [{}]}], [{"role": ["user"]}],
      [{"role": "user", "content": [{"type": "audio", "known": [[8, 1], [2**31 - 1, 2]], "skip": 7}]}],
      [{"role": "user", "content": [{"type": "audio", "known": [[2502, 5]] * 40}]}],
      [{"role": "user", "content": [{"type": "audio"}] * 70}], [{"role": "user", "content": "\ud800<|EOT|>"}],
      [{"role": "user", "content": "中 a\n" * 30_000}], [{"role": "tool", "content": "x", "tool_call_id": 1}],
      [{"role": "system", "content": {"type": "text", "text": "s"}}, *HELLO, {"role": "assistant", "content": "so"}])),
    DEEP, b'[{"role":' + DEEP + b"}]", b'[{"role":"user","content":' + b"[" * 900 + b"]" * 900 + b"}]",
    b"", b"\xff\xfe\x00", b"\x00" * 100, b"[NaN]", b"[1e999]", b"[" + b"1" * 5000 + b"]", b'"' * 1000, b"{",
    SOUND, SOUND[:1000], SOUND[:44], SOUND[:20], b"RIFF", b"fLaC" + bytes(50), b"OggS" + bytes(200), bytes(4000),
    wav(bytes(4)), wav(bytes(600)), wav(bytes(640), rate=0), wav(bytes(640), rate=4_000_000_000),
    wav(bytes(64_000), channels=8, rate=192_000), wav(bytes(64_000), channels=500), wav(bytes(640), bits=8, size=0),
    _floats(np.nan, 1), _floats(np.inf), _floats(1e30, -1e30), _floats(3e38), _floats(1e11), _floats(0.1, rate=1000),
    b"json", b"json_schema", b"regex", b"ebnf_grammar", b'{"type": "object"}', b"(a{500}){500}", b"[a-z]+",
    b"root ::= root", b'{"$ref": "#"}', b"(((((", "ü".encode("latin-1"),
]  # fmt: skip
VALUES = {
    "i": [0, 1, 2, -1, 3, 4, 5, 8, 40, 64, 65, 999, 1000, 1001, 3000, 3001, 2**31 - 1, -(2**31)],
    "u": [0, 1, 2, 255],
    "f": [0.0, 0.5, 1.0, -1.0, 1e-38, 6e4, np.nan, np.inf, -np.inf],
    "b": [False, True],
}
HUGE = {"u": [2**63, 2**64 - 1], "f": [1e30, 3e38, -3e38]}  # for the wide types
SIZES = [0, 1, 1, 1, 2, 3, 7, 300, 20_000]


def _values(kind: type[np.generic]) -> list:
    if kind is np.object_:
        return STRINGS
    sort = np.dtype(kind).kind
    return VALUES[sort] + (HUGE.get(sort, []) if np.dtype(kind).itemsize >= 4 else [])


@st.composite
def _array(draw, kind: type[np.generic], dims: list[int], scalar: bool) -> np.ndarray:
    """Of the rank that tritonserver lets through, with the batch in front."""
    rows = draw(st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2]))
    shape = [rows] if scalar else [rows, *(draw(st.sampled_from(SIZES)) if size == -1 else size for size in dims)]
    if np.prod(shape) > 100_000:
        shape = [min(size, 40) if place and dims[place - 1] == -1 else size for place, size in enumerate(shape)]
    values = draw(st.lists(st.sampled_from(_values(kind)), min_size=1, max_size=4))
    if kind is np.object_ and np.prod(shape) > 100:
        values = [value[:100] for value in values]
    pool = np.empty(len(values), kind)
    pool[:] = values
    return np.resize(pool, shape) if np.prod(shape) else np.empty(shape, kind)


class Fuzz:
    """A model's requests: a good one, of which up to four inputs are left out, added or put in the place of others."""

    def __init__(self, work: Path):
        self.inputs = {
            name: {
                field: (KINDS[kind], list(dims), scalar)
                for field, (kind, dims, scalar) in declared(config.input).items()
                if kind in KINDS
            }
            for name, config in parse(build(work, dtype="float32")).items()
        }

    def requests(self, model: str, good: dict[str, np.ndarray]) -> st.SearchStrategy[dict[str, np.ndarray]]:
        inputs = self.inputs[model]

        @st.composite
        def request(draw) -> dict[str, np.ndarray]:
            made = dict(good)
            for name in draw(st.lists(st.sampled_from(sorted({*inputs})), max_size=4)):
                if draw(st.integers(0, 9)) == 0:
                    made.pop(name, None)
                else:
                    made[name] = draw(_array(*inputs[name]))
            return made

        return request()


def array(values, kind: type[np.generic]) -> np.ndarray:
    """With the batch in front."""
    found = np.empty((1, *np.shape(values)), kind)
    found[0] = values
    return found


def good_requests(vocab_size: int, hidden: int, n_mels: int = 128) -> dict[str, dict[str, np.ndarray]]:
    """By model."""
    messages = array([json.dumps(AUDIO).encode()], object)
    clips = {"frames": array([8, 40], np.int32), "content_hash": array([1, 2], np.uint64)}
    ids = [1, vocab_size, vocab_size + 1, 2]
    return {
        "audio_featurizer": {"messages": messages, "audio": array([SOUND], object)},
        "prompt_builder": {"messages": messages, "audio_index": array([0, 0], np.int32), **clips},
        "audio_encoder": {
            "mel": np.ones((1, 2, n_mels, 40), np.float32),
            "input_lengths": array([9], np.int32),
            **clips,
        },
        "lease": {"open": array([False], np.bool_), "seconds": array([1], np.float32)},
        "tensorrt_llm": {
            "input_ids": array(ids, np.int32),
            "input_lengths": np.array([len(ids)], np.int32),
            "request_output_len": np.array([4], np.int32),
            "prompt_embedding_table": np.ones((1, 2, hidden), np.float32),
            "prompt_table_extra_ids": array([0, 1, 1, 0], np.uint64),
        },
    }


def ensembles(steps: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """By model, of the steps' requests. As no client holds a lease of theirs, they bound their answers themselves."""
    audio, encoder, llm = (steps[name] for name in ("audio_featurizer", "audio_encoder", "tensorrt_llm"))
    ids = {"input_ids": llm["input_ids"], "prompt_table_extra_ids": llm["prompt_table_extra_ids"]}
    bounds = {"request_output_len": array([4], np.int32), "max_seconds": array([1], np.float32)}
    hello = {"messages": array([json.dumps([{"role": "user", "content": "hello"}]).encode()], object)}
    counted = {"input_lengths": array(llm["input_lengths"], np.int32)}
    return {
        "step_audio_prompt": audio,
        "step_audio_r1": audio | bounds,
        "step_audio_text": hello | bounds,
        "step_audio_continue": encoder | ids | counted | bounds,
    }


def check_text(text: str) -> None:
    assert 0 < len(text) < 400 and "\n" not in text and not LEAKS.search(text), text
