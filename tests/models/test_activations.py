from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from gradlab.models.activations import LEAK, PHI

# The error allowed, in units in the last place. One rounding for the short types, which are
# evaluated in float32 (0.5, and what float32's own error adds). For the others: exp and tanh of
# XLA are right to 1 and 7 units, a square doubles that, and four or five operations follow.
ULPS = {"float16": 0.51, "bfloat16": 0.51, "float32": 10.0, "float64": 10.0}
DTYPES = tuple(ULPS)
Real = Callable[[Any], Any]


@dataclass(frozen=True)
class Exact:
    """phi and its derivatives in arbitrary precision, and the sizes of the terms that cancel."""

    derivatives: tuple[Real, Real, Real]
    terms: tuple[Real | None, Real | None, Real | None] = (None, None, None)


def sigma(h: Any) -> Any:
    return 1 / (1 + mp.exp(-h))


def dsigma(h: Any) -> Any:
    return mp.sech(h / 2) ** 2 / 4


def cdf(h: Any) -> Any:
    if abs(h) > 1e4:  # mpmath would convert it to a float
        return mp.mpf(h > 0)
    return mp.erfc(-h / mp.sqrt(2)) / 2


def gauss(h: Any) -> Any:
    return mp.exp(-h * h / 2) / mp.sqrt(2 * mp.pi)


def step(left: Any, right: Any) -> Any:
    return lambda h: right(h) if h > 0 else left(h)


def const(value: Any) -> Any:
    return lambda _: mp.mpf(value)


def scaled_elu(scale: Any, alpha: Any) -> Any:
    return (
        step(lambda h: scale * alpha * mp.expm1(h), lambda h: scale * h),
        step(lambda h: scale * alpha * mp.exp(h), const(scale)),
        step(lambda h: scale * alpha * mp.exp(h), const(0)),
    )


