"""Exact laws of products of random matrices at finite width: mean and variance, both exact.

Statistics of products are heavy-tailed: hold the laws of logarithms against measurements, not
raw moments. Widths are integers; psi and psi_1 are the digamma and trigamma functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import xlog1py, xlogy
from jax.typing import ArrayLike
from scipy.special import digamma, gammaln, polygamma

# ---- products of square Gaussian matrices: Lyapunov exponents


def lyapunov_exponents(width: int, variance: ArrayLike) -> Array:
    """`½ [log(2 variance) + psi((width - k + 1)/2)]`, k = 1, 2, ..., `(width,)`: Newman 1986.

    Nats a layer, the largest first, for a product of matrices with entries N(0, variance).
    """
    half = jnp.asarray(digamma(_degrees(width) / 2) / 2)
    return jnp.log(2 * jnp.asarray(variance, float)) / 2 + half


def lyapunov_variances(width: int) -> Array:
    """`psi_1((width - k + 1)/2)/4`, k = 1, 2, ..., `(width,)`: nats², a layer.

    The increments of the QR iteration are independent, each the logarithm of a chi variable with
    width - k + 1 degrees of freedom (derived, and checked by simulation).
    """
    return jnp.asarray(polygamma(1, _degrees(width) / 2) / 4)


# ---- products of masked Gaussian matrices D W: rows of W are kept with a probability


def masked_exponents(width: int, variance: ArrayLike, kept: ArrayLike) -> Array:
    """`½ [log(2 variance) + E psi((B - k + 1)/2)]`, k = 1, 2, ..., `(width,)`, nats a layer.

    Of matrices D W, W_ij ~ N(0, variance) and D diagonal, its entries 1 with the probability `kept`
    and else 0, so that B of Binomial(width, kept) rows are left. Derived as Newman 1986, since B
    rows of W leave an independent chi variable of B - k + 1 degrees in each step of the QR
    iteration. Given that B is k or more: a layer with less takes the direction away
    (`masked_loss`). With kept = ½ it is the law of relu layers without biases too, k = 1 for any
    vector (Hanin and Nica 2020) and all k in the mean of a long product: its leading direction is
    the state, since J z is the next one, and gates that know W z alone are independent of W times
    what is orthogonal to z.
    """
    mean, _ = _masked(width, kept)
    return (jnp.log(2 * jnp.asarray(variance, float)) + mean) / 2


def masked_variances(width: int, kept: ArrayLike) -> Array:
    """`[E psi_1((B - k + 1)/2) + Var psi((B - k + 1)/2)]/4`, `(width,)`: nats², a layer."""
    return _masked(width, kept)[1] / 4


def masked_loss(width: int, kept: ArrayLike) -> Array:
    """`P(B < k)`, k = 1, 2, ..., `(width,)`: that a layer takes the k-th direction away."""
    return jnp.cumsum(_binomial(width, kept))[:-1]


def _binomial(width: int, kept: ArrayLike) -> Array:
    """The probabilities of 0, 1, ..., width, `(width + 1,)`."""
    B, p = np.arange(_width(width) + 1.0), jnp.asarray(kept, float)
    choose = gammaln(width + 1) - gammaln(B + 1) - gammaln(width - B + 1)
    return jnp.exp(choose + xlogy(B, p) + xlog1py(width - B, -p))


def _masked(width: int, kept: ArrayLike) -> tuple[Array, Array]:
    """The mean and the variance of log chi² of B - k + 1 degrees, given B >= k, `(width,)` each."""
    left = np.arange(1.0, _width(width) + 1) - np.arange(width)[:, None]  # B - k + 1
    chance = jnp.where(left > 0, _binomial(width, kept)[None, 1:], 0.0)
    chance = chance / jnp.sum(chance, axis=1, keepdims=True)
    half = np.maximum(left, 1.0) / 2
    mean = jnp.sum(chance * digamma(half), axis=1)
    spread = polygamma(1, half) + jnp.square(digamma(half) - mean[:, None])
    return mean, jnp.sum(chance * spread, axis=1)


# ---- one vector through relu layers with He weights, W_ij ~ N(0, 2/fan_in)


def rectifier_deviation(fan: ArrayLike, slope: ArrayLike) -> Array:
    """`√(2/((1 + a²) fan))`, a the slope below 0: of weights that keep the mean square.

    He et al. 2015, equations 10 and 15; the fan of a k x k convolution is k² times its channels,
    the input's for the way forward, the output's for the way back.
    """
    return jnp.sqrt(2 / ((1 + jnp.square(jnp.asarray(slope, float))) * jnp.asarray(fan, float)))


def relu_log_mean(width: int) -> float:
    """The mean of log|Jv|² of one layer, `E[psi(B/2)] + log(4/width)`, nats.

    Hanin and Nica 2020: B of the units are active, Binomial(width, ½), given that one is; for
    large widths -5/(2 width).
    """
    weights, half = _active(width)
    return float(weights @ digamma(half)) + math.log(4 / width)


def relu_log_variance(width: int) -> float:
    """The variance of log|Jv|² of one layer, `E psi_1(B/2) + Var psi(B/2)`, nats².

    Hanin and Nica 2020; for large widths 5/width.
    """
    weights, half = _active(width)
    mean = weights @ digamma(half)
    return float(weights @ (polygamma(1, half) + (digamma(half) - mean) ** 2))


def relu_fourth_moment(widths: Sequence[int]) -> float:
    """`E|Jv|⁴ = prod(1 + 5/width)` over the layers' widths: Hanin 2018.

    `E|Jv|²` is 1 at any widths: it is the typical |Jv|² that decays.
    """
    return math.prod(1 + 5 / width for width in _widths(widths))


def relu_death(width: int) -> float:
    """The probability that every unit of a layer is off, `2^-width`."""
    return 2.0 ** -_width(width)


def width_needed(depth: int, deviation: float) -> float:
    """`5 depth/(4 deviation²)`: the width that keeps sd(log|gradient|) at `deviation` (nats).

    Hanin and Nica 2020, for relu with He weights and a large width.
    """
    if not deviation > 0:
        raise ValueError(f"deviation is positive, not {deviation}.")
    return 5 * depth / (4 * deviation**2)


# ---- one vector through linear layers, W_ij ~ N(0, 1/fan_in)


def linear_log_mean(width: int) -> float:
    """The mean of log|Wv|² - log|v|², `psi(width/2) - log(width/2)`, nats."""
    return float(digamma(_width(width) / 2)) - math.log(width / 2)


def linear_log_variance(width: int) -> float:
    """The variance of log|Wv|², `psi_1(width/2)`, nats²."""
    return float(polygamma(1, _width(width) / 2))


def linear_fourth_moment(widths: Sequence[int]) -> float:
    """`E|Jv|⁴ = prod(1 + 2/width)` over the layers' widths."""
    return math.prod(1 + 2 / width for width in _widths(widths))


