import numpy as np
import pytest

from lazy import Lazy
from step_audio.engine.request import SamplingParams
from step_audio.engine.sampler import TokenSampler, draw, largest, penalize, uniform
from step_audio.errors import InvalidRequest

torch = Lazy("torch")

PROMPT = np.array([3, 3, 5, 900], np.int32)  # 900 is beyond the vocabulary: an audio position


def logits(vocab=200, seed=0, scale=2.0):
    return (np.random.default_rng(seed).standard_normal(vocab) * scale).astype(np.float32)


def sampler(vocab=200, prompt=PROMPT, index=0, **fields):
    kept = {
        key: fields.pop(key)
        for key in ("end_id", "bad_words", "log_probs", "top_log_probs", "normalize_log_probs")
        if key in fields
    }
    return TokenSampler(SamplingParams(**fields), prompt, vocab, index=index, **kept)


def next_token(ours, row, history=PROMPT):
    """Token, its log-probability, its share of the cumulative one. The row is written over."""
    penalize([row], [ours])
    ours.forbid(row, history)
    (drawn,) = draw([row], [ours])
    return drawn and drawn[:3]


def modified(row, history, *, temperature=1.0, repetition=1.0, presence=0.0, frequency=0.0):
    """The documented formula, token by token, in float64."""
    out = row.astype(np.float64) / (1.0 if temperature == 1 else temperature + 1e-6)
    for token in set(history):
        if token < len(out):
            out[token] = out[token] * repetition if out[token] < 0 else out[token] / repetition
            out[token] -= presence + frequency * list(history).count(token)
    return out


def support(row, top_k, top_p):
    """Ids that may be drawn, with their probabilities, by sorting everything."""
    order = np.argsort(-row, kind="stable")[: top_k or None]
    probabilities = np.exp(row[order] - row[order[0]])
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    kept = before < (top_p or 1.0)
    mass = np.minimum(probabilities, (top_p or 1.0) - before)[kept]
    return dict(zip(order[kept].tolist(), mass / mass.sum(), strict=True))


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"),
    [(5, 0, 1), (5, 0.7, 0.7), (0, 0.5, 1), (0, 0.95, 1.5), (0, 1, 1), (50, 1, 0.3), (150, 0.9, 2)],
)
def test_draws_have_the_brute_force_distribution(top_k, top_p, temperature):
    row, count = logits(), 1_000
    ours = sampler(top_k=top_k, top_p=top_p, temperature=temperature, seed=1)
    drawn = np.bincount([next_token(ours, row, PROMPT)[0] for _ in range(count)], minlength=len(row)) / count
    expected = support(modified(row, [], temperature=temperature), top_k, top_p)
    assert set(np.flatnonzero(drawn)) <= set(expected)
    for token, probability in expected.items():
        assert abs(drawn[token] - probability) < 5 * np.sqrt(probability / count) + 1e-3


def kept_by_numpy(row, min_p, temperature):
    """Ids, from probabilities over the whole vocabulary in float64."""
    logits = row.astype(np.float64) / (1.0 if temperature == 1 else temperature + 1e-6)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    return {token for token in range(len(row)) if probabilities[token] >= min_p * probabilities.max()}


@pytest.mark.parametrize("min_p", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_min_p_keeps_what_transformers_and_numpy_keep(min_p, temperature):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper

    row = logits(60)
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(row.copy())[None])
    theirs = {int(token) for token in torch.nonzero(MinPLogitsWarper(min_p)(None, scores)[0].isfinite())}
    assert theirs == kept_by_numpy(row, min_p, temperature)
    ours = sampler(60, top_p=1, min_p=min_p, temperature=temperature, seed=2)
    assert {next_token(ours, row.copy(), PROMPT)[0] for _ in range(1000)} == theirs


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1), (0, 0.6), (10, 0.9), (4, 0)])
def test_min_p_goes_before_top_k_and_top_p(top_k, top_p):
    """As in TensorRT-LLM: what min_p leaves is the whole for top_p."""
    row, count, min_p = logits(), 1_000, 0.15
    ours = sampler(top_k=top_k, top_p=top_p, min_p=min_p, temperature=1.4, seed=4)
    drawn = np.bincount([next_token(ours, row.copy(), PROMPT)[0] for _ in range(count)], minlength=len(row)) / count
    scaled = modified(row, [], temperature=1.4)
    scaled[[token for token in range(len(row)) if token not in kept_by_numpy(row, min_p, 1.4)]] = -np.inf
    expected = support(scaled, top_k, top_p)
    assert set(np.flatnonzero(drawn)) <= set(expected)
    for token, probability in expected.items():
        assert abs(drawn[token] - probability) < 5 * np.sqrt(probability / count) + 1e-3


