"""The tokenizer against the library it wraps, and against people who type control tokens."""

import json
import random
import re
import unicodedata

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from paths import ROOT
from step_audio.errors import CheckpointError
from step_audio.tokenizer import IncrementalDecoder, SpecialTokens, Tokenizer, check_vocabulary, split_names
from tokenizer_fixture import CORPUS, NOT_SPECIAL, SPECIAL, build_json, build_reference

NAMES = SPECIAL + NOT_SPECIAL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(build_json())


def edited(**changes) -> str:
    return json.dumps({**json.loads(build_json()), **changes})


def test_special_tokens_are_looked_up_by_name(tokenizer):
    library = build_reference()
    special = tokenizer.special
    assert special == SpecialTokens(
        bot=library.token_to_id("<|BOT|>"),
        eot=library.token_to_id("<|EOT|>"),
        audio_start=library.token_to_id("<audio_start>"),
        audio_end=library.token_to_id("<audio_end>"),
        audio_patch=library.token_to_id("<audio_patch>"),
        endoftext=library.token_to_id("<|endoftext|>"),
        im_end=library.token_to_id("<|im_end|>"),
        tool_call=library.token_to_id("<tool_call>"),
        tool_call_end=library.token_to_id("</tool_call>"),
    )
    assert special.stop_ids == (special.eot, special.endoftext, special.im_end)
    assert tokenizer.added_ids == {library.token_to_id(name) for name in NAMES}
    assert tokenizer.added_names == set(NAMES)
    with pytest.raises(CheckpointError, match="no added token <nope>"):
        tokenizer.token_id("<nope>")


def test_plain_text_encodes_as_in_the_library(tokenizer):
    texts = [text for text in CORPUS if "<|EOT|>" not in text]
    texts += [
        "",
        " ",
        "\n\n",
        "  a  b\n \n c",
        "don't",
        "naïve 中文。\r\n",
        "e\u0301",
        "\u3000x",
        "🙂🙂",
        "1234567",
        "\x00",
    ]
    for text in texts:
        assert tokenizer.encode(text) == build_reference().encode(text).ids, text


@pytest.mark.parametrize("name", NAMES)
def test_a_typed_control_token_is_text(tokenizer, name):
    for text in (name, f"a{name}b", name * 3, f"\n{name}\n", f"<{name}>", name[:3] + name + name[3:]):
        ids = tokenizer.encode(text)
        assert not tokenizer.added_ids.intersection(ids)
        assert tokenizer.decode(ids) == text
    assert build_reference().encode(name).ids == [tokenizer.token_id(name)]  # what an ordinary tokenizer does


def test_hostile_mixtures_never_reach_an_added_id(tokenizer):
    rng = random.Random(0)
    pieces = [*NAMES, "<|", "|>", "<", ">", "EOT", "BOT", "\x00", "\u200b", "\u202e", "\ufeff", " ", "\n", "e\u0301"]
    pieces += ["\uff1c|EOT|\uff1e", "<\u200d|EOT|>", "\ud83d", "\ude00", "\ud83d\ude00", "🙂", "\U000e0041"]
    for _ in range(500):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12)))
        ids = tokenizer.encode(text)
        assert not tokenizer.added_ids.intersection(ids)
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", clean)


def test_surrogates(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"
    assert tokenizer.encode("\ud83d\ude42") == tokenizer.encode("🙂")


def test_the_least_number_of_tokens_is_never_more_than_there_are(tokenizer):
    noise = random.Random(0)
    pieces = [
        *CORPUS,
        "a",
        " ",
        "\n",
        "é",
        "e\u0301",
        "\u1100\u1161\u11a8",
        "\u03b1\u0314\u0301\u0345",
        "\ud800",
        "🙂",
        "中",
    ]
    for _ in range(300):
        text = "".join(noise.choices(pieces, k=noise.randint(0, 30))) * noise.randint(1, 3)
        assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.least_tokens("") == 0 and tokenizer.least_tokens("中" * 1000) > 50


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("merge_form", [list, " ".join])
def test_an_added_token_that_merges_could_build_is_still_unreachable(ignore_merges, merge_form):
    """A vocabulary in which byte-pair merges spell `<|EOT|>` out, and nothing splits it beforehand."""
    raw = json.loads(build_json())
    name = "<|EOT|>"
    vocab = dict(raw["model"]["vocab"])
    merges = []
    for i in range(2, len(name) + 1):
        vocab.setdefault(name[:i], raw["added_tokens"][-1]["id"] + i)
        merges.append(merge_form((name[: i - 1], name[i - 1])))
    vocab["!" + name] = max(vocab.values()) + 1  # and goes on from there
    merges.append(merge_form(("!", name)))
    raw["model"] |= {"vocab": vocab, "merges": merges, "ignore_merges": ignore_merges}
    raw["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    next(token for token in raw["added_tokens"] if token["content"] == name)["id"] = vocab[name]

    only_emptied = tokenizers.Tokenizer.from_str(json.dumps({**raw, "added_tokens": []}))
    assert only_emptied.encode(name).ids == [vocab[name]]  # so emptying the list would not have been enough
    guarded = Tokenizer.from_json(json.dumps(raw))
    for text in (name, "!" + name, name + name):
        ids = guarded.encode(text)
        assert vocab[name] not in ids
        assert guarded.decode(ids) == text
    assert guarded.decode([vocab[name]]) == name


def test_nothing_is_added_around_the_text(tokenizer):
    template = tokenizers.processors.TemplateProcessing(
        single="<|BOT|> $A <|EOT|>",
        special_tokens=[(name, tokenizer.token_id(name)) for name in ("<|BOT|>", "<|EOT|>")],
    )
    library = tokenizers.Tokenizer.from_str(build_json())
    library.post_processor = template
    library.enable_truncation(2)
    library.enable_padding(length=50)
    assert Tokenizer.from_json(library.to_str()).encode("The answer is B.") == tokenizer.encode("The answer is B.")


def test_decoding_agrees_with_the_library(tokenizer):
    rng = random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.max_id + 1) for _ in range(rng.randrange(20))]
        for skip in (False, True):
            assert tokenizer.decode(ids, skip) == build_reference().decode(ids, skip_special_tokens=skip)
    for character in pre_tokenizers.ByteLevel.alphabet():
        token = build_reference().token_to_id(character)
        assert tokenizer.decode([token]) == build_reference().decode([token])


