"""A long product as `L diag(d) U`, and one layer after another taken into it.

`L` and `U` are well conditioned and every entry of `d` has an exponent: nothing is ever lost beside
a larger number. A layer is taken in by Gaussian elimination (`elimination`), in the quickest of
three ways that is good enough for it.
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
from gradlab.elimination import Eliminated, Quick
from gradlab.scaled import Scaled

# The ways to take a layer in, by the digits that they keep: those of its dtype, half as many more,
# and twice as many.
QUICK, REFINED, CAREFUL = range(3)

# Elimination in working precision may lose this much of a logarithm (nats), by one layer that is
# nearly singular or by all of a deep chain. Otherwise, as in float32 by every layer, it is refined.
LOSS = 1e-11
# And no column may be overtaken by another in a layer by more than this, or than twice the width.
_OVERTAKEN = 16.0

# More powers of two than any two directions are apart.
_FAR = 2**30


class Factors(NamedTuple):
    """`P_k = L diag(d) U`, with r columns left.

    Attributes:
        L: `(width_k, r)`, in doubled digits, since later layers magnify its rounding; a column is
            zero where d is.
        d: `(r,)`, an exponent an entry, roughly descending, zero where the rank is lost.
        U: `(r, width_0)`, its rows' largest entries in [1, 2), or zero where d is.
        lost: `(r,)`, where d was set to zero because it was made of rounding.
    """

    L: Doubled
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
    """One layer: the factors before it, with columns in pivots' order, its Jacobian, and its `L R`.

    `J` is `(width_k, width_{k-1})`, by a power of two as `L R = J before.L` needs it; `error`, a
    scalar, is the relative error of a term in those sums.
    """

    before: Factors
    J: Array
    eliminated: Eliminated
    error: Array


def start(x: Array) -> Factors:
    """The factors of the empty product."""
    eye = jnp.eye(x.size, dtype=x.dtype)
    zeros = jnp.zeros(x.size, jnp.int32)
    return Factors(Doubled(eye, 0 * eye), Scaled(eye.sum(axis=0), zeros), eye, zeros > 0)


def no_gaps(x: Array) -> Gaps:
    """Those of the empty product."""
    return Gaps(jnp.zeros((x.size, x.size), jnp.int32), jnp.zeros(x.size, jnp.int32))


def advance(
    layer: Layer,
    params: Any,
    z: Array,
    factors: Factors,
    gaps: Gaps,
    grade: Array,
    lowest: int,
    with_step: bool,
) -> tuple[Array, Factors, Gaps, Step | None]:
    """The next state, the factors after one layer, and what the layer was, if that is wanted.

    No way below `grade` is taken, of which it is known beforehand that it is `lowest` or more.
    """
    z_next, linear = linearisation.linearise(layer, params, z)

    def jacobian() -> Array:
        return linear.jacobian(params)

    def careful(seen: tuple[Factors, Gaps, Any]) -> tuple[Factors, Gaps, Any]:
        J, (_, gaps, _) = scaled.scale(jacobian()), seen
        done = elimination.careful(J.mantissa, factors.L, scaled.log_2(factors.d))
        before = _in_order(factors, done.order)
        after, _ = _absorb(before, done, J.exponent[0, 0])
        largest = gaps.largest[done.order[:, None], done.order[None, :]]
        permuted = Gaps(largest, gaps.caught_up[done.order])
        return after, permuted, (before, done) if with_step else ()

    columns = linear.times(params, factors.L.high)
    quick = elimination.quick(columns)

    def absorbed(done: Eliminated, gaps: Gaps) -> tuple[tuple[Factors, Gaps, Any], Array]:
        after, T = _absorb(factors, done, jnp.zeros((), jnp.int32))
        return (after, gaps, (factors, done) if with_step else ()), T

    def refined(gaps: Gaps) -> tuple[tuple[Factors, Gaps, Any], Array]:
        return absorbed(elimination.refined(jacobian(), factors.L, quick), gaps)

    # Where directions end it takes a full elimination.
    can_refine = columns.shape[1] <= columns.shape[0]
    is_refined = can_refine and lowest >= REFINED
    best, T = refined(gaps) if is_refined else absorbed(quick.done, gaps)
    loss = _loss(quick, factors.d, T)
    # Refining squares what rounding has made of the factors.
    limit = scaled.eps(z.dtype) ** 0.5 / 2 if can_refine else LOSS

    # Each is worked out where it is needed, from one number.
    def can_be_quick() -> Array:
        return (loss <= LOSS) & (grade <= QUICK)

    def can_be_refined() -> Array:
        return (loss <= limit) & (grade <= REFINED) if can_refine else can_be_quick()

    def refined_or_careful(seen: tuple[Factors, Gaps, Any]) -> tuple[Factors, Gaps, Any]:
        return loops.unless(can_be_refined(), refined(seen[1])[0], careful)

    has_second = can_refine and not is_refined
    stands = can_be_refined() if is_refined else can_be_quick()
    after, gaps, seen = loops.unless(stands, best, refined_or_careful if has_second else careful)
    gaps = _next_gaps(gaps, after.d)
    if not with_step:
        return z_next, after, gaps, None
    J = jacobian()
    J = jnp.where(can_be_refined(), J, scaled.scale(J).mantissa)
    own = elimination.eps(z.dtype) if is_refined else scaled.eps(z.dtype)
    beyond = jnp.where(can_be_refined(), elimination.eps(z.dtype), doubled.eps(z.dtype))
    error = jnp.where(stands, own, beyond)
    return z_next, after, gaps, Step(seen[0], J, seen[1], error.astype(z.dtype))


def _next_gaps(gaps: Gaps, d: Scaled) -> Gaps:
    r = len(d.mantissa)
    # A direction that is gone comes back no more, and none catches up on it.
    is_gone = d.mantissa == 0
    own, other = (jnp.where(is_gone, far, d.exponent) for far in (-_FAR, _FAR))
    gap = jnp.clip(own[:, None] - other[None, :], -_FAR // 2, 0)
    largest = jnp.minimum(gaps.largest[:r, :r], gap)
    return Gaps(largest, jnp.maximum(gaps.caught_up[:r], jnp.max(gap - largest, axis=0)))


def _in_order(factors: Factors, order: Array) -> Factors:
    """The factors with the directions in another order."""
    L = jax.tree.map(lambda part: part[:, order], factors.L)
    return Factors(L, *jax.tree.map(lambda leaf: leaf[order], factors[1:]))


def _absorb(before: Factors, layer: Eliminated, exponent: Array) -> tuple[Factors, Array]:
    """`L R diag(d) U 2^exponent` as factors, and the T of `R diag(d) = diag(new d) T`."""
    k = layer.R.shape[0]
    d = before.d
    pivots = jnp.abs(layer.pivots)
    gone = pivots == 0
    new = Scaled(pivots * d.mantissa[:k], d.exponent[:k] + exponent)
    # Columns are in descending order: the ratio is large only where that has changed.
    shift = jnp.minimum(d.exponent[None, :] - d.exponent[:k, None], 64)
    row = 1 / jnp.where(gone, 1, new.mantissa)[:, None]
    T = layer.R * row * d.mantissa[None, :] * scaled.power_of_two(shift, layer.R.dtype)
    U = scaled.rescale(Scaled(linearisation.matmul(T, before.U), new.exponent[:, None]))
    new = scaled.rescale(Scaled(new.mantissa, U.exponent[:, 0]))
    L = jax.tree.map(lambda part: jnp.where(gone[None, :], 0, part), layer.L)
    return Factors(L, new, U.mantissa, before.lost[:k] | layer.lost), T


def _loss(quick: Quick, d: Scaled, T: Array) -> Array:
    """What the quick elimination of a layer may lose (nats); infinite where it cannot be told."""
    R, k, sizes = quick.done.R, quick.done.R.shape[0], quick.sizes
    gone = quick.done.pivots == 0
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
        # A pivot may be gone with a dead unit, or with a direction that is gone already.
        & jnp.all(~gone | (sizes == 0) | (d.mantissa[:k] == 0))
    )
    return jnp.where(can_be_told, scaled.eps(R.dtype) * jnp.max(jnp.abs(change)), jnp.inf)
