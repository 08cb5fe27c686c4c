"""Clipping and recurrence as mathematics: the formula, Pascanu's wall, latches, Adam.

`tau` is the threshold, of the same units as the norm; norms are Euclidean.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from gradlab.theory import gauss

_finfo: Any = jnp.finfo  # JAX gives it no types.

# The largest |phi'|, gamma in Pascanu et al. 2013, section 2.1.
GAMMA = {"linear": 1.0, "tanh": 1.0, "logistic": 0.25, "relu": 1.0, "hard_tanh": 1.0, "sin": 1.0}


# ---- the formula: Pascanu, Mikolov and Bengio 2013, algorithm 1


def factor(norm: ArrayLike, tau: ArrayLike) -> Array:
    """`tau/max(norm, tau)`: what every entry of a gradient is multiplied by; 1 up to tau."""
    norm, tau = jnp.asarray(norm, float), _threshold(tau)
    return tau / jnp.maximum(norm, tau)


def clipped(g: ArrayLike, tau: ArrayLike) -> Array:
    """`g tau/max(‖g‖, tau)`, of the shape of `g`: the direction is kept, the norm capped."""
    g = jnp.asarray(g, float)
    largest = jnp.max(jnp.abs(g))
    safe = jnp.where(largest > 0, largest, 1.0)  # so that the squares stay in range
    return g * factor(safe * jnp.sqrt(jnp.sum(jnp.square(g / safe))), tau)


def norm_after(norm: ArrayLike, tau: ArrayLike) -> Array:
    """`min(norm, tau)`: the norm of a clipped gradient."""
    return jnp.minimum(jnp.asarray(norm, float), _threshold(tau))


# ---- the formula in whole numbers

_UNIT = 1200  # every float is a whole number of 2^-_UNIT


def ulps_below(g: Array, tau: Array, result: Array) -> Array:
    """How many ulps each entry of a result is below `g tau/max(‖g‖, tau)`, toward 0, `(n,)`.

    In whole numbers, and so to the last digit; nan where a number is not finite.

    Args:
        g: the gradient's entries, `(n,)`, in any float format.
        tau: the threshold, in any float format.
        result: what is held against the exact value, of the shape and format of `g`.
    """
    answer = jax.ShapeDtypeStruct(g.shape, jnp.zeros(()).dtype)
    below: Array = jax.pure_callback(
        _ulps_below, answer, g, tau[..., None], result, vmap_method="broadcast_all"
    )
    return below


def _ulps_below(*arrays: Any) -> Any:
    arrays = tuple(map(np.asarray, arrays))
    g, tau, result = map(_whole, arrays)
    square = np.maximum(np.sum(g * g, axis=-1, keepdims=True), tau * tau)
    exact = np.frompyfunc(math.isqrt, 1, 1)((g * tau) ** 2 // np.maximum(square, 1))
    info = _finfo(arrays[0].dtype)
    length = np.frompyfunc(int.bit_length, 1, 1)(exact)
    ulp = 1 << (np.maximum(length - 1, _UNIT + int(info.minexp)) - info.nmant)
    below = ((exact - result * np.where(g < 0, -1, 1)) / ulp).astype(float)
    finite = np.broadcast_arrays(*(np.isfinite(array.astype(np.float64)) for array in arrays))
    known = np.logical_and.reduce(finite).all(axis=-1, keepdims=True)
    return np.where(known, below, np.nan).astype(jax.dtypes.canonicalize_dtype(float))


def _whole(numbers: Any) -> Any:
    """Floats as whole numbers of 2^-_UNIT, of any length; 0 for those that are not finite.

    By their bits, because the processor takes subnormal numbers for 0 while XLA runs.
    """
    info = _finfo(numbers.dtype)
    bits = numbers.view(f"u{numbers.dtype.itemsize}").astype(object)
    power = (bits >> info.nmant) & ((1 << info.nexp) - 1)
    digits = (bits & ((1 << info.nmant) - 1)) + np.where(power > 0, 1 << info.nmant, 0)
    size = digits << (np.maximum(power, 1) - 1 + int(info.minexp) - info.nmant + _UNIT)
    return np.where(power < (1 << info.nexp) - 1, size * (1 - 2 * (bits >> (info.bits - 1))), 0)


# ---- recurrent chains


def vanishing_threshold(activation: str) -> float:
    """`1/gamma`: a largest singular value of W below it suffices for the gradient to vanish.

    Above it is necessary for exploding: Pascanu et al. 2013, section 2.1.
    """
    if activation not in GAMMA:
        raise ValueError(f"gamma is known for {', '.join(GAMMA)}, not for {activation!r}.")
    return 1 / GAMMA[activation]


def wall_offset(w: ArrayLike, x_0: ArrayLike) -> Array:
    """`x_0 - w sigma(x_0)`: the b at which x_t = w sigma(x_{t-1}) + b stays at x_0."""
    x_0 = jnp.asarray(x_0, float)
    return x_0 - jnp.asarray(w, float) * jax.nn.sigmoid(x_0)


def wall_factor(w: ArrayLike, x_0: ArrayLike) -> Array:
    """`m = w sigma'(x_0)`: dx_t/dx_{t-1} wherever x_t stays at x_0."""
    w, x_0 = jnp.asarray(w, float), jnp.asarray(x_0, float)
    return w * jax.nn.sigmoid(x_0) * jax.nn.sigmoid(-x_0)


def wall_growth(w: ArrayLike, x_0: ArrayLike, depth: ArrayLike) -> Array:
    """`1 + m + ... + m^(depth - 1)`, m = `wall_factor`: dx_depth/db on b = `wall_offset`, w > 0."""
    m, depth = wall_factor(w, x_0), jnp.asarray(depth, float)
    apart = jnp.where(m == 1, 2.0, m)
    return jnp.where(m == 1, depth, jnp.expm1(depth * jnp.log(apart)) / (apart - 1))


def wall_gradient(w: ArrayLike, x_0: ArrayLike, target: ArrayLike, depth: ArrayLike) -> Array:
    """The norm of the gradient of (sigma(x_depth) - target)² in (w, b), on b = `wall_offset`.

    Pascanu et al. 2013, figure 6 (x_0 = 0.5, target 0.7, depth 50), with m = w sigma'(x_0):
    `2 |sigma - target| sigma' √(1 + sigma²) (m^depth - 1)/(m - 1)`; derived, for w > 0.
    """
    x_0, target = jnp.asarray(x_0, float), jnp.asarray(target, float)
    level = jax.nn.sigmoid(x_0)
    outer = 2 * jnp.abs(level - target) * wall_factor(1.0, x_0)
    return outer * jnp.sqrt(1 + level * level) * wall_growth(w, x_0, depth)


def latch(w: ArrayLike) -> tuple[Array, Array]:
    """The stable x* >= 0 of x = w tanh x, w > 0, and the Jacobian `w sech²(x*)` there, below 1.

    Bengio, Simard and Frasconi 1994: a cell that remembers cannot pass a gradient. x* is 0 for
    w <= 1; above, the positive fixed point.
    """
    w = jnp.asarray(w, float)
    holds = w > 1
    w_latch = jnp.where(holds, w, 2.0)

    def newton(x: Array, _: None) -> tuple[Array, None]:
        excess = w_latch * jnp.tanh(x) - x
        return x - excess / (w_latch * jnp.square(1 / jnp.cosh(x)) - 1), None

    # The excess is concave and x = w beyond its root, so that the iteration falls to the root.
    x, _ = jax.lax.scan(newton, w_latch, None, length=64)
    x = jnp.where(holds, x, 0.0)
    return x, w * jnp.square(1 / jnp.cosh(x))


def gate_log_mean(bias: ArrayLike, variance: ArrayLike) -> Array:
    """`E log sigma(bias + √variance z)`: nats a step that a gate keeps of its state's gradient.

    Derived: where the gates of an LSTM or a GRU read independent inputs alone, dc_T/dc_(T-k) is the
    product of k gates (Gers, Schmidhuber and Cummins 2000).
    """
    b = jnp.asarray(bias, float)
    return gauss.expect(lambda h: jax.nn.log_sigmoid(b + h), jnp.asarray(variance, float), ())


# ---- when clipping harms


def adam_fraction(
    gradient: ArrayLike, norm: ArrayLike, tau: ArrayLike, epsilon: ArrayLike
) -> Array:
    """The part of its step that Adam still takes along an entry of a clipped, steady gradient.

    `a/(a + epsilon)`, a = |gradient| tau/max(norm, tau): one wild layer makes the norm large, and
    healthy entries fall under epsilon (Kingma and Ba 2015, algorithm 1, with steady moments).
    """
    size = jnp.abs(jnp.asarray(gradient, float)) * factor(norm, tau)
    return size / (size + jnp.asarray(epsilon, float))


def _threshold(tau: ArrayLike) -> Array:
    if isinstance(tau, int | float) and not tau > 0:
        raise ValueError(f"tau is a positive threshold, not {tau}.")
    return jnp.asarray(tau, float)