def test_min_p_counts_after_penalties_and_in_log_probabilities():
    row = np.zeros(200, np.float32)
    row[[3, 7, 9]] = [10.0, 9.5, 9.0]  # 3 is in the prompt twice
    ours = sampler(top_p=1, min_p=0.5, presence_penalty=2.0, log_probs=True, normalize_log_probs=False, seed=1)
    token, log_prob, _ = next_token(ours, row, PROMPT)
    left = np.array([9.5, 9.0])  # 3 has 8.0 then, a fifth of the likeliest
    assert token in (7, 9)
    assert log_prob == pytest.approx(left[(7, 9).index(token)] - np.log(np.exp(left).sum()), abs=1e-5)


def test_without_min_p_nothing_changes():
    plain, zero = sampler(top_p=1, seed=8), sampler(top_p=1, min_p=0, seed=8)
    rows = [logits(seed=n) for n in range(50)]
    assert [next_token(plain, r.copy(), PROMPT)[0] for r in rows] == [
        next_token(zero, r.copy(), PROMPT)[0] for r in rows
    ]


@pytest.mark.parametrize("top_p", [0.1, 0.9, 1.0])
def test_top_p_alone_reaches_the_tail_of_a_large_flat_vocabulary(top_p):
    vocab = 5_000  # more than MAX_TOP_K
    row = logits(vocab, scale=0.01)
    drawn = {next_token(sampler(vocab, top_p=top_p, seed=seed), row.copy(), PROMPT)[0] for seed in range(200)}
    ranks = np.argsort(np.argsort(-row, kind="stable"))[list(drawn)]
    assert ranks.max() < vocab * top_p * 1.02 and ranks.max() > vocab * top_p * 0.9


@pytest.mark.parametrize("vocab", [10, 511, 5000, 158_720])
@pytest.mark.parametrize("k", [1, 2, 3, 50, 1024])
def test_largest_is_exact_with_ties(vocab, k):
    row = np.round(logits(vocab, seed=k), 2)
    row[:3] = -np.inf
    ids, values = largest([row[::-1].copy(), row], k)
    expected = np.argsort(-row, kind="stable")[:k]
    finite = np.isfinite(row[expected])  # what is -inf has no order
    assert np.array_equal(ids[1][finite], expected[finite]) and np.array_equal(values[1], row[expected])


def test_who_else_is_in_the_batch_does_not_matter():
    """Every kind of drawing at once, in two orders, beside each answer alone."""
    kinds: list[dict] = [
        {},
        {"top_k": 5},
        {"top_k": 50, "top_p": 0.9, "temperature": 0.7, "repetition_penalty": 1.05},
        {"top_k": 50, "temperature": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"top_p": 0.8, "log_probs": True},
        {"top_k": 7, "top_log_probs": 3},
        {"top_k": 50, "log_probs": True, "normalize_log_probs": False},
        {"min_p": 0.1, "top_p": 1},
        {"end_id": 7, "min_tokens": 3, "repetition_penalty": 1.4},
    ]

    def answers(batches):
        """Twenty tokens of each kind; in each step one call for each batch."""
        samplers = [sampler(2000, seed=n, **fields) for n, fields in enumerate(kinds)]
        found: list[list] = [[] for _ in kinds]
        for step in range(20):
            for batch in batches:
                rows = [logits(2000, seed=100 * n + step) for n in batch]
                group = [samplers[n] for n in batch]
                penalize(rows, group)
                for ours, row in zip(group, rows, strict=True):
                    ours.forbid(row, PROMPT)
                for n, drawn in zip(batch, draw(rows, group), strict=True):
                    found[n].append(drawn)
        return found

    everyone = list(range(len(kinds)))
    alone = answers([[n] for n in everyone])
    assert answers([everyone]) == answers([everyone[::-1]]) == answers([everyone[:3], everyone[3:]]) == alone


