"""How the entries of a parameter are distributed: one small program for each shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass(frozen=True)
class Weights:
    """How the entries of one parameter, or of one slice of it, are distributed.

    Attributes:
        size, shape: of the array.
        mean, std: of its entries.
        kurtosis: mean of the fourth power over that of the second one squared: 3 for a normal
            distribution, 1.8 for a uniform one, 1 for one number.
        largest: the largest entry.
        zeros: the share of entries that are 0.
        finite: whether all are.
        copies: whether rows, or columns, are equal, and not all 0.
    """

    size: int
    shape: tuple[int, ...]
    mean: float
    std: float
    kurtosis: float
    largest: float
    zeros: float
    finite: bool
    copies: bool


def weights(leaf: Array) -> Weights:
    """The distribution of an array's entries."""
    mean, std, kurtosis, largest, zeros, finite, copies = map(float, np.asarray(_entries(leaf)))
    return Weights(
        leaf.size, leaf.shape, mean, std, kurtosis, largest, zeros, bool(finite), bool(copies)
    )


@jax.jit
def _entries(leaf: Array) -> Array:
    wide = wide_of(leaf)
    mean, largest = jnp.mean(wide), jnp.max(jnp.abs(wide), initial=0.0)
    unit = jnp.where(largest > 0, largest, 1)
    centred = (wide - mean) / unit
    second, fourth = jnp.mean(jnp.square(centred)), jnp.mean(jnp.square(jnp.square(centred)))
    kurtosis = fourth / jnp.where(second > 0, jnp.square(second), 1)
    return jnp.stack(
        [
            mean,
            unit * jnp.sqrt(second),
            kurtosis,
            largest,
            jnp.mean(wide == 0, dtype=wide.dtype),
            (jnp.isfinite(largest) & jnp.isfinite(mean)).astype(wide.dtype),
            (_has_copies(wide) & (largest > 0)).astype(wide.dtype),
        ]
    )


def _has_copies(wide: Array) -> Array:
    """Whether the first, the second and the last slice along some axis of two or more are equal."""
    same = jnp.asarray(False)
    for axis in range(wide.ndim if wide.ndim > 1 else 0):
        if wide.shape[axis] > 1:
            pick = partial(jax.lax.index_in_dim, wide, axis=axis)
            one = jnp.all(pick(0) == pick(1)) & jnp.all(pick(0) == pick(wide.shape[axis] - 1))
            same |= one
    return same


def wide_of(x: Array) -> Array:
    """The array in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