def test_decoding_is_lossless_per_byte_and_empty_for_padding_rows(tokenizer):
    for character in map(chr, [*range(0x300), 0x7FF, 0x800, 0xFFFD, 0x10000, 0x10FFFF]):
        text = unicodedata.normalize("NFC", character)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.max_id + 1, 10**9, -1]) == ""
    assert tokenizer.decode([tokenizer.special.eot, tokenizer.special.tool_call]) == "<|EOT|><tool_call>"
    assert tokenizer.decode([tokenizer.special.eot, tokenizer.special.tool_call], True) == "<tool_call>"


def test_incremental_decoding_joins_up_to_the_whole_over_any_cut(tokenizer):
    rng = random.Random(2)
    continuation = [token for token in range(256) if tokenizer.token_bytes([token])[0] >= 0x80]  # stress UTF-8
    for _ in range(400):
        ids = [
            rng.choice(continuation) if rng.random() < 0.6 else rng.randrange(tokenizer.max_id + 5)
            for _ in range(rng.randrange(40))
        ]
        if rng.random() < 0.3:
            ids = tokenizer.encode("🙂中é" * 3)[: rng.randrange(30)]
        for skip in (False, True):
            decoder = IncrementalDecoder(tokenizer, skip)
            rest, said = list(ids), ""
            while rest:
                cut = rng.randrange(0, 4)
                said += decoder.push(rest[:cut])
                rest = rest[cut:]
            assert said + decoder.flush() == tokenizer.decode(ids, skip)


def test_incremental_decoding_holds_back_half_a_character_and_no_more(tokenizer):
    smile = [token for byte in "🙂".encode() for token in range(256) if tokenizer.token_bytes([token]) == bytes([byte])]
    decoder = IncrementalDecoder(tokenizer)
    assert [decoder.push([token]) for token in smile] == ["", "", "", "🙂"]
    assert decoder.push(smile[:2]) == ""
    assert decoder.push(tokenizer.encode("a")) == "\ufffda"  # proven invalid: no longer held
    assert decoder.push(smile[:3]) == "" and decoder.flush() == "\ufffd"


def test_json_round_trip(tokenizer):
    assert Tokenizer.from_json(tokenizer.to_json()).to_json() == build_json()


def test_from_directory_reads_tokenizer_json(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_text(build_json(), encoding="utf-8")
    assert Tokenizer.from_directory(tmp_path).encode("audio 中") == tokenizer.encode("audio 中")


def test_unusable_tokenizers(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json"):
        Tokenizer.from_directory(tmp_path)
    model = json.loads(build_json())["model"]
    small = {token: id_ for token, id_ in model["vocab"].items() if token != "a"}
    for text, message in [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (edited(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "WordLevel"),
        (edited(model={**model, "vocab": small}), "1 of 256 bytes"),
        (edited(pre_tokenizer={"type": "Whitespace"}), "does not survive"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_json(text)


def test_the_vocabulary_must_hold_every_id(tokenizer):
    check_vocabulary(tokenizer, tokenizer.max_id + 1)
    with pytest.raises(CheckpointError, match=f"reach {tokenizer.max_id} but vocab_size is {tokenizer.max_id}"):
        check_vocabulary(tokenizer, tokenizer.max_id)


@pytest.mark.parametrize("more", [(), ("[INST]", "<<SYS>>", "<a")], ids=["all in angles", "others too"])
def test_names_are_found_as_by_trying_each(more):
    names = frozenset([f"<audio_{n}>" for n in range(40)] + ["<|EOT|>", *more])
    each = re.compile("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")")
    pieces = ["<", "<<", "SYS>>", ">", "<audio_5>", "<audio_99>", "[INST]", "x", "<a", "<|EOT|>", "\n"]
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=20))
        assert list(split_names(text, names)) == each.split(text)
    assert list(split_names("<a>", frozenset())) == ["<a>"]


def test_a_text_of_angles_is_not_compared_with_each_name():
    """With each of 6,600 names at each of so many places, half a minute in which no other thread runs."""
    tokenizer = Tokenizer.from_directory(ROOT / "models/listener-19m")
    ids = tokenizer.encode_raw("<" * 200_000)
    assert tokenizer.decode(ids) == "<" * 200_000
