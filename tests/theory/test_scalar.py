import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from gradlab.theory import scalar

GRID = (0.2, 0.3, 0.5, 0.6, 0.9, 0.99, 1.01, 1.1, 1.5, 2.0, -0.9, -1.1)


def test_the_product_is_w_to_the_depth() -> None:
    # Half a unit of the last digit given.
    assert float(scalar.product(0.9, 50)) == pytest.approx(0.00515378, abs=5e-9)
    assert float(scalar.product(1.1, 50)) == pytest.approx(117.391, abs=5e-4)
    for w in (0.9, 1.1, -0.7):
        exact = float(mp.mpf(w) ** 301)
        assert float(scalar.product(w, 301)) == pytest.approx(exact, rel=301 * 2**-53)  # rounding


def test_the_logarithm_is_a_line_of_slope_log10_w_and_stays_finite() -> None:
    depth = jnp.asarray([1.0, 1e3, 1e6])
    for w in (0.9, 1.1, -2.0):
        exact = [float(int(d) * mp.log10(abs(mp.mpf(w)))) for d in depth]
        np.testing.assert_allclose(scalar.log10_product(w, depth), exact, rtol=1e-14)  # rounding
    weights = jnp.asarray([0.0, 0.5, math.inf])
    np.testing.assert_array_equal(
        scalar.log10_product(weights, 3), [-math.inf, 3 * math.log10(0.5), math.inf]
    )
    np.testing.assert_array_equal(scalar.log10_product(weights, 0), np.zeros(3))
    np.testing.assert_array_equal(scalar.derivative(weights, 0, 2.0), np.zeros(3))


def test_the_limit_is_0_1_or_infinite_and_does_not_exist_from_minus_1_down() -> None:
    w = jnp.asarray([0.0, 0.999, -0.999, 1.0, 1.001, -1.0, -1.5, jnp.nan])
    expected = [0, 0, 0, 1, math.inf, math.nan, math.nan, math.nan]
    np.testing.assert_array_equal(scalar.limit(w), expected)
    far = scalar.product(w[:5], 10**6)  # where float64 has reached it
    np.testing.assert_array_equal(far, expected[:5])


def test_the_derivative_for_the_shared_weight_is_that_of_the_product() -> None:
    def x_t(w: Any) -> Any:
        return jax.lax.fori_loop(0, 30, lambda _, x: w * x, 0.5)

    for w in (0.9, 1.0, -1.1):
        measured = jax.jacfwd(x_t)(w)
        predicted = scalar.derivative(w, 30, 0.5)
        np.testing.assert_allclose(predicted, measured, rtol=60 * 2**-52)  # rounding of 60 steps


# ---- floating point formats, against exact integer arithmetic


def rounded(x: Any, format_: Any) -> Any:
    """`x`, a Fraction, to the nearest number of the format, ties to even; inf beyond."""
    if x == 0:
        return x
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, format_.min_exponent) - format_.num_bits + 1)
    nearest = round(x / unit) * unit
    return math.inf if abs(nearest) >= Fraction(2) ** (format_.max_exponent + 1) else nearest


def products(w: Any, format_: Any, flushed: Any, num: Any) -> Any:
    """The running product, layer by layer, as the format has it."""
    w, z = rounded(Fraction(w), format_), Fraction(1)
    for _ in range(num):
        z = rounded(w * z, format_)
        if flushed and abs(z) < Fraction(2) ** format_.min_exponent:
            z = Fraction(0)
        yield z
        if z in (0, math.inf):
            return


@pytest.mark.parametrize("name", scalar.FORMATS)
def test_a_format_is_what_numpy_and_jax_say_it_is(name: str) -> None:
    format_, info = scalar.FORMATS[name], jnp.finfo(name)
    assert 2.0**format_.log2_smallest_normal == float(info.tiny)
    assert 2.0 * format_.unit == float(info.eps)
    assert 2.0 ** min(format_.log2_overflow, 1023.5) >= float(info.max) / 2
    below = Fraction(float(info.max))
    assert rounded(below, format_) == below
    assert rounded(below * (1 + Fraction(format_.unit)), format_) == math.inf


