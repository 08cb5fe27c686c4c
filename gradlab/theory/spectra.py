"""Spectra of J Jᵀ for deep, wide networks: Pennington, Schoenholz and Ganguli 2017, 2018.

A unit is in its linear part, of slope 1, with probability p, and off otherwise (linear: p = 1;
relu: p = ½; hard_tanh: p = P(|√q* z| < 1)), and sigma_w² = 1/p, so that the mean eigenvalue of
J Jᵀ is 1. `weights` is "gaussian" or "orthogonal". The generating function of the moments is
M(z) = sum of m_k/z^k; its inverse is known in closed form, and the largest eigenvalue is the
stationary value of the inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


class Law(NamedTuple):
    """The three predictions for one kind of weights, each a function of (..., depth, p)."""

    log_inverse: Callable[[Array, Array, Array], Array]
    stationary: Callable[[Array, Array], Array]
    variance: Callable[[Array, Array], Array]


def log_M_inverse(z: ArrayLike, depth: ArrayLike, p: ArrayLike, weights: str) -> Array:
    """`log M⁻¹(z)`, z > 0, broadcast: Pennington et al. 2018.

    Gaussian `(1+z)/z ((z+p)/p)^depth`; orthogonal `(1+z)/z ((z+p)/(p(1+z)))^depth`.
    """
    return _law(weights).log_inverse(*_floats(z, depth, p))


def log_largest_eigenvalue(depth: ArrayLike, p: ArrayLike, weights: str) -> Array:
    """The logarithm of the largest eigenvalue of J Jᵀ, s_max², nats.

    For p = 1 and Gaussian weights (depth+1)^(depth+1)/depth^depth, about e (depth + ½).
    """
    depth, p = _floats(depth, p)
    law = _law(weights)
    z = law.stationary(depth, p)
    inside = jnp.isfinite(z)
    value = law.log_inverse(jnp.where(inside, z, 1.0), depth, p)
    return jnp.where(inside, value, -depth * jnp.log(p))


def variance(depth: ArrayLike, p: ArrayLike, weights: str) -> Array:
    """The variance of the eigenvalues of J Jᵀ: Gaussian `depth/p`, orthogonal `depth (1-p)/p`."""
    return _law(weights).variance(*_floats(depth, p))


def _gaussian_stationary(depth: Array, p: Array) -> Array:
    """The positive root of depth z² + (depth - 1) z - p."""
    return 2 * p / (depth - 1 + jnp.sqrt((depth - 1) ** 2 + 4 * depth * p))


def _orthogonal_stationary(depth: Array, p: Array) -> Array:
    """p/(depth (1-p) - 1); inf where M⁻¹ falls for ever, to the bound p^-depth."""
    rest = depth * (1 - p) - 1
    return jnp.where(rest > 0, p / jnp.where(rest > 0, rest, 1.0), jnp.inf)


LAWS = {
    "gaussian": Law(
        lambda z, depth, p: jnp.log1p(1 / z) + depth * jnp.log1p(z / p),
        _gaussian_stationary,
        lambda depth, p: depth / p,
    ),
    "orthogonal": Law(
        lambda z, depth, p: jnp.log1p(1 / z) + depth * (jnp.log1p(z / p) - jnp.log1p(z)),
        _orthogonal_stationary,
        lambda depth, p: depth * (1 - p) / p,
    ),
}


def _law(weights: str) -> Law:
    if weights not in LAWS:
        raise ValueError(f"weights is one of {', '.join(LAWS)}, not {weights!r}.")
    return LAWS[weights]


def _floats(*numbers: ArrayLike) -> list[Array]:
    return [jnp.asarray(number, float) for number in numbers]
