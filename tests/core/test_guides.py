"""JSON's guides as grammars: nothing is allowed that is not JSON of the schema, nor white space without end."""

from __future__ import annotations

import json

import pytest

from step_audio import guides
from step_audio.errors import InvalidGuide
from step_audio.guides import GuideSpec, bounded

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "code": {"type": "string", "pattern": "^[^a]..$"},
        "sizes": {"type": "array", "items": {"type": "number"}},
        "tree": {"$ref": "#/$defs/node"},
        "mark": {"enum": ["[^x]", 3, None]},
    },
    "required": ["name", "code", "sizes", "tree", "mark"],
    "$defs": {"node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}}}},
}
SIZES = [0, -1, 2.5e-7, 2**63 - 1, 0.1 + 0.2]
VALUE = {"name": "猫", "code": "b ü", "sizes": SIZES, "tree": {"left": {"left": {}}}, "mark": "[^x]"}


def accepts(guide: GuideSpec, text: str) -> bool:
    """Whether xgrammar takes the text to be of the grammar, by single bytes."""
    import xgrammar  # seconds, with transformers

    assert guide.kind == "ebnf_grammar"
    tokens = [bytes([i]) for i in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=[256])
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(guide.text))
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)


@pytest.fixture(scope="module")
def guide() -> GuideSpec:
    return bounded(GuideSpec("json_schema", json.dumps(SCHEMA)))


def test_json_of_the_schema_as_everybody_writes_it(guide):
    assert accepts(guide, json.dumps(VALUE, ensure_ascii=False))


@pytest.mark.parametrize("spelling", [{"indent": 1}, {"separators": (",", ":")}, {"separators": (",  ", ": ")}])
def test_no_other_white_space(guide, spelling):
    assert not accepts(guide, json.dumps(VALUE, ensure_ascii=False, **spelling))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a\tb"},
        {"name": "too long"},
        {"code": "a12"},
        {"code": 'b"x'},
        {"code": "\nab"},
        {"mark": "[^"},
        {"sizes": [10**19]},
    ],
)
def test_what_is_not_json_of_the_schema(guide, wrong):
    """Control characters and quotes, too, where a length or a pattern is given."""
    text = json.dumps(VALUE | wrong, ensure_ascii=False)
    for escaped, raw in (("\\t", "\t"), ('\\"', '"'), ("\\n", "\n")):
        text = text.replace(escaped, raw)
    assert not accepts(guide, text)


def test_json_without_a_schema_is_an_object():
    guide = bounded(GuideSpec("json"))
    for text in ('{"a": [1, {"b": null}], "c": "d\\n"}', "{}", '{"a": ""}'):
        assert accepts(guide, text)
    for text in ("[]", "1", '{"a":  1}', '{ "a": 1}', '{"a": 1}\n', '{"a": "\n"}'):
        assert not accepts(guide, text)


@pytest.mark.parametrize(
    "kind, good, bad", [("integer", [0, -5, 10**18], [1.5, 10**19]), ("number", [0, 1.5, -0.5, -1e280], [10**19, "1"])]
)
def test_numbers(kind, good, bad):
    guide = bounded(GuideSpec("json_schema", json.dumps({"type": kind})))
    assert all(accepts(guide, json.dumps(value)) for value in good)
    assert not any(accepts(guide, json.dumps(value)) for value in bad)
    for text in ("1." + "3" * 18, "1e310", "-1e-", "01", "1."):
        assert not accepts(guide, text)


@pytest.mark.parametrize(
    "kind, least, most", [("integer", 0, 1), ("integer", -7, -5), ("number", 0, 0.5), ("number", -5.5, 1)]
)
@pytest.mark.parametrize("bound", ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"])
def test_numbers_with_a_bound_have_an_end_too(kind, least, most, bound):
    up = "inimum" in bound
    guide = bounded(GuideSpec("json_schema", json.dumps({"type": kind, bound: least if up else most})))
    sign = 1 if up else -1
    assert all(accepts(guide, str(sign * value)) for value in (77, 10**18, 10**19 - 1))
    assert not any(accepts(guide, str(sign * value)) for value in (10**19, 10**40))


def test_digits_of_a_pattern_are_its_own():
    guide = bounded(GuideSpec("json_schema", json.dumps({"type": "string", "pattern": "^[1-9][0-9]*$"})))
    assert accepts(guide, f'"{10**40}"')


def test_other_guides_stay_as_they_are():
    for guide in (GuideSpec("regex", "[0-9]+"), GuideSpec("ebnf_grammar", 'root ::= "a" [ \\n]*')):
        assert bounded(guide) is guide


def test_what_has_become_of_a_schema_is_not_too_large_for_the_engine(monkeypatch):
    """The largest schema of strings fits; nothing is so large that the LLM would have to refuse it."""
    names = [f"n{i:03d}" for i in range(600)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    assert len(bounded(GuideSpec("json_schema", json.dumps(schema))).text) < guides.MAX_GRAMMAR_LENGTH
    monkeypatch.setattr(guides, "MAX_GRAMMAR_LENGTH", 5000)
    with pytest.raises(InvalidGuide, match="guided_decoding_guide is too large a schema"):
        bounded(GuideSpec("json_schema", json.dumps(schema)))


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "cannot be used as json_schema: Failed to parse JSON"),
        ('{"type": "nonsense"}', "cannot be used as json_schema: Unsupported type"),
        ('{"items":' * 200 + "{}" + "}" * 200, "is nested 201 deep, at most 128"),
        ('{"a": "' + "x" * 70_000 + '"}', "has 70009 characters, at most 65536"),
        ("", "is missing: json_schema needs one"),
    ],
)
def test_schemas_that_cannot_be_used(text, said):
    with pytest.raises(InvalidGuide) as caught:
        bounded(GuideSpec("json_schema", text))
    assert f"guided_decoding_guide {said}" in str(caught.value) and len(str(caught.value)) < 300
