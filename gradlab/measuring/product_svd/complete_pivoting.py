"""Gaussian elimination with complete pivoting, in double words: right however singular a layer is.

Rows and columns are pivoted on the entries of `J L_0 diag(d)`, so that the factors keep the grading
of the diagonal; what rounding may have made is told from rank by an error that is carried along.
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
from gradlab.measuring.product_svd import thresholds


class CompletelyPivoted(NamedTuple):
    """`A[:, order] = L R`, for an `A` of shape `(m, r)`, with k = min(m, r).

    Attributes:
        L: `(m, k)`, in double words; a permutation of its rows makes it unit lower trapezoidal.
        R: `(k, r)`, upper trapezoidal; the row of a pivot that is none is zero.
        order: `(r,)`.
        rows: `(m,)`, the rows of `A` in the order of the pivots.
        num_lost: how many directions have no pivot that is more than rounding.
    """

    L: Doubled
    R: Array
    order: Array
    rows: Array
    num_lost: Array


class _Elimination(NamedTuple):
    """Elimination in place: rows and columns that are done hold `R` and `L`.

    Attributes:
        A: `(m, r)`. An entry left is `rows[i] A columns[:, j]` of the matrix at the start.
        error: `(m, r)`, a bound on the change of that matrix for which all this is exact.
        rows: `(m, m)`, the combinations of rows that are left.
        columns: `(r, r)`, the combinations of columns.
        row_rank, column_rank: `(m,)` and `(r,)`, the number of the pivot that was found there,
            or more than there can be.
        num_pivots: how many pivots there are.
        sizes: `(k,)`, the logarithm (base 2) of each times its scale; infinite in the complement.
        cleared: that of the largest that rounding may have made of an entry that was cleared.
        num_lost: how many directions were left when rounding was all that they were.
        is_range_done: whether no direction is left, or none that is more than rounding.
        is_done: whether no entry left is more than rounding.
    """

    A: Doubled
    error: Array
    rows: Array
    columns: Array
    row_rank: Array
    column_rank: Array
    num_pivots: Array
    sizes: Array
    cleared: Array
    num_lost: Array
    is_range_done: Array
    is_done: Array


def eliminate(
    J: Array,
    L: Doubled,
    log_2_d: Array,
    uncertain: Array | float = 0.0,
    added: Array | float = 0.0,
    uncertain_J: Array | float = 0.0,
) -> CompletelyPivoted:
    """The factors of `A = J L` that keep `A diag(d)` graded, however nearly singular `A` is.

    Args:
        J: `(m, n)`, its entries well inside the range.
        L: `(n, r)`, in double words; a column of zeros has no pivot.
        log_2_d: `(r,)`; columns with minus infinity are no directions, and come behind all others.
        uncertain: `(m, r)`, how far from the truth `J L` may be as it is given.
        added: `(m, r)`, columns in the place of those that are zero in `L`.
        uncertain_J: `(m, n)`, how far from the truth `J` may be, beside half an ulp of its entries.
    """
    m, r = len(J), L.high.shape[1]
    k = min(m, r)
    A, error = _product_in_double_words(J, L)
    A = A._replace(high=A.high + added)
    # An infinity or nan is one in every pivot.
    is_undefined = ~jnp.isfinite(jnp.sum(A.high)) | jnp.any(jnp.isnan(log_2_d))
    start = _start(A, error + uncertain, is_undefined)
    wrong_J = scaled.eps(J.dtype) / 2 * jnp.abs(J) + uncertain_J
    end = jax.lax.while_loop(
        lambda s: (s.num_pivots < k) & ~s.is_done,
        lambda s: _next_pivot(s, wrong_J, L.high, log_2_d, k),
        start,
    )
    return _factors(_without_the_unclear(end, log_2_d > -jnp.inf), is_undefined)


def _start(A: Doubled, error: Array, is_done: Array) -> _Elimination:
    """Before the first pivot of `A`, `(m, r)`."""
    (m, r), dtype = A.high.shape, A.high.dtype
    k = min(m, r)
    return _Elimination(
        A,
        error,
        rows=jnp.eye(m, dtype=dtype),
        columns=jnp.eye(r, dtype=dtype),
        row_rank=k + jnp.arange(m, dtype=jnp.int32),
        column_rank=k + jnp.arange(r, dtype=jnp.int32),
        num_pivots=jnp.zeros((), jnp.int32),
        sizes=jnp.full(k, jnp.inf, dtype),
        cleared=jnp.full((), -jnp.inf, dtype),
        num_lost=jnp.zeros((), jnp.int32),
        is_range_done=jnp.zeros((), bool),
        is_done=is_done,
    )


def _factors(end: _Elimination, is_undefined: Array) -> CompletelyPivoted:
    """What an elimination at its end has made: nan in every pivot where `is_undefined`."""
    m, k = len(end.rows), len(end.sizes)
    # Rows and columns without a pivot keep their order behind the others.
    ranks = end.row_rank, end.column_rank
    rows, order = (jnp.argsort(rank).astype(jnp.int32) for rank in ranks)
    LR = jax.tree.map(lambda part: part[rows][:, order], end.A)
    found = jnp.arange(k) < end.num_pivots
    below = jax.tree.map(lambda part: jnp.where(found[None, :], jnp.tril(part[:, :k], -1), 0), LR)
    R = jnp.where(found[:, None], jnp.triu(LR.high[:k]), 0)
    R = jnp.where(is_undefined, jnp.nan, R)
    sorted_L = below._replace(high=below.high + jnp.eye(m, k, dtype=R.dtype))
    L = jax.tree.map(
        lambda part: jnp.zeros_like(part).at[rows].set(part, unique_indices=True), sorted_L
    )
    return CompletelyPivoted(L, R, order, rows, end.num_lost)


def _product_in_double_words(J: Array, L: Doubled) -> tuple[Doubled, Array]:
    """`J L` in double words, and a bound on its error."""

    def step(total: Doubled, pair: tuple[Array, Doubled]) -> tuple[Doubled, None]:
        column, row = pair[0][:, None], jax.tree.map(lambda part: part[None, :], pair[1])
        high, low = doubled.product_of(column, row.high)
        return doubled.add(total, Doubled(high, low + column * row.low)), None

    start = doubled.zeros((len(J), L.high.shape[1]), J.dtype)
    total, _ = jax.lax.scan(step, start, (J.T, L))
    return total, len(L.high) * doubled.roundoff(J.dtype) * (jnp.abs(J) @ jnp.abs(L.high))


def _next_pivot(s: _Elimination, wrong_J: Array, L: Array, log_2_d: Array, k: int) -> _Elimination:
    """The next pivot, or zeros for what is left and may be made of rounding."""
    size = jnp.where(_is_left(s, k) & (s.A.high != 0), scaled.rough_log_2(s.A.high), -jnp.inf)
    score = size + log_2_d[None, :]
    is_range_done = jnp.max(score) == -jnp.inf
    # The columns of the complement take what rows are left.
    score = jnp.where(is_range_done, size, score)
    best = jnp.max(score, axis=0)
    j = jnp.argmax(best >= jnp.max(best) - thresholds.COLUMN_TOLERANCE)
    i = jnp.argmax(score[:, j])
    at_one = s._replace(rows=_row(i)(s.rows), columns=_column(j)(s.columns))
    rounding = _rounding_bound(at_one, wrong_J, L)[0, 0]
    # Where all that is left is zero already, no score is finite.
    is_certain = (jnp.abs(s.A.high[i, j]) > rounding) & (score[i, j] > -jnp.inf)
    # The columns of the complement are behind all directions, and none of them is a number given.
    found = jnp.where(is_range_done, jnp.inf, score[i, j])
    eliminate = partial(_with_pivot, i=i, j=j, k=k, size=found)
    clear = partial(
        _without_rounding,
        i=i,
        j=j,
        is_certain=is_certain,
        wrong_J=wrong_J,
        L=L,
        log_2_d=log_2_d,
        k=k,
    )
    return jax.lax.cond(is_certain & (is_range_done <= s.is_range_done), eliminate, clear, s)


def _without_the_unclear(s: _Elimination, is_direction: Array) -> _Elimination:
    """Where directions are lost, those pivots too that are not far above what rounding may make.

    What was cleared for them is up to a tenth of such a pivot, so that it is not known either.
    """
    # All entries together have at most so many times the norm of the largest.
    limit = s.cleared + math.log2(len(s.sizes) / thresholds.FIRST_ORDER)
    num_clear = jnp.sum(jnp.cumprod((s.sizes > limit).astype(jnp.int32)), dtype=jnp.int32)
    num_pivots = jnp.where(s.num_lost > 0, jnp.minimum(num_clear, s.num_pivots), s.num_pivots)
    is_unclear = (s.column_rank >= num_pivots) & (s.column_rank < s.num_pivots)
    num_unclear = jnp.sum(is_unclear & is_direction, dtype=jnp.int32)
    return s._replace(num_pivots=num_pivots, num_lost=s.num_lost + num_unclear)


def _rounding_bound(s: _Elimination, wrong_J: Array, L: Array) -> Array:
    """How far roundings may have moved the entries of `A`: those of the layer's, and ours.

    To first order, an entry is moved by the change of `J L` between the combinations of rows and
    of columns that it belongs to.
    """
    rows, columns = jnp.abs(s.rows), jnp.abs(s.columns)
    by_layer = rows @ (wrong_J @ jnp.abs(L @ s.columns))
    return by_layer + rows @ (s.error @ columns)


def _without_rounding(
    s: _Elimination,
    i: Array,
    j: Array,
    is_certain: Array,
    wrong_J: Array,
    L: Array,
    log_2_d: Array,
    k: int,
) -> _Elimination:
    """Zeros for all entries left that may be made of rounding, as that in row i, column j may be.

    But not that one where it `is_certain`.
    """
    is_left, rounding = _is_left(s, k), _rounding_bound(s, wrong_J, L)
    is_direction = (log_2_d > -jnp.inf)[None, :]
    made = jnp.where(is_left & (rounding > 0), scaled.rough_log_2(rounding), -jnp.inf)
    is_rounding = jnp.abs(s.A.high) <= rounding
    is_rounding = is_left & is_rounding.at[i, j].set(is_rounding[i, j] | ~is_certain)
    A = Doubled(*(jnp.where(is_rounding, 0, part) for part in s.A))
    is_range_done = ~jnp.any(is_left & is_direction & (A.high != 0))
    # Of the rank that is missing, what only roundings stand in for.
    is_made_up = is_left & is_direction & (rounding > 0)
    num_missing = jnp.minimum(
        *(jnp.sum(is_made_up.any(axis=axis), dtype=jnp.int32) for axis in (0, 1))
    )
    return s._replace(
        A=A,
        cleared=jnp.maximum(s.cleared, jnp.max(made + log_2_d[None, :])),
        num_lost=jnp.where(is_range_done & ~s.is_range_done, num_missing, s.num_lost),
        is_range_done=is_range_done,
        is_done=~jnp.any(is_left & (A.high != 0)),
    )


def _with_pivot(s: _Elimination, i: Array, j: Array, k: int, size: Array) -> _Elimination:
    """One pivot, in row i and column j."""
    row, column = (Doubled(*(take(part) for part in s.A)) for take in (_row(i), _column(j)))
    pivot = Doubled(*(part[0, j] for part in row))
    factor = doubled.divide(column, pivot)
    taken = doubled.multiply(factor, row)
    after = doubled.subtract(s.A, taken)
    done = s._replace(
        row_rank=s.row_rank.at[i].set(s.num_pivots),
        column_rank=s.column_rank.at[j].set(s.num_pivots),
        num_pivots=s.num_pivots + 1,
        sizes=s.sizes.at[s.num_pivots].set(size),
    )
    is_next = _is_left(done, k)
    is_factor = (done.row_rank >= k)[:, None] & (jnp.arange(is_next.shape[1]) == j)[None, :]
    # Nor does a factor take its own entry away to the last digit.
    by_step = doubled.roundoff(taken.high.dtype) * (jnp.abs(s.A.high) + 2 * jnp.abs(taken.high))
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


def _is_left(s: _Elimination, k: int) -> Array:
    """The entries in rows and columns without a pivot."""
    return (s.row_rank >= k)[:, None] & (s.column_rank >= k)[None, :]


def _row(i: Array) -> Any:
    return lambda A: jax.lax.dynamic_slice_in_dim(A, i, 1, 0)


def _column(j: Array) -> Any:
    return lambda A: jax.lax.dynamic_slice_in_dim(A, j, 1, 1)
