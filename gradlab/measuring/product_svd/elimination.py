"""Gaussian elimination of one layer with partial pivoting, and one step of refinement: `A = L R`.

Elimination, unlike rotation, leaves a zero a zero and a scale a scale, which is why no structure of
a layer (triangular, diagonal, graded) is lost.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import doubled, formats, scaled
from gradlab.arithmetic.doubled import Doubled


class PartiallyPivoted(NamedTuple):
    """`A = L R` by LAPACK, for an `A` of shape `(m, r)`, with k = min(m, r).

    Attributes:
        L: `(m, k)`; a permutation of its rows makes it unit lower trapezoidal.
        R: `(k, r)`, upper trapezoidal.
        pivots: `(k,)`, the diagonal of `R`.
        rows: `(m,)`, the rows of `A` in the order of the pivots.
        positions: `(m,)`, where each row of `A` is in that order.
        sizes: `(k,)`, the largest entry of the row of `A` that each pivot came from.
    """

    L: Array
    R: Array
    pivots: Array
    rows: Array
    positions: Array
    sizes: Array


def refined_eps(dtype: Any) -> float:
    """What the error of `refined` is below, beside the sums of sizes in `J L_0`.

    That of a residual of split products, of half as many digits more than the dtype has.
    """
    digits = int(formats.finfo(dtype).nmant)
    return 2.0 ** (3 - digits - digits // 2)


def refinable(dtype: Any) -> float:
    """The largest error of an elimination that `refined` takes to a rounding, by squaring it."""
    return scaled.eps(dtype) ** 0.5 / 8


def partial_pivoting(A: Array) -> PartiallyPivoted:
    """Elimination in working precision, of `A`, `(m, r)`."""
    LU, _, rows = jax.lax.linalg.lu(A)
    k = min(A.shape)
    numbers = jnp.arange(len(rows), dtype=rows.dtype)
    is_at = rows[:, None] == numbers[None, :]
    positions = jnp.sum(jnp.where(is_at, numbers[:, None], 0), axis=0, dtype=rows.dtype)
    L = jnp.tril(LU[:, :k], -1) + jnp.eye(A.shape[0], k, dtype=A.dtype)
    sizes = jnp.max(jnp.abs(A), axis=1)[rows[:k]]
    pivots = jnp.diagonal(LU)
    return PartiallyPivoted(L[positions], jnp.triu(LU[:k]), pivots, rows, positions, sizes)


def refined(J: Array, L_0: Doubled, found: PartiallyPivoted) -> tuple[Doubled, Array]:
    """`L` and `R` of `J L_0` right to working precision, from those that are nearly so.

    One step of Newton's method with a residual in more digits; m >= r. The error left is the
    square of what rounding had made of the factors found. Columns of those behind the ones of
    `L_0` are given as they are.
    """
    L, R = found.L, found.R
    m, k = L.shape
    r = L_0.high.shape[1]
    square = jnp.where(found.pivots[:, None] == 0, jnp.eye(k, dtype=R.dtype), R)
    residual = _residual(J, L_0.high, L, R[:, :r]) + J @ L_0.low
    residual = jnp.pad(residual, ((0, 0), (0, k - r)))
    # L (I + X) (I + Y) R with X strictly below the diagonal, and Y not.
    by_R = jax.lax.linalg.triangular_solve(square, residual)
    rows = found.rows[:k]
    both = jax.lax.linalg.triangular_solve(
        L[rows], by_R[rows], left_side=True, lower=True, unit_diagonal=True
    )
    Y = jnp.triu(both)
    below = jnp.tri(m, k, -1, bool)[found.positions]
    better = doubled.sum_of(L, jnp.where(below, by_R - L @ Y, 0))
    return better, R + jnp.triu(Y @ square)


def _residual(J: Array, L_0: Array, L: Array, R: Array) -> Array:
    """`J L_0 - L R`, right to its own last digits but for about half a rounding of a rounding."""
    (J, L_0), (L, R) = _balanced(J, L_0), _balanced(L, R)
    (J_high, J_low), (L_high, L_low) = (_split(x, 1) for x in (J, L))
    (L_0_high, L_0_low), (R_high, R_low) = (_split(x, 0) for x in (L_0, R))
    # Products of the high parts are exact, and so nearly alike that their difference is.
    rest = (J_low @ L_0 + J_high @ L_0_low) - (L_low @ R + L_high @ R_low)
    return (J_high @ L_0_high - L_high @ R_high) + rest


def _balanced(A: Array, B: Array) -> tuple[Array, Array]:
    """Factors of the same product with rows of `B` near 1, so that `A` tells the sizes of terms."""
    exponent = scaled.exponent_of(jnp.max(jnp.abs(B), axis=1))
    up, down = (scaled.power_of_two(e, B.dtype) for e in (exponent, -exponent))
    return A * up[None, :], B * down[:, None]


def _split(x: Array, axis: int) -> tuple[Array, Array]:
    """A high and a low part of `x`; sums of products of high parts along `axis` are exact."""
    digits = int(formats.finfo(x.dtype).nmant) + 1
    bits = (digits - math.ceil(math.log2(x.shape[axis]))) // 2
    largest = scaled.exponent_of(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    unit = largest + 1 - bits
    high = jnp.round(x * scaled.power_of_two(-unit, x.dtype)) * scaled.power_of_two(unit, x.dtype)
    return high, x - high
