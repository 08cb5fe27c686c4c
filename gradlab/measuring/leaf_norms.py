"""The norm of every leaf of a tree, and where one is not finite, at the price of sums of squares.

What a watch on training keeps of each step: plain sums of squares, looked at again where these
leave the range; and the steps that it keeps, in a ring that overwrites the oldest.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gradlab.arithmetic import norms, quick_norms

ROW = 1024  # how many entries of a leaf are added up together where it is looked at again


def wide(leaves: list[Array]) -> Any:
    """The format of the arithmetic on these leaves."""
    return norms.wide(leaves)


def sizes(leaves: list[Array], dtype: Any) -> tuple[Array, Array]:
    """The norm of each leaf, and how many of its entries are not finite, each `(leaf,)`."""
    if not leaves:
        return jnp.zeros(0, dtype), jnp.zeros(0, jnp.int32)
    sums = plain_squares(leaves, dtype)
    none = jnp.zeros(len(leaves), jnp.int32)

    def anywhere(leaves: list[Array]) -> tuple[Array, Array]:
        return _again(leaves, sums)

    # A sum of 0 may be that of a starved leaf, which is what one wants to know of.
    in_range = jnp.all(quick_norms.is_in_range(sums))
    found: tuple[Array, Array] = lax.cond(
        in_range, lambda _: (jnp.sqrt(sums), none), anywhere, leaves
    )
    return found


def _again(leaves: list[Array], sums: Array) -> tuple[Array, Array]:
    """The norm of each leaf, and how many of its entries are not finite, each `(leaf,)`."""
    # One table for leaves of any shapes, since a compiler takes its time for each shape.
    padded = [
        jnp.pad(leaf.ravel().astype(sums.dtype), (0, -leaf.size % ROW)).reshape(-1, ROW)
        for leaf in leaves
    ]
    owner = np.repeat(np.arange(len(leaves)), [len(rows) for rows in padded])
    table = jnp.concatenate(padded)
    # As floats, whose sum over a row is exact and compiles to less than that of whole numbers.
    wild = jnp.sum((~jnp.isfinite(table)).astype(sums.dtype), axis=1).astype(jnp.int32)
    counts = jax.ops.segment_sum(wild, owner, len(leaves), indices_are_sorted=True)
    return quick_norms.measure_each(table, owner, sums), counts


def plain_squares(leaves: list[Array], dtype: Any) -> Array:
    """The plain sum of the squares of each leaf, `(leaf,)`: what a clip of ours takes anyway."""
    return jnp.stack([quick_norms.square(leaf, dtype) for leaf in leaves] or [jnp.zeros((), dtype)])


def total(sizes: Array) -> Array:
    """The norm of all leaves from the norm of each, without overflow, `()`."""
    unit = norms.divisor(jnp.max(sizes, initial=0))
    return unit * jnp.sqrt(jnp.sum(jnp.square(sizes / unit)))


def first_step(known: Array, happens: Array, step: Array) -> Array:
    """The first step at which something has happened, for each leaf; -1 where it has not yet."""
    return jnp.where(happens & (known < 0), step, known)


def kept(num_steps: int, history: int) -> Any:
    """The slots of a ring that hold the last steps, oldest first, as numpy numbers."""
    return np.arange(max(0, num_steps - history), num_steps) % history


def value(leaf: Any) -> Any:
    """A leaf as a numpy array, out of the box in which Flax may hold it."""
    is_array = isinstance(leaf, jax.Array | np.ndarray)
    return np.asarray(leaf if is_array else getattr(leaf, "value", leaf))


def log_norm(x: Array) -> Array:
    """The log of the Euclidean norm, whatever its range; -inf for zeros, nan for nan."""
    wide = _widened(x)
    unit = norms.divisor(jnp.max(jnp.abs(wide), initial=0.0))
    return jnp.log(unit) + jnp.log(jnp.sum(jnp.square(wide / unit))) / 2


def spread(x: Array) -> Array:
    """The relative variance of the squared entries: 2 for normal ones."""
    wide = _widened(x)
    square = jnp.square(wide / norms.divisor(jnp.max(jnp.abs(wide), initial=0.0)))
    mean = jnp.mean(square)
    return jnp.mean(jnp.square(square)) / jnp.where(mean > 0, jnp.square(mean), 1) - 1


def _widened(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
