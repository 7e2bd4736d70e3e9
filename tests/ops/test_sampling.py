import itertools
from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.ops.matching import Match
from jaxdet.ops.sampling import Choice, HardNegatives, Sampler, choose, hardest
from tests.ops import oracles

KEY = jax.random.key(0)


def make_match(positive: np.ndarray, negative: np.ndarray) -> Match:
    return Match(np.zeros(len(positive), np.int32), positive, negative, np.zeros(len(positive), np.float32))


@partial(jax.jit, static_argnums=0)
def run(sampler: Sampler, match: Match, key: jax.Array) -> Choice:
    return sampler(match, key)


def check(choice: Choice, match: Match, sampler: Sampler) -> None:
    """What holds of every choice."""
    index, positive, valid = (np.asarray(a) for a in (choice.index, choice.positive, choice.valid))
    assert index.shape == positive.shape == valid.shape == (sampler.number,)
    assert match.positive[index[positive]].all()
    assert match.negative[index[valid & ~positive]].all()
    assert len(set(index[valid])) == valid.sum(), "a box twice"
    expected_positive = min(match.positive.sum(), sampler.max_positive)
    assert positive.sum() == expected_positive
    assert valid.sum() == min(expected_positive + match.negative.sum(), sampler.number)
    order = np.where(positive, 0, np.where(valid, 1, 2))
    assert (np.diff(order) >= 0).all(), "positives, negatives, invalid slots"
    np.testing.assert_array_equal(index[~valid], 0)


def test_first_by_hand() -> None:
    match = make_match(np.array([0, 1, 0, 1, 1, 0], bool), np.array([1, 0, 0, 0, 0, 1], bool))
    choice = run(Sampler(4, 0.5, "first"), match, KEY)
    np.testing.assert_array_equal(choice.index, [1, 3, 0, 5])
    np.testing.assert_array_equal(choice.positive, [True, True, False, False])
    assert choice.valid.all()
    choice = run(Sampler(8, 0.25, "first"), match, KEY)
    np.testing.assert_array_equal(choice.index, [1, 3, 0, 5, 0, 0, 0, 0])
    np.testing.assert_array_equal(choice.valid, np.arange(8) < 4)


@pytest.mark.parametrize("wrong", [(0, 0.5), (-4, 0.5), (4, 1.5), (4, -0.1), (4, float("nan"))])
def test_impossible_numbers_are_an_error(wrong: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match=r"Sampler\.(number|positive_fraction): expected a number from "):
        Sampler(*wrong)


def test_choose_fewer_and_more_than_there_are() -> None:
    candidate = np.array([False, True, False, True, True])
    index, valid = choose(candidate, 2, None)
    np.testing.assert_array_equal(index, [1, 3])
    index, valid = choose(candidate, 7, None)
    np.testing.assert_array_equal(index[:3], [1, 3, 4])
    np.testing.assert_array_equal(valid, np.arange(7) < 3)
    _, valid = choose(candidate, 7, KEY)
    np.testing.assert_array_equal(valid, np.arange(7) < 3)


