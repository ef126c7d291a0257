"""Guided decoding: the tokens that a JSON schema, a regular expression or a grammar leaves to be drawn.

The grammars are xgrammar's, as in TensorRT-LLM's runtime, so a guide means the same on a GPU. Compiling one for a
vocabulary of 150,000 takes from 1 ms to seconds: threads of their own do it, while the engine serves the others.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from step_audio.arrays import Float32Array, Int32Array
from step_audio.engine.request import GenerationRequest
from step_audio.errors import ArtefactError, InvalidGuide, StepAudioError
from step_audio.extras import install_for
from step_audio.guides import GuideSpec, unusable

if TYPE_CHECKING:
    import xgrammar

COMPILE_THREADS = 2  # one hard guide must not keep all others waiting
CACHE_BYTES = 256 << 20  # compiled grammars kept for the next request with the same guide
# Processor time that the masks of one answer may take: all the batch waits for them. Usual ones take 0.05 ms.
MASK_SECONDS, MASK_SECONDS_PER_TOKEN = 0.25, 0.005

_CONTROL = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompiledGuide:
    """A grammar ready to be followed; `GuideCompiler` makes and keeps them."""

    grammar: xgrammar.CompiledGrammar
    vocab_size: int
    stop_ids: tuple[int, ...]  # the tokenizer's, which a grammar of text never holds
    never: Int32Array  # bits of the ids that are not to be drawn, whatever the grammar says


class GuideCompiler:
    """Guides to grammars over the token ids of one vocabulary. Thread-safe."""

    def __init__(self, tokenizer_info: str | Path, vocab_size: int):
        """`tokenizer_info`: see `step_audio.tokenizer_info`. `vocab_size`: rows of logits; those beyond the
        tokenizer's are never allowed. Raises ArtefactError.

        xgrammar is not imported yet: see `prepare`.
        """
        if find_spec("xgrammar") is None:  # servers without guided decoding need not have it
            raise ArtefactError(
                f"guided decoding needs xgrammar: {install_for('xgrammar')}, or leave it out of config.pbtxt"
            )
        path = Path(tokenizer_info)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            vocab, self._stop_ids = list(fields["encoded_vocab"]), tuple(fields["stop_token_ids"])
        except (OSError, ValueError, LookupError, TypeError):
            raise ArtefactError(f"{path.name} is not a file of xgrammar tokenizer info: build it again") from None
        if len(vocab) > vocab_size:
            raise ArtefactError(f"{path.name} has {len(vocab)} tokens, but the engine's vocabulary is {vocab_size}")
        self._vocab, self._vocab_size = vocab, vocab_size
        self._stop_bits = _bits(self._stop_ids, vocab_size)
        self._threads = ThreadPoolExecutor(COMPILE_THREADS, thread_name_prefix="guide")
        self._lock = threading.Lock()
        self._loaded: Future[tuple[xgrammar.GrammarCompiler, Int32Array]] | None = None

    def prepare(self) -> Future[tuple[xgrammar.GrammarCompiler, Int32Array]]:
        """Has xgrammar imported by another thread, unless that has begun already.

        With the torch and the Transformers that it brings it takes seconds of the processor, which a server that
        starts has better uses for: so this is called when an answer has ended, or by the first guide.
        """
        with self._lock:
            if self._loaded is None:
                vocab, self._vocab = self._vocab, []
                self._loaded = self._threads.submit(self._load, vocab)
            return self._loaded

    def _load(self, vocab: list[str]) -> tuple[xgrammar.GrammarCompiler, Int32Array]:
        """The compiler, and the bits of the ids that JSON has no place for."""
        import xgrammar

        info = xgrammar.TokenizerInfo(
            vocab,
            xgrammar.VocabType.BYTE_LEVEL,
            vocab_size=self._vocab_size,
            stop_token_ids=list(self._stop_ids),
            add_prefix_space=False,
        )
        # A string of limited length may hold any control character for xgrammar, where JSON allows none. Line ends
        # it does exclude there, and they are white space elsewhere.
        tokens = enumerate(info.decoded_vocab)
        not_json = _bits((id_ for id_, token in tokens if _CONTROL.search(token)), self._vocab_size)
        # Its own threads would take the cores that compute the step.
        return xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=CACHE_BYTES), not_json

    def compile(self, guide: GuideSpec) -> CompiledGuide:
        """Raises InvalidGuide if the guide is not what its kind says, or asks for what xgrammar lacks."""
        compiler, not_json = self.prepare().result()
        try:
            match guide.kind:
                case "json":
                    grammar = compiler.compile_builtin_json_grammar()
                case "json_schema":
                    grammar = compiler.compile_json_schema(guide.text)
                case "regex":
                    grammar = compiler.compile_regex(guide.text)
                case "ebnf_grammar":
                    grammar = compiler.compile_grammar(guide.text)
        except (RuntimeError, ValueError) as error:
            raise unusable(guide, error) from None
        never = self._stop_bits | not_json if guide.kind in ("json", "json_schema") else self._stop_bits
        return CompiledGuide(grammar, self._vocab_size, self._stop_ids, never)

    def submit(self, guide: GuideSpec, done: Callable[[CompiledGuide | StepAudioError], None]) -> None:
        """Compile in another thread, which then calls `done`."""

        def work() -> None:
            try:
                outcome: CompiledGuide | StepAudioError = self.compile(guide)
            except StepAudioError as error:
                outcome = error
            except Exception:
                log.exception("a guide could not be compiled")
                outcome = StepAudioError("internal error")
            done(outcome)

        self.prepare()  # before `work` takes one of the threads, of which that needs one
        self._threads.submit(work)

    def shutdown(self) -> None:
        """What has not begun is dropped, and its `done` never called."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class TokenGuide:
    """How far one answer has come in its grammar.

    What ends the request's answer wherever it stands is allowed exactly where the grammar may end: its end_id,
    and of its stop words the tokenizer's own stop tokens. Any other stop word is text, which a guide may hold.
    """

    def __init__(self, compiled: CompiledGuide, request: GenerationRequest):
        import xgrammar

        end_ids = {word[0] for word in request.stop_words if len(word) == 1 and word[0] in compiled.stop_ids}
        if request.end_id is not None:
            end_ids.add(request.end_id)

        self._matcher = xgrammar.GrammarMatcher(compiled.grammar)
        self._never = compiled.never
        self._end_bits = _bits(end_ids, compiled.vocab_size)
        self._allowed = np.zeros_like(self._end_bits)
        self._budget = MASK_SECONDS

    def mask(self, row: Float32Array) -> bool:
        """Set what must not follow to -inf in `row`, float32 [vocab]. False if nothing may follow but the end.

        Raises InvalidGuide for a guide that would hold up the batch.
        """
        start = time.thread_time()
        self._matcher.fill_next_token_bitmask(self._allowed[None])
        self._allowed &= ~(self._never | self._end_bits)
        if not self._allowed.any():
            return False
        if self._matcher.is_completed():
            self._allowed |= self._end_bits
        allowed = np.unpackbits(self._allowed.view(np.uint8), count=row.size, bitorder="little")
        np.copyto(row, -np.inf, where=allowed == 0)
        self._budget += MASK_SECONDS_PER_TOKEN - (time.thread_time() - start)
        if self._budget < 0:
            raise InvalidGuide("guided_decoding_guide is too costly: use smaller repetition counts or lengths")
        return True

    def accept(self, token: int) -> None:
        """Go on past `token`, which `mask` had allowed and which did not end the answer."""
        if not self._matcher.accept_token(token):
            raise ValueError(f"token {token} does not follow in the guide")


def _bits(ids: Iterable[int], vocab_size: int) -> Int32Array:
    """xgrammar's form of a set of ids: int32 [ceil(vocab_size / 32)], the lowest bit first."""
    flags = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    flags[list(ids)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)
