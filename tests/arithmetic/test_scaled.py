from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.arithmetic import scaled
from gradlab.arithmetic.scaled import Scaled

AXES = {"array": None, "matrix": (-2, -1), "column": -2, "entry": ()}
DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
scale = jax.jit(scaled.scale, static_argnums=1)
unscale = jax.jit(scaled.unscale)


def exact(s: Any) -> Any:
    """The numbers that a scaled array stands for, as fractions."""
    mantissa, exponent = np.broadcast_arrays(np.asarray(s.mantissa, float), np.asarray(s.exponent))
    return [
        Fraction(float(m)) * Fraction(2) ** int(e)
        for m, e in zip(mantissa.ravel(), exponent.ravel(), strict=True)
    ]


def numbers(dtype: Any, shape: Any = (2, 3, 4), seed: int = 0, decades: Any = 30) -> Any:
    info = jnp.finfo(dtype)
    reach = min(decades, int(np.log10(float(info.max))) - 1)
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.uniform(-reach, reach, shape), dtype)


@each_dtype
@pytest.mark.parametrize("axis", AXES)
def test_scaling_is_exact_and_puts_the_largest_mantissa_between_one_and_two(
    dtype: Any, axis: Any
) -> None:
    # Within a group nothing is 2^(range) below the largest, so nothing is flushed.
    x = numbers(dtype, decades=2 if dtype == jnp.float16 else 15)
    s = scale(x, AXES[axis])
    assert exact(s) == [Fraction(v) for v in np.asarray(x, float).ravel().tolist()]
    axes = {"array": (0, 1, 2), "matrix": (1, 2), "column": 1, "entry": ()}[axis]
    largest = np.abs(np.asarray(s.mantissa, float)).max(axis=axes)
    assert (largest >= 1).all()
    assert (largest < 2).all()
    np.testing.assert_array_equal(unscale(s).value, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_subnormal_numbers_keep_all_their_digits(dtype: Any) -> None:
    info = np.finfo(dtype)
    x = np.array([info.smallest_subnormal * 5, -info.smallest_subnormal, info.tiny, 0], dtype)
    s = scale(jnp.asarray(x), None)
    assert exact(s) == [Fraction(float(v)) for v in x]


@each_dtype
def test_the_largest_and_the_smallest_numbers_survive(dtype: Any) -> None:
    info = jnp.finfo(dtype)
    x = jnp.asarray([info.max, info.tiny, -info.max], dtype)
    s = scale(x, ())
    assert exact(s) == [Fraction(v) for v in np.asarray(x, float).tolist()]
    np.testing.assert_array_equal(unscale(s).value, x)


@each_dtype
def test_the_exponent_of_the_largest_entry_is_that_of_the_largest_magnitude(dtype: Any) -> None:
    info = jnp.finfo(dtype)
    edges = [[0.0], [info.max], [-info.tiny, 0.0], [1.0, jnp.inf], [1.0, jnp.nan]]
    for x in [numbers(dtype), *(jnp.asarray(edge, dtype) for edge in edges)]:
        expected = scaled.exponent_of(jnp.max(jnp.abs(x)))
        assert scaled.exponent_of_largest(x) == expected


def test_zero_infinity_and_nan_pass_through() -> None:
    x = jnp.asarray([0.0, jnp.inf, -jnp.inf, jnp.nan])
    s = scale(x, ())
    np.testing.assert_array_equal(s.mantissa, x)
    np.testing.assert_array_equal(unscale(s).value, x)
    np.testing.assert_array_equal(scaled.log_magnitude(s), [-np.inf, np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(scaled.sign(s), [0, 1, -1, np.nan])
    assert not unscale(s).overflow.any()
    assert not unscale(s).underflow.any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_conversion_says_where_it_saturates(dtype: Any) -> None:
    exponent = jnp.asarray([[5000, -5000, 0, 3]], jnp.int32)
    got = unscale(Scaled(jnp.asarray([[-1.5, 1.5, 1.5, 1.5]], dtype), exponent))
    np.testing.assert_array_equal(got.value, [[-np.inf, 0, 1.5, 12]])
    np.testing.assert_array_equal(got.overflow, [[True, False, False, False]])
    np.testing.assert_array_equal(got.underflow, [[False, True, False, False]])
    top = int(np.finfo(dtype).maxexp)
    edges = jnp.asarray([[top - 1, top, 2 - top, 1 - top]], jnp.int32)
    got = unscale(Scaled(jnp.ones((1, 4), dtype), edges))
    np.testing.assert_array_equal(got.overflow, [[False, True, False, False]])
    np.testing.assert_array_equal(got.underflow, [[False, False, False, True]])
    assert got.value[0, 0] == 2.0 ** (top - 1)
    assert got.value[0, 2] == np.finfo(dtype).tiny


EXPONENTS = st.integers(-(10**6), 10**6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), e=EXPONENTS, f=EXPONENTS)
def test_products_are_rounded_once_and_nothing_else(seed: int, e: Any, f: Any) -> None:
    a, b = numbers(jnp.float64, (2, 4), seed, 3), numbers(jnp.float64, (2, 4), seed + 1, 3)
    one, other = (Scaled(m, jnp.full((1, 1), k, jnp.int32)) for m, k in ((a, e), (b, f)))
    product = jax.jit(scaled.multiply)(one, other)
    shift = Fraction(2) ** (e + f)
    assert exact(product) == [Fraction(v) * shift for v in np.ravel(a * b).tolist()]
    matrix = jax.jit(scaled.matmul)(one, Scaled(b.T, other.exponent))
    assert exact(matrix) == [Fraction(v) * shift for v in np.ravel(a @ b.T).tolist()]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gap=st.sampled_from([0, 3, -40, 500, -5000, 5000]))
def test_sums_and_norms_are_right_whatever_the_exponents(seed: int, gap: Any) -> None:
    a, b = numbers(jnp.float64, (3, 4), seed, 3), numbers(jnp.float64, (3, 4), seed + 1, 3)
    one = Scaled(a, jnp.zeros((1, 1), jnp.int32))
    other = Scaled(b, jnp.full((1, 1), gap, jnp.int32))
    total = jax.jit(scaled.add)(one, other)
    right = [x + y for x, y in zip(exact(one), exact(other), strict=True)]
    largest = max(abs(v) for v in right)
    # One rounding beside the largest entry, with which a small one shares its exponent.
    for got, r in zip(exact(total), right, strict=True):
        assert abs(got - r) <= abs(r) * Fraction(2) ** -52 + largest * Fraction(2) ** -1020
    columns = Scaled(a, jnp.asarray([[0, gap, 2 * gap, -gap]], jnp.int32))
    norms = jax.jit(scaled.norm, static_argnums=1)(columns, 0)
    logs = np.log(np.linalg.norm(a, axis=0)) + np.array([0, gap, 2 * gap, -gap]) * np.log(2)
    np.testing.assert_allclose(scaled.log_magnitude(norms), logs, rtol=1e-14, atol=1e-14)  # ulps
    whole = scaled.log_magnitude(jax.jit(scaled.norm)(columns))
    np.testing.assert_allclose(whole, np.logaddexp.reduce(2 * logs) / 2, rtol=1e-14, atol=1e-14)


def test_zero_has_no_exponent_in_a_sum_or_a_norm() -> None:
    zero = Scaled(jnp.zeros((2, 2)), jnp.full((1, 1), 10**6, jnp.int32))
    one = scaled.scale(jnp.ones((2, 2)))
    np.testing.assert_array_equal(unscale(scaled.add(zero, one)).value, np.ones((2, 2)))
    columns = Scaled(jnp.asarray([[0.0, 3.0], [0.0, 4.0]]), jnp.asarray([[10**6, 0]], jnp.int32))
    assert unscale(scaled.norm(columns)).value == 5


def test_a_product_over_different_exponents_is_refused() -> None:
    columns = scaled.scale(jnp.ones((2, 2)), -2)
    with pytest.raises(ValueError, match="sums over one exponent"):
        scaled.matmul(columns, columns)
    assert exact(scaled.matmul(scaled.scale(jnp.ones((2, 2))), columns)) == [2, 2, 2, 2]


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="not one of dtype int"):
        scaled.scale(jnp.ones(3, int))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("factor", [0.9, 1.1, -0.999, 1e-30, "random"])