def test_an_answer_without_a_finite_logit_is_the_only_one_without_a_token():
    for fields in ({}, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 5, "repetition_penalty": 1.2}):
        rows = [logits(), np.full(200, -np.inf, np.float32), np.full(200, np.nan, np.float32), logits()]
        group = [sampler(**fields) for _ in rows]
        penalize(rows, group)
        drawn = draw(rows, group)
        assert drawn[0] == drawn[3] is not None and drawn[1] is None and drawn[2] is None


def test_defaults_are_greedy_even_with_a_temperature():
    row = logits()
    for fields in ({}, {"temperature": 1.7}, {"temperature": 0, "top_k": 50, "top_p": 0.9}, {"top_k": 1, "top_p": 0.9}):
        assert {next_token(sampler(seed=seed, **fields), row.copy(), PROMPT)[0] for seed in range(20)} == {row.argmax()}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"), [(1.3, 0, 0), (1, 0.8, 0), (1, 0, 0.5), (0.8, -1, 0.3)]
)
def test_penalties_follow_the_formula(temperature, repetition, presence, frequency):
    fields = {"repetition_penalty": repetition, "presence_penalty": presence, "frequency_penalty": frequency}
    ours = sampler(top_k=20, temperature=temperature, log_probs=True, normalize_log_probs=False, seed=3, **fields)
    history = PROMPT.tolist()
    for step in range(150):  # long enough for the counters to grow
        row = logits(seed=step % 7)
        expected = modified(
            row, history, temperature=temperature, repetition=repetition, presence=presence, frequency=frequency
        )
        token, log_prob, _ = next_token(ours, row, np.array(history))
        reference = torch.log_softmax(torch.from_numpy(expected), 0)[token].item()
        assert log_prob == pytest.approx(reference, abs=1e-4)
        assert token in np.argsort(-expected)[:20]
        history.append(token)


def test_penalties_match_transformers_where_the_definitions_agree():
    from transformers import RepetitionPenaltyLogitsProcessor

    row, history = logits(), [1, 4, 4, 9, int(logits().argmax())]
    ours = sampler(prompt=np.array(history), repetition_penalty=1.8)
    theirs = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([history]), torch.from_numpy(row.copy())[None])
    assert next_token(ours, row, np.array(history))[0] == theirs.argmax()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("fields", [{}, {"top_k": 4}, {"top_p": 0.8, "temperature": 0.7}, {"presence_penalty": 3}])
def test_the_likeliest_in_a_place(fields, normalize):
    """Beside the token's own, on the same scale; what is out of the question is not among them."""
    row = logits()
    order = np.argsort(-row)
    words = [[int(order[0])], [int(order[4])]]
    ours = sampler(**fields, bad_words=words, log_probs=True, top_log_probs=5, normalize_log_probs=normalize, seed=3)
    penalize([row], [ours])
    ours.forbid(row, PROMPT)
    expected = torch.log_softmax(torch.from_numpy(row.astype(np.float64) * ours.scale), 0).numpy()
    if normalize and ours.top_k:
        expected -= np.log(np.exp(np.sort(expected)[-ours.top_k :]).sum())
    (drawn,) = draw([row.copy()], [ours])
    best = np.argsort(-row, kind="stable")[:5]
    assert [token for token, _ in drawn.top] == best.tolist() and not {word[0] for word in words} & set(best)
    assert [value for _, value in drawn.top] == pytest.approx(expected[best].tolist(), abs=1e-5)
    assert drawn.log_prob == pytest.approx(expected[drawn.token], abs=1e-5)
    few = np.full(200, -np.inf, np.float32)
    few[7] = 1.0
    (drawn,) = draw([few], [sampler(top_log_probs=5)])
    assert drawn.top == [(7, 0.0)]


