"""Residual layers z + F(z), whose Jacobian is I + F': bounds, growth, and the edge at -1.

The product of the Jacobians cannot vanish while every ‖F'‖ is below 1; it does vanish where F'
has an eigenvalue -1. Norms are spectral norms; bounds are logarithms, in nats.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Activation
from gradlab.theory import gauss, meanfield, scalar


def log_lower_bound(branch_norms: ArrayLike) -> Array:
    """`sum log(1 - ‖F'_k‖)` over the last axis: no singular value of the product is smaller.

    Weyl's inequality, layer by layer; -inf where a norm is 1 or more, and nothing is promised.
    """
    norms = jnp.asarray(branch_norms, float)
    beyond = norms >= 1
    return jnp.sum(jnp.where(beyond, -jnp.inf, jnp.log1p(-jnp.where(beyond, 0.0, norms))), axis=-1)


def log_upper_bound(branch_norms: ArrayLike) -> Array:
    """`sum log(1 + ‖F'_k‖)` over the last axis: no singular value of the product is larger."""
    return jnp.sum(jnp.log1p(jnp.asarray(branch_norms, float)), axis=-1)


def log10_scalar_product(w: ArrayLike, depth: ArrayLike) -> Array:
    """`depth log10 |1 + w|`: finite at any depth, -inf at the edge w = -1."""
    return scalar.log10_product(1 + jnp.asarray(w, float), depth)


def linear_second_moment(s: ArrayLike, depth: ArrayLike) -> Array:
    """`E|Jv|² = (1 + s²)^depth` of layers J = I + s G/√width, G_ij ~ N(0, 1), |v| = 1."""
    return jnp.exp(log_linear_second_moment(s, depth))


def log_linear_second_moment(s: ArrayLike, depth: ArrayLike) -> Array:
    """`depth log(1 + s²)`, nats."""
    return jnp.asarray(depth, float) * jnp.log1p(jnp.square(jnp.asarray(s, float)))


def gradient_factor(
    phi: Callable[[Array], Array], q: ArrayLike, sigma_w: ArrayLike, factor: ArrayLike
) -> Array:
    """`1 + factor² chi(q)`: a layer z + factor phi(W z + b)'s factor of the mean squared gradient.

    Infinite width (Yang and Schoenholz 2017; derived here for one branch, since the cross term
    averages to 0 over W). Always above 1: a wide residual chain never vanishes on average.
    """
    return 1 + jnp.square(jnp.asarray(factor, float)) * meanfield.chi(phi, q, sigma_w)


def lengths(
    phi: Activation,
    mean_square: ArrayLike,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    factor: ArrayLike,
    depth: int,
) -> Array:
    """The mean square of h in each of `depth` layers, `(depth,)`.

    A branch adds factor E phi to the mean of the state's neurons, 0 at the input, and to their mean
    square, `mean_square` at the input, twice that times their mean and factor² E phi²; averages are
    over √q z (Yang and Schoenholz 2017).
    """
    weight, bias = jnp.square(jnp.asarray(sigma_w, float)), jnp.square(jnp.asarray(sigma_b, float))
    gain, moments = jnp.asarray(factor, float), gauss.moments(phi)

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        mean, square = state
        q = weight * square + bias
        added = gain * gauss.expect(phi, q, phi.kinks)
        return (mean + added, square + 2 * mean * added + gain**2 * moments.square(q)), q

    start = jnp.zeros(()), jnp.asarray(mean_square, float)
    return jax.lax.scan(step, start, None, length=depth)[1]


def preactivation(
    phi: Activation,
    mean_square: ArrayLike,
    sigma_w: ArrayLike,
    factor: ArrayLike,
    depth: int,
    *,
    normalised: bool = False,
) -> tuple[Array, Array]:
    """What each block z + factor W phi(z) adds, over what is there, forward and back, `(depth,)`.

    The ratios of mean squares, of infinite width; exact at any width for relu, by the symmetry of
    z. Yang and Schoenholz 2017 (tanh, relu). Normalised branches are factor W phi(z over its
    deviation), so that the skip's mean square grows by the same amount in each block: De and Smith
    2020, section 2.
    """
    gain = jnp.square(jnp.asarray(factor, float) * jnp.asarray(sigma_w, float))
    moments = gauss.moments(phi)

    def step(square: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        at = jnp.ones(()) if normalised else square
        added = gain * moments.square(at)
        slope = gain * moments.slope_square(at) / (square if normalised else 1.0)
        return square + added, (added / square, slope)

    return jax.lax.scan(step, jnp.asarray(mean_square, float), None, length=depth)[1]


def typical_log(added: ArrayLike, variance: ArrayLike, width: ArrayLike) -> tuple[Array, Array]:
    """`log(1 + c)`, the log of a mean square's factor, and `-(4 c + c² v)/(2 n (1 + c)²)`.

    The second is what the width n takes from the mean of the log, to first order: |r + W D r|² is
    noncentral chi squared, c is what the branch adds in the mean and v/n its own relative variance
    (5 of a rectifier, `products.relu_log_variance`).
    """
    c = jnp.asarray(added, float)
    spread = (4 * c + c**2 * jnp.asarray(variance, float)) / (1 + c) ** 2
    return jnp.log1p(c), -spread / (2 * jnp.asarray(width, float))
