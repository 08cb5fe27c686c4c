"""A product as `L diag(d) U`, and its update by the elimination of one layer.

`L` and `U` are well conditioned and every entry of `d` has an exponent: nothing is ever lost beside
a larger number. That is a rank-revealing decomposition (Demmel et al. 1999), kept layer by layer.

A column of `L` with a nonzero entry of `d` is a *direction*; the directions span the range of the
product. Where there are fewer than units (few inputs, a neck, dead units), `L` has columns of its
*complement* too, with zeros in `d`: taken through the layers as all others are, they tell how what
rounding has put outside the range grows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import linearisation
from gradlab.measuring.product_svd import thresholds


class Factors(NamedTuple):
    """`P_k = L diag(d) U`, with c columns; the last, with zeros in d, are the complement's.

    Attributes:
        L: `(width_k, c)`.
        d: `(c,)`, an exponent an entry, roughly descending, zero where a column is no direction:
            there the exponent is what the column has grown by.
        U: `(c, width_0)`, its rows' largest entries in [1, 2), or zero where d is.
        num_lost: how many entries of d were set to zero because rounding had made them.
    """

    L: Array
    d: Scaled
    U: Array
    num_lost: Array


class Step(NamedTuple):
    """One layer: the factors before it, and its `L R = J before.L` in the columns of directions.

    Attributes:
        before: with columns of zeros for those that the layer adds, and in `order`.
        order: `(r,)`.
        J: `(width_k, width_{k-1})`, by the power of two that makes that hold.
        L: `(width_k, c)`.
        R: `(c, r)`, upper trapezoidal.
        error: a scalar, the relative error of a term in those sums.
        uncertain: what rounding may have put into J (`roundings.of_jacobian`), or None.
    """

    before: Factors
    order: Array
    J: Array
    L: Array
    R: Array
    error: Array
    uncertain: Array | None


def num_columns(num_directions: int, width: int) -> int:
    """How many columns L has in a layer of some width."""
    return min(width, num_directions + max(num_directions, thresholds.MIN_COMPLEMENT))


def start(x: Array) -> Factors:
    """The factors of the empty product."""
    eye, zeros = jnp.eye(x.size, dtype=x.dtype), jnp.zeros(x.size, jnp.int32)
    return Factors(eye, Scaled(eye.sum(axis=0), zeros), eye, jnp.zeros((), jnp.int32))


def scales(d: Scaled, R: Array, pivots: Array) -> tuple[Scaled, Array]:
    """The next d, and the T of `R diag(d) = diag(next d) T`."""
    c = len(pivots)
    grown = jnp.where(d.mantissa[:c] == 0, scaled.exponent_of(pivots), 0)
    after = Scaled(jnp.abs(pivots) * d.mantissa[:c], d.exponent[:c] + grown)
    # Large only where the order of columns has changed, and then R is small. In range, so that
    # a zero in R stays one.
    most = scaled.largest_exponent(R.dtype)
    shift = jnp.minimum(d.exponent[None, :] - d.exponent[:c, None], most)
    row = jnp.where(after.mantissa == 0, 0, 1 / after.mantissa)[:, None]
    return after, R * row * d.mantissa[None, :] * scaled.power_of_two(shift, R.dtype)


def update(before: Factors, L: Array, d: Scaled, T: Array) -> Factors:
    """`L diag(d) T U` as factors."""
    U = scaled.rescale(Scaled(linearisation.matmul(T, before.U), d.exponent[:, None]))
    d = scaled.rescale(Scaled(d.mantissa, U.exponent[:, 0]))
    # There are no more directions than the chain is narrow.
    num_left = min(before.U.shape[1], len(T)) - jnp.sum(d.mantissa != 0, dtype=jnp.int32)
    return Factors(L, d, U.mantissa, jnp.minimum(before.num_lost, num_left))


def with_columns(factors: Factors, more: int) -> Factors:
    """The same with so many columns more, of zeros."""
    columns, rows = ((0, 0), (0, more)), ((0, more), (0, 0))
    d = jax.tree.map(lambda part: jnp.pad(part, (0, more)), factors.d)
    return Factors(jnp.pad(factors.L, columns), d, jnp.pad(factors.U, rows), factors.num_lost)


def padded(factors: Factors, shape: tuple[int, int]) -> Factors:
    """Factors with `shape[0]` columns, those of L padded to `shape[1]`."""

    def pad(leaf: Array, *shape: int) -> Array:
        return jnp.zeros(shape, leaf.dtype).at[tuple(map(slice, leaf.shape))].set(leaf)

    d = jax.tree.map(lambda part: pad(part, shape[0]), factors.d)
    U = pad(factors.U, shape[0], factors.U.shape[1])
    return Factors(pad(factors.L, *shape[::-1]), d, U, factors.num_lost)


def sample(like: Array) -> Array:
    """Normal numbers in the shape of `like`; of signs alone two rows might be in proportion."""
    return jnp.asarray(np.random.default_rng(0).normal(size=like.shape), like.dtype)
