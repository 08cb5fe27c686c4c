"""Pairs of numbers against fractions: what is exact is equal, and the rest errs as it says."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.arithmetic import doubled, formats
from gradlab.arithmetic.doubled import Doubled

DTYPES = ["float32", "float64"]
NUM = 3000


def exact(x: Any) -> Any:
    """The entries of an array, or of a pair, as an array of fractions."""
    if isinstance(x, Doubled):
        return exact(x.high) + exact(x.low)
    return np.array([Fraction(value) for value in np.asarray(x, float).tolist()])


def drawn(dtype: str, seed: int, decades: int = 6) -> Any:
    """Numbers of both signs over some decades, with a few at which halving digits is delicate."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=NUM) * 10.0 ** rng.uniform(-decades, decades, NUM)
    eps = float(formats.finfo(dtype).eps)
    values[:6] = [1, -1, 1 + eps, 2 - eps, 1 - eps / 2, 2 ** (formats.finfo(dtype).nmant // 2) + 1]
    return jnp.asarray(values, dtype)


def pairs(dtype: str, seed: int) -> Doubled:
    high = drawn(dtype, seed)
    share = np.random.default_rng(seed + 1).uniform(-0.5, 0.5, NUM)
    eps = float(formats.finfo(dtype).eps)
    return Doubled(high, jnp.asarray(np.asarray(high, float) * share * eps / 2, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_of_two_numbers_loses_nothing(dtype: str) -> None:
    a, b = drawn(dtype, 0, 12), drawn(dtype, 1, 12)
    total = jax.jit(doubled.sum_of)(a, b)
    assert (exact(total) == exact(a) + exact(b)).all()
    np.testing.assert_array_equal(total.high, np.asarray(a) + np.asarray(b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_add_up_and_their_products_are_exact_but_that_of_the_low_ones(dtype: str) -> None:
    x, y = drawn(dtype, 0), drawn(dtype, 1)
    high, low = jax.jit(doubled.halves)(x)
    assert (exact(high) + exact(low) == exact(x)).all()
    other_high, other_low = doubled.halves(y)
    for one, other in ((high, other_high), (high, other_low), (low, other_high)):
        assert (exact(one * other) == exact(one) * exact(other)).all()


OPERATIONS = {
    "add": (doubled.add, lambda x, y: x + y, lambda x, y: abs(x) + abs(y)),
    "subtract": (doubled.subtract, lambda x, y: x - y, lambda x, y: abs(x) + abs(y)),
    "multiply": (doubled.multiply, lambda x, y: x * y, lambda x, y: abs(x * y)),
    "divide": (doubled.divide, lambda x, y: x / y, lambda x, y: abs(x / y)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_errs_by_its_roundoff_and_leaves_a_pair_in_order(
    name: str, dtype: str
) -> None:
    operate, truth, size = OPERATIONS[name]
    x, y = pairs(dtype, 0), pairs(dtype, 7)
    got = jax.jit(operate)(x, y)
    right = truth(exact(x), exact(y))
    # A product's own error; a sum's is beside its terms, which may cancel.
    error = abs(exact(got) - right) / size(exact(x), exact(y))
    assert max(error) <= Fraction(doubled.roundoff(dtype))
    assert max(error) > 0 or name == "add"  # it would be worth no pairs otherwise
    high, low = np.asarray(got.high, float), np.asarray(got.low, float)
    assert (np.abs(low) <= np.abs(high) * float(formats.finfo(dtype).eps)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_of_two_numbers_errs_by_its_roundoff(dtype: str) -> None:
    a, b = drawn(dtype, 2), drawn(dtype, 3)
    right = exact(a) * exact(b)
    error = abs(exact(jax.jit(doubled.product_of)(a, b)) - right) / abs(right)
    assert max(error) <= Fraction(doubled.roundoff(dtype))


def test_the_roundoff_is_far_below_the_square_of_half_the_digits() -> None:
    assert doubled.roundoff("float64") == 2.0**-101
    assert doubled.roundoff("float32") == 2.0**-43


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_nan_are_what_they_are(dtype: str) -> None:
    zero = doubled.zeros((1,), dtype)
    x = Doubled(jnp.asarray([1.5], dtype), jnp.zeros(1, dtype))
    assert exact(doubled.add(x, zero)).tolist() == [Fraction(3, 2)]
    assert exact(doubled.multiply(x, zero)).tolist() == [0]
    assert exact(doubled.divide(zero, x)).tolist() == [0]
    nan = Doubled(jnp.asarray([jnp.nan], dtype), jnp.zeros(1, dtype))
    for operate, *_ in OPERATIONS.values():
        assert np.isnan(operate(x, nan).high).all()


@pytest.mark.parametrize("ulps", [0, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_roots_and_quotients_are_right_to_a_roundoff(dtype: str, ulps: int) -> None:
    """From those of this device, and from ones that are off as a GPU's may be."""
    x, y = jnp.abs(drawn(dtype, 1)), drawn(dtype, 2)
    eps = float(formats.finfo(dtype).eps)
    root, quotient = jnp.sqrt(x) * (1 + ulps * eps), x / y * (1 - ulps * eps)
    # What corrects is itself off by a few eps, of the few that it corrects.
    most = Fraction(eps) / 2 * (1 + 64 * Fraction(eps))
    for found in (doubled.root(x), doubled._nearer_root(x, root)):
        assert all(
            abs(1 - r * r / a) <= 2 * most + most**2
            for r, a in zip(exact(found), exact(x), strict=True)
        )
    for found in (doubled.quotient(x, y), doubled._nearer_quotient(x, y, quotient)):
        exactly = exact(x) / exact(y)
        assert all(abs(1 - q / a) <= most for q, a in zip(exact(found), exactly, strict=True))
    edges = jnp.asarray([0.0, jnp.inf, jnp.nan], dtype)
    np.testing.assert_array_equal(doubled._nearer_root(edges, edges), edges)
    np.testing.assert_array_equal(doubled._nearer_quotient(edges, edges**0, edges), edges)
