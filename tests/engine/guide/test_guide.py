"""Guided answers of a random model: every one must be what its guide says, by a judge that is not xgrammar."""

import json
import re

import numpy as np
import pytest

from engine_fixture import ask, generate, model, options, prompt, submit
from guide_fixture import EOT, STOP, TOKEN, TOKENIZER, text
from step_audio.engine import Engine, GuideSpec
from step_audio.errors import InvalidRequest

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["calm", "very sad"]},
        "age": {"type": "integer", "minimum": 3, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
    },
    "required": ["mood", "age", "tags"],
    "additionalProperties": False,
}
REGEX = r"[0-9]{2}-(yes|no|perhaps not)( [A-Za-z]{1,3}){0,2}"
# Numbers and sums of them in balanced brackets.
EBNF = 'root ::= n | "(" root "+" root ")"\nn ::= [1-9] [0-9]?'


def answers(engine, guide: GuideSpec, seeds: int = 24, length: int = 200, **fields) -> list[str]:
    """Those that came to their end by themselves; the others must be the beginning of one, which is not checked.

    Nor are those that are not UTF-8: xgrammar lets overlong forms pass, which only a random model writes.
    """
    fields = {"end_id": EOT, "top_p": 1.0, "temperature": 0.7} | fields
    running = [
        submit(engine, f"{seed}", prompt(9, seed), length, seed=seed, guide=guide, **fields) for seed in range(seeds)
    ]
    done = [answer.wait() for answer in running]
    assert not any(answer.last.error for answer in done), [answer.last.error for answer in done]
    found = [text(answer) for answer in done if answer.last.finished == "stop"]
    return [answer for answer in found if "\ufffd" not in answer]


def follows(schema: dict, value) -> bool:
    """SCHEMA's keywords, by hand."""
    match schema:
        case {"enum": allowed}:
            return value in allowed
        case {"type": "integer", "minimum": low, "maximum": high}:
            return type(value) is int and low <= value <= high
        case {"type": "string", "maxLength": longest}:
            return type(value) is str and len(value) <= longest
        case {"type": "array", "items": items, "maxItems": most}:
            return type(value) is list and len(value) <= most and all(follows(items, item) for item in value)
        case {"type": "object", "properties": properties, "required": required}:
            return set(required) <= set(value) <= set(properties) and all(
                follows(properties[name], item) for name, item in value.items()
            )
    raise AssertionError(schema)


def is_sum(sentence: str) -> bool:
    if re.fullmatch("[1-9][0-9]?", sentence):
        return True
    inner = re.fullmatch(r"\((.*)\)", sentence)
    return bool(inner) and any(
        is_sum(inner[1][:place]) and is_sum(inner[1][place + 1 :])
        for place, character in enumerate(inner[1])
        if character == "+"
    )


# Answers


def test_answers_are_of_the_schema(engine):
    found = answers(engine, GuideSpec("json_schema", json.dumps(SCHEMA)), 16)
    assert len(found) > 8  # whitespace without end is JSON too
    assert all(follows(SCHEMA, json.loads(answer)) for answer in found), found
    assert len(set(found)) > 6


def test_answers_are_json(engine):
    found = answers(engine, GuideSpec("json", "of no meaning here"), seeds=12, length=100, temperature=0.3)
    assert len(found) > 3
    for answer in found:
        json.loads(answer)


def test_answers_match_the_regular_expression(engine):
    found = answers(engine, GuideSpec("regex", REGEX))
    assert len(found) == 24 and len(set(found)) > 6
    assert all(re.fullmatch(REGEX, answer) for answer in found), found


def test_answers_are_sentences_of_the_grammar(engine):
    found = answers(engine, GuideSpec("ebnf_grammar", EBNF), temperature=1.5)
    assert len(found) > 6 and any("+" in answer for answer in found)
    assert all(is_sum(answer) for answer in found), found


@pytest.mark.parametrize("sampling", [{}, {"top_k": 50}, {"top_k": 1}, {"top_p": 0.9, "temperature": 2.0}])
def test_every_way_of_drawing(engine, sampling):
    sampling = {"top_p": 0.0} | sampling | {"repetition_penalty": 1.3, "return_log_probs": True}
    found = answers(engine, GuideSpec("regex", REGEX), 6, **sampling)
    assert len(found) == 6 and all(re.fullmatch(REGEX, answer) for answer in found), found


def test_each_answer_to_a_request_has_its_own_place(engine):
    answer = ask(
        engine, prompt(9), 200, top_p=1.0, num_return_sequences=4, end_id=EOT, guide=GuideSpec("regex", REGEX)
    )  # fmt: skip
    found = [text(answer, index) for index in range(4)]
    assert len(set(found)) > 1 and all(re.fullmatch(REGEX, one) for one in found), found


def test_log_probs_are_those_of_the_guided_distribution(engine):
    """A digit among ten: their probabilities are of the model's over the ten alone."""
    answer = ask(engine, prompt(9), 5, top_p=1.0, return_log_probs=True, end_id=EOT, guide=GuideSpec("regex", "[0-9]"))
    logits = _logits(prompt(9))
    digits = np.array([logits[TOKENIZER.encode(digit)[0]] for digit in "0123456789"])
    total = np.log(np.exp(digits - digits.max()).sum()) + digits.max()
    assert answer.log_probs()[0] == pytest.approx(logits[answer.tokens()[0]] - total, abs=1e-4)


def _logits(ids) -> np.ndarray:
    import torch

    from engine_fixture import hugging_face

    with torch.inference_mode():
        return hugging_face()(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1].numpy()


# Ends


