"""What clipping by the global norm predicts: the formula itself, and what it can and cannot do.

g <- g tau / max(|g|, tau)              Pascanu, Mikolov and Bengio 2013, algorithm 1
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

_finfo: Any = jnp.finfo  # without types in jax 0.10


def clipped(grads: Array, tau: ArrayLike) -> Array:
    """The formula on one vector `(n,)`, evaluated over the largest entry, so that squares fit.

    About five roundings an entry (relative), wherever tau over the largest entry is in the range.
    """
    largest = jnp.max(jnp.abs(grads))
    shape, level = grads / largest, tau / largest
    return largest * (shape * (level / jnp.maximum(jnp.sqrt(jnp.sum(shape * shape)), level)))


def longest_step(learning_rate: ArrayLike, tau: ArrayLike) -> Array:
    """How far one step of clipped gradient descent can go, whatever the batch: the rate times tau.

    The change is -rate g tau / max(|g|, tau), of length at most rate tau: algorithm 1.
    """
    return jnp.asarray(learning_rate) * tau


def share(chi_1: ArrayLike, num_layers_back: ArrayLike) -> Array:
    """The gradient norm so many layers back over the last one's, clipped or not: chi_1^(n/2).

    Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, equation 19, of squares; clipping
    multiplies all layers by one number and leaves it as it is.
    """
    return jnp.asarray(chi_1) ** (jnp.asarray(num_layers_back) / 2)


def largest_norm(dtype: Any) -> float:
    """The norm above which the sum of squares is above the range of a format: sqrt(max)."""
    return float(_finfo(dtype).max) ** 0.5