# ---- one vector through layers I + s G, G_ij ~ N(0, 1)


def identity_plus_log_mean(width: int, s: ArrayLike) -> Array:
    """The mean of log|(I + s G) v|² - log|v|², `E psi(n/2 + K) + log(2 s²)`, nats.

    Derived: |v + s g|² is s² times a noncentral chi squared of n degrees, which is chi squared of
    n + 2 K, K of Poisson's law with the mean 1/(2 s²). No layer sees the direction of v, so that
    the logs of a product's layers are independent. `E|Jv|² = (1 + n s²)^depth`. It is nan for s
    below 0.006, where its sum would not end.
    """
    k, half = np.arange(2.0**14), _width(width) / 2

    def of(s: Array) -> Array:
        mean = 1 / (2 * s**2)
        weights = jnp.exp(k * jnp.log(mean) - mean - gammaln(k + 1))
        log = jnp.sum(weights * (jnp.log(2 * s**2) + digamma(half + k)))
        # Nine deviations from its mean Poisson's law has ended; for s below 0.006 it has not.
        return jnp.where(mean + 9 * jnp.sqrt(mean) < k.size, log, jnp.nan)

    return jnp.vectorize(of)(jnp.asarray(s, float))


def _degrees(width: int) -> np.ndarray:
    return np.arange(_width(width), 0, -1.0)


def _active(width: int) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of B = 1, ..., width given B > 0, and B/2."""
    active = np.arange(1.0, _width(width) + 1)
    log_choose = gammaln(width + 1) - gammaln(active + 1) - gammaln(width - active + 1)
    weights = np.exp(log_choose - width * math.log(2))
    return weights / weights.sum(), active / 2


def _widths(widths: Sequence[int]) -> list[int]:
    return [_width(width) for width in widths]


def _width(width: int) -> int:
    if width < 1:
        raise ValueError(f"A width is at least 1, not {width}.")
    return width
