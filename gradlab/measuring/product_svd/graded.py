"""A long product as `L diag(d) U`, and one layer after another taken into it.

`L` and `U` are well conditioned and every entry of `d` has an exponent: nothing is ever lost beside
a larger number. A layer is taken in by Gaussian elimination (`elimination`), quickly or exactly.

Where a chain has fewer directions than units (few inputs, a neck, dead units), rounding puts parts
beside all that the directions span, and later layers may magnify those more than any direction. So
`L` has more columns than there are directions, with zeros in `d`: they are taken through the layers
as all others are, and tell how what is beside the directions grows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import doubled, scaled
from gradlab.arithmetic.doubled import Doubled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import linearisation, loops
from gradlab.measuring.product_svd import elimination
from gradlab.measuring.product_svd.elimination import Quick
from gradlab.models.chain import Layer

# The ways to take a layer in, by the digits that they keep: those of its dtype, half as many more,
# and twice as many.
QUICK, REFINED, CAREFUL = range(3)

# Elimination in working precision may lose so much of a logarithm (nats) by all layers of a chain;
# a layer that would take a twentieth of that is refined, so that the rest can go on quickly.
LOSS = 2e-11
LAYER_LOSS = LOSS / 20
# And no column may be overtaken by another in a layer by more than this, or than twice the width.
_OVERTAKEN = 16.0

# What has strayed may be so many times larger than a sample of it.
STRAY = 8

# Columns beside the directions of a wide layer: as many as there are, but not fewer than these.
_BESIDE = 8

# More powers of two than any two directions are apart.
_FAR = 2**30


class Factors(NamedTuple):
    """`P_k = L diag(d) U`, with c columns; the last, with zeros in d, may be no directions.

    Attributes:
        L: `(width_k, c)`.
        d: `(c,)`, an exponent an entry, roughly descending, zero where the rank is lost: there the
            exponent is what the column has grown by.
        U: `(c, width_0)`, its rows' largest entries in [1, 2), or zero where d is.
        num_lost: how many entries of d were set to zero because they were made of rounding.
    """

    L: Array
    d: Scaled
    U: Array
    num_lost: Array


class Gaps(NamedTuple):
    """How far columns were behind directions, in powers of two.

    Attributes:
        largest: `(c, c)`, the most that column i ever was behind direction j, negative, or any
            number where column i is no direction.
        caught_up: `(c,)`, the most that any has caught up on j since then, a direction at most to
            where j is.
    """

    largest: Array
    caught_up: Array


class Step(NamedTuple):
    """One layer: the factors before it, and its `L R = J before.L` in the columns of directions.

    Attributes:
        before: with columns of zeros for those that the layer adds, and in `order`.
        order: `(r,)`.
        J: `(width_k, width_{k-1})`, by the power of two that makes that hold.
        L: `(width_k, c)`.
        R: `(c, r)`, upper trapezoidal.
        error: a scalar, the relative error of a term in those sums.
    """

    before: Factors
    order: Array
    J: Array
    L: Array
    R: Array
    error: Array


class Ahead(NamedTuple):
    """What a layer would make of factors, before it is taken in.

    Attributes:
        z: the state after it.
        L: `(width_k, c)`, with R, `(c, c)`, as in `Step`.
        R: see there.
        pivots: `(c,)`, the diagonal of R.
        d: `(c,)`, but for what the rows of the next U will give to it.
        T: `(c, c)`, with `R diag(d before) = diag(d) T`.
        loss: what it may lose (nats); above `LAYER_LOSS` the factors may be wrong.
    """

    z: Array
    L: Array
    R: Array
    pivots: Array
    d: Scaled
    T: Array
    loss: Array


class Exactly(NamedTuple):
    """Factors whose L has twice the digits, since later layers magnify its rounding.

    Attributes:
        factors: rounded.
        low: `(width_k, c)`, what rounding has taken from their L.
        stray: `(c, c)`, a sample of how much of column i rounding has put into direction j, for
            columns that are no directions.
    """

    factors: Factors
    low: Array
    stray: Array


def num_columns(num_directions: int, width: int) -> int:
    """How many columns L has in a layer of some width."""
    return min(width, num_directions + max(num_directions, _BESIDE))


def start(x: Array) -> Exactly:
    """The factors of the empty product."""
    eye, zeros = jnp.eye(x.size, dtype=x.dtype), jnp.zeros(x.size, jnp.int32)
    factors = Factors(eye, Scaled(eye.sum(axis=0), zeros), eye, jnp.zeros((), jnp.int32))
    return Exactly(factors, jnp.zeros_like(eye), jnp.zeros_like(eye))


def no_gaps(x: Array) -> Gaps:
    """Those of the empty product."""
    return Gaps(jnp.zeros((x.size, x.size), jnp.int32), jnp.zeros(x.size, jnp.int32))


def next_gaps(gaps: Gaps, d: Scaled, pivots: Array) -> Gaps:
    """The gaps after one more layer, which has made d and has these pivots."""
    c, is_gone = len(pivots), d.mantissa == 0
    gap = _gap(d)
    # In a column without a pivot there is nothing any more.
    is_new = is_gone & (pivots == 0)
    largest = jnp.where(is_new[:, None], gap, jnp.minimum(gaps.largest[:c, :c], gap))
    caught_up = jnp.max(jnp.where(is_gone[None, :], 0, gap - largest), axis=0)
    return Gaps(largest, jnp.maximum(gaps.caught_up[:c], caught_up))


def _gap(d: Scaled) -> Array:
    """How far column i is ahead of direction j now; one direction is never ahead of another."""
    gap = d.exponent[:, None] - d.exponent[None, :]
    return jnp.where((d.mantissa == 0)[:, None], gap, jnp.minimum(gap, 0))


def after_quick_layers(factors: Factors, gaps: Gaps) -> Exactly:
    """What there is to go on from exactly: no second digits, and all that may have strayed."""
    is_gone = factors.d.mantissa == 0
    caught_up = _gap(factors.d) - gaps.largest
    sizes = LAYER_LOSS * scaled.power_of_two(caught_up, factors.L.dtype)
    is_beside = is_gone[:, None] & ~is_gone[None, :]
    stray = jnp.where(is_beside, jnp.clip(sizes * _sample(sizes), -1, 1), 0)
    return Exactly(factors, jnp.zeros_like(factors.L), stray)


def _sample(like: Array) -> Array:
    """Normal numbers; signs alone would be in proportion wherever two rows are."""
    return jnp.asarray(np.random.default_rng(0).normal(size=like.shape), like.dtype)


def look_ahead(layer: Layer, params: Any, z: Array, factors: Factors) -> Ahead:
    """What a layer that keeps the width would make of the factors, quickly."""
    z_next, linear = linearisation.linearise(layer, params, z)
    found = elimination.quick(linear.times(params, factors.L))
    d, T = _scales(factors.d, found.R, found.pivots)
    loss = _loss(found, factors.d, T)
    return Ahead(z_next, found.L, found.R, found.pivots, d, T, loss)


def take(before: Factors, ahead: Ahead) -> Factors:
    """The factors after the layer that was looked at."""
    return _absorb(before, ahead.L, ahead.d, ahead.T)


def step_ahead(layer: Layer, params: Any, z: Array, before: Factors, ahead: Ahead) -> Step:
    """The layer that was looked at, from the state z."""
    error = jnp.asarray(scaled.eps(z.dtype), z.dtype)
    order = jnp.arange(len(before.U), dtype=jnp.int32)
    _, J = linearisation.jacobian(layer, params, z)
    return Step(before, order, J, ahead.L, ahead.R, error)


def advance_exactly(
    layer: Layer,
    params: Any,
    z: Array,
    exactly: Exactly,
    gaps: Gaps,
    grade: Array,
    num_directions: int,
    with_step: bool,
) -> tuple[Array, Taken]:
    """The next state, and what one layer makes of the factors and the gaps.

    A layer is refined, or taken in carefully where that is not enough or `grade` asks for it.

    Args:
        layer: the layer.
        params: its parameters.
        z: the state before it.
        exactly: the factors before it.
        gaps: the gaps before it.
        grade: what the chain is gone through with.
        num_directions: the least width of the chain before this layer.
        with_step: whether the step is wanted.
    """
    z_next, linear = linearisation.linearise(layer, params, z)
    L_0 = Doubled(exactly.factors.L, exactly.low)
    num_old = L_0.high.shape[1]
    c = num_columns(min(num_directions, z_next.size), z_next.size)
    exactly, gaps = _with_columns(exactly, gaps, max(num_old, c))
    J = linear.jacobian(params)

    def careful(nothing: Any) -> _Eliminated:
        del nothing
        return _carefully(J, exactly, num_old)

    if num_old > c:
        # Where directions end it takes a full elimination.
        done = careful(None)
    else:
        factors = exactly.factors
        A = linear.times(params, factors.L)
        quick = elimination.quick(A + _added(A, num_old))
        loss = _loss(quick, factors.d, _scales(factors.d, quick.R, quick.pivots)[1])
        # Refining squares what rounding has made of the quick factors.
        stands = (loss <= scaled.eps(z.dtype) ** 0.5 / 8) & (grade <= REFINED)
        done = loops.unless(stands, _refined(J, L_0, quick, loss), careful)
    taken = _taken(J, exactly, gaps, done)
    return z_next, taken if with_step else taken._replace(step=None)


def _with_columns(exactly: Exactly, gaps: Gaps, num: int) -> tuple[Exactly, Gaps]:
    """The same with so many columns; the new ones are zero, and nothing was ever behind them."""
    factors = exactly.factors
    more = num - len(factors.U)
    columns, rows, both = ((0, 0), (0, more)), ((0, more), (0, 0)), ((0, more), (0, more))
    d = jax.tree.map(lambda part: jnp.pad(part, (0, more)), factors.d)
    factors = Factors(jnp.pad(factors.L, columns), d, jnp.pad(factors.U, rows), factors.num_lost)
    exactly = Exactly(factors, jnp.pad(exactly.low, columns), jnp.pad(exactly.stray, both))
    largest = jnp.pad(gaps.largest, both, constant_values=_FAR)
    return exactly, Gaps(largest, jnp.pad(gaps.caught_up, (0, more)))


def _added(A: Array, num_old: int) -> Array:
    """Columns for those of A that are new: what rounding is like, rows by their sizes."""
    sizes = jnp.max(jnp.abs(A), axis=1, keepdims=True)
    sizes = jnp.where(jnp.isfinite(sizes), sizes, 1)
    is_old = (jnp.arange(A.shape[1]) < num_old)[None, :]
    return jnp.where(is_old, 0, sizes * _sample(A))


class Taken(NamedTuple):
    """What a layer makes of the factors and the gaps.

    `strayed` is the largest entry of what has strayed or has come back (nats).
    """

    exactly: Exactly
    gaps: Gaps
    strayed: Array
    step: Step | None


class _Eliminated(NamedTuple):
    """A layer's `L R = J 2^-exponent L_0[:, order]`, as `elimination.Careful` has it.

    `error` is the relative error of a term in those sums.
    """

    L: Doubled
    R: Array
    order: Array
    rows: Array
    num_lost: Array
    exponent: Array
    error: Array


def _refined(J: Array, L_0: Doubled, quick: Quick, loss: Array) -> _Eliminated:
    L, R = elimination.refined(J, L_0, quick)
    order, nothing = jnp.arange(len(R), dtype=jnp.int32), jnp.zeros((), jnp.int32)
    error = elimination.eps(J.dtype) + jnp.where(loss < 1, loss, 1) ** 2
    return _Eliminated(L, R, order, quick.rows, nothing, nothing, error)


def _carefully(J: Array, before: Exactly, num_old: int) -> _Eliminated:
    J_scaled, factors = scaled.scale(J), before.factors
    J, exponent = J_scaled.mantissa, J_scaled.exponent[0, 0]
    # It may be larger than its sample is.
    strayed = linearisation.matmul(factors.L, before.stray)
    uncertain = STRAY * jnp.abs(linearisation.matmul(J, strayed))
    added = _added(linearisation.matmul(J, factors.L), num_old)
    L_0 = Doubled(factors.L, before.low)
    done = elimination.careful(J, L_0, scaled.log_2(factors.d), uncertain, added)
    error = jnp.asarray(doubled.eps(J.dtype), J.dtype)
    return _Eliminated(*done, exponent, error)


def _taken(J: Array, before: Exactly, gaps: Gaps, done: _Eliminated) -> Taken:
    """The factors and the gaps after a layer, from its elimination."""
    order, pivots = done.order, jnp.diagonal(done.R)
    square = order[:, None], order[None, :]
    L, U, d = before.factors.L[:, order], before.factors.U[order], before.factors.d
    d = jax.tree.map(lambda part: part[order], d)
    factors = Factors(L, d, U, before.factors.num_lost + done.num_lost)
    gaps = Gaps(gaps.largest[square], gaps.caught_up[order])
    d, T = _scales(d, done.R, pivots)
    d = Scaled(d.mantissa, d.exponent + done.exponent)
    after = _absorb(factors, done.L.high, d, T)
    J = J * scaled.power_of_two(-done.exponent, J.dtype)
    step = Step(factors, order, J, done.L.high, done.R, done.error)
    stray, strayed = _next_stray(step, before.stray[square], done.rows, after.d.mantissa != 0)
    exactly = Exactly(after, done.L.low, stray)
    return Taken(exactly, next_gaps(gaps, after.d, pivots), strayed, step)


def _next_stray(step: Step, stray: Array, rows: Array, is_alive: Array) -> tuple[Array, Array]:
    """The sample of what has strayed after a step, and the largest entry of all that has moved.

    With F the part of column i in direction j, `J L_0 (I + F) = L (I + X) R` to first order, where
    `X = R F R^-1`: its rows of directions have come back, and the others are the next F.

    Args:
        step: the step; a rounding of its sums strays anew.
        stray: F, in the order of the step.
        rows: the rows of L in the order of the pivots.
        is_alive: `(c,)`, which columns are directions after the step.
    """
    c = len(step.R)

    def carried(nothing: tuple[Array, Array]) -> tuple[Array, Array]:
        del nothing
        of_J, of_R = (
            linearisation.matmul(jnp.abs(A), jnp.abs(B))
            for A, B in ((step.J, step.before.L), (step.L, step.R))
        )
        sizes = of_J + of_R
        rounded = (step.error * _sample(sizes) * sizes)[rows[:c]]
        own = jax.lax.linalg.triangular_solve(
            step.L[rows[:c]], rounded, left_side=True, lower=True, unit_diagonal=True
        )
        change = jnp.where(is_alive[None, :], (linearisation.matmul(step.R, stray) + own)[:, :c], 0)
        both = is_alive[:, None] & is_alive[None, :]
        square = jnp.where(both, step.R[:, :c], jnp.eye(c, dtype=own.dtype))
        X = jnp.where(is_alive[None, :], jax.lax.linalg.triangular_solve(square, change), 0)
        # Once it is as large as the directions are, it is large enough.
        return jnp.where(is_alive[:, None], 0, jnp.clip(X, -1, 1)), jnp.max(jnp.abs(X))

    nothing = jnp.zeros((c, c), stray.dtype), jnp.zeros((), stray.dtype)
    return loops.unless(jnp.all(is_alive), nothing, carried)


def _scales(d: Scaled, R: Array, pivots: Array) -> tuple[Scaled, Array]:
    """The next d, and the T of `R diag(d) = diag(next d) T`."""
    c = len(pivots)
    grown = jnp.where(d.mantissa[:c] == 0, scaled.exponent_of(pivots), 0)
    after = Scaled(jnp.abs(pivots) * d.mantissa[:c], d.exponent[:c] + grown)
    # Columns are in descending order: the ratio is large only where that has changed.
    shift = jnp.minimum(d.exponent[None, :] - d.exponent[:c, None], 64)
    row = jnp.where(after.mantissa == 0, 0, 1 / after.mantissa)[:, None]
    return after, R * row * d.mantissa[None, :] * scaled.power_of_two(shift, R.dtype)


def _absorb(before: Factors, L: Array, d: Scaled, T: Array) -> Factors:
    """`L diag(d) T U` as factors."""
    U = scaled.rescale(Scaled(linearisation.matmul(T, before.U), d.exponent[:, None]))
    d = scaled.rescale(Scaled(d.mantissa, U.exponent[:, 0]))
    # There are no more directions than the chain is narrow.
    num_left = min(before.U.shape[1], len(T)) - jnp.sum(d.mantissa != 0, dtype=jnp.int32)
    return Factors(L, d, U.mantissa, jnp.minimum(before.num_lost, num_left))


def _loss(quick: Quick, d: Scaled, T: Array) -> Array:
    """What the quick elimination of a layer may lose (nats); infinite where it cannot be told."""
    R, c, sizes = quick.R, len(quick.R), quick.sizes
    was_alive, is_filled = d.mantissa != 0, sizes != 0
    gone = ~was_alive | (quick.pivots == 0)
    # A direction may end where only dead units are left, and what is none must take no row from
    # one: neither comes before another.
    is_in_order = _is_first(was_alive) & _is_first(is_filled) & (~(was_alive & gone) | ~is_filled)
    # Rounding changes a row by its size; R^-1 carries that to the columns. Signs without
    # a pattern give a fair sample of it.
    signs = jnp.asarray(np.random.default_rng(0).choice([-1, 1], size=c), R.dtype)
    square = jnp.where(gone[:, None], jnp.eye(c, dtype=R.dtype), R)
    change = jax.lax.linalg.triangular_solve(
        square, jnp.where(gone, 0, sizes * signs)[:, None], left_side=True
    )
    largest, reach = jnp.max(sizes), 2.0 ** (scaled.largest_exponent(R.dtype) // 2)
    can_be_told = (
        (jnp.max(jnp.abs(T)) <= max(_OVERTAKEN, 2 * c))
        & (largest < reach)
        & (largest > 1 / reach)
        & jnp.all(is_in_order)
    )
    return jnp.where(can_be_told, scaled.eps(R.dtype) * jnp.max(jnp.abs(change)), jnp.inf)


def _is_first(flags: Array) -> Array:
    """Where a flag is not set behind one that is not."""
    return ~flags | jnp.pad(flags[:-1], (1, 0), constant_values=True)