@pytest.mark.parametrize("order", ["random", "first"])
@pytest.mark.parametrize("seed", range(3))
def test_what_holds_of_every_choice(order: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sampler = Sampler(16, 0.25, order)
    for share in (0.0, 0.1, 0.5, 1.0):
        positive = rng.random(40) < share
        match = make_match(positive, ~positive & (rng.random(40) < 0.3))
        check(run(sampler, match, jax.random.key(seed)), match, sampler)


@pytest.mark.parametrize("order", ["random", "first"])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_fewer_candidates_than_slots(order: str, number: int) -> None:
    sampler = Sampler(8, 0.5, order)
    match = make_match(np.arange(number) == 0, np.arange(number) > 0)
    check(run(sampler, match, KEY), match, sampler)


@pytest.mark.parametrize("order", ["random", "first"])
def test_nothing_to_choose_from(order: str) -> None:
    nothing = make_match(np.zeros(40, bool), np.zeros(40, bool))
    assert not run(Sampler(16, 0.25, order), nothing, KEY).valid.any()


def test_padding_does_not_change_the_first() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(40) < 0.3
    match, sampler = make_match(positive, ~positive), Sampler(16, 0.25, "first")
    more = make_match(oracles.padded(match.positive, 9, 0), oracles.padded(match.negative, 9, 0))
    jax.tree.map(np.testing.assert_array_equal, run(sampler, more, KEY), run(sampler, match, KEY))


def test_random_choice_is_uniform_and_decided_by_the_key() -> None:
    """Each of 10 positives is among the 4 chosen in 40% of 2000 draws, give or take five standard deviations."""
    match, sampler = make_match(np.arange(30) < 10, np.arange(30) >= 10), Sampler(8, 0.5)
    draw = jax.jit(jax.vmap(lambda key: sampler(match, key)))
    choice = draw(jax.random.split(KEY, 2000))
    counts = np.bincount(np.asarray(choice.index).ravel(), minlength=30) / 2000
    np.testing.assert_allclose(counts[:10], 0.4, atol=5 * np.sqrt(0.24 / 2000))
    np.testing.assert_allclose(counts[10:], 0.2, atol=5 * np.sqrt(0.16 / 2000))
    again = draw(jax.random.split(KEY, 2000))
    np.testing.assert_array_equal(choice.index, again.index)
    pairs = {tuple(sorted(row[:2])) for row in np.asarray(choice.index)}
    assert pairs == set(itertools.combinations(range(10), 2)), "some pairs are never chosen together"


# The hardest of the negatives.


run_hardest = jax.jit(hardest)


def slow_hardest(values: np.ndarray, candidate: np.ndarray, number: int) -> np.ndarray:
    """By sorting: those above the last place count, those that tie for it share what is left."""
    weights = np.zeros(len(values))
    order = sorted(np.flatnonzero(candidate), key=lambda i: -values[i])[:number]
    if order:
        last = values[order[-1]]
        above, tied = candidate & (values > last), candidate & (values == last)
        weights[above], weights[tied] = 1, (len(order) - above.sum()) / tied.sum()
    return weights


@pytest.mark.parametrize("number", [0, 1, 5, 11, 12, 13, 40])
@pytest.mark.parametrize("kind", ["distinct", "ties", "equal", "zeros", "infinite", "wide"])
def test_hardest_against_sorting(kind: str, number: int) -> None:
    rng = np.random.default_rng(0)
    values = {
        "distinct": rng.random(20),
        "ties": rng.integers(0, 4, 20) / 4,
        "equal": np.full(20, 0.7),
        "zeros": np.where(np.arange(20) % 4, 0.0, rng.random(20)),
        "infinite": np.where(np.arange(20) % 5, rng.random(20), np.inf),
        "wide": 10.0 ** rng.integers(-44, 38, 20),
    }[kind].astype(np.float32)
    candidate = np.arange(20) % 5 < 3  # 12 of them
    found = run_hardest(values, candidate, np.int32(number))
    np.testing.assert_allclose(found, slow_hardest(values, candidate, number), rtol=1e-6)
    np.testing.assert_allclose(found.sum(), min(number, 12), rtol=1e-6)


def test_hardest_does_not_look_at_others() -> None:
    values, candidate = np.float32([3, np.nan, 1, np.inf, 2, -5]), np.array([1, 0, 1, 0, 1, 0], bool)
    np.testing.assert_array_equal(run_hardest(values, candidate, 2), [1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(run_hardest(values, candidate, 9), candidate)
    np.testing.assert_array_equal(run_hardest(values, np.zeros(6, bool), 2), 0)


def test_zeros_of_either_sign_are_equal() -> None:
    """A loss of -0.0 is no loss below 0."""
    values = np.float32([-0.0, 0.0, 1.0, -0.0])
    np.testing.assert_allclose(run_hardest(values, np.ones(4, bool), 3), [2 / 3, 2 / 3, 1, 2 / 3], rtol=1e-6)
    np.testing.assert_array_equal(run_hardest(values[:1], np.ones(1, bool), 1), 1)


def test_hardest_of_rows_and_in_any_order() -> None:
    rng = np.random.default_rng(1)
    values, candidate = rng.integers(0, 9, (3, 2, 20)).astype(np.float32), rng.random((3, 2, 20)) < 0.7
    number = rng.integers(0, 20, (3, 2)).astype(np.int32)
    found = run_hardest(values, candidate, number)
    for i in np.ndindex(3, 2):
        np.testing.assert_allclose(found[i], slow_hardest(values[i], candidate[i], number[i]), rtol=1e-6)
    turned = run_hardest(values[..., ::-1], candidate[..., ::-1], number)
    np.testing.assert_array_equal(turned[..., ::-1], found)


def test_no_gradient_flows_through_the_choice() -> None:
    values = np.float32([3, 1, 2, 5])
    gradient = jax.grad(lambda x: (x * hardest(x, np.ones(4, bool), np.int32(2))).sum())(values)
    np.testing.assert_array_equal(gradient, [1, 0, 0, 1])


def test_hard_negatives_by_hand() -> None:
    """Two for each positive; all where there is no positive; what is neither counts nothing."""
    loss = np.float32([[9, 1, 2, 3, 4, 8]] * 3)
    positive = np.array([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]], bool)
    negative = ~positive & (np.arange(6) > 0)  # the first one is neither
    weights = jax.jit(HardNegatives(2.0).__call__)(loss, positive, negative)
    np.testing.assert_array_equal(weights, [[0, 1, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(HardNegatives(1.5)(loss[:1], positive[:1], negative[:1]), [[0, 1, 0, 0, 0, 1]])


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_hard_negatives_need_a_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"HardNegatives\.ratio: expected a number from 0 to 1,000,000, not 0, got"):
        HardNegatives(ratio)
