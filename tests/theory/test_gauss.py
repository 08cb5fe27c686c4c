"""Gaussian averages: by rules and in closed form, and where these have no digits to lose."""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from gradlab.models.activations import PHI
from gradlab.theory import gauss

# ---- rules and closed forms


def by_mpmath(f: Any, q: Any, kinks: Any) -> Any:
    """E f(√q z), by adaptive quadrature in arbitrary precision, split where f bends."""
    scale = 1 / mp.sqrt(q)
    points = {mp.mpf(-10), mp.mpf(10), mp.mpf(0), *(k * scale for k in kinks)}
    points |= {sign * width for sign in (-1, 1) for width in (scale, 4 * scale, mp.mpf(3))}
    inside = sorted(point for point in points if abs(point) <= 10)
    return mp.quad(lambda z: f(z / scale) * mp.npdf(z), inside)


REFERENCES = {
    "tanh": (mp.tanh, lambda h: mp.sech(h) ** 2),
    "softplus": (lambda h: mp.log1p(mp.exp(h)), lambda h: 1 / (1 + mp.exp(-h))),
    "hard_tanh": (lambda h: max(min(h, 1), -1), lambda h: mp.mpf(abs(h) < 1)),
    "elu": (
        lambda h: h if h > 0 else mp.expm1(h),
        lambda h: mp.mpf(1) if h > 0 else mp.exp(h),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_quadrature_agrees_with_arbitrary_precision(name: str) -> None:
    phi, (f, df) = PHI[name], REFERENCES[name]
    rule = jax.jit(lambda q: (gauss.moments(phi).square(q), gauss.moments(phi).slope_square(q)))
    for q in (1e-3, 1.0, 30.0):
        for measured, g in zip(rule(q), (f, df), strict=True):
            expected = by_mpmath(lambda h, g=g: g(h) ** 2, mp.mpf(q), phi.kinks)
            # 1e-13: the ends of the double exponential rule, and rounding.
            assert float(measured) == pytest.approx(float(expected), rel=1e-13)


@pytest.mark.parametrize("name", gauss.CLOSED)
def test_closed_forms_agree_with_quadrature(name: str) -> None:
    known, rule = gauss.CLOSED[name], gauss.Quadrature(PHI[name])
    q, c = (
        x.ravel()
        for x in jnp.meshgrid(jnp.asarray([0.01, 1.0, 8.0]), jnp.asarray([-0.9, 0.0, 0.5, 0.99]))
    )

    def every(moments: Any) -> Any:
        one = [moments.square(q), moments.slope_square(q)]
        pairs = (moments.pair, moments.slope_pair)
        return one + [f(q, c) for f in pairs] + [moments.gap(q, 1 - c)]

    def by_rule(q: Any, c: Any) -> Any:
        return [
            rule.square(q),
            rule.slope_square(q),
            rule.pair(q, c),
            rule.slope_pair(q, c),
            rule.gap(q, 1 - c),
        ]

    measured = jax.jit(jax.vmap(by_rule))(q, c)
    for closed, numeric in zip(every(known), measured, strict=True):
        # 1e-11: the rule at the kinks of relu; absolute, since averages may be 0.
        np.testing.assert_allclose(numeric, closed, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["tanh", "hard_tanh"])
def test_pairs_obey_prices_theorem_and_have_the_right_ends(name: str) -> None:
    phi, c, h = gauss.moments(PHI[name]), 0.6, 1e-4
    q = jnp.asarray(2.0)

    def every(q: Any) -> Any:
        difference = (phi.pair(q, jnp.asarray(c + h)) - phi.pair(q, jnp.asarray(c - h))) / (2 * h)
        zero, one = jnp.asarray(0.0), jnp.asarray(1.0)
        mean = gauss.expect(PHI[name], q, PHI[name].kinks)
        return {
            # d/dc E phi phi = q E phi' phi' (Price 1958); 1e-7: the difference's h².
            "slope": (difference / q, phi.slope_pair(q, jnp.asarray(c)), 1e-7),
            "at c = 0": (phi.pair(q, zero), mean * mean, 1e-11),
            "at c = 1": (phi.pair(q, one), phi.square(q), 1e-11),
            "gap": (phi.gap(q, 1 - c * one), phi.square(q) - phi.pair(q, c * one), 1e-11),
        }

    for what, (measured, expected, error) in jax.jit(every)(q).items():
        np.testing.assert_allclose(measured, expected, atol=float(error), err_msg=what)


# ---- where closed forms have no digits to lose

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
    with mp.workdps(110):  # of differences of 1e-84 beside 1
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
            np.testing.assert_allclose(
                row[normal], np.array(expected, float)[normal], rtol=12 * eps
            )


def test_the_average_of_two_sines_is_odd_in_their_correlation_for_long_states_too() -> None:
    pair, c = gauss.CLOSED["sin"].pair, jnp.asarray([0.3, 0.999, 1.0])
    with mp.workdps(30):
        for q in (0.5, 400.0, 1e4):
            length = jnp.asarray(q)
            expected = [
                float(
                    (mp.exp(-q * (1 - mp.mpf(float(x)))) - mp.exp(-q * (1 + mp.mpf(float(x))))) / 2
                )
                for x in c
            ]
            # The rounding of q (1 - c) is as much larger in the power.
            np.testing.assert_allclose(pair(length, c), expected, rtol=4e-16 * (1 + q), atol=1e-300)
            np.testing.assert_array_equal(pair(length, -c), -pair(length, c))
            slope = jax.grad(lambda x, length=length: pair(length, x))(0.0)
            assert float(slope) == pytest.approx(
                float(q * mp.exp(-q)), rel=1e-15 * (1 + q), abs=1e-300
            )
