"""Text to token ids and back, with the control tokens kept out of everybody's reach but ours.

The model's turns are fenced by added tokens such as `<|EOT|>`. An ordinary tokenizer finds those
names inside any text, so whoever can type can also end a turn and open a system turn. Here `encode`
runs on a second tokenizer that has never heard of them: they are not in its list of added tokens,
their ids are not in its vocabulary, and no merge leads to them. Control ids come from `token_id` alone.

Decoding needs no library: a byte-level vocabulary is a table of byte strings.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from step_audio.errors import CheckpointError
from step_audio.extras import install_for

_ANGLED = re.compile("<[^<>]*>")  # none begins within another
_SURROGATE = re.compile("[\ud800-\udfff]")
_PROBE = " Aé中🙂\n0"  # one character of every UTF-8 length, a leading space, a newline


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes every byte as one visible character: itself, or else 256 onwards in byte order."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the control tokens that the product itself writes or watches for."""

    bot: int
    eot: int
    audio_start: int
    audio_end: int
    audio_patch: int
    endoftext: int
    im_end: int
    tool_call: int
    tool_call_end: int

    @property
    def stop_ids(self) -> tuple[int, int, int]:
        """Any of these ends an answer; the published configuration names only the second."""
        return self.eot, self.endoftext, self.im_end


SPECIAL_TOKEN_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "bot": "<|BOT|>",
        "eot": "<|EOT|>",
        "audio_start": "<audio_start>",
        "audio_end": "<audio_end>",
        "audio_patch": "<audio_patch>",
        "endoftext": "<|endoftext|>",
        "im_end": "<|im_end|>",
        "tool_call": "<tool_call>",
        "tool_call_end": "</tool_call>",
    }
)


class Tokenizer:
    """A byte-level BPE tokenizer read from a `tokenizer.json`.

    `added_tokens` maps the name of every added token to its id; `added_names` and `added_ids` are its sides;
    `max_id` is the largest id of all.
    """

    def __init__(self, text: str):
        """`text`: the content of a `tokenizer.json`. Raises CheckpointError."""
        self._json = text
        try:
            raw = json.loads(text)
            model, vocab = raw["model"], raw["model"]["vocab"]
            added = [(str(token["content"]), int(token["id"]), bool(token["special"])) for token in raw["added_tokens"]]
            if model["type"] != "BPE":
                raise CheckpointError(f"tokenizer.json has a model of type {model['type']}, expected byte-level BPE")
            self.added_tokens: Mapping[str, int] = MappingProxyType({name: id_ for name, id_, _ in added if name})
            self.added_names = frozenset(self.added_tokens)
            self.added_ids = frozenset(id_ for _, id_, _ in added)
            self._special_ids = frozenset(id_ for _, id_, special in added if special)
            self._bytes = {id_: _token_bytes(token) for token, id_ in vocab.items()}
            self._bytes |= {id_: name.encode() for name, id_, _ in added}
            self.max_id = max(self._bytes)
            self._plain = _plain_tokenizer(raw, self.added_ids)
            self._longest = max(len(token) for id_, token in self._bytes.items() if id_ not in self.added_ids)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception for a vocabulary it cannot use
            raise CheckpointError(f"tokenizer.json cannot be read: {type(error).__name__}: {error}") from None
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise CheckpointError("tokenizer.json is not a byte-level BPE tokenizer: text does not survive it")

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Read `tokenizer.json`; without one, convert `vocab.json` + `merges.txt` by means of transformers."""
        directory = Path(directory)
        if (directory / "tokenizer.json").is_file():
            try:
                text = (directory / "tokenizer.json").read_text(encoding="utf-8")
            except ValueError:  # no UTF-8
                raise CheckpointError("tokenizer.json is not text: download it again") from None
            return cls(text)
        if not all((directory / name).is_file() for name in ("vocab.json", "merges.txt")):
            raise CheckpointError(f"{directory} has neither tokenizer.json nor vocab.json with merges.txt")
        try:
            # Seconds to import, and only this old layout needs it. Release 5 makes the name as it is asked for.
            from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]
        except ImportError:
            raise CheckpointError(
                f"{directory} has no tokenizer.json; to convert it: {install_for('transformers')}"
            ) from None
        try:
            converted = Qwen2TokenizerFast.from_pretrained(directory, local_files_only=True)
            declared = _declared_ids(directory)
        except Exception as error:
            raise CheckpointError(f"{directory}: vocab.json and merges.txt cannot be converted: {error}") from None
        tokenizer = cls(converted.backend_tokenizer.to_str())
        for name, id_ in declared.items():  # the library numbers added tokens in a row, over any gap
            if tokenizer.added_tokens.get(name) != id_:
                raise CheckpointError(f"{directory}: {name} has id {id_}, which the conversion did not keep")
        return tokenizer

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The inverse of `to_json`."""
        return cls(text)

    def to_json(self) -> str:
        """The `tokenizer.json` this was made from, for handing to another process."""
        return self._json

    @cached_property
    def special(self) -> SpecialTokens:
        """Raises CheckpointError if the checkpoint is of another model family."""
        return SpecialTokens(**{field: self.token_id(name) for field, name in SPECIAL_TOKEN_NAMES.items()})

    def token_id(self, name: str) -> int:
        """Id of the added token called `name`. Raises CheckpointError."""
        if name not in self.added_tokens:
            raise CheckpointError(f"the tokenizer has no added token {name}; is this a Step-Audio checkpoint?")
        return self.added_tokens[name]

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: never an id in `added_ids`, whatever the text spells.

        Surrogates that pair up are joined, lone ones become U+FFFD: UTF-8 cannot hold them.
        """
        return self._plain.encode(_without_surrogates(text)).ids

    def encode_raw(self, text: str) -> list[int]:
        """Ids of a prompt that its caller has laid out: names of added tokens in it are those tokens."""
        pieces = split_names(text, self.added_names)
        return [
            id_
            for i, piece in enumerate(pieces)
            for id_ in ((self.added_tokens[piece],) if i % 2 else self.encode(piece))
        ]

    def least_tokens(self, text: str) -> int:
        """At least so many ids has `text`, told without encoding it: by the bytes of the longest token."""
        text = _without_surrogates(text)
        normalizer = self._plain.normalizer
        size = len((normalizer.normalize_str(text) if normalizer else text).encode())
        return -(-size // self._longest)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`; invalid UTF-8 becomes U+FFFD, ids without a token (padding rows) nothing."""
        return self.token_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def token_string(self, id_: int) -> str:
        """As the vocabulary writes it: an added token's name, or each byte as one visible character. Of an id without
        a token it is empty."""
        content = self._bytes.get(id_, b"")
        return content.decode() if id_ in self.added_ids else "".join(_CHARACTER_OF[byte] for byte in content)

    def token_bytes(self, ids: Iterable[int], skip_special_tokens: bool = False) -> bytes:
        """UTF-8 bytes of `ids`, which may begin or end inside a character."""
        skip = self._special_ids if skip_special_tokens else frozenset()
        return b"".join(self._bytes.get(id_, b"") for id_ in ids if id_ not in skip)