SELU = (mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717"))
EXACT = {
    "linear": Exact((lambda h: h, const(1), const(0))),
    "tanh": Exact(
        (mp.tanh, lambda h: mp.sech(h) ** 2, lambda h: -2 * mp.tanh(h) * mp.sech(h) ** 2)
    ),
    "logistic": Exact((sigma, dsigma, lambda h: -dsigma(h) * mp.tanh(h / 2))),
    "erf": Exact(
        (
            mp.erf,
            lambda h: 2 / mp.sqrt(mp.pi) * mp.exp(-h * h),
            lambda h: -4 * h / mp.sqrt(mp.pi) * mp.exp(-h * h),
        )
    ),
    "softsign": Exact(
        (
            lambda h: h / (1 + abs(h)),
            lambda h: 1 / (1 + abs(h)) ** 2,
            lambda h: -2 * mp.sign(h) / (1 + abs(h)) ** 3,
        )
    ),
    "hard_tanh": Exact(
        (lambda h: max(min(h, mp.mpf(1)), mp.mpf(-1)), lambda h: mp.mpf(abs(h) < 1), const(0))
    ),
    "sin": Exact((mp.sin, mp.cos, lambda h: -mp.sin(h))),
    "relu": Exact((step(const(0), lambda h: h), step(const(0), const(1)), const(0))),
    "leaky_relu": Exact(
        (step(lambda h: mp.mpf(LEAK) * h, lambda h: h), step(const(LEAK), const(1)), const(0))
    ),
    "elu": Exact(scaled_elu(mp.mpf(1), mp.mpf(1))),
    "selu": Exact(scaled_elu(*SELU)),
    "gelu": Exact(
        (
            lambda h: h * cdf(h),
            lambda h: cdf(h) + h * gauss(h),
            lambda h: (2 - h * h) * gauss(h),
        ),
        (None, lambda h: cdf(h) + abs(h) * gauss(h), None),
    ),
    "silu": Exact(
        (
            lambda h: h * sigma(h),
            lambda h: sigma(h) + h * dsigma(h),
            lambda h: dsigma(h) * (2 - h * mp.tanh(h / 2)),
        ),
        (
            None,
            lambda h: sigma(h) + abs(h) * dsigma(h),
            lambda h: dsigma(h) * (2 + h * mp.tanh(h / 2)),
        ),
    ),
    "softplus": Exact((lambda h: mp.log1p(mp.exp(h)), sigma, dsigma)),
}
# The limits at -inf and at +inf of phi, phi', phi''; nan where there is none.
LIMITS = {
    "linear": ((-np.inf, 1, 0), (np.inf, 1, 0)),
    "tanh": ((-1, 0, 0), (1, 0, 0)),
    "logistic": ((0, 0, 0), (1, 0, 0)),
    "erf": ((-1, 0, 0), (1, 0, 0)),
    "softsign": ((-1, 0, 0), (1, 0, 0)),
    "hard_tanh": ((-1, 0, 0), (1, 0, 0)),
    "sin": ((np.nan,) * 3, (np.nan,) * 3),
    "relu": ((0, 0, 0), (np.inf, 1, 0)),
    "leaky_relu": ((-np.inf, LEAK, 0), (np.inf, 1, 0)),
    "elu": ((-1, 0, 0), (np.inf, 1, 0)),
    "selu": ((float(-SELU[0] * SELU[1]), 0, 0), (np.inf, float(SELU[0]), 0)),
    "gelu": ((0, 0, 0), (np.inf, 1, 0)),
    "silu": ((0, 0, 0), (np.inf, 1, 0)),
    "softplus": ((0, 0, 0), (np.inf, 1, 0)),
}


def derivatives(name: str) -> Any:
    phi = PHI[name]
    return phi, jax.vmap(jax.grad(phi)), jax.vmap(jax.grad(jax.grad(phi)))


def grid(dtype: Any) -> Any:
    """Both signs, log-spaced from underflow to overflow, and dense where the tails decay."""
    info = jnp.finfo(dtype)
    whole = np.geomspace(float(info.tiny) * 2, float(info.max) / 2, 40)
    tails = np.linspace(0.05, {"float16": 20, "float64": 760}.get(dtype, 110), 80)
    near = np.linspace(0.03, 14, 80)  # of gelu and erf, and where terms cancel
    h = jnp.asarray(np.concatenate([whole, tails, near]), dtype)
    return jnp.concatenate([-h, h])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PHI)
def test_it_is_right_to_a_few_units_over_the_whole_float_range(name: str, dtype: Any) -> None:
    h, exact = grid(dtype), EXACT[name]
    measured = jax.jit(lambda h: [f(h) for f in derivatives(name)])(h)
    for f, terms, values in zip(exact.derivatives, exact.terms, measured, strict=True):
        with mp.workdps(60):
            for x, y in zip(as_floats(h), as_floats(values), strict=True):
                expected = f(mp.mpf(x))
                size = abs(expected) if terms is None else terms(mp.mpf(x))
                assert abs(mp.mpf(y) - expected) <= allowed(size, dtype), (x, y, expected)


def allowed(size: Any, dtype: Any) -> Any:
    """The error allowed where the exact result, or the terms that cancel in it, are of `size`."""
    info = jnp.finfo(dtype)
    unit = float(info.eps) * mp.mpf(2) ** mp.floor(mp.log(size, 2)) if size else mp.mpf(0)
    if size > 2 * float(info.tiny):
        return ULPS[dtype] * unit
    # What is below the smallest normal number is flushed to 0 by XLA on CPU, except in float16,
    # which is rounded from float32 to its own subnormals.
    return max(ULPS[dtype] * unit, ULPS[dtype] * 2**-24 if dtype == "float16" else info.tiny)


def as_floats(x: Any) -> Any:
    return [float(value) for value in x.astype(jnp.float64)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PHI)
