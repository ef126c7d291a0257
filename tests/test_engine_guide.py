"""Guided answers of a random model: every one must be what its guide says, by a judge that is not xgrammar."""

import json
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import xgrammar
from engine_fixture import VOCAB, ask, generate, model, options, prompt, submit

import raw_triton
from step_audio.engine import Engine, GenerationRequest, Guide
from step_audio.engine.guide import CompiledGuide, GuideCompiler, TokenGuide
from step_audio.errors import ArtefactError, InvalidRequest
from step_audio.tokenizer import Tokenizer
from step_audio.tokenizer_info import xgrammar_tokenizer_info
from tokenizer_fixture import SPECIAL, build_json

TOKENIZER = Tokenizer.from_json(build_json())
STOP = TOKENIZER.special.stop_ids
EOT = STOP[0]
TOKEN = {id_: TOKENIZER.token_bytes([id_], skip_special_tokens=True) for id_ in range(VOCAB)}  # b"": not to be used
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


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    path = tmp_path_factory.mktemp("info") / "xgrammar_tokenizer_info.json"
    path.write_text(xgrammar_tokenizer_info(TOKENIZER), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def compiler(info):
    compiler = GuideCompiler(info, VOCAB)
    yield compiler
    compiler.shutdown()


@pytest.fixture(scope="module")
def engine(info):
    engine = Engine(options(xgrammar_tokenizer_info_path=info), model())
    yield engine
    engine.shutdown()


def text(answer, index: int = 0) -> str:
    return TOKENIZER.decode(answer.tokens(index))


def answers(engine, guide: Guide, seeds: int = 24, length: int = 200, **fields) -> list[str]:
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
    found = answers(engine, Guide("json_schema", json.dumps(SCHEMA)), 16)
    assert len(found) > 8  # whitespace without end is JSON too
    assert all(follows(SCHEMA, json.loads(answer)) for answer in found), found
    assert len(set(found)) > 6


def test_answers_are_json(engine):
    found = answers(engine, Guide("json", "of no meaning here"), seeds=12, length=100, temperature=0.3)
    assert len(found) > 3
    for answer in found:
        json.loads(answer)


def test_answers_match_the_regular_expression(engine):
    found = answers(engine, Guide("regex", REGEX))
    assert len(found) == 24 and len(set(found)) > 6
    assert all(re.fullmatch(REGEX, answer) for answer in found), found


def test_answers_are_sentences_of_the_grammar(engine):
    found = answers(engine, Guide("ebnf_grammar", EBNF), temperature=1.5)
    assert len(found) > 6 and any("+" in answer for answer in found)
    assert all(is_sum(answer) for answer in found), found


@pytest.mark.parametrize("sampling", [{}, {"top_k": 50}, {"top_k": 1}, {"top_p": 0.9, "temperature": 2.0}])
def test_every_way_of_drawing(engine, sampling):
    sampling = {"top_p": 0.0} | sampling | {"repetition_penalty": 1.3, "return_log_probs": True}
    found = answers(engine, Guide("regex", REGEX), 6, **sampling)
    assert len(found) == 6 and all(re.fullmatch(REGEX, answer) for answer in found), found


def test_each_answer_to_a_request_has_its_own_place(engine):
    answer = ask(
        engine, prompt(9), 200, top_p=1.0, num_return_sequences=4, end_id=EOT, guide=Guide("regex", REGEX)
    )  # fmt: skip
    found = [text(answer, index) for index in range(4)]
    assert len(set(found)) > 1 and all(re.fullmatch(REGEX, one) for one in found), found


def test_log_probs_are_those_of_the_guided_distribution(engine):
    """A digit among ten: their probabilities are of the model's over the ten alone."""
    answer = ask(engine, prompt(9), 5, top_p=1.0, return_log_probs=True, end_id=EOT, guide=Guide("regex", "[0-9]"))
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
    answer = ask(engine, prompt(9), 50, end_id=end_id, min_tokens=40, guide=Guide("regex", "yes|no"))
    assert text(answer) in ("yes", "no") and answer.last.finished == "stop"


def test_an_empty_language(engine):
    answer = ask(engine, prompt(9), 50, end_id=EOT, guide=Guide("regex", "()"))
    assert (answer.tokens(), answer.last.finished) == ([], "stop")


def test_any_stop_token_of_the_request_may_end_it(engine):
    """`[0-9]*` may end anywhere, and the tokenizer's other stop tokens are the request's stop words."""
    ends = set()
    words = [[token] for token in STOP[1:]]
    for seed in range(30):
        answer = ask(
            engine, prompt(9, seed), 50, top_p=1.0, seed=seed, temperature=3.0, end_id=EOT, stop_words=words,
            guide=Guide("regex", "[0-9]*"),
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
        answer = ask(engine, prompt(9), 50, top_p=1.0, seed=seed, end_id=five, guide=Guide("regex", "[0-9]{4}a?"))
        assert re.fullmatch("[0-46-9]{4}a?", text(answer)) and answer.last.finished == "stop"


def test_length_ends_it_too(engine):
    answer = ask(engine, prompt(9), 3, end_id=EOT, guide=Guide("regex", "[0-9]{50}"))
    assert re.fullmatch("[0-9]{3}", text(answer)) and answer.last.finished == "length"


# Masks


def language() -> list[str]:
    return sorted({f"{a}{b}" for a in ("The answer", "Th", "你好", "é") for b in ("", " is B.", "!", " 12")})


def test_masks_are_exact(compiler):
    """A finite language: allowed is each token with which one of its strings can still be had, and no other."""
    sentences = [sentence.encode() for sentence in language()]
    rng = np.random.default_rng(0)
    compiled = compiler.compile(Guide("ebnf_grammar", "root ::= " + " | ".join(f'"{s}"' for s in language())))
    for _ in range(20):
        guide, prefix = TokenGuide(compiled, _request(end_id=EOT)), b""
        while True:
            expected = {
                id_ for id_, token in TOKEN.items() if token and any(s.startswith(prefix + token) for s in sentences)
            }
            row = rng.normal(size=VOCAB).astype(np.float32)
            before = row.copy()
            assert guide.mask(row) == bool(expected)
            if not expected:
                assert prefix in sentences
                break
            ends = {EOT} if prefix in sentences else set()
            assert set(np.flatnonzero(np.isfinite(row)).tolist()) == expected | ends
            kept = np.isfinite(row)
            assert np.array_equal(row[kept], before[kept])
            token = int(rng.choice(sorted(expected)))
            guide.accept(token)
            prefix += TOKEN[token]


def test_no_guide_allows_control_tokens_or_padding(compiler):
    guide = TokenGuide(compiler.compile(Guide("regex", r"(.|\n)*")), _request(end_id=EOT))
    row = np.zeros(VOCAB, np.float32)
    assert guide.mask(row)
    allowed = set(np.flatnonzero(np.isfinite(row)).tolist())
    assert EOT in allowed
    assert not allowed & {TOKENIZER.token_id(name) for name in SPECIAL if name != "<|EOT|>"}
    assert max(allowed) <= TOKENIZER.max_id < VOCAB - 32
    assert TOKENIZER.token_id("<tool_call>") in allowed  # decoded text holds it
    assert {id_ for id_, token in TOKEN.items() if token and token.isascii()} <= allowed


def test_what_does_not_follow_is_not_accepted(compiler):
    guide = TokenGuide(compiler.compile(Guide("regex", "a")), _request())
    with pytest.raises(ValueError, match="does not follow"):
        guide.accept(TOKENIZER.encode("b")[0])


def _request(**fields) -> GenerationRequest:
    return GenerationRequest("only", prompt(3), 9, lambda output: None, **fields)


# The file


def test_the_file_says_what_the_tokenizer_says(info):
    """As TensorRT-LLM reads it: the kind of vocabulary is found in `tokenizer_str`."""
    fields = json.loads(info.read_text(encoding="utf-8"))
    found = xgrammar.TokenizerInfo._detect_metadata_from_hf(fields["tokenizer_str"])
    assert found == {"vocab_type": xgrammar.VocabType.BYTE_LEVEL, "add_prefix_space": False}
    theirs = xgrammar.TokenizerInfo(
        fields["encoded_vocab"], found["vocab_type"], vocab_size=VOCAB, stop_token_ids=fields["stop_token_ids"]
    )
    assert theirs.decoded_vocab == [TOKEN[id_] for id_ in range(TOKENIZER.max_id + 1)]
    assert sorted(theirs.stop_token_ids) == sorted(STOP)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"encoded_vocab": ["a"]}', '{"encoded_vocab": 3}'])
def test_a_file_that_is_none(tmp_path, content):
    path = tmp_path / "info.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtefactError, match=r"^info.json is not a file of xgrammar tokenizer info"):
        GuideCompiler(path, VOCAB)


def test_a_file_of_another_model(info):
    with pytest.raises(ArtefactError, match=f"has {TOKENIZER.max_id + 1} tokens, but the engine's vocabulary is 64"):
        GuideCompiler(info, 64)


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
        answer = ask(engine, prompt(9), 5, guide=Guide(kind, guide))
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
            ask(engine, prompt(9), 5, guide=Guide("json"))
        assert engine.stats().active_requests == 0
    finally:
        engine.shutdown()


def test_bad_words_that_leave_the_guide_nothing(engine):
    words = [TOKENIZER.encode("a"), TOKENIZER.encode("b")]
    neighbour = submit(engine, "neighbour", prompt(20), 30)
    answer = ask(engine, prompt(9), 5, guide=Guide("regex", "[ab]c"), bad_words=words)
    assert str(answer.last.error).startswith("bad_words or min_tokens forbid every token")
    assert neighbour.wait().tokens() == generate(prompt(20), 30)


def test_a_guide_that_would_hold_up_the_batch_is_ended(engine, monkeypatch):
    """Repetition counts of thousands can take a quarter of a second a token."""
    monkeypatch.setattr("step_audio.engine.guide.MASK_SECONDS", -1.0)
    neighbour = submit(engine, "neighbour", prompt(20), 30)
    answer = ask(engine, prompt(9), 50, guide=Guide("regex", "[0-9]{50}"))
    assert str(answer.last.error).startswith("guided_decoding_guide is too costly")
    assert neighbour.wait().tokens() == generate(prompt(20), 30)


# Beside others


def test_neighbours_draw_what_they_draw_alone(engine):
    guided = [submit(engine, f"g{i}", prompt(9, i), 60, guide=Guide("regex", "[0-9]{60}")) for i in range(3)]
    plain = [submit(engine, f"p{i}", prompt(20, i), 40) for i in range(3)]
    for i, answer in enumerate(plain):
        assert answer.wait().tokens() == generate(prompt(20, i), 40)
    for answer in guided:
        assert re.fullmatch("[0-9]{60}", text(answer.wait()))


def test_an_evicted_answer_goes_on_in_its_guide(info):
    """With too few blocks for all, answers lose their cache and are computed again, from text already accepted."""
    spec, weights = model()
    engine = Engine(
        options(
            xgrammar_tokenizer_info_path=info,
            batch_scheduler_policy="max_utilization",
            max_tokens_in_paged_kv_cache=8 * 32,
            enable_kv_cache_reuse=False,
        ),
        (replace(spec, max_seq_len=256), weights),
    )
    try:
        running = [submit(engine, f"{i}", prompt(9, i), 120, guide=Guide("regex", "[0-9]{100}")) for i in range(4)]
        for answer in running:
            assert re.fullmatch("[0-9]{100}", text(answer.wait()))
    finally:
        engine.shutdown()


def test_a_fault_of_the_library_ends_one_request(engine, monkeypatch):
    monkeypatch.setattr("step_audio.engine.engine.TokenGuide", None)
    answer = ask(engine, prompt(9), 5, guide=Guide("regex", "a"))
    assert str(answer.last.error) == "internal error" and answer.last.final
    monkeypatch.setattr(GuideCompiler, "compile", None)
    answer = ask(engine, prompt(9), 5, guide=Guide("regex", "a"))
    assert str(answer.last.error) == "internal error" and answer.last.final
    assert ask(engine, prompt(20), 30).tokens() == generate(prompt(20), 30)


@pytest.fixture
def slow(monkeypatch):
    """Compiling waits for this event."""
    event = threading.Event()
    compile_ = GuideCompiler.compile

    def wait(self, guide) -> CompiledGuide:
        assert event.wait(20)
        return compile_(self, guide)

    monkeypatch.setattr(GuideCompiler, "compile", wait)
    yield event
    event.set()


def test_compiling_holds_up_nobody(engine, slow):
    guided = submit(engine, "guided", prompt(9), 50, guide=Guide("regex", "yes|no"), end_id=EOT)
    assert ask(engine, prompt(20), 30).tokens() == generate(prompt(20), 30)
    assert not guided.outputs and engine.stats().waiting_requests == 1
    slow.set()
    assert text(guided.wait()) in ("yes", "no")


@pytest.mark.parametrize("guide", [Guide("regex", "yes|no"), Guide("regex", "(")])
def test_cancelled_while_compiling(engine, slow, guide):
    guided = submit(engine, "guided", prompt(9), 50, guide=guide, num_return_sequences=2)
    assert engine.cancel("guided")
    assert guided.wait().last.finished == "cancelled" and len(guided.outputs) == 2
    slow.set()
    time.sleep(0.05)  # for the compiler to hand over what nobody waits for
    assert ask(engine, prompt(20), 30).tokens() == generate(prompt(20), 30)
    assert len(guided.outputs) == 2 and engine.stats().active_requests == 0


def test_shut_down_while_compiling(info, slow):
    engine = Engine(options(xgrammar_tokenizer_info_path=info), model())
    guided = [submit(engine, f"{i}", prompt(9), 50, guide=Guide("regex", "yes|no")) for i in range(4)]
    engine.shutdown()
    assert all(answer.wait().last.finished == "cancelled" for answer in guided)


def test_the_same_guide_is_compiled_once(compiler):
    sizes = []
    for text_ in ("[0-9]{7}", "[0-9]{7}", "[0-9]{8}"):
        compiler.compile(Guide("regex", text_))
        sizes.append(compiler._compiler.get_cache_size_bytes())
    assert 0 < sizes[0] == sizes[1] < sizes[2]


# The served pipeline


def served(service, kind: str, guide: str) -> str:
    responses = raw_triton.call(
        service.address,
        "step_audio_r1",
        {
            "messages": raw_triton.texts('[{"role": "user", "content": "yes or no?"}]'),
            "request_output_len": raw_triton.scalar(20, np.int32),
            "guided_decoding_guide_type": raw_triton.texts(kind),
            "guided_decoding_guide": raw_triton.texts(guide),
        },
    )
    ids = [token for response in responses for token in response.outputs["output_ids"].reshape(-1).tolist()]
    tokenizer = Tokenizer.from_json((service.settings.work_dir / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer.decode(ids)


def test_through_the_pipeline(service):
    assert re.fullmatch("[0-9]{2}-(yes|no)", served(service, "regex", "[0-9]{2}-(yes|no)"))
    with pytest.raises(raw_triton.wire.StreamError, match=r"cannot be used as regex: .*not closed"):
        served(service, "regex", "(")
