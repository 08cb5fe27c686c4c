"""One layer taken into the factors in working precision, on trial: accepted if it loses too little.

The layer is eliminated by LAPACK, and its error estimated before the factors take it in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import linearisation, roundings
from gradlab.measuring.product_svd import elimination, factors, thresholds
from gradlab.measuring.product_svd.elimination import PartiallyPivoted
from gradlab.measuring.product_svd.factors import Factors, Step
from gradlab.models.chain import Layer


class Trial(NamedTuple):
    """What a layer would make of factors, before it is taken in.

    Attributes:
        z: the state after it.
        L: `(width_k, c)`, with R, `(c, c)`, as in `Step`.
        R: see there.
        pivots: `(c,)`, the diagonal of R.
        d: `(c,)`, but for what the rows of the next U will give to it.
        T: `(c, c)`, with `R diag(d before) = diag(d) T`.
        error: an estimate of what it adds to the error of a logarithm (nats); above
            `LAYER_BUDGET` the factors may be wrong.
    """

    z: Array
    L: Array
    R: Array
    pivots: Array
    d: Scaled
    T: Array
    error: Array


def of_layer(layer: Layer, params: Any, z: Array, before: Factors) -> Trial:
    """What a layer that keeps the width would make of the factors."""
    z_next, linear = linearisation.linearise(layer, params, z)
    found = elimination.partial_pivoting(linear.times(params, before.L))
    d, T = factors.scales(before.d, found.R, found.pivots)
    own = own_sizes(roundings.of_jacobian(linear, params), before.L)
    error = error_estimate(found, before.d, T, own)
    return Trial(z_next, found.L, found.R, found.pivots, d, T, error)


def accepted(before: Factors, trial: Trial) -> Factors:
    """The factors after the layer that was tried."""
    return factors.update(before, trial.L, trial.d, trial.T)


def step(layer: Layer, params: Any, z: Array, before: Factors, trial: Trial) -> Step:
    """The step of the layer that was tried, from the state z."""
    error = jnp.asarray(scaled.eps(z.dtype), z.dtype)
    order = jnp.arange(len(before.U), dtype=jnp.int32)
    _, linear = linearisation.linearise(layer, params, z)
    uncertain = roundings.of_jacobian(linear, params)
    return Step(before, order, linear.jacobian(params), trial.L, trial.R, error, uncertain)


def own_sizes(uncertain: Array | None, L: Array) -> Array | None:
    """What the layer's own rounding may have put into every row of `J L`, `(width_k,)`."""
    return None if uncertain is None else uncertain @ jnp.max(jnp.abs(L), axis=1)


def error_estimate(found: PartiallyPivoted, d: Scaled, T: Array, own: Array | None) -> Array:
    """What an elimination in working precision adds to the error of a logarithm (nats), `()`.

    Infinite where that cannot be told, or where the layer's own rounding (`own_sizes`) may have
    made a direction, which complete pivoting tells.
    """
    R, c, sizes = found.R, len(found.R), found.sizes
    was_direction, is_filled = d.mantissa != 0, sizes != 0
    is_complement = ~was_direction | (found.pivots == 0)
    # A direction may end where only dead units are left, and what is none must take no row from
    # one: neither comes before another.
    is_in_order = (
        _is_first(was_direction)
        & _is_first(is_filled)
        & (~(was_direction & is_complement) | ~is_filled)
    )
    # Rounding changes a row by its size; R^-1 carries that to the columns. Signs without
    # a pattern give a fair sample of it.
    signs = jnp.asarray(np.random.default_rng(0).choice([-1, 1], size=c), R.dtype)
    square = jnp.where(is_complement[:, None], jnp.eye(c, dtype=R.dtype), R)

    def change(sizes: Array) -> Array:
        rows = jnp.where(is_complement, 0, sizes * signs)[:, None]
        return jnp.max(jnp.abs(jax.lax.linalg.triangular_solve(square, rows, left_side=True)))

    largest, reach = jnp.max(sizes), 2.0 ** (scaled.largest_exponent(R.dtype) // 2)
    can_be_told = (
        (jnp.max(jnp.abs(T)) <= max(thresholds.LARGEST_MULTIPLIER, 2 * c))
        & (largest < reach)
        & (largest > 1 / reach)
        & jnp.all(is_in_order)
    )
    if own is not None:
        can_be_told &= change(own[found.rows[:c]]) <= elimination.refinable(R.dtype)
    return jnp.where(can_be_told, scaled.eps(R.dtype) * change(sizes), jnp.inf)


def _is_first(flags: Array) -> Array:
    """Where a flag is not set behind one that is not."""
    return ~flags | jnp.pad(flags[:-1], (1, 0), constant_values=True)
