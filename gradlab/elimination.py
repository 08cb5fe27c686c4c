"""Gaussian elimination of one layer beside a diagonal: `J L_0 diag(d) = L R diag(d)`.

`quick` is LAPACK's, with rows pivoted, and `refined` corrects it by its residual. `careful` pivots
rows and columns on the entries of `J L_0 diag(d)` and works in doubled digits, so that its factors
are right to working precision however nearly singular the layer is.

Elimination, unlike rotation, leaves a zero a zero and a scale a scale, which is why no structure of
a layer (triangular, diagonal, graded) is lost.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab import doubled, scaled
from gradlab.doubled import Doubled

# An entry is made of rounding if it is below this many times what roundings of all entries of the
# layer, independent and as large as they may be, leave of it: five standard deviations.
_NOISE = 3

_finfo: Any = jnp.finfo  # JAX gives it no types.


class Eliminated(NamedTuple):
    """`A[:, order] = L R` for an `A` of shape `(m, r)`, with k = min(m, r).

    Attributes:
        L: `(m, k)`; some permutation of its rows makes it unit lower trapezoidal.
        R: `(k, r)`, upper trapezoidal; the row of a pivot that is gone is zero.
        order: `(r,)`.
        lost: `(k,)`: there is no pivot left that is more than rounding.
    """

    L: Array
    R: Array
    order: Array
    lost: Array


class Quick(NamedTuple):
    """The factors of `A` by LAPACK, and the rows and sizes of its pivots.

    Attributes:
        done: with the columns as they stand.
        place: `(m,)`, where each row of `A` is in the order of the pivots.
        sizes: `(k,)`, the largest entry of the row of `A` that each pivot came from.
    """

    done: Eliminated
    place: Array
    sizes: Array


def quick(A: Array) -> Quick:
    """Elimination in working precision, of `A`, `(m, r)`."""
    LU, _, rows = jax.lax.linalg.lu(A)
    k = min(A.shape)
    L = jnp.tril(LU[:, :k], -1) + jnp.eye(A.shape[0], k, dtype=A.dtype)
    place = jnp.zeros_like(rows).at[rows].set(jnp.arange(len(rows), dtype=rows.dtype))
    sizes = jnp.max(jnp.abs(A), axis=1)[rows][:k]
    order = jnp.arange(A.shape[1], dtype=jnp.int32)
    done = Eliminated(L[place], jnp.triu(LU[:k]), order, jnp.zeros(k, bool))
    return Quick(done, place, sizes)


def refined(J: Array, L_0: Array, found: Quick) -> Eliminated:
    """The factors of `J L_0` right to working precision, from those that are nearly so.

    One step of Newton's method with a residual in more digits; m >= r. The error left is the
    square of what rounding had made of the quick factors.
    """
    L, R, order, lost = found.done
    m, k = L.shape
    square = jnp.where(jnp.diagonal(R)[:, None] == 0, jnp.eye(k, dtype=R.dtype), R)
    residual = _residual(J, L_0, L, R)
    # L (I + X) (I + Y) R with X strictly below the diagonal, and Y not.
    beside_R = jax.lax.linalg.triangular_solve(square, residual)
    rows = (
        jnp.zeros(m, found.place.dtype).at[found.place].set(jnp.arange(m, dtype=found.place.dtype))
    )
    rows = rows[:k]
    both = jax.lax.linalg.triangular_solve(
        L[rows], beside_R[rows], left_side=True, lower=True, unit_diagonal=True
    )
    Y = jnp.triu(both)
    below = jnp.tri(m, k, -1, bool)[found.place]
    L = L + jnp.where(below, beside_R - L @ Y, 0)
    return Eliminated(L, R + jnp.triu(Y @ square), order, lost)


def _residual(J: Array, L_0: Array, L: Array, R: Array) -> Array:
    """`J L_0 - L R`, right to its own last digits but for about half a rounding of a rounding."""
    (J_high, J_low), (L_high, L_low) = (_split(x, 1) for x in (J, L))
    (L_0_high, L_0_low), (R_high, R_low) = (_split(x, 0) for x in (L_0, R))
    # Products of the high parts are exact, and so nearly alike that their difference is.
    rest = (J_low @ L_0 + J_high @ L_0_low) - (L_low @ R + L_high @ R_low)
    return (J_high @ L_0_high - L_high @ R_high) + rest


def _split(x: Array, axis: int) -> tuple[Array, Array]:
    """A high and a low part of `x`; sums of products of high parts along `axis` are exact."""
    digits = int(_finfo(x.dtype).nmant) + 1
    bits = (digits - math.ceil(math.log2(x.shape[axis]))) // 2
    largest = scaled.exponent_of(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    unit = largest + 1 - bits
    high = jnp.round(x * scaled.power_of_two(-unit, x.dtype)) * scaled.power_of_two(unit, x.dtype)
    return high, x - high


class _State(NamedTuple):
    """Elimination in place: rows and columns that are done hold `R` and `L`.

    `noise` is what one rounding of every entry of the layer may have left of an entry; `pivots`
    is `(k, 2)`, the row and the column of every pivot so far.
    """

    A: Doubled
    noise: Array
    rows_left: Array
    columns_left: Array
    pivots: Array
    num_found: Array


def careful(J: Array, L: Array, log_2_d: Array) -> Eliminated:
    """The factors of `A = J L` that keep `A diag(d)` graded, however nearly singular `A` is.

    Args:
        J: `(m, n)`, its entries well inside the range.
        L: `(n, r)`; a column of zeros has no pivot.
        log_2_d: `(r,)`.
    """
    A, noise = _product(J, L)
    m, r = noise.shape
    k = min(m, r)
    start = _State(
        *(A, noise, jnp.ones(m, bool), jnp.ones(r, bool)),
        *(jnp.zeros((k, 2), jnp.int32), jnp.zeros((), jnp.int32)),
    )
    end = jax.lax.fori_loop(0, k, lambda step, state: _eliminate(step, state, log_2_d), start)
    rows, columns = end.pivots.T
    # Rows and columns without a pivot keep their order behind the others.
    rows = jnp.concatenate([rows, jnp.argsort(~end.rows_left, stable=True)[: m - k]])
    rest = jnp.argsort(~end.columns_left, stable=True)[: r - k]
    order = jnp.concatenate([columns, rest.astype(jnp.int32)])
    LR, noise = end.A.high[rows][:, order], end.noise[rows][:, order]
    found = jnp.arange(k) < end.num_found
    L = jnp.where(found[None, :], jnp.tril(LR[:, :k], -1), 0) + jnp.eye(m, k, dtype=J.dtype)
    R = jnp.where(found[:, None], jnp.triu(LR[:k]), 0)
    # An infinity or nan in the layer is one in every pivot.
    R = R + jnp.where(jnp.isfinite(jnp.sum(J) * 0), 0, jnp.nan).astype(J.dtype)
    # Of the rank that is missing, what only roundings stand in for.
    missing = (jnp.arange(m)[:, None] >= end.num_found) & (jnp.arange(r)[None, :] >= end.num_found)
    uncertain = missing & (noise > 0)
    num_lost = jnp.minimum(jnp.sum(uncertain.any(axis=0)), jnp.sum(uncertain.any(axis=1)))
    lost = ~found & (jnp.arange(k) < end.num_found + num_lost)
    return Eliminated(jnp.zeros_like(L).at[rows].set(L, unique_indices=True), R, order, lost)


def _product(J: Array, L: Array) -> tuple[Doubled, Array]:
    """`J L` in doubled digits, and the noise in it: one rounding of every entry of `J`."""

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        total, noise = carry
        column, row = pair[0][:, None], pair[1][None, :]
        total = doubled.add(total, doubled.product(column, row))
        return (total, jnp.hypot(noise, column * row)), None

    shape = J.shape[0], L.shape[1]
    start = doubled.zeros(shape, J.dtype), jnp.zeros(shape, J.dtype)
    total, noise = jax.lax.scan(step, start, (J.T, L))[0]
    noise = scaled.eps(J.dtype) / 2 * noise
    return _certain(total, noise), noise


def _eliminate(step: Array, s: _State, log_2_d: Array) -> _State:
    """One pivot: the largest entry of `A diag(d)` in the rows and columns left."""
    free = s.rows_left[:, None] & s.columns_left[None, :]
    score = scaled.rough_log_2(s.A.high) + log_2_d[None, :]
    # Where nothing is left, any row and column that are free do.
    score = jnp.where(s.A.high == 0, _finfo(score.dtype).min, score)
    score = jnp.where(free, score, -jnp.inf)
    i = jnp.argmax(jnp.max(score, axis=1))
    j = jnp.argmax(_row(i)(score)[0])
    row, column = (Doubled(*(take(part) for part in s.A)) for take in (_row(i), _column(j)))
    noise_row, noise_column = _row(i)(s.noise), _column(j)(s.noise)
    pivot = Doubled(*(part[0, j] for part in row))
    found = pivot.high != 0
    safe = Doubled(jnp.where(found, pivot.high, 1), pivot.low)
    factor = doubled.divide(column, safe)
    after = doubled.subtract(s.A, doubled.multiply(factor, row))
    # A rounding in an entry goes on with the factors that its row and column have here.
    size = jnp.abs(factor.high)
    noise = jnp.hypot(
        jnp.hypot(s.noise, size * noise_row),
        jnp.hypot(noise_column, size * noise_row[0, j]) * jnp.abs(row.high / safe.high),
    )
    after = _certain(after, noise)
    rows_left = s.rows_left & (jnp.arange(free.shape[0]) != i)
    columns_left = s.columns_left & (jnp.arange(free.shape[1]) != j)
    is_next = rows_left[:, None] & columns_left[None, :] & found
    is_factor = rows_left[:, None] & (jnp.arange(free.shape[1]) == j)[None, :] & found
    A = Doubled(
        *(
            jnp.where(is_next, new, jnp.where(is_factor, f, old))
            for new, f, old in zip(after, factor, s.A, strict=True)
        )
    )
    pivots = s.pivots.at[step].set(jnp.stack([i, j]).astype(jnp.int32))
    noise = jnp.where(is_next, noise, s.noise)
    return _State(A, noise, rows_left, columns_left, pivots, s.num_found + found)


def _certain(A: Doubled, noise: Array) -> Doubled:
    """`A` with zeros for the entries that may be made of rounding."""
    made_of_rounding = jnp.abs(A.high) <= _NOISE * noise
    return Doubled(*(jnp.where(made_of_rounding, 0, part) for part in A))


def _row(i: Array) -> Any:
    return lambda A: jax.lax.dynamic_slice_in_dim(A, i, 1, 0)


def _column(j: Array) -> Any:
    return lambda A: jax.lax.dynamic_slice_in_dim(A, j, 1, 1)