def test_the_log_of_a_million_factors_is_right(factor: float | str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    given = rng.uniform(0.5, 1.5, 10**6) if factor == "random" else np.full(10**6, factor)
    factors = jnp.asarray(given, dtype)
    product = jax.jit(scaled.prod)(factors)
    logs = np.log(np.abs(np.asarray(factors, np.longdouble))).sum()
    # A few ulp of the mantissa; the log's own rounding in float64 (6.9e7 nats at most, 1e-8).
    error = 8 * np.finfo(dtype).eps + 4e-16 * abs(logs)
    assert abs(scaled.log_on_host(product) - logs) < error
    assert scaled.sign(product) == 1
    np.testing.assert_allclose(
        scaled.log_magnitude(product),
        float(logs),
        rtol=3 * np.finfo(dtype).eps,  # its own ulps
    )


def test_what_is_not_finite_and_no_factor_at_all_have_their_product() -> None:
    factors = jnp.asarray([[jnp.inf, -jnp.inf, jnp.inf, jnp.nan, 0.0], [2.0, 3.0, 0.0, 1.0, 5.0]])
    product = scaled.prod(factors)
    np.testing.assert_array_equal(product.mantissa, [jnp.inf, -jnp.inf, jnp.nan, jnp.nan, 0.0])
    np.testing.assert_array_equal(scaled.unscale(scaled.prod(factors[:0])).value, jnp.ones(5))


def test_everything_goes_through_vmap_scan_and_grad() -> None:
    x = jnp.asarray([1e-3, -2.0, 5e200])
    together = jax.vmap(lambda v: scaled.log_magnitude(scaled.scale(v)))(x)
    np.testing.assert_allclose(together, np.log(np.abs(x)), rtol=1e-15)  # an ulp
    slope = jax.grad(lambda v: jnp.sum(scaled.log_magnitude(scaled.scale(v, ()))))(x)
    np.testing.assert_allclose(slope, 1 / x, rtol=1e-15)  # an ulp
    back = jax.grad(lambda v: jnp.sum(scaled.unscale(scaled.scale(v)).value))(x)
    np.testing.assert_array_equal(back, np.ones(3))

    def power(w: Any) -> Any:
        start = scaled.scale(jnp.ones((), w.dtype))
        last, _ = jax.lax.scan(
            lambda s, _: (scaled.multiply(s, scaled.scale(w)), None), start, length=5000
        )
        return scaled.log_magnitude(last)

    value, slope = jax.value_and_grad(power)(jnp.asarray(1e-5))
    # 5000 roundings at random.
    np.testing.assert_allclose(value, 5000 * np.log(1e-5), rtol=1e-13)
    np.testing.assert_allclose(slope, 5000 / 1e-5, rtol=1e-11)
