"""Averages where their own formulas have no digits left: small gaps, long states, c below 0."""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from gradlab.theory import gauss

mp.mp.dps = 110  # of differences of 1e-84 beside 1

EPSILONS = (2.0, 1.7, 1.0, 0.3, 0.012, 0.0049, 1e-4, 1e-8, 1e-16, 1e-30)
LENGTHS = (0.0, 1e-12, 1e-3, 1.0, 30.0, 1e8)


def piecewise_gap(slope: float, q: Any, epsilon: Any) -> Any:
    """The gap in the angle a: odd part epsilon, even part by Cho and Saul's equation 6."""
    odd, even = mp.mpf((1 + slope) / 2) ** 2, mp.mpf((1 - slope) / 2) ** 2
    a = mp.acos(1 - epsilon)
    return q * (odd * epsilon + even * (epsilon - 2 / mp.pi * (mp.sin(a) - a * mp.cos(a))))


def erf_gap(q: Any, epsilon: Any) -> Any:
    """The gap as the difference of Williams's arcsines."""
    a = 2 * q / (1 + 2 * q)
    return 2 / mp.pi * (mp.asin(a) - mp.asin(a * (1 - epsilon)))


def sine_gaps(q: Any, epsilon: Any) -> tuple[Any, Any]:
    """Those of sin and cos, of the characteristic function at the sum and the difference."""
    near, far = mp.exp(-q * epsilon), mp.exp(-q * (2 - epsilon))
    return (1 - mp.exp(-2 * q) - near + far) / 2, (1 + mp.exp(-2 * q) - near - far) / 2


@pytest.mark.parametrize(("dtype", "eps"), [(jnp.float32, 2.0**-23), (jnp.float64, 2.0**-52)])
def test_gaps_keep_all_their_digits_however_small_they_are(dtype: Any, eps: float) -> None:
    def gaps(q: Any, epsilon: Any) -> Any:
        closed = gauss.CLOSED
        return jnp.stack(
            [
                closed["relu"].gap(q, epsilon),
                closed["leaky_relu"].gap(q, epsilon),
                closed["erf"].gap(q, epsilon),
                closed["sin"].gap(q, epsilon),
                closed["sin"].slope_gap(q, epsilon),
            ]
        )

    pairs = jnp.asarray([(q, e) for q in LENGTHS for e in EPSILONS], dtype)
    found = jax.vmap(gaps)(*pairs.T)
    for pair, row in zip(np.asarray(pairs, float), np.asarray(found, float), strict=True):
        q, epsilon = map(mp.mpf, map(float, pair))
        expected = [
            piecewise_gap(0.0, q, epsilon),
            piecewise_gap(0.01, q, epsilon),
            erf_gap(q, epsilon),
            *sine_gaps(q, epsilon),
        ]
        normal = [abs(one) > max(float(np.finfo(dtype).tiny), 1e-90) for one in expected]
        # A few roundings of each formula; of the angle's, above 0.1, ten times as many.
        np.testing.assert_allclose(row[normal], np.array(expected, float)[normal], rtol=12 * eps)


def test_the_average_of_two_sines_is_odd_in_their_correlation_for_long_states_too() -> None:
    pair, c = gauss.CLOSED["sin"].pair, jnp.asarray([0.3, 0.999, 1.0])
    for q in (0.5, 400.0, 1e4):
        length = jnp.asarray(q)
        expected = [
            float((mp.exp(-q * (1 - mp.mpf(float(x)))) - mp.exp(-q * (1 + mp.mpf(float(x))))) / 2)
            for x in c
        ]
        # The rounding of q (1 - c) is as much larger in the power.
        np.testing.assert_allclose(pair(length, c), expected, rtol=4e-16 * (1 + q), atol=1e-300)
        np.testing.assert_array_equal(pair(length, -c), -pair(length, c))
        slope = jax.grad(lambda x, length=length: pair(length, x))(0.0)
        assert float(slope) == pytest.approx(float(q * mp.exp(-q)), rel=1e-15 * (1 + q), abs=1e-300)