@pytest.mark.parametrize("name", scalar.FORMATS)
def test_a_weight_is_rounded_as_the_format_rounds_it(name: str) -> None:
    format_ = scalar.FORMATS[name]
    rng = np.random.default_rng(0)
    edges = np.array([1 / 3, 1, float(jnp.finfo(name).max), float(jnp.finfo(name).tiny)])
    with np.errstate(over="ignore"):
        some = np.outer(edges, rng.uniform(0.1, 1.2, 50)).ravel()
    halfway = float(format_.unit) + np.array([1.0, 1 + 2 * format_.unit])
    w = np.concatenate([some, -some, halfway, [0.0, 2.0 ** (format_.log2_smallest - 1)]])
    w = w[np.isfinite(w) & ((np.abs(w) >= 2.0**-1022) | (w == 0))]  # float64 as XLA has it
    expected = [float(rounded(Fraction(x), format_)) for x in np.abs(w)]
    np.testing.assert_array_equal(jax.jit(format_.rounded)(np.abs(w)), expected)
    np.testing.assert_array_equal(format_.rounded(w), np.copysign(expected, w))


@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "gradual"])
@pytest.mark.parametrize("name", scalar.FORMATS)
def test_the_product_is_0_at_the_depth_predicted(name: str, flushed: bool) -> None:
    format_ = scalar.FORMATS[name]
    for w in GRID:
        predicted = float(scalar.depth_of_zero(w, name, flushed))
        if abs(w) > 1:
            assert predicted == math.inf
            continue
        if predicted > 10_000 and flushed:
            continue  # float64 at 0.99: minutes of integer arithmetic
        run = list(products(w, format_, flushed, 2500 if predicted == math.inf else 9000))
        if predicted == math.inf:
            assert run[-1] != 0
        else:
            # Rounding, by the bound; one layer for the last subnormal roundings.
            slack = float(scalar.depth_uncertainty(w, name, predicted)) + (not flushed)
            assert run[-1] == 0
            assert abs(len(run) - predicted) <= slack


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_gradual_underflow_holds_the_product_at_the_value_predicted(name: str) -> None:
    for w in (0.6, 0.9, 0.95):
        *_, last = products(w, scalar.FORMATS[name], flushed=False, num=4000)
        assert float(last) == float(scalar.held_at(w, name)) > 0
    np.testing.assert_array_equal(scalar.held_at(jnp.asarray([0.4, 1.0]), name), [0, math.nan])


@pytest.mark.parametrize("name", scalar.FORMATS)
def test_the_product_overflows_at_the_depth_predicted(name: str) -> None:
    for w in GRID:
        predicted = float(scalar.depth_of_inf(w, name))
        if abs(w) < 1:
            assert predicted == math.inf
        elif predicted < 10_000:
            run = list(products(abs(w), scalar.FORMATS[name], flushed=True, num=20_000))
            slack = float(scalar.depth_uncertainty(w, name, predicted))  # rounding, by the bound
            assert run[-1] == math.inf
            assert abs(len(run) - predicted) <= slack


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_the_product_is_not_wrong_before_the_depth_predicted(name: str) -> None:
    for w in GRID:
        first = int(scalar.depth_of_error(w, name, 0.01))
        exact = Fraction(1)
        for z in products(w, scalar.FORMATS[name], flushed=True, num=min(first - 1, 1000)):
            exact *= Fraction(w)
            assert z != math.inf
            assert abs(z / exact - 1) <= Fraction(1, 100)


def test_known_depths() -> None:
    # Measured in float32 on XLA, CPU: 0 from 829 on.
    assert float(scalar.depth_of_zero(0.9, "float32", True)) == 829
    assert float(scalar.depth_of_zero(1.0, "float32", True)) == math.inf
    assert float(scalar.depth_of_inf(1.0, "float32")) == math.inf


@pytest.mark.parametrize("name", scalar.FORMATS)
def test_a_weight_that_is_no_number_has_no_depth(name: str) -> None:
    depths = [scalar.depth_of_zero(math.nan, name, flushed) for flushed in (True, False)]
    depths += [f(math.nan, name) for f in (scalar.depth_of_subnormal, scalar.depth_of_inf)]
    assert np.isnan(depths).all()


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="a format is one of float16, .* not 'float8'"):
        scalar.depth_of_inf(2.0, "float8")