def split_names(text: str, names: frozenset[str]) -> Iterator[str]:
    """Words and names by turns, words first and last; of two names at one place the longer one."""
    pattern, begin, at = _looked_at(names), 0, 0
    while found := pattern.search(text, at):
        at = found.start() + 1
        if found[0] in names:
            yield text[begin : found.start()]
            yield found[0]
            begin = at = found.end()
    yield text[begin:]


@lru_cache
def _looked_at(names: frozenset[str]) -> re.Pattern[str]:
    """All that stands in angles: quicker than one after another of thousands of names, at each of a text's angles."""
    if all(map(_ANGLED.fullmatch, names)):
        return _ANGLED
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


class IncrementalDecoder:
    """Decodes a growing sequence: what `push` and `flush` return joins up to `decode` of the whole.

    The state is the at most three bytes of an unfinished character, so a push costs its own ids only.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = False):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Text that `ids` made final; an unfinished character waits for its last byte."""
        return self._utf8.decode(self._tokenizer.token_bytes(ids, self._skip_special_tokens))

    def flush(self) -> str:
        """The end of the sequence: U+FFFD if it stopped inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _without_surrogates(text: str) -> str:
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Every id of the tokenizer must have an embedding row; ids from `vocab_size` on stand for audio.

    Raises CheckpointError.
    """
    if tokenizer.max_id >= vocab_size:
        raise CheckpointError(
            f"the tokenizer's ids reach {tokenizer.max_id} but vocab_size is {vocab_size}: "
            "tokenizer.json and config.json are of different checkpoints"
        )


def _declared_ids(directory: Path) -> dict[str, int]:
    """Added tokens by name, from the two files that name them in the old layout."""
    declared: dict[str, int] = {}
    if (directory / "added_tokens.json").is_file():
        declared |= json.loads((directory / "added_tokens.json").read_text(encoding="utf-8"))
    if (directory / "tokenizer_config.json").is_file():
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        declared |= {token["content"]: int(id_) for id_, token in config.get("added_tokens_decoder", {}).items()}
    return declared


def _token_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _plain_tokenizer(raw: dict[str, Any], added_ids: frozenset[int]) -> tokenizers.Tokenizer:
    """The same tokenizer without its added tokens, by construction unable to produce one of their ids.

    Emptying the list of added tokens is not enough: a vocabulary may hold them too, where merges (or
    `ignore_merges`) reach them. So their entries go, and every merge that takes or makes one.
    """
    model = raw["model"]
    vocab = {token: id_ for token, id_ in model["vocab"].items() if id_ not in added_ids}
    if missing := _BYTE_OF.keys() - vocab.keys():  # bytes without a token would vanish from the text
        raise CheckpointError(f"tokenizer.json is not byte-level BPE: {len(missing)} of 256 bytes have no plain token")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    merges = [pair for pair in pairs if all(token in vocab for token in (*pair, "".join(pair)))]
    plain = {
        **raw,
        "added_tokens": [],
        "post_processor": None,  # may add tokens of its own
        "truncation": None,
        "padding": None,
        "model": {**model, "vocab": vocab, "merges": merges, "unk_token": None},
    }
    return tokenizers.Tokenizer.from_str(json.dumps(plain))