def test_at_infinity_it_has_its_limits_and_nan_stays_nan(name: str, dtype: Any) -> None:
    h = jnp.asarray([-jnp.inf, jnp.inf, jnp.nan], dtype)
    measured = jax.jit(lambda h: [f(h) for f in derivatives(name)])(h)
    limits = [[*both, np.nan] for both in zip(*LIMITS[name], strict=True)]
    for order, (values, expected) in enumerate(zip(measured, limits, strict=True)):
        num = 2 if order == 2 or (order == 1 and name == "linear") else 3  # constants at nan
        # A limit that is a product of constants (SELU's) is right to its last place.
        rounded = jnp.asarray(expected[:num], dtype).astype(float)
        ulp = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(values[:num].astype(float), rounded, rtol=ulp, atol=0)


@pytest.mark.parametrize("name", PHI)
def test_every_mode_of_differentiation_uses_the_closed_form(name: str) -> None:
    phi = PHI[name]
    h = jnp.asarray([-12.3, -0.7, 0.0, 0.4, 1.0, 9.1], jnp.float32)
    both = (jax.jacfwd, jax.jacrev)

    def modes(h: Any) -> Any:
        first = [jnp.diag(mode(phi)(h)) for mode in both]
        first.append(jax.jvp(phi, (h,), (jnp.ones_like(h),))[1])
        first.append(jax.linearize(phi, h)[1](jnp.ones_like(h)))
        twice = [outer(inner(phi))(h) for outer in both for inner in both]
        second = [jnp.diagonal(jnp.diagonal(hessian)) for hessian in twice]
        return phi.dphi(h), first, phi.d2phi(h), second

    slope, first, curvature, second = jax.jit(modes)(h)
    # Two units of rounding: one program may contract a product and a sum where another does not.
    for measured in first:
        np.testing.assert_allclose(measured, slope, rtol=2**-22, atol=0)
    for measured in second:
        np.testing.assert_allclose(measured, curvature, rtol=2**-22, atol=0)


def test_the_jacobian_of_a_saturated_layer_is_diag_dphi_times_W() -> None:
    W = jnp.asarray([[30.0, -1.0], [2.0, 40.0]], jnp.float32)
    x = jnp.asarray([1.0, -0.5], jnp.float32)
    J = jax.jacfwd(lambda x: PHI["tanh"](W @ x))(x)
    with mp.workdps(60):
        for i in range(2):
            h = mp.fsum(mp.mpf(float(W[i, k])) * mp.mpf(float(x[k])) for k in range(2))
            for k in range(2):
                expected = mp.sech(h) ** 2 * mp.mpf(float(W[i, k]))
                # Units of rounding of phi', and 2|h| times that of the float32 product h.
                assert abs(mp.mpf(float(J[i, k])) / expected - 1) < 2.0**-24 * (10 + 2 * abs(h))


@pytest.mark.parametrize("name", PHI)
def test_its_derivatives_jump_at_its_kinks_and_nowhere_else(name: str) -> None:
    phi, delta = PHI[name], 1e-9
    points = jnp.asarray([-2.0, -1.0, 0.0, 1.0, 2.0])
    # 1e-6: the change over 2e-9 of a smooth derivative is 1e-8 at most.
    jumps = [jnp.abs(f(points + delta) - f(points - delta)) > 1e-6 for f in (phi.dphi, phi.d2phi)]
    assert tuple(points[jumps[0] | jumps[1]].tolist()) == phi.kinks


def test_what_is_not_a_real_floating_point_number_is_refused() -> None:
    for h in (3, jnp.arange(3), jnp.asarray(1j)):
        with pytest.raises(TypeError, match="floating point numbers, not on"):
            PHI["tanh"](h)


def test_an_activation_is_one_hashable_static_argument() -> None:
    f = jax.jit(lambda phi, h: phi(h), static_argnums=0)
    assert float(f(PHI["relu"], 2.0)) == 2.0
    assert PHI["relu"] in {PHI["relu"], PHI["tanh"]}