@pytest.mark.parametrize(("top_k", "top_p"), [(7, 0.8), (0, 0.8), (0, 0)])
def test_log_probabilities(top_k, top_p):
    row = logits()
    over_all = torch.log_softmax(torch.from_numpy(row) / (0.7 + 1e-6), 0).numpy()
    for seed in range(5):
        fields = {"seed": seed, "top_k": top_k, "top_p": top_p, "temperature": 0.7, "log_probs": True}
        token, log_prob, cumulative = next_token(sampler(normalize_log_probs=False, **fields), row.copy(), PROMPT)
        assert log_prob == cumulative == pytest.approx(over_all[token], abs=1e-5)
        again, normalized, cumulative = next_token(sampler(normalize_log_probs=True, **fields), row.copy(), PROMPT)
        assert again == token and cumulative == pytest.approx(over_all[token], abs=1e-5)
        # Relative to the top_k, of which greedy is the smallest; top_p alone has no top_k to be relative to.
        kept = top_k or (1 if not top_p else len(row))
        mass = np.log(np.exp(np.sort(over_all)[-kept:]).sum())
        assert normalized == pytest.approx(over_all[token] - mass, abs=1e-5)


def test_end_id_waits_for_min_tokens():
    row = logits()
    row[17] = 100
    ours = sampler(end_id=17, min_tokens=3)
    assert [next_token(ours, row.copy(), PROMPT)[0] == 17 for _ in range(5)] == [False] * 3 + [True] * 2


def test_bad_words_are_banned_where_they_would_be_completed():
    row = logits()
    row[[10, 11, 12]] = [30, 20, 10]
    ours = sampler(bad_words=[[10], [4, 5, 11]])
    assert next_token(ours, row.copy(), np.array([4, 5]))[0] == 12
    assert next_token(ours, row.copy(), np.array([5, 4]))[0] == 11
    assert next_token(ours, row.copy(), np.array([5]))[0] == 11  # shorter than the word


def test_uniform_numbers_are_uniform_and_independent():
    numbers = np.array([[uniform(seed, position) for position in range(100)] for seed in range(200)])
    assert numbers.min() > 0 and numbers.max() <= 1
    assert abs(numbers.mean() - 0.5) < 0.01 and abs(numbers.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.03


def test_same_seed_same_tokens_and_each_answer_its_own():
    draw = lambda **fields: [next_token(sampler(top_k=50, **fields), logits(seed=s), PROMPT)[0] for s in range(30)]  # noqa: E731
    first, second = sampler(top_k=50, seed=9), sampler(top_k=50, seed=9, index=1)
    tokens = [(next_token(first, logits(), PROMPT)[0], next_token(second, logits(), PROMPT)[0]) for _ in range(30)]
    assert len(set(tokens)) > 10 and any(a != b for a, b in tokens)
    assert draw() == draw(seed=0)  # no seed is seed 0, as on a GPU


def test_logits_that_are_no_numbers_are_a_fault():
    for row in (np.full(200, np.nan, np.float32), np.full(200, -np.inf, np.float32)):
        for fields in ({}, {"top_k": 5}, {"top_p": 0.5}):
            assert next_token(sampler(**fields), row.copy(), PROMPT) is None


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "finite"),
        ("top_k", -1, "at least 0"),
        ("top_p", 1.01, "between 0 and 1"),
        ("top_p", float("inf"), "finite"),
        ("min_p", 1.5, "between 0 and 1"),
        ("min_p", -0.1, "between 0 and 1"),
        ("seed", -1, "between 0"),
        ("seed", 2**64, "between 0"),
        ("min_tokens", -2, "at least 0"),
        ("repetition_penalty", 0.0, "greater than 0"),
        ("presence_penalty", float("nan"), "finite"),
        ("frequency_penalty", float("-inf"), "finite"),
    ],
)
def test_out_of_range_is_named(name, value, allowed):
    with pytest.raises(InvalidRequest, match=f"{name} must be .*{allowed}"):
        SamplingParams(**{name: value})
