"""Gaussian elimination of one layer beside a diagonal: `J L_0 diag(d) = L R diag(d)`.

`quick` is LAPACK's, with rows pivoted, and `refined` corrects it by its residual. `careful` pivots
rows and columns on the entries of `J L_0 diag(d)` and works in doubled digits, so that its factors
are right to working precision however nearly singular the layer is.

Elimination, unlike rotation, leaves a zero a zero and a scale a scale, which is why no structure of
a layer (triangular, diagonal, graded) is lost.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import doubled, scaled
from gradlab.arithmetic.doubled import Doubled

_finfo: Any = jnp.finfo  # JAX gives it no types.

# A column of `careful` waits for another with pivots larger by more than so many powers of two.
# Taking the largest of all lets columns change places in every layer, which leaves a `U` with a
# condition that grows from layer to layer: 1e6 instead of 1e3 after 50 of width 64.
_IN_ORDER = 1


class Quick(NamedTuple):
    """`A = L R` by LAPACK, for an `A` of shape `(m, r)`, with k = min(m, r).

    Attributes:
        L: `(m, k)`; a permutation of its rows makes it unit lower trapezoidal.
        R: `(k, r)`, upper trapezoidal.
        pivots: `(k,)`, the diagonal of `R`.
        rows: `(m,)`, the rows of `A` in the order of the pivots.
        place: `(m,)`, where each row of `A` is in that order.
        sizes: `(k,)`, the largest entry of the row of `A` that each pivot came from.
    """

    L: Array
    R: Array
    pivots: Array
    rows: Array
    place: Array
    sizes: Array


class Careful(NamedTuple):
    """`A[:, order] = L R`.

    Attributes:
        L: `(m, k)`, as in `Quick`, in doubled digits.
        R: `(k, r)`, upper trapezoidal; the row of a pivot that is gone is zero.
        order: `(r,)`.
        rows: `(m,)`, the rows of `A` in the order of the pivots.
        num_lost: how many columns that count have no pivot that is more than rounding.
    """

    L: Doubled
    R: Array
    order: Array
    rows: Array
    num_lost: Array


def eps(dtype: Any) -> float:
    """What the error of `refined` and `careful` is below, beside the sums of sizes in `J L_0`.

    That of a residual of split products; pairs have more digits than that.
    """
    digits = int(_finfo(dtype).nmant)
    return 2.0 ** (3 - digits - digits // 2)


def quick(A: Array) -> Quick:
    """Elimination in working precision, of `A`, `(m, r)`."""
    LU, _, rows = jax.lax.linalg.lu(A)
    k = min(A.shape)
    numbers = jnp.arange(len(rows), dtype=rows.dtype)
    is_at = rows[:, None] == numbers[None, :]
    place = jnp.sum(jnp.where(is_at, numbers[:, None], 0), axis=0, dtype=rows.dtype)
    L = jnp.tril(LU[:, :k], -1) + jnp.eye(A.shape[0], k, dtype=A.dtype)
    sizes = jnp.max(jnp.abs(A), axis=1)[rows[:k]]
    return Quick(L[place], jnp.triu(LU[:k]), jnp.diagonal(LU), rows, place, sizes)


def refined(J: Array, L_0: Doubled, found: Quick) -> tuple[Doubled, Array]:
    """`L` and `R` of `J L_0` right to working precision, from those that are nearly so.

    One step of Newton's method with a residual in more digits; m >= r. The error left is the
    square of what rounding had made of the quick factors. Columns of those behind the ones of
    `L_0` are given as they are.
    """
    L, R = found.L, found.R
    m, k = L.shape
    r = L_0.high.shape[1]
    square = jnp.where(found.pivots[:, None] == 0, jnp.eye(k, dtype=R.dtype), R)
    residual = _residual(J, L_0.high, L, R[:, :r]) + J @ L_0.low
    residual = jnp.pad(residual, ((0, 0), (0, k - r)))
    # L (I + X) (I + Y) R with X strictly below the diagonal, and Y not.
    beside_R = jax.lax.linalg.triangular_solve(square, residual)
    rows = found.rows[:k]
    both = jax.lax.linalg.triangular_solve(
        L[rows], beside_R[rows], left_side=True, lower=True, unit_diagonal=True
    )
    Y = jnp.triu(both)
    below = jnp.tri(m, k, -1, bool)[found.place]
    better = doubled.sum_of(L, jnp.where(below, beside_R - L @ Y, 0))
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
    digits = int(_finfo(x.dtype).nmant) + 1
    bits = (digits - math.ceil(math.log2(x.shape[axis]))) // 2
    largest = scaled.exponent_of(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    unit = largest + 1 - bits
    high = jnp.round(x * scaled.power_of_two(-unit, x.dtype)) * scaled.power_of_two(unit, x.dtype)
    return high, x - high


class _State(NamedTuple):
    """Elimination in place: rows and columns that are done hold `R` and `L`.

    Attributes:
        A: `(m, r)`. An entry left is `rows[i] A columns[:, j]` of the matrix at the start.
        error: `(m, r)`, a bound on the change of that matrix for which all this is exact.
        rows: `(m, m)`, the combinations of rows that are left.
        columns: `(r, r)`, the combinations of columns.
        row_rank, column_rank: `(m,)` and `(r,)`, the number of the pivot that was found there,
            or more than there can be.
        num_found: how many pivots there are.
        num_lost: how many columns that count were left when rounding was all that they were.
        is_over: whether no column that counts is left, or none that is more than rounding.
        is_exhausted: no entry left is more than rounding.
    """

    A: Doubled
    error: Array
    rows: Array
    columns: Array
    row_rank: Array
    column_rank: Array
    num_found: Array
    num_lost: Array
    is_over: Array
    is_exhausted: Array


def careful(
    J: Array,
    L: Doubled,
    log_2_d: Array,
    uncertain: Array | float = 0.0,
    added: Array | float = 0.0,
) -> Careful:
    """The factors of `A = J L` that keep `A diag(d)` graded, however nearly singular `A` is.

    Args:
        J: `(m, n)`, its entries well inside the range.
        L: `(n, r)`, in doubled digits; a column of zeros has no pivot.
        log_2_d: `(r,)`; columns with minus infinity do not count, and come behind all others.
        uncertain: `(m, r)`, how far from the truth `J L` may be as it is given.
        added: `(m, r)`, columns in the place of those that are zero in `L`.
    """
    m, r = len(J), L.high.shape[1]
    k = min(m, r)
    A, error = _product(J, L)
    A = A._replace(high=A.high + added)
    # An infinity or nan is one in every pivot.
    is_undefined = ~jnp.isfinite(jnp.sum(A.high)) | jnp.any(jnp.isnan(log_2_d))
    start = _State(
        A,
        error + uncertain,
        rows=jnp.eye(m, dtype=J.dtype),
        columns=jnp.eye(r, dtype=J.dtype),
        row_rank=k + jnp.arange(m, dtype=jnp.int32),
        column_rank=k + jnp.arange(r, dtype=jnp.int32),
        num_found=jnp.zeros((), jnp.int32),
        num_lost=jnp.zeros((), jnp.int32),
        is_over=jnp.zeros((), bool),
        is_exhausted=is_undefined,
    )
    end = jax.lax.while_loop(
        lambda s: (s.num_found < k) & ~s.is_exhausted,
        lambda s: _turn(s, J, L.high, log_2_d, k),
        start,
    )
    # Rows and columns without a pivot keep their order behind the others.
    ranks = end.row_rank, end.column_rank
    rows, order = (jnp.argsort(rank).astype(jnp.int32) for rank in ranks)
    LR = jax.tree.map(lambda part: part[rows][:, order], end.A)
    found = jnp.arange(k) < end.num_found
    below = jax.tree.map(lambda part: jnp.where(found[None, :], jnp.tril(part[:, :k], -1), 0), LR)
    R = jnp.where(found[:, None], jnp.triu(LR.high[:k]), 0)
    R = jnp.where(is_undefined, jnp.nan, R)
    sorted_L = below._replace(high=below.high + jnp.eye(m, k, dtype=J.dtype))
    L = jax.tree.map(
        lambda part: jnp.zeros_like(part).at[rows].set(part, unique_indices=True), sorted_L
    )
    return Careful(L, R, order, rows, end.num_lost)


def _product(J: Array, L: Doubled) -> tuple[Doubled, Array]:
    """`J L` in doubled digits, and a bound on its error."""

    def step(total: Doubled, pair: tuple[Array, Doubled]) -> tuple[Doubled, None]:
        column, row = pair[0][:, None], jax.tree.map(lambda part: part[None, :], pair[1])
        high, low = doubled.product(column, row.high)
        return doubled.add(total, Doubled(high, low + column * row.low)), None

    start = doubled.zeros((len(J), L.high.shape[1]), J.dtype)
    total, _ = jax.lax.scan(step, start, (J.T, L))
    return total, len(L.high) * doubled.eps(J.dtype) * (jnp.abs(J) @ jnp.abs(L.high))


def _turn(s: _State, J: Array, L: Array, log_2_d: Array, k: int) -> _State:
    """The next pivot, or zeros for what is left and may be made of rounding."""
    size = jnp.where(_is_left(s, k) & (s.A.high != 0), scaled.rough_log_2(s.A.high), -jnp.inf)
    score = size + log_2_d[None, :]
    is_over = jnp.max(score) == -jnp.inf
    # Columns that do not count take what rows are left.
    score = jnp.where(is_over, size, score)
    best = jnp.max(score, axis=0)
    j = jnp.argmax(best >= jnp.max(best) - _IN_ORDER)
    i = jnp.argmax(score[:, j])
    noise = _noise(s._replace(rows=_row(i)(s.rows), columns=_column(j)(s.columns)), J, L)[0, 0]
    # Where all that is left is zero already, no score is finite.
    is_certain = (jnp.abs(s.A.high[i, j]) > noise) & (score[i, j] > -jnp.inf)
    eliminate = partial(_eliminate, i=i, j=j, k=k)
    counts = (log_2_d > -jnp.inf)[None, :]
    clear = partial(_without_noise, i=i, j=j, is_certain=is_certain, J=J, L=L, counts=counts, k=k)
    return jax.lax.cond(is_certain & (is_over <= s.is_over), eliminate, clear, s)


def _noise(s: _State, J: Array, L: Array) -> Array:
    """How far roundings may have moved the entries of `A`: those of the layer's, and ours.

    To first order, an entry is moved by the change of `J L` between the combinations of rows and
    of columns that it belongs to.
    """
    rows, columns = jnp.abs(s.rows), jnp.abs(s.columns)
    by_layer = rows @ (jnp.abs(J) @ jnp.abs(L @ s.columns))
    return scaled.eps(J.dtype) / 2 * by_layer + rows @ (s.error @ columns)


def _without_noise(
    s: _State,
    i: Array,
    j: Array,
    is_certain: Array,
    J: Array,
    L: Array,
    counts: Array,
    k: int,
) -> _State:
    """Zeros for all entries left that may be made of rounding, as that in row i, column j may be.

    But not that one where it `is_certain`.
    """
    is_left, noise = _is_left(s, k), _noise(s, J, L)
    is_noise = jnp.abs(s.A.high) <= noise
    is_noise = is_left & is_noise.at[i, j].set(is_noise[i, j] | ~is_certain)
    A = Doubled(*(jnp.where(is_noise, 0, part) for part in s.A))
    is_over = ~jnp.any(is_left & counts & (A.high != 0))
    # Of the rank that is missing, what only roundings stand in for.
    stands_in = is_left & counts & (noise > 0)
    num_columns, num_rows = (jnp.sum(stands_in.any(axis=axis), dtype=jnp.int32) for axis in (0, 1))
    return s._replace(
        A=A,
        num_lost=jnp.where(is_over & ~s.is_over, jnp.minimum(num_columns, num_rows), s.num_lost),
        is_over=is_over,
        is_exhausted=~jnp.any(is_left & (A.high != 0)),
    )


def _eliminate(s: _State, i: Array, j: Array, k: int) -> _State:
    """One pivot, in row i and column j."""
    row, column = (Doubled(*(take(part) for part in s.A)) for take in (_row(i), _column(j)))
    pivot = Doubled(*(part[0, j] for part in row))
    factor = doubled.divide(column, pivot)
    taken = doubled.multiply(factor, row)
    after = doubled.subtract(s.A, taken)
    done = s._replace(
        row_rank=s.row_rank.at[i].set(s.num_found),
        column_rank=s.column_rank.at[j].set(s.num_found),
        num_found=s.num_found + 1,
    )
    is_next = _is_left(done, k)
    is_factor = (done.row_rank >= k)[:, None] & (jnp.arange(is_next.shape[1]) == j)[None, :]
    # Nor does a factor take its own entry away to the last digit.
    by_step = doubled.eps(taken.high.dtype) * (jnp.abs(s.A.high) + 2 * jnp.abs(taken.high))
    is_changed = is_next | is_factor
    A = Doubled(
        *(
            jnp.where(is_next, new, jnp.where(is_factor, f, old))
            for new, f, old in zip(after, factor, s.A, strict=True)
        )
    )
    return done._replace(
        A=A,
        error=s.error + jnp.where(is_changed, by_step, 0),
        rows=s.rows - jnp.where((done.row_rank >= k)[:, None], factor.high, 0) * _row(i)(s.rows),
        columns=s.columns
        - _column(j)(s.columns)
        * jnp.where((done.column_rank >= k)[None, :], row.high / pivot.high, 0),
    )


def _is_left(s: _State, k: int) -> Array:
    """The entries in rows and columns without a pivot."""
    return (s.row_rank >= k)[:, None] & (s.column_rank >= k)[None, :]


def _row(i: Array) -> Any:
    return lambda A: jax.lax.dynamic_slice_in_dim(A, i, 1, 0)


def _column(j: Array) -> Any:
    return lambda A: jax.lax.dynamic_slice_in_dim(A, j, 1, 1)