@pytest.mark.parametrize("end_id", [EOT, None, -1])
def test_a_finished_guide_ends_the_answer(engine, end_id):
    """Also without an end_id, and where min_tokens forbids it."""
    answer = ask(engine, prompt(9), 50, end_id=end_id, min_tokens=40, guide=GuideSpec("regex", "yes|no"))
    assert text(answer) in ("yes", "no") and answer.last.finished == "stop"


def test_an_empty_language(engine):
    answer = ask(engine, prompt(9), 50, end_id=EOT, guide=GuideSpec("regex", "()"))
    assert (answer.tokens(), answer.last.finished) == ([], "stop")


def test_any_stop_token_of_the_request_may_end_it(engine):
    """`[0-9]*` may end anywhere, and the tokenizer's other stop tokens are the request's stop words."""
    ends = set()
    words = [[token] for token in STOP[1:]]
    for seed in range(30):
        answer = ask(
            engine, prompt(9, seed), 50, top_p=1.0, seed=seed, temperature=3.0, end_id=EOT, stop_words=words,
            guide=GuideSpec("regex", "[0-9]*"),
        )  # fmt: skip
        *digits, last = [*answer.tokens(), None]
        if answer.last.finished == "stop" and digits and digits[-1] in STOP:
            last = digits.pop()
        ends.add(last)
        assert re.fullmatch("[0-9]*", b"".join(TOKEN[token] for token in digits).decode())
    assert ends == {None, *STOP[1:]}


def test_an_end_id_that_is_text_ends_only_complete_answers(engine):
    """Here the end_id spells a digit: inside the guide it would cut the answer short."""
    (five,) = TOKENIZER.encode("5")
    for seed in range(10):
        answer = ask(engine, prompt(9), 50, top_p=1.0, seed=seed, end_id=five, guide=GuideSpec("regex", "[0-9]{4}a?"))
        assert re.fullmatch("[0-46-9]{4}a?", text(answer)) and answer.last.finished == "stop"


def test_length_ends_it_too(engine):
    answer = ask(engine, prompt(9), 3, end_id=EOT, guide=GuideSpec("regex", "[0-9]{50}"))
    assert re.fullmatch("[0-9]{3}", text(answer)) and answer.last.finished == "length"


# Refusals


@pytest.mark.parametrize(
    ("kind", "guide", "reason"),
    [
        ("json_schema", "{", "Failed to parse JSON"),
        ("json_schema", '{"type": "nonsense"}', "Unsupported type"),
        ("json_schema", '{"$ref": "#/nope"}', "Cannot find field nope"),
        ("json_schema", '{"type": "string", "pattern": "("}', "parenthesis is not closed"),
        ("regex", "(", "parenthesis is not closed"),
        ("regex", r"(a)\1", "not supported"),
        ("regex", "[z-a]", "lower bound"),
        ("ebnf_grammar", "", "guided_decoding_guide is missing"),
        ("ebnf_grammar", 'other ::= "a"', "root"),
        ("ebnf_grammar", "root ::= nothing", '"nothing" is not defined'),
        ("ebnf_grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "maximum"),
        ("json_schema", '{"items":' * 200 + "{}" + "}" * 200, "nested 201 deep, at most 128"),
        ("json_schema", '{"enum": ["' + "[{" * 200 + '"', "Failed to parse JSON"),
        ("regex", "a" * 70_000, "at most 65536"),
        ("yaml", "a: b", "must be one of json, json_schema, regex, ebnf_grammar, not 'yaml'"),
    ],
)
def test_guides_that_cannot_be_used(engine, kind, guide, reason):
    try:
        answer = ask(engine, prompt(9), 5, guide=GuideSpec.of(kind, guide))
    except InvalidRequest as error:
        message = str(error)
    else:
        assert isinstance(answer.last.error, InvalidRequest) and answer.last.final and len(answer.outputs) == 1
        message = str(answer.last.error)
        assert message.startswith(f"guided_decoding_guide cannot be used as {kind}: ")
    assert re.search(re.escape(reason), message), message
    assert len(message) < 300 and "\n" not in message and "/" not in message.replace("#/nope", "")
    assert ask(engine, prompt(9), 5).tokens() == generate(prompt(9), 5)  # and the engine goes on


def test_without_the_file_a_guide_is_refused_by_name():
    engine = Engine(options(), model())
    try:
        with pytest.raises(InvalidRequest, match=r"^input 'guided_decoding_guide_type' needs guided decoding"):
            ask(engine, prompt(9), 5, guide=GuideSpec("json"))
        assert engine.stats().active_requests == 0
    finally:
        engine.shutdown()


def test_bad_words_that_leave_the_guide_nothing(engine):
    words = [TOKENIZER.encode("a"), TOKENIZER.encode("b")]
    neighbour = submit(engine, "neighbour", prompt(20), 30)
    answer = ask(engine, prompt(9), 5, guide=GuideSpec("regex", "[ab]c"), bad_words=words)
    assert str(answer.last.error).startswith("bad_words or min_tokens forbid every token")
    assert neighbour.wait().tokens() == generate(prompt(20), 30)


def test_a_guide_that_would_hold_up_the_batch_is_ended(engine, monkeypatch):
    """Repetition counts of thousands can take a quarter of a second a token."""
    monkeypatch.setattr("step_audio.engine.guide.MASK_SECONDS", -1.0)
    neighbour = submit(engine, "neighbour", prompt(20), 30)
    answer = ask(engine, prompt(9), 50, guide=GuideSpec("regex", "[0-9]{50}"))
    assert str(answer.last.error).startswith("guided_decoding_guide is too costly")
    assert neighbour.wait().tokens() == generate(prompt(20), 30)
