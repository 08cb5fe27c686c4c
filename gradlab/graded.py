"""A long product as `L diag(d) U`, and one layer after another taken into it.

`L` and `U` are well conditioned and every entry of `d` has an exponent: nothing is ever lost beside
a larger number. A layer is taken in by Gaussian elimination (`elimination`), quickly or exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab import doubled, elimination, linearisation, loops, scaled
from gradlab.chain import Layer
from gradlab.doubled import Doubled
from gradlab.elimination import Quick
from gradlab.scaled import Scaled

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

# More powers of two than any two directions are apart.
_FAR = 2**30


class Factors(NamedTuple):
    """`P_k = L diag(d) U`, with r columns left.

    Attributes:
        L: `(width_k, r)`; a column is zero where d is.
        d: `(r,)`, an exponent an entry, roughly descending, zero where the rank is lost.
        U: `(r, width_0)`, its rows' largest entries in [1, 2), or zero where d is.
        lost: `(r,)`, where d was set to zero because it was made of rounding.
    """

    L: Array
    d: Scaled
    U: Array
    lost: Array


class Gaps(NamedTuple):
    """How far directions were behind others, in powers of two.

    Attributes:
        largest: `(r, r)`, the most that direction i ever was behind direction j, negative.
        caught_up: `(r,)`, the most that any has caught up on j since then, at most to where j is.
    """

    largest: Array
    caught_up: Array


class Step(NamedTuple):
    """One layer: the factors before it, and its `L R = J before.L`.

    Attributes:
        before: with their columns in `order`.
        order: `(r,)`.
        J: `(width_k, width_{k-1})`, by the power of two that makes that hold.
        L: `(width_k, k)`.
        R: `(k, r)`, upper trapezoidal.
        error: a scalar, the relative error of a term in those sums.
        returned: `(k, k)`, of what had strayed (`Exactly`), what is columns of L once more.
        stray: `(width_k, k)`, what has strayed now.
    """

    before: Factors
    order: Array
    J: Array
    L: Array
    R: Array
    error: Array
    returned: Array
    stray: Array


class Ahead(NamedTuple):
    """What a layer would make of factors, before it is taken in.

    Attributes:
        z: the state after it.
        L: `(width_k, k)`, with R, `(k, r)`, as in `Step`.
        R: see there.
        d: `(k,)`, but for what the rows of the next U will give to it.
        T: `(k, r)`, with `R diag(d before) = diag(d) T`.
        loss: what it may lose (nats); above `LAYER_LOSS` the factors may be wrong.
    """

    z: Array
    L: Array
    R: Array
    d: Scaled
    T: Array
    loss: Array


class Exactly(NamedTuple):
    """Factors whose L has twice the digits, since later layers magnify its rounding.

    Attributes:
        factors: rounded.
        low: `(width_k, r)`, what rounding has taken from their L.
        stray: `(width_k, r)`, a sample of what rounding has put beside all that the columns of L
            span, where that is less than everything. Layers may magnify it more than any of them.
    """

    factors: Factors
    low: Array
    stray: Array


def start(x: Array) -> Factors:
    """The factors of the empty product."""
    eye = jnp.eye(x.size, dtype=x.dtype)
    zeros = jnp.zeros(x.size, jnp.int32)
    return Factors(eye, Scaled(eye.sum(axis=0), zeros), eye, zeros > 0)


def no_gaps(x: Array) -> Gaps:
    """Those of the empty product."""
    return Gaps(jnp.zeros((x.size, x.size), jnp.int32), jnp.zeros(x.size, jnp.int32))


def next_gaps(gaps: Gaps, d: Scaled) -> Gaps:
    """The gaps after one more layer."""
    r = len(d.mantissa)
    # A direction that is gone comes back no more, and none catches up on it.
    is_gone = d.mantissa == 0
    own, other = (jnp.where(is_gone, far, d.exponent) for far in (-_FAR, _FAR))
    gap = jnp.clip(own[:, None] - other[None, :], -_FAR // 2, 0)
    largest = jnp.minimum(gaps.largest[:r, :r], gap)
    return Gaps(largest, jnp.maximum(gaps.caught_up[:r], jnp.max(gap - largest, axis=0)))


def look_ahead(layer: Layer, params: Any, z: Array, factors: Factors) -> Ahead:
    """What a layer would make of the factors, quickly."""
    z_next, linear = linearisation.linearise(layer, params, z)
    found = elimination.quick(linear.times(params, factors.L))
    d, T = _scales(factors.d, found.R, found.pivots)
    # Beside directions that are fewer than the units something strays, which needs more digits.
    is_whole = jnp.all(found.pivots != 0)
    loss = jnp.where(is_whole, _loss(found, factors.d, T), jnp.inf)
    return Ahead(z_next, found.L, found.R, d, T, loss)


def take(before: Factors, ahead: Ahead) -> Factors:
    """The factors after the layer that was looked at."""
    return _absorb(before, ahead.L, ahead.d, ahead.T)


def step_ahead(layer: Layer, params: Any, z: Array, before: Factors, ahead: Ahead) -> Step:
    """The layer that was looked at, from the state z."""
    error = jnp.asarray(scaled.eps(z.dtype), z.dtype)
    order = jnp.arange(len(before.U), dtype=jnp.int32)
    _, J = linearisation.jacobian(layer, params, z)
    k = len(ahead.R)
    nothing = jnp.zeros((k, k), z.dtype), jnp.zeros_like(ahead.L)
    return Step(before, order, J, ahead.L, ahead.R, error, *nothing)


def advance_exactly(
    layer: Layer,
    params: Any,
    z: Array,
    exactly: Exactly,
    gaps: Gaps,
    grade: Array,
    with_step: bool,
) -> tuple[Array, Taken]:
    """The next state, and what one layer makes of the factors and the gaps.

    A layer is refined, or taken in carefully where that is not enough or `grade` asks for it.
    """
    z_next, linear = linearisation.linearise(layer, params, z)

    def jacobian() -> Array:
        return linear.jacobian(params)

    def careful(taken: Taken) -> Taken:
        done = _careful(jacobian(), exactly, taken.gaps)
        return done if with_step else done._replace(step=None)

    r = len(exactly.factors.U)
    if r > z_next.size:
        # Where directions end it takes a full elimination.
        taken = careful(Taken(exactly, gaps, jnp.zeros((), z.dtype), None))
    else:
        quick = elimination.quick(linear.times(params, exactly.factors.L))
        taken, loss = _refined(jacobian(), exactly, gaps, quick)
        if not with_step:
            taken = taken._replace(step=None)
        # Refining squares what rounding has made of the quick factors.
        stands = (loss <= scaled.eps(z.dtype) ** 0.5 / 8) & (grade <= REFINED)
        taken = loops.unless(stands, taken._replace(gaps=gaps), careful)
    return z_next, taken._replace(gaps=next_gaps(taken.gaps, taken.exactly.factors.d))


class Taken(NamedTuple):
    """What a layer makes of the factors, the gaps so far in the same order, and the step.

    `strayed` is the largest entry of what has strayed or has come back (nats).
    """

    exactly: Exactly
    gaps: Gaps
    strayed: Array
    step: Step | None


def _refined(J: Array, before: Exactly, gaps: Gaps, quick: Quick) -> tuple[Taken, Array]:
    """The factors after one layer, and what the quick ones may lose (nats)."""
    L, R = elimination.refined(J, Doubled(before.factors.L, before.low), quick)
    pivots = jnp.diagonal(R)
    d, T = _scales(before.factors.d, R, pivots)
    L = Doubled(*(jnp.where(pivots == 0, 0, part) for part in L))
    loss = _loss(quick, before.factors.d, T)
    error = jnp.asarray(elimination.eps(J.dtype), J.dtype)
    order = jnp.arange(len(before.factors.U), dtype=jnp.int32)
    own = error + jnp.where(loss < 1, loss, 1) ** 2
    step = _step(before.factors, order, J, L.high, R, error)
    step = _with_stray(step, before.stray, quick.rows, own)
    after = Exactly(_absorb(before.factors, L.high, d, T), L.low, step.stray)
    return _taken(after, gaps, step), loss


def _careful(J: Array, before: Exactly, gaps: Gaps) -> Taken:
    J_scaled = scaled.scale(J)
    factors = before.factors
    # It may be larger than its sample is.
    uncertain = STRAY * jnp.abs(linearisation.matmul(J_scaled.mantissa, before.stray))
    done = elimination.careful(
        J_scaled.mantissa, Doubled(factors.L, before.low), scaled.log_2(factors.d), uncertain
    )
    order = done.order
    factors = Factors(factors.L[:, order], *jax.tree.map(lambda leaf: leaf[order], factors[1:]))
    pivots = jnp.diagonal(done.R)
    d, T = _scales(factors.d, done.R, pivots)
    d = Scaled(d.mantissa, d.exponent + J_scaled.exponent[0, 0])
    L = Doubled(*(jnp.where(pivots == 0, 0, part) for part in done.L))
    after = _absorb(factors, L.high, d, T)
    after = after._replace(lost=after.lost | done.lost)
    gaps = Gaps(gaps.largest[order[:, None], order[None, :]], gaps.caught_up[order])
    error = jnp.asarray(doubled.eps(J.dtype), J.dtype)
    step = _step(factors, order, J_scaled.mantissa, L.high, done.R, error)
    step = _with_stray(step, before.stray[:, order], done.rows, error)
    return _taken(Exactly(after, L.low, step.stray), gaps, step)


def _taken(after: Exactly, gaps: Gaps, step: Step) -> Taken:
    strayed = jnp.maximum(jnp.max(step.returned), jnp.max(jnp.abs(step.stray)))
    return Taken(after, gaps, strayed, step)


def _step(before: Factors, order: Array, J: Array, L: Array, R: Array, error: Array) -> Step:
    """A step of which nothing has strayed."""
    k = len(R)
    return Step(before, order, J, L, R, error, jnp.zeros((k, k), L.dtype), jnp.zeros_like(L))


def _with_stray(step: Step, stray: Array, rows: Array, error: Array) -> Step:
    """The step with what has strayed after it, and the sizes of what has returned.

    With the stray part F, `J (L_0 + F) = (L (I + X) + F') R` to first order, where F' has no rows
    that pivots came from: those rows of `J F R^-1` are X, the part of it that is columns of L.

    Args:
        step: the layer.
        stray: F, `(width_{k-1}, r)`, in the order of the step.
        rows: the rows of L in the order of the pivots.
        error: the relative error of a term of the step's sums, which strays anew.
    """
    m, k = step.L.shape
    r = step.before.L.shape[1]
    gone = jnp.diagonal(step.R) == 0

    def carried(nothing: Any) -> tuple[Array, Array]:
        del nothing
        # Signs alone would be in proportion wherever two rows are.
        sample = jnp.asarray(np.random.default_rng(0).normal(size=(m, r)), stray.dtype)
        sizes = linearisation.matmul(jnp.abs(step.J), jnp.abs(step.before.L))
        change = linearisation.matmul(step.J, stray) + error * sample * sizes
        square = jnp.where(gone[:, None], jnp.eye(k, dtype=stray.dtype), step.R[:, :k])
        beside_R = jax.lax.linalg.triangular_solve(square, jnp.where(gone, 0, change[:, :k]))
        X = jax.lax.linalg.triangular_solve(
            step.L[rows[:k]], beside_R[rows[:k]], left_side=True, lower=True, unit_diagonal=True
        )
        X = jnp.where(gone[:, None] | gone[None, :], 0, X)
        left = jnp.where(gone, 0, beside_R - linearisation.matmul(step.L, X))
        # Once it is as large as the columns are, it is large enough.
        return jnp.abs(X), jnp.clip(left, -1, 1)

    nothing = step.returned, step.stray
    if m == k == r == len(stray):
        # Nothing is beside columns that span everything.
        is_whole = ~jnp.any(gone) & ~jnp.any(stray != 0)
        returned, after = loops.unless(is_whole, nothing, carried)
    else:
        returned, after = carried(nothing)
    return step._replace(returned=returned, stray=after)


def _scales(d: Scaled, R: Array, pivots: Array) -> tuple[Scaled, Array]:
    """The next d, and the T of `R diag(d) = diag(next d) T`."""
    k = R.shape[0]
    after = Scaled(jnp.abs(pivots) * d.mantissa[:k], d.exponent[:k])
    # Columns are in descending order: the ratio is large only where that has changed.
    shift = jnp.minimum(d.exponent[None, :] - d.exponent[:k, None], 64)
    row = 1 / jnp.where(pivots == 0, 1, after.mantissa)[:, None]
    return after, R * row * d.mantissa[None, :] * scaled.power_of_two(shift, R.dtype)


def _absorb(before: Factors, L: Array, d: Scaled, T: Array) -> Factors:
    """`L diag(d) T U` as factors."""
    U = scaled.rescale(Scaled(linearisation.matmul(T, before.U), d.exponent[:, None]))
    d = scaled.rescale(Scaled(d.mantissa, U.exponent[:, 0]))
    return Factors(L, d, U.mantissa, before.lost[: len(T)])


def _loss(quick: Quick, d: Scaled, T: Array) -> Array:
    """What the quick elimination of a layer may lose (nats); infinite where it cannot be told."""
    R, k, sizes = quick.R, quick.R.shape[0], quick.sizes
    gone = quick.pivots == 0
    is_behind = jnp.arange(k) > jnp.max(jnp.where(d.mantissa[:k] == 0, -1, jnp.arange(k)))
    # Rounding changes a row by its size; R^-1 carries that to the columns. Signs without
    # a pattern give a fair sample of it.
    signs = jnp.asarray(np.random.default_rng(0).choice([-1, 1], size=k), R.dtype)
    square = jnp.where(gone[:, None], jnp.eye(k, dtype=R.dtype), R[:, :k])
    change = jax.lax.linalg.triangular_solve(
        square, jnp.where(gone, 0, sizes * signs)[:, None], left_side=True
    )
    largest, reach = jnp.max(sizes), 2.0 ** (scaled.largest_exponent(R.dtype) // 2)
    can_be_told = (
        (jnp.max(jnp.abs(T)) <= max(_OVERTAKEN, 2 * k))
        & (largest < reach)
        & (largest > 1 / reach)
        # A pivot may be gone with a dead unit, or with a direction that is gone already if it is
        # behind all others: the row that LAPACK gives to it is taken from those.
        & jnp.all(~gone | (sizes == 0) | is_behind)
    )
    return jnp.where(can_be_told, scaled.eps(R.dtype) * jnp.max(jnp.abs(change)), jnp.inf)
