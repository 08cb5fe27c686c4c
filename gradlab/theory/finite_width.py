"""What a finite width does to the log of a gradient, to first order in 1/width.

The log of a fluctuating factor falls short of the log of its mean by half its relative variance.
For linear and relu layers that is known exactly (Hanin and Nica 2020; `products`); here it is
followed layer by layer for any activation, with the fluctuations of the layers' lengths. The
weights and biases are Gaussian, W_ij ~ N(0, sigma_w²/width). Derived here, on the assumption of
mean field theory that a gradient does not see its activations but along the state itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Activation
from gradlab.theory import gauss, meanfield, residual


class Growth(NamedTuple):
    """What each layer does to log |gradient| (nats) on its way back; each `(depth,)`.

    Attributes:
        infinite: the law of infinite width, half the log of the factor of the mean square.
        first: what is of the order of 1/width.
        second: the size of what is left out, the square of the relative variance of the factor.
    """

    infinite: Array
    first: Array
    second: Array


class _Averages(NamedTuple):
    """Averages over h = √q z that the terms are made of."""

    kurtosis: Array  # E phi'⁴ / (E phi'²)²
    along: Array  # E z² phi'² / E phi'²
    joint: Array  # E phi² phi'² / (E phi² E phi'²)
    variance: Array  # Var phi²


def plain(
    phi: Activation, q_1: ArrayLike, sigma_w: ArrayLike, sigma_b: ArrayLike, width: int, depth: int
) -> Growth:
    """The growth through layers phi(W z + b), the first of which has an h of mean square `q_1`.

    A layer multiplies the squared norm by |W^T D r|²/|r|², D = diag phi'(h). The first order has
    four parts: W is Gaussian (1/n, of log chi²_n), D weighs the entries of a Gaussian row r
    (3/2n of its kurtosis less 1; both together are 5/2n for relu), the row of W^T D r along the
    state is not free but known from h, and the lengths q fluctuate by Var phi², which moves them.
    """
    start = jnp.asarray(q_1, float), jnp.zeros(()), jnp.zeros(())
    weight, bias = jnp.asarray(sigma_w, float), jnp.asarray(sigma_b, float)

    def layer(carry: tuple[Array, Array, Array], _: None) -> tuple[Any, Growth]:
        q, mean, square = carry  # of q's fluctuation about its law, which come with 1/n
        log_chi, slope, bend = _expanded(lambda q: jnp.log(meanfield.chi(phi, q, weight)), q)
        found = _averages(phi, q)
        along = (1 - bias**2 / q) * (found.along - 1) * found.joint
        first = -1 - 1.5 * (found.kurtosis - 1) + along + slope * mean + bend * square / 2
        spread = 2 + 3 * (found.kurtosis - 1) + slope**2 * square
        growth = Growth(log_chi / 2, first / (2 * width), (first**2 + spread**2) / (2 * width**2))
        q_next, slope, bend = _expanded(lambda q: meanfield.V(phi, q, weight, bias), q)
        mean = slope * mean + bend * square / 2
        return (q_next, mean, slope**2 * square + weight**4 * found.variance), growth

    return jax.lax.scan(layer, start, None, length=depth)[1]


def residual_branch(
    phi: Activation,
    mean_square: ArrayLike,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    factor: ArrayLike,
    width: int,
    depth: int,
) -> Growth:
    """The growth through layers z + factor phi(W z + b), from a state of the mean square given.

    |r + W^T D r|² is a noncentral chi² of relative variance (4 chi + chi² (2 + 3 (kurtosis - 1)))
    over width (1 + chi)². For a linear branch that is all; of others it leaves out what is known
    along the state, and the lengths, so that it is only the size of the first order.

    nan unless phi is odd: else the state grows along its mean, which no W averages away, and the
    gradient turns towards it.
    """
    q = residual.lengths(phi, mean_square, sigma_w, sigma_b, factor, depth)
    chi = residual.gradient_factor(phi, q, sigma_w, factor) - 1
    kurtosis = jax.vmap(lambda q: _averages(phi, q).kurtosis)(q)
    variance = (4 * chi + chi**2 * (2 + 3 * (kurtosis - 1))) / (width * (1 + chi) ** 2)
    h = jnp.linspace(0.0, 8.0, 17)
    known = jnp.where(jnp.allclose(phi(-h), -phi(h)), 1.0, jnp.nan)
    return Growth(known * jnp.log1p(chi) / 2, -known * variance / 4, known * variance**2 / 2)


def _averages(phi: Activation, q: Array) -> _Averages:
    scaled = gauss.homogeneous(phi) is not None
    q = jnp.ones_like(q) if scaled else q  # then no average but the variance knows of lengths

    def average(f: Any) -> Array:
        return gauss.expect(f, q, phi.kinks)

    def square(h: Array) -> Array:
        return jnp.square(phi(h))

    def slope(h: Array) -> Array:
        return jnp.square(phi.dphi(h))

    mean, mean_slope = average(square), average(slope)
    return _Averages(
        average(lambda h: slope(h) ** 2) / mean_slope**2,
        average(lambda h: jnp.square(h) * slope(h)) / (q * mean_slope),
        average(lambda h: square(h) * slope(h)) / (mean * mean_slope),
        # Where chi does not depend on lengths, what they do is of no account.
        jnp.zeros_like(q) if scaled else average(lambda h: square(h) ** 2) - mean**2,
    )


def _expanded(f: Any, q: Array) -> tuple[Array, Array, Array]:
    """A function and its first two derivatives."""

    def slope(q: Array) -> Array:
        return jax.jvp(f, (q,), (jnp.ones_like(q),))[1]

    return f(q), slope(q), jax.jvp(slope, (q,), (jnp.ones_like(q),))[1]
