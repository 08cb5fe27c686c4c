"""Clipping and recurrence as mathematics: the formula, Pascanu's wall, latches, Adam, descent.

`tau` is the threshold, of the same units as the norm; norms are Euclidean.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
    return jnp.where(norm <= tau, 1.0, tau / jnp.maximum(norm, tau))  # at tau = inf too


def clipped(g: ArrayLike, tau: ArrayLike) -> Array:
    """`g tau/max(‖g‖, tau)`, of the shape of `g`: the direction is kept, the norm capped."""
    g, tau = jnp.asarray(g, float), _threshold(tau)
    largest = jnp.max(jnp.abs(g), initial=0.0)
    # Neither the squares, nor the norm, nor tau over it need be in range; the inverse of the unit,
    # by which XLA divides, is.
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    unit = jnp.minimum(unit, 1 / _finfo(g.dtype).tiny)
    scaled = g / unit
    length = jnp.sqrt(jnp.sum(jnp.square(scaled)))
    return jnp.where(length <= tau / unit, g, scaled / length * tau)


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


# ---- every rule by its own formula, for the formats below float64


def exact_rule(rule: str, leaves: list[Any], tau: float) -> list[Any]:
    """The leaves as a rule should leave them, as numpy arrays in their formats.

    `value` cuts entries, `block rms` leaves by their root mean square and `adaptive` by their norm;
    `if finite` gives 0 where an entry is not finite;
    every other rule is the formula over all leaves: where an entry is infinite its limit, 0 for
    those that are finite and nan for it, and nan everywhere where one is nan.
    """
    wide = [leaf.astype(np.float64) for leaf in leaves]
    size = np.sqrt(sum(np.sum(leaf * leaf) for leaf in wide))
    if rule == "if finite" and not np.isfinite(size):
        done = [np.zeros_like(leaf) for leaf in wide]
    elif rule == "value":
        done = [np.clip(leaf, -tau, tau) for leaf in wide]
    elif rule == "block rms":
        done = [_brought(leaf, np.sqrt(np.mean(leaf * leaf)), tau) for leaf in wide]
    elif rule == "adaptive":
        done = [_brought(leaf, np.sqrt(np.sum(leaf * leaf)), tau) for leaf in wide]
    else:
        done = [_brought(leaf, size, tau) for leaf in wide]
    return [one.astype(leaf.dtype) for one, leaf in zip(done, leaves, strict=True)]


def _brought(leaf: Any, size: float, tau: float) -> Any:
    if size <= tau:
        return leaf
    with np.errstate(invalid="ignore"):
        return leaf * (tau / size)


def sum_derivatives(x: Any, tau: float) -> tuple[Any, Any]:
    """Gradient `(n,)` and Hessian `(n, n)` of the sum of the entries of `x tau/|x|`, in numpy."""
    n, total, size = x.size, x.sum(), np.sqrt(np.sum(x * x))
    gradient = tau * (1 / size - total * x / size**3)
    bent = 3 * total * np.outer(x, x) / size**5
    bent -= (x[:, None] + x[None] + total * np.eye(n)) / size**3
    return gradient, tau * bent


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


def wall_state(w: ArrayLike, b: ArrayLike, x_0: ArrayLike, depth: int) -> tuple[Array, Array]:
    """`x_depth` of x_t = w sigma(x_{t-1}) + b, written out, and how far off another run may be.

    A step rounds by less than eps (4 |w| + |b|), in either run. What two are apart, d, grows by
    |w| sigma' e^d a step at most, since |sigma''| <= sigma', and by |w|/4.
    """
    w, b = jnp.asarray(w, float), jnp.asarray(b, float)
    rounding = 2 * float(_finfo(w.dtype).eps) * (4 * jnp.abs(w) + jnp.abs(b))

    def step(_: int, at: tuple[Array, Array]) -> tuple[Array, Array]:
        x, apart = at
        slope = jnp.minimum(wall_factor(1.0, x) * jnp.exp(jnp.minimum(apart, 1)), 0.25)
        slope = jnp.where(apart < 1, slope, 0.25)
        return w * jax.nn.sigmoid(x) + b, jnp.abs(w) * slope * apart + rounding

    start = jnp.broadcast_to(jnp.asarray(x_0, float), rounding.shape)
    state: tuple[Array, Array] = jax.lax.fori_loop(0, depth, step, (start, 0 * rounding))
    return state


def wall_loss(
    w: ArrayLike, b: ArrayLike, x_0: ArrayLike, target: ArrayLike, depth: int
) -> tuple[Array, Array]:
    """`(sigma(x_depth) - target)²` anywhere, by `wall_state`, and how far off another run may be.

    sigma' is at most 1/4, sigma at most 1, and rounded by 2 eps; difference and square by eps/2.
    """
    x, apart = wall_state(w, b, x_0, depth)
    gap, eps = jax.nn.sigmoid(x) - jnp.asarray(target, float), float(_finfo(x.dtype).eps)
    moved = jnp.minimum(apart / 4, 1) + 4 * eps
    return gap * gap, (2 * jnp.abs(gap) + moved) * moved + 3 * eps * gap * gap


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


class AdamLeft(NamedTuple):
    """What is left of an error, each of the error's shape: bounds, and between them the steady law.

    Attributes:
        low: Adam leaves at least this; 0 or less where nothing is known.
        steady: what it leaves if its moments are those of the present gradient.
        high: it leaves at most this, where `low` is above 0.
    """

    low: Array
    steady: Array
    high: Array


def adam_left(
    error: ArrayLike, slope: ArrayLike, epsilon: ArrayLike, learning_rate: ArrayLike, num_steps: int
) -> AdamLeft:
    """What Adam leaves of an error e > 0 whose gradient is `slope e`, after so many steps.

    Kingma and Ba 2015, algorithm 1. While e falls, both corrected moments are weighted means of
    gradients between the present one and the first, `slope e_0`, so that a step is, over the
    learning rate, at least `slope e / (slope e_0 + epsilon)` and at most
    `slope e_0 / (slope e + epsilon)`; derived. It stalls where `slope e_0` is below epsilon.
    """
    error, slope = jnp.asarray(error, float), jnp.asarray(slope, float)
    first = slope * error

    def step(_: int, left: AdamLeft) -> AdamLeft:
        least = left.low - learning_rate * first / (slope * jnp.maximum(left.low, 0) + epsilon)
        now = slope * left.steady
        return AdamLeft(
            jnp.where(left.low > 0, least, left.low),
            left.steady - learning_rate * now / (now + epsilon),
            left.high - learning_rate * slope * left.high / (first + epsilon),
        )

    start = jnp.broadcast_to(error, first.shape)
    return jax.lax.fori_loop(0, num_steps, step, AdamLeft(start, start, start))


# ---- (L0, L1)-smoothness: Zhang, He, Sra and Jadbabaie 2020, definition 1


def quartic_smoothness(slope: ArrayLike) -> Array:
    """The smallest L0 with `|f''| <= L0 + L1 |f'|` of f = x⁴, L1 = `slope`: 16/L1².

    The largest of 12 x² - 4 L1 |x|³, at |x| = 2/L1; derived.
    """
    return 16 / jnp.square(jnp.asarray(slope, float))


def quartic_fixed_steps(largest: ArrayLike, entries: ArrayLike, gradient: ArrayLike) -> Array:
    """The fewest steps of descent on Σ x_i⁴ with one step size until the gradient's norm is this.

    A step size above 1/(2 M²), M the largest |x_i| at the start, moves that entry away for ever.
    Below it an entry of at most M/2 shrinks by 4 h x² <= 1/2 of itself at most, so that 1/x² grows
    by 12/M² at most; derived. Every entry must come to gradient/4 to the third. 0 where no entry
    is between the two.

    Args:
        largest: M, `(...)`.
        entries: |x_i|, `(..., n)`.
        gradient: the norm at which a descent is at its end.
    """
    largest, entries = jnp.asarray(largest, float), jnp.asarray(entries, float)
    end = jnp.cbrt(jnp.asarray(gradient, float) / 4)
    held = jnp.where((entries <= largest[..., None] / 2) & (entries > end), entries, end)
    growth = jnp.max(1 / jnp.square(end) - 1 / jnp.square(held), axis=-1)
    return growth * jnp.square(largest) / 12


def quartic_clipped_steps(
    largest: ArrayLike,
    num_entries: int,
    learning_rate: ArrayLike,
    tau: ArrayLike,
    gradient: ArrayLike,
) -> Array:
    """The most steps that clipped descent on Σ x_i⁴ takes until the gradient's norm is this.

    While it is clipped the largest |x_i| falls by at least η τ/√n a step, since |g| is at most
    4 √n M³; from then on 1/M² grows by 8 η a step, to the M that is small enough; derived, where
    12 h M² < 1 all the way: no entry passes 0, and the largest stays so.
    """
    root = math.sqrt(num_entries)
    clipped = jnp.asarray(largest, float) * root / (learning_rate * jnp.asarray(tau, float))
    end = jnp.cbrt(jnp.asarray(gradient, float) / (4 * root))
    return clipped + 1 / (8 * jnp.asarray(learning_rate, float) * jnp.square(end)) + 2


# ---- a threshold that follows the norms


def quantile_fires(num_before: ArrayLike, part: ArrayLike) -> Array:
    """How likely the next norm is above the quantile of `num_before` exchangeable ones.

    Ranks of independent draws are uniform (Rényi 1962): of n + 1 the last is above the
    ⌈part n⌉-th smallest of the n before with probability (n + 1 - ⌈part n⌉)/(n + 1); 0 for none.
    """
    n = jnp.asarray(num_before, float)
    rank = jnp.ceil(jnp.asarray(part, float) * n)
    return jnp.where(n > 0, (n + 1 - jnp.maximum(rank, 1)) / (n + 1), 0.0)


# ---- unit by unit: Brock, De, Smith and Simonyan 2021, section 4.1


def unit_factor(
    gradient: ArrayLike, weight: ArrayLike, ratio: ArrayLike, floor: ArrayLike
) -> Array:
    """`min(1, ratio max(|W_i|, floor)/|G_i|)`: what adaptive clipping multiplies a unit by.

    The norms are of one unit's gradient and weights; equation 3.
    """
    gradient, weight = jnp.asarray(gradient, float), jnp.asarray(weight, float)
    longest = ratio * jnp.maximum(weight, floor)
    return jnp.where(gradient > longest, longest / jnp.where(gradient > 0, gradient, 1), 1.0)


def _threshold(tau: ArrayLike) -> Array:
    if isinstance(tau, int | float) and not tau > 0:
        raise ValueError(f"tau is a positive threshold, not {tau}.")
    return jnp.asarray(tau, float)
