"""Whether another release of xgrammar reads our grammars as ours does: `compare.py --python OTHER/bin/python`.

OTHER has that release (`pip install xgrammar==0.1.25` brings what it needs). Each schema below is made a grammar by
both releases, through `step_audio.guides`, and each reads both. What they accept is compared with what our release does
of its own: for texts that fit, for those of all other schemas, and for texts in which a character is changed.
Prints what differs for each schema, and how many texts.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # the other release's environment does not have it

from step_audio.errors import InvalidGuide
from step_audio.guides import GuideSpec, bounded

CHANGES = 40  # of each text that fits
PIECES = [*'{}[]":,.- \n\t\\e0a9', "猫", "\x01", "  ", '", "', ": ", "null", "00"]

TREE = {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "v": {"type": "integer"}}, "required": ["v"]}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "mail": {"type": ["string", "null"]}},
    "required": ["name", "age"],
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


# A schema, and values that are of it.
CASES: list[tuple[dict[str, Any], list[Any]]] = [
    ({"type": "object"}, [{}, {"a": [1, {"b": None}], "c": "d\n"}, {"": {"ü": [True, False, -0.5]}}]),
    ({"type": "string"}, ["", "plain", 'q"uote\\', "猫 ü 🙂", "line\nline\t\u0001"]),
    ({"type": "string", "maxLength": 3}, ["", "abc", "猫猫猫"]),
    ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "abcd"]),
    ({"type": "string", "pattern": "^[a-z]+-[0-9]{2}$"}, ["ab-12"]),
    ({"type": "string", "pattern": "^[^a]..$"}, ["b ü"]),
    ({"type": "string", "format": "date"}, ["2026-11-29"]),
    ({"type": "string", "format": "date-time"}, ["2026-11-29T10:11:12Z"]),
    ({"type": "string", "format": "email"}, ["a.b@example.com"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1"]),
    ({"type": "integer"}, [0, -1, 2**63 - 1, -(10**18)]),
    ({"type": "integer", "minimum": 0, "maximum": 130}, [0, 9, 99, 130]),
    ({"type": "integer", "exclusiveMinimum": -5}, [-4, 0, 77777]),
    ({"type": "number"}, [0, -1.5, 2.5e-7, 0.1 + 0.2, -1e280]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1]),
    ({"type": "number", "exclusiveMaximum": 10.5}, [0, -10, 10.25]),
    ({"type": "boolean"}, [True, False]),
    ({"type": "null"}, [None]),
    ({"enum": ["yes", "no", "[^x]", 3, None, True, "猫"]}, ["yes", "no", "[^x]", 3, None, True, "猫"]),
    ({"const": {"a": [1, "b"]}}, [{"a": [1, "b"]}]),
    ({"type": "array"}, [[], [1], ["a", {"b": []}]]),
    ({"type": "array", "items": {"type": "number"}}, [[], [0], [1, 2.5, -3e-5]]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [[1, 2], [1, 2, 3]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}, [[1, "a"]]),
    ({"type": "array", "items": PERSON, "maxItems": 4}, [[], [{"name": "A", "age": 3}]]),
    (PERSON, [{"name": "Ada", "age": 36}, {"name": "ü", "age": 1, "mail": None}, {"name": "", "age": 0, "mail": "m"}]),
    (PERSON | {"additionalProperties": False}, [{"name": "Ada", "age": 36}, {"name": "A", "age": 1, "mail": "m"}]),
    (PERSON | {"additionalProperties": {"type": "integer"}}, [{"name": "Ada", "age": 36, "height": 170}]),
    ({"type": "object", "additionalProperties": {"type": "boolean"}}, [{}, {"a": True}, {"a": True, "b": False}]),
    ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}, [{}, {"a": None}, {"b": None}]),
    (_object(city=_object(name={"type": "string", "maxLength": 9}), days={"enum": [1, 3, 7]}),
     [{"city": {"name": "Paris"}, "days": 3}]),
    ({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}, [{"v": 1}, {"left": {"left": {"v": 0}, "v": 2}, "v": 1}]),
    ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, [1, "ab"]),
    ({"oneOf": [_object(a={"type": "integer"}), _object(b={"type": "string"})]}, [{"a": 1}, {"b": "x"}]),
    ({"allOf": [PERSON]}, [{"name": "Ada", "age": 36}]),
    ({"type": ["integer", "null"]}, [1, None]),
    (_object(kind={"const": "call"}, arguments={"anyOf": [PERSON, {"type": "null"}]}),
     [{"kind": "call", "arguments": None}, {"kind": "call", "arguments": {"name": "a", "age": 2}}]),
    ({"type": "object", "properties": {f"key {i}": {"type": "boolean"} for i in range(8)}}, [{}, {"key 3": True}]),
]  # fmt: skip


def _spelt(value: Any) -> list[str]:
    plain = json.dumps(value, ensure_ascii=False)
    spellings: list[dict[str, Any]] = [{}, {"indent": 1}, {"separators": (",", ":")}]
    return [plain, f" {plain}", *(json.dumps(value, **spelling) for spelling in spellings)]


def _changed(text: str, dice: random.Random) -> str:
    at = dice.randrange(len(text) + 1)
    return text[:at] + dice.choice(["", *PIECES]) + text[at + dice.choice([0, 0, 1]) :]


def samples() -> list[list[str]]:
    """For each schema texts: of it, of the others, and nearly of it."""
    dice = random.Random(7)
    plain = [json.dumps(value, ensure_ascii=False) for _, values in CASES for value in values]
    texts = []
    for _, values in CASES:
        own = [spelt for value in values for spelt in _spelt(value)]
        texts.append([*own, *plain, *(_changed(text, dice) for text in own for _ in range(CHANGES))])
    return texts


def made(schema: dict[str, Any]) -> str:
    """A grammar, or why there is none, behind "! "."""
    try:
        return bounded(GuideSpec("json_schema", json.dumps(schema))).text
    except InvalidGuide as error:
        return f"! {error}"


def read(grammar: str, texts: list[str]) -> str:
    """A digit for each text: 1 if it is of the grammar, by single bytes; or why it cannot be read, behind "! "."""
    import xgrammar

    if grammar.startswith("! "):
        return grammar
    tokens = [bytes([i]) for i in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=[256])
    try:
        compiled = xgrammar.GrammarCompiler(info).compile_grammar(grammar)
    except RuntimeError as error:
        return f"! {error}"
    said = ""
    for text in texts:
        matcher = xgrammar.GrammarMatcher(compiled)
        said += "01"[all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)]
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of the environment with the other release")
    python = parser.parse_args().python
    texts = samples()
    if python is None:  # the other release's part
        given: list[str] = json.load(sys.stdin)
        own = [made(schema) for schema, _ in CASES]
        rows = zip(own, given, texts, strict=True)
        json.dump([[mine, read(mine, some), read(yours, some)] for mine, yours, some in rows], sys.stdout)
        return
    ours = [made(schema) for schema, _ in CASES]
    other = subprocess.run([python, __file__], input=json.dumps(ours), capture_output=True, text=True, check=True)
    counts = {"its own, read by it": [0, 0], "ours, read by it": [0, 0], "its own, read by ours": [0, 0]}
    for (schema, _), our, some, row in zip(CASES, ours, texts, json.loads(other.stdout), strict=True):
        print(json.dumps(schema, ensure_ascii=False)[:110])
        said = read(our, some)
        for what, they in zip(counts, [*row[1:], read(row[0], some)], strict=True):
            if they.startswith("!"):
                counts[what][0] += 1
                print(f"    {what}: {they.strip()[:140]}")
            elif differing := [text for text, a, b in zip(some, said, they, strict=True) if a != b]:
                counts[what][1] += len(differing)
                accepted = sum(b == "1" for a, b in zip(said, they, strict=True) if a != b)
                print(f"    {what}: {len(differing)} differ ({accepted} accepted), as {differing[0]!r}")
    print(f"{len(CASES)} schemas, {sum(map(len, texts))} texts")
    for what, (unread, count) in counts.items():
        print(f"    {what}: {unread} grammars cannot be read, {count} texts differ")


if __name__ == "__main__":
    main()
