"""Norms of trees against square roots of fractions: below the truth, and by less than an ulp."""

from fractions import Fraction
from math import isqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from gradlab.arithmetic import formats, norms, quick_norms
from gradlab.arithmetic.norms import Number

DTYPES = ("float16", "bfloat16", "float32", "float64")
DIGITS = 300  # bits of a root in fixed point


def fractions(leaves: list[Array]) -> list[Fraction]:
    flat = [value for leaf in leaves for value in np.asarray(leaf).astype(float).ravel().tolist()]
    return [Fraction(value) for value in flat]


def root(square: Fraction) -> Fraction:
    """√ of a fraction, to 300 bits beyond its leading one."""
    if not square:
        return Fraction(0)
    shift = 2 * (DIGITS + square.denominator.bit_length())
    return Fraction(isqrt((square.numerator << shift) // square.denominator), 2 ** (shift // 2))


def value(size: Number) -> Fraction:
    """The number that a mantissa and an exponent mean."""
    parts = Fraction(float(size.mantissa.high)) + Fraction(float(size.mantissa.low))
    return parts * Fraction(2) ** int(size.exponent)


def tree(dtype: str, decades: float, num: int = 40, seed: int = 0) -> list[Array]:
    """Two leaves whose sizes spread over the given part of the format's range."""
    rng = np.random.default_rng(seed)
    info = formats.finfo(dtype)
    low, high = np.log2(float(info.tiny)) + 1, np.log2(float(info.max)) - 1
    middle, half = (low + high) / 2, decades * (high - low) / 2
    sizes = 2.0 ** rng.uniform(middle - half, middle + half, num) * rng.choice([-1, 1], num)
    x = jnp.asarray(sizes).astype(dtype)
    return [x[: num // 3], x[num // 3 :].reshape(-1, 1)]


MEASURE, ROUNDED = jax.jit(norms.measure), jax.jit(norms.rounded)
IS_WITHIN, QUOTIENT = jax.jit(norms.is_within), jax.jit(norms.quotient)
TIMES, UNIT, RATIO = jax.jit(norms.times), jax.jit(norms.unit), jax.jit(norms.ratio)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decades", [0.05, 1.0])
def test_a_norm_is_right_to_its_slack_and_rounded_toward_zero(dtype: str, decades: float) -> None:
    leaves = tree(dtype, decades)
    size = MEASURE(leaves)
    truth = root(sum((x * x for x in fractions(leaves)), Fraction(0)))
    wide = norms.wide(leaves)
    assert wide == (jnp.float64 if dtype == "float64" else jnp.float32)
    assert abs(value(size) / truth - 1) <= Fraction(norms.slack(wide)) / 2
    rounded = ROUNDED(size)
    assert rounded.dtype == wide
    ulp = Fraction(float(np.spacing(np.asarray(rounded))))
    error = truth - Fraction(float(rounded))
    assert -Fraction(norms.slack(wide)) * truth <= error < 2 * ulp


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_pythagoras_in_subnormal_and_in_the_largest_numbers(name: str) -> None:
    info = formats.finfo(name)
    smallest = np.asarray(info.smallest_subnormal, name)
    leaves = [jnp.asarray([3 * smallest]), jnp.asarray([4 * smallest])]
    assert value(MEASURE(leaves)) == 5 * Fraction(float(smallest))
    # Two numbers next to the top have a norm beyond it, which is a number all the same.
    large = [jnp.full(2, info.max, name)]
    top = Fraction(float(info.max))
    slack = Fraction(norms.slack(norms.wide(large)))
    assert abs(value(MEASURE(large)) / (top * root(Fraction(2))) - 1) <= slack
    assert np.isinf(ROUNDED(MEASURE(large))) == (name != "float16")


def test_zero_infinity_and_nan_are_not_masked() -> None:
    x = jnp.asarray([1.0, -2.0])
    assert float(ROUNDED(MEASURE([jnp.zeros(3), jnp.zeros(0)]))) == 0.0
    assert float(ROUNDED(MEASURE([x, jnp.asarray([-jnp.inf])]))) == np.inf
    assert np.isnan(ROUNDED(MEASURE([x, jnp.asarray([jnp.nan, jnp.inf])])))
    for empty in ([], [jnp.zeros(0)]):
        assert float(quick_norms.measure(empty, jnp.float32).root) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_leaf_alone_has_its_own_magnitude(dtype: str) -> None:
    for x in tree(dtype, 1.0)[0]:
        assert value(MEASURE([x[None]])) == abs(Fraction(float(x)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_norm_is_within_itself_and_not_within_one_ulp_less(dtype: str) -> None:
    leaves = [jnp.asarray([3.0, 4.0], dtype)]
    size = MEASURE(leaves)
    five = np.asarray(5, dtype)
    taus = [
        five,
        np.nextafter(five, np.asarray(0, dtype)),
        np.nextafter(five, np.asarray(9, dtype)),
    ]
    inside = [bool(IS_WITHIN(size, jnp.asarray(tau))) for tau in taus]
    assert inside == [True, False, True]
    assert bool(IS_WITHIN(size, jnp.asarray(jnp.inf, dtype)))
    assert not IS_WITHIN(size, jnp.asarray(jnp.nan, dtype))
    assert not IS_WITHIN(MEASURE([jnp.asarray([jnp.nan], dtype)]), jnp.asarray(five))
    assert not IS_WITHIN(MEASURE([jnp.asarray([jnp.inf], dtype)]), jnp.asarray(five))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tau", [1e-30, 0.7, 3.0, 1e30])
def test_a_quotient_by_a_norm_times_it_is_tau(dtype: str, tau: float) -> None:
    size = MEASURE(tree(dtype, 0.05))
    t = jnp.asarray(tau, dtype)
    factor = QUOTIENT(t, size)
    right = Fraction(float(t)) / value(size)
    assert abs(value(factor) / right - 1) <= Fraction(norms.slack(dtype)) / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_leaf_times_a_factor_is_rounded_toward_zero(dtype: str) -> None:
    leaves = tree(dtype, 0.5)
    size = MEASURE(leaves)
    wide = norms.wide(leaves)
    # 3/4 of the norm, over the norm: a factor below 1 with all its digits.
    tau = jnp.asarray(float(value(size) * Fraction(3, 4)), wide)
    factor = QUOTIENT(tau, size)
    exact, slack = value(factor), Fraction(norms.slack(wide))
    info = formats.finfo(dtype)
    for leaf in leaves:
        got = TIMES(leaf, factor)
        assert got.dtype == leaf.dtype
        for x, y in zip(fractions([leaf]), fractions([got]), strict=True):
            most = abs(x) * exact
            ulp = Fraction(float(info.eps)) * most
            subnormal = Fraction(float(info.tiny)) * Fraction(float(info.eps))
            assert most * (1 - slack) - max(ulp, subnormal) <= abs(y) <= most * (1 + slack)
            assert (x > 0) == (y > 0) or y == 0


def test_a_factor_of_no_norm_is_nan_for_a_bad_tau_and_zero_for_an_infinite_norm() -> None:
    size = MEASURE([jnp.asarray([3.0, 4.0])])
    for bad in (-1.0, jnp.nan):
        assert np.isnan(QUOTIENT(jnp.asarray(bad), size).mantissa.high)
    infinite = MEASURE([jnp.asarray([jnp.inf, 1.0])])
    assert float(QUOTIENT(jnp.asarray(1.0), infinite).mantissa.high) == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_part_over_the_whole_and_the_unit_tree_have_their_sizes(dtype: str) -> None:
    leaves = [jnp.asarray([3e-20, 0.0], dtype), jnp.asarray([4e-20], dtype)]
    whole, part = MEASURE(leaves), MEASURE(leaves[:1])
    eps = float(formats.finfo(dtype).eps)
    # 3e-20 and 4e-20 are rounded, and the quotient is.
    np.testing.assert_allclose(RATIO(part, whole), 0.6, rtol=3 * eps)
    np.testing.assert_allclose(UNIT(leaves, whole)[0], [0.6, 0.0], rtol=3 * eps)
    np.testing.assert_allclose(UNIT(leaves, whole)[1], [0.8], rtol=3 * eps)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_norm_of_each_leaf_is_right_at_both_ends_of_the_range(dtype: str) -> None:
    wide = "float64" if dtype == "float64" else "float32"
    info = jnp.finfo(dtype)
    ends = [float(info.tiny) * 4, 2.0**-35, 1.0, float(info.max) / 32]
    leaves = [jnp.asarray([3.0, 4.0], wide).astype(dtype) * end for end in ends]
    sums = jnp.stack([quick_norms.square(leaf, wide) for leaf in leaves])
    found = quick_norms.measure_each(jnp.stack(leaves).astype(wide), np.arange(4), sums)
    exact = [float(np.hypot(*np.asarray(leaf).astype(float))) for leaf in leaves]
    np.testing.assert_allclose(found, exact, rtol=4 * float(jnp.finfo(wide).eps))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_divisor_brings_numbers_near_one_where_its_inverse_is_subnormal(dtype: str) -> None:
    info = jnp.finfo(dtype)
    for largest in (info.max, 0.3 * info.max, 1.0, 4 * info.tiny):
        x = jnp.array([largest, largest / 2], dtype)

        scaled = x / norms.divisor(jnp.max(x))

        assert 1 <= scaled[0] <= 4
        assert scaled[1] == scaled[0] / 2
    assert [norms.divisor(jnp.asarray(x, dtype)).item() for x in (0, jnp.inf, jnp.nan)] == [1, 1, 1]
