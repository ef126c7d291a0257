"""Masks against every string of a small language, and the tokenizer's file."""

import json

import numpy as np
import pytest

from engine_fixture import VOCAB, prompt
from guide_fixture import EOT, STOP, TOKEN, TOKENIZER
from step_audio.engine import GenerationRequest, GuideSpec
from step_audio.engine.guide import GuideCompiler, TokenGuide
from step_audio.errors import ArtefactError
from tokenizer_fixture import SPECIAL


@pytest.fixture(scope="module")
def compiler(info):
    compiler = GuideCompiler(info, VOCAB)
    yield compiler
    compiler.shutdown()


# Masks


def language() -> list[str]:
    return sorted({f"{a}{b}" for a in ("The answer", "Th", "你好", "é") for b in ("", " is B.", "!", " 12")})


def test_masks_are_exact(compiler):
    """A finite language: allowed is each token with which one of its strings can still be had, and no other."""
    sentences = [sentence.encode() for sentence in language()]
    rng = np.random.default_rng(0)
    compiled = compiler.compile(GuideSpec("ebnf_grammar", "root ::= " + " | ".join(f'"{s}"' for s in language())))
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
    guide = TokenGuide(compiler.compile(GuideSpec("regex", r"(.|\n)*")), _request(end_id=EOT))
    row = np.zeros(VOCAB, np.float32)
    assert guide.mask(row)
    allowed = set(np.flatnonzero(np.isfinite(row)).tolist())
    assert EOT in allowed
    assert not allowed & {TOKENIZER.token_id(name) for name in SPECIAL if name != "<|EOT|>"}
    assert max(allowed) <= TOKENIZER.max_id < VOCAB - 32
    assert TOKENIZER.token_id("<tool_call>") in allowed  # decoded text holds it
    assert {id_ for id_, token in TOKEN.items() if token and token.isascii()} <= allowed


def test_what_does_not_follow_is_not_accepted(compiler):
    guide = TokenGuide(compiler.compile(GuideSpec("regex", "a")), _request())
    with pytest.raises(ValueError, match="does not follow"):
        guide.accept(TOKENIZER.encode("b")[0])


def _request(**fields) -> GenerationRequest:
    return GenerationRequest("only", prompt(3), 9, lambda output: None, **fields)


# The file


def test_the_file_says_what_the_tokenizer_says(info):
    """As TensorRT-LLM reads it: the kind of vocabulary is found in `tokenizer_str`."""
    fields = json.loads(info.read_text(encoding="utf-8"))
    import xgrammar

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


def test_the_same_guide_is_compiled_once(compiler):
    sizes = []
    for text_ in ("[0-9]{7}", "[0-9]{7}", "[0-9]{8}"):
        compiler.compile(GuideSpec("regex", text_))
        sizes.append(compiler.prepare().result()[0].get_cache_size_bytes())
    assert 0 < sizes[0] == sizes[1] < sizes[2]
