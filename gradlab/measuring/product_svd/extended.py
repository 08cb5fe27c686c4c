"""One layer taken into factors whose `L` has twice the digits: refined, or in double words.

A layer is refined, or eliminated with complete pivoting in double-word arithmetic where that is not
enough. Later layers amplify the rounding of `L`, which is why it is kept in double words here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import doubled, scaled
from gradlab.arithmetic.doubled import Doubled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import linearisation, loops, roundings
from gradlab.measuring.product_svd import (
    complete_pivoting,
    elimination,
    factors,
    ratios,
    thresholds,
    trial,
)
from gradlab.measuring.product_svd.elimination import PartiallyPivoted
from gradlab.measuring.product_svd.factors import Factors, Step
from gradlab.measuring.product_svd.ratios import Ratios
from gradlab.models.chain import Layer


class Extended(NamedTuple):
    """Factors whose L has twice the digits, and a sample of how far rounding has turned its range.

    Attributes:
        factors: rounded.
        low: `(width_k, c)`, what rounding has taken from their L.
        turn: `(c, c)`, a sample: entry (i, j) is how much of column i of the complement rounding
            has put into direction j.
    """

    factors: Factors
    low: Array
    turn: Array


class Advanced(NamedTuple):
    """What a layer makes of the factors and of the ratios of their scales.

    `largest_turn` is the largest entry of what rounding has turned out of the range so far, or of
    what has come back into it (nats).
    """

    extended: Extended
    ratios: Ratios
    largest_turn: Array
    step: Step | None


class _Eliminated(NamedTuple):
    """A layer's `L R = J 2^-exponent L_0[:, order]`, as `CompletelyPivoted` has it.

    `error` is the relative error of a term in those sums.
    """

    L: Doubled
    R: Array
    order: Array
    rows: Array
    num_lost: Array
    exponent: Array
    error: Array


def start(x: Array) -> Extended:
    """The factors of the empty product."""
    eye = factors.start(x)
    return Extended(eye, jnp.zeros_like(eye.L), jnp.zeros_like(eye.L))


def after_trials(now: Factors, since: Ratios) -> Extended:
    """What there is to go on from after layers in working precision: no second digits.

    The range is taken to be turned by as much as those layers may have turned it.
    """
    is_complement = now.d.mantissa == 0
    rise = ratios.exponents(now.d) - since.lowest
    sizes = thresholds.LAYER_BUDGET * scaled.power_of_two(rise, now.L.dtype)
    is_outside = is_complement[:, None] & ~is_complement[None, :]
    turn = jnp.where(is_outside, jnp.clip(sizes * factors.sample(sizes), -1, 1), 0)
    return Extended(now, jnp.zeros_like(now.L), turn)


def advance(
    layer: Layer,
    params: Any,
    z: Array,
    before: Extended,
    since: Ratios,
    level: Array,
    num_directions: int,
    with_step: bool,
) -> tuple[Array, Advanced]:
    """The next state, and what one layer makes of the factors and the ratios of their scales.

    Args:
        layer: the layer.
        params: its parameters.
        z: the state before it.
        before: the factors before it.
        since: the ratios before it.
        level: the level of precision that the chain is gone through with.
        num_directions: the least width of the chain before this layer.
        with_step: whether the step is wanted.
    """
    z_next, linear = linearisation.linearise(layer, params, z)
    L_0 = Doubled(before.factors.L, before.low)
    num_old = L_0.high.shape[1]
    c = factors.num_columns(min(num_directions, z_next.size), z_next.size)
    before, since = _with_columns(before, since, max(num_old, c))
    J, uncertain = linear.jacobian(params), roundings.of_jacobian(linear, params)

    def in_double_words(nothing: Any) -> _Eliminated:
        del nothing
        return _in_double_words(J, uncertain, before, num_old)

    if num_old > c:
        # Where directions end it takes a full elimination.
        done = in_double_words(None)
    else:
        now = before.factors
        A = linear.times(params, now.L)
        found = elimination.partial_pivoting(A + _new_columns(A, num_old))
        T = factors.scales(now.d, found.R, found.pivots)[1]
        error = trial.error_estimate(found, now.d, T, trial.own_sizes(uncertain, now.L))
        is_enough = (error <= elimination.refinable(z.dtype)) & (level <= thresholds.REFINED)
        done = loops.unless(is_enough, _refined(J, L_0, found, error), in_double_words)
    after = _advanced(J, uncertain, before, since, done)
    return z_next, after if with_step else after._replace(step=None)


def _with_columns(before: Extended, since: Ratios, num: int) -> tuple[Extended, Ratios]:
    """The same with so many columns; the new ones are zero."""
    more = num - len(before.factors.U)
    wider = Extended(
        factors.with_columns(before.factors, more),
        jnp.pad(before.low, ((0, 0), (0, more))),
        jnp.pad(before.turn, ((0, more), (0, more))),
    )
    return wider, ratios.with_columns(since, more)


def _new_columns(A: Array, num_old: int) -> Array:
    """Columns for those of A that are new: what rounding is like, rows by their sizes."""
    sizes = jnp.max(jnp.abs(A), axis=1, keepdims=True)
    sizes = jnp.where(jnp.isfinite(sizes), sizes, 1)
    is_old = (jnp.arange(A.shape[1]) < num_old)[None, :]
    return jnp.where(is_old, 0, sizes * factors.sample(A))


def _refined(J: Array, L_0: Doubled, found: PartiallyPivoted, error: Array) -> _Eliminated:
    L, R = elimination.refined(J, L_0, found)
    order, nothing = jnp.arange(len(R), dtype=jnp.int32), jnp.zeros((), jnp.int32)
    left = elimination.refined_eps(J.dtype) + jnp.where(error < 1, error, 1) ** 2
    return _Eliminated(L, R, order, found.rows, nothing, nothing, left)


def _in_double_words(
    J: Array, uncertain: Array | None, before: Extended, num_old: int
) -> _Eliminated:
    J_scaled, now = scaled.scale(J), before.factors
    J, exponent = J_scaled.mantissa, J_scaled.exponent[0, 0]
    turned = linearisation.matmul(now.L, before.turn)
    turned = thresholds.SAMPLE_MARGIN * jnp.abs(linearisation.matmul(J, turned))
    added = _new_columns(linearisation.matmul(J, now.L), num_old)
    L_0 = Doubled(now.L, before.low)
    # What is kept is known to a tenth: see FIRST_ORDER.
    own = 0 if uncertain is None else _divided(uncertain, exponent) / thresholds.FIRST_ORDER
    done = complete_pivoting.eliminate(J, L_0, scaled.log_2(now.d), turned, added, own)
    error = jnp.asarray(doubled.roundoff(J.dtype), J.dtype)
    return _Eliminated(*done, exponent, error)


def _divided(A: Array, exponent: Array) -> Array:
    """`A` over a power of two."""
    return A * scaled.power_of_two(-exponent, A.dtype)


def _advanced(
    J: Array, uncertain: Array | None, before: Extended, since: Ratios, done: _Eliminated
) -> Advanced:
    """The factors and the ratios after a layer, from its elimination."""
    order, pivots = done.order, jnp.diagonal(done.R)
    square = order[:, None], order[None, :]
    L, U, d = before.factors.L[:, order], before.factors.U[order], before.factors.d
    d = jax.tree.map(lambda part: part[order], d)
    sorted_before = Factors(L, d, U, before.factors.num_lost + done.num_lost)
    since = Ratios(since.lowest[square], since.rise[order])
    d, T = factors.scales(d, done.R, pivots)
    d = Scaled(d.mantissa, d.exponent + done.exponent)
    after = factors.update(sorted_before, done.L.high, d, T)
    J = _divided(J, done.exponent)
    own = None if uncertain is None else _divided(uncertain, done.exponent)
    step = Step(sorted_before, order, J, done.L.high, done.R, done.error, own)
    turn, largest = _next_turn(step, before.turn[square], done.rows, after.d.mantissa != 0)
    extended = Extended(after, done.L.low, turn)
    return Advanced(extended, ratios.after_layer(since, after.d, pivots), largest, step)


def _next_turn(step: Step, turn: Array, rows: Array, is_direction: Array) -> tuple[Array, Array]:
    """The sample of how far the range is turned after a step, and its largest entry.

    With F the part of column i in direction j, `J L_0 (I + F) = L (I + X) R` to first order, where
    `X = R F R^-1`: its rows of directions are back in the range, the others are the next F.

    Args:
        step: the step; a rounding of its sums turns the range anew.
        turn: F, in the order of the step.
        rows: the rows of L in the order of the pivots.
        is_direction: `(c,)`, which columns are directions after the step.
    """
    c = len(step.R)

    def carried(nothing: tuple[Array, Array]) -> tuple[Array, Array]:
        del nothing
        of_J, of_R = (
            linearisation.matmul(jnp.abs(A), jnp.abs(B))
            for A, B in ((step.J, step.before.L), (step.L, step.R))
        )
        sizes = step.error * (of_J + of_R)
        if step.uncertain is not None:
            sizes += linearisation.matmul(step.uncertain, jnp.abs(step.before.L))
        rounded = (factors.sample(sizes) * sizes)[rows[:c]]
        own = jax.lax.linalg.triangular_solve(
            step.L[rows[:c]], rounded, left_side=True, lower=True, unit_diagonal=True
        )
        pushed = (linearisation.matmul(step.R, turn) + own)[:, :c]
        change = jnp.where(is_direction[None, :], pushed, 0)
        both = is_direction[:, None] & is_direction[None, :]
        square = jnp.where(both, step.R[:, :c], jnp.eye(c, dtype=own.dtype))
        solved = jax.lax.linalg.triangular_solve(square, change)
        X = jnp.where(is_direction[None, :], solved, 0)
        # Once it is as large as the directions are, it is large enough.
        return jnp.where(is_direction[:, None], 0, jnp.clip(X, -1, 1)), jnp.max(jnp.abs(X))

    nothing = jnp.zeros((c, c), turn.dtype), jnp.zeros((), turn.dtype)
    return loops.unless(jnp.all(is_direction), nothing, carried)
