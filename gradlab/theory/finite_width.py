"""What a finite width takes from the logarithm of a gradient, to first order in 1/width.

|dL/dz_{l-1}|² is that of the next layer times a random factor. Its mean is mean field theory's
(`meanfield.chi`, `residual.gradient_factor`); the mean of its log lies half of its relative
variance below the log of its mean: Hanin and Nica 2020, there for relu.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.theory import gauss, meanfield

Phi = Callable[[Array], Array]


def kurtosis(phi: Phi, q: ArrayLike) -> Array:
    """`E phi'(√q z)⁴ / (E phi'(√q z)²)²`, elementwise, for a smooth phi."""

    def fourth(q: Array) -> Array:
        return gauss.expect(lambda h: jax.vmap(jax.grad(phi))(h) ** 4, q, ())

    q = jnp.asarray(q, float)
    return jnp.vectorize(fourth)(q) / jnp.square(meanfield.chi(phi, q, 1.0))


def plain_variance(kurtosis: ArrayLike, width: ArrayLike) -> Array:
    """`(3 kurtosis - 1)/width`, the factor's relative variance in a layer phi(W z + b).

    2/width is of the sum over Gaussian weights, the rest of phi'² about its mean: a direction has
    3/width² in the mean fourth power of an entry. 5/width for relu, 2/width for linear.
    """
    return (3 * jnp.asarray(kurtosis, float) - 1) / jnp.asarray(width, float)


def residual_variance(kurtosis: ArrayLike, share: ArrayLike, width: ArrayLike) -> Array:
    """The same in a layer z + F(z): `4 share (1 - share)/width + share² plain_variance`.

    `share` of the mean squared gradient comes through F; the first term is of its product with
    what goes straight on, whose mean is 0.
    """
    share = jnp.asarray(share, float)
    mixed = 4 * share * (1 - share) / jnp.asarray(width, float)
    return mixed + share**2 * plain_variance(kurtosis, width)


def log_factor(gain: ArrayLike, variance: ArrayLike) -> Array:
    """`log(gain)/2 - variance/4`: the mean log of a layer's factor of |gradient|, nats."""
    return jnp.log(jnp.asarray(gain, float)) / 2 - jnp.asarray(variance, float) / 4


def log_gradient(
    phi: Phi,
    q: ArrayLike,
    sigma_w: ArrayLike,
    width: int,
    factor: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """The mean of `log |dL/dz_l| / |dL/dz_L|` in every layer, and its next order, nats.

    Args:
        phi: a smooth activation.
        q: the mean square of h in every layer, `(..., depth)`: `meanfield.lengths` or
            `residual.lengths`.
        sigma_w: the standard deviation of W √width, of a shape that broadcasts with `q`.
        width: the number of neurons.
        factor: that of a residual layer z + factor phi(W z + b); None for a layer phi(W z + b).

    The next order is bounded by the variance squared, and by what lengths do: one varies by 2/width
    or less, and chi answers by its root at most where phi'² has an integral (tanh, erf).
    """
    chi = meanfield.chi(phi, q, sigma_w)
    gain = chi if factor is None else 1 + jnp.square(jnp.asarray(factor, float)) * chi
    share = jnp.ones_like(chi) if factor is None else 1 - 1 / gain
    variance = residual_variance(kurtosis(phi, q), share, width)
    beyond = variance**2 / 2 + share / (2 * width)
    return _after(log_factor(gain, variance)), _after(beyond)


def _after(layers: Array) -> Array:
    """The sum over the layers after each one."""
    return jnp.flip(jnp.cumsum(jnp.flip(layers, -1), -1), -1) - layers
