"""Softmaxes of random logits: exact means against sums, arbitrary precision and simulation."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from gradlab.theory import attention


def test_equal_logits_have_the_numbers_of_equal_weights() -> None:
    row = attention.softmax_row(1e-9, 50)

    # diag(p) - p pᵀ of p = 1/T is (I - 11ᵀ/T)/T.
    np.testing.assert_allclose(row, [np.log(50), 1 / 50, 49 / 50**2], rtol=1e-12)


@pytest.mark.parametrize("std", [0.5, 3.0, 12.0])
def test_two_tokens_are_a_logistic_of_one_normal_number(std: float) -> None:
    """p is logistic(√2 s z): one integral over z, by mpmath."""

    def mean(f: object) -> float:
        places = [-40, -2, -0.5, 0, 0.5, 2, 40]
        return float(mpmath.quad(lambda z: f(z) * mpmath.npdf(z), places))  # type: ignore[operator]

    def p(z: mpmath.mpf) -> mpmath.mpf:
        return 1 / (1 + mpmath.exp(-mpmath.sqrt(2) * std * z))

    def entropy(z: mpmath.mpf) -> mpmath.mpf:
        a = mpmath.sqrt(2) * std * z
        return mpmath.log1p(mpmath.exp(-abs(a))) + abs(a) / (1 + mpmath.exp(abs(a)))

    expected = (
        mean(entropy),
        mean(lambda z: p(z) ** 2 + p(-z) ** 2),
        mean(lambda z: 4 * (p(z) * p(-z)) ** 2),
    )
    np.testing.assert_allclose(attention.softmax_row(std, 2), expected, rtol=1e-9)


@pytest.mark.parametrize("std", [1.0, 3.7232974, 10.0])
def test_many_tokens_are_what_drawn_rows_have(std: float) -> None:
    x = std * np.random.default_rng(0).standard_normal((4000, 1024))
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    square, cube = (p**2).sum(1), (p**3).sum(1)
    drawn = (
        -(p * np.log(np.where(p > 0, p, 1.0))).sum(1),
        square,
        square - 2 * cube + square**2,
    )
    for rows, mean in zip(drawn, attention.softmax_row(std, 1024), strict=True):
        # Five standard errors: once in 1.7 million.
        assert abs(rows.mean() - mean) <= 5 * rows.std() / np.sqrt(len(rows))


def test_many_tokens_approach_the_random_energy_model() -> None:
    """Corrections fall with log T, in units of which the limit is one."""
    below, above = [], []
    for count in (1e3, 1e6, 1e12):
        critical = attention.critical_std(count)
        half = attention.softmax_row(critical / 2, count).entropy
        twice = attention.softmax_row(2 * critical, count).participation
        below.append(abs(half - attention.limit_entropy(critical / 2, count)) / jnp.log(count))
        above.append(abs(twice - attention.limit_participation(2 * critical, count)))
    assert below[0] > below[1] > below[2]
    assert above[0] > above[1] > above[2]
    # Far from the transition corrections fall as a power of T, near it as 1/log T.
    assert below[2] < 1e12**-0.25
    assert above[2] < 1 / np.log(1e12)


def test_the_critical_deviation_is_that_of_the_list_and_there_the_entropy_is_not_zero() -> None:
    found = [float(attention.critical_std(count)) for count in (128, 1024, 8192)]
    np.testing.assert_allclose(found, [3.1151341, 3.7232974, 4.2452122], rtol=1e-7)
    assert float(attention.limit_entropy(3.7232974, 1024)) == pytest.approx(0.0, abs=1e-6)
    assert float(attention.softmax_row(3.7232974, 1024).entropy) == pytest.approx(2.53, abs=0.1)


@pytest.mark.parametrize("count", [2, 8192])  # of two, a power 0 of a phi that may round to 0
def test_single_precision_agrees_with_double(count: int) -> None:
    exact = attention.softmax_row(3.0, count)
    with jax.enable_x64(False):
        np.testing.assert_allclose(attention.softmax_row(3.0, count), exact, rtol=1e-4)


@pytest.mark.parametrize(("std", "correlation", "num_tokens"), [(1.0, 0.3, 16), (4.0, 0.8, 5)])
def test_two_rows_overlap_as_drawn_ones_do(std: float, correlation: float, num_tokens: int) -> None:
    rng = np.random.default_rng(1)
    shared, *own = rng.standard_normal((3, 40_000, num_tokens))
    both = []
    for part in own:
        x = std * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * part)
        p = np.exp(x - x.max(1, keepdims=True))
        both.append(p / p.sum(1, keepdims=True))
    first, second = both
    law = attention.overlaps(std, correlation, num_tokens)
    for drawn, mean in (((first**2).sum(1), law.own), ((first * second).sum(1), law.shared)):
        # Five standard errors: once in 1.7 million.
        assert abs(drawn.mean() - mean) <= 5 * drawn.std() / np.sqrt(len(drawn))


@pytest.mark.parametrize("std", [0.3, 2.0, 5.0])
def test_the_ends_of_two_rows_correlation(std: float) -> None:
    """Independent rows share 1/T, exactly; rows that are one share all that one has."""
    tolerance = float(attention.overlaps_error(std, 7))
    single = float(attention.softmax_row(std, 7).participation)
    for correlation, shared in ((0.0, 1 / 7), (1.0, single)):
        found = attention.overlaps(std, correlation, 7)
        np.testing.assert_allclose(found, [single, shared], rtol=0, atol=tolerance + 1e-12)


def test_the_stated_error_of_two_rows_bounds_what_fewer_nodes_leave() -> None:
    fine = attention.overlaps(4.0, 0.5, 16, 240)
    for num_nodes in (48, 64, 96):
        off = np.abs(np.subtract(attention.overlaps(4.0, 0.5, 16, num_nodes), fine)).max()
        assert off <= attention.overlaps_error(4.0, 16, num_nodes)


def test_rows_of_tokens_without_queries_are_uniform() -> None:
    found = attention.random_logits(1e-6)(jnp.ones(()), jnp.array(0.7), 12)
    np.testing.assert_allclose(found, attention.uniform(jnp.ones(()), jnp.ones(()), 12), rtol=1e-9)
