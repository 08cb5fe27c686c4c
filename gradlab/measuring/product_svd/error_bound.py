"""A bound of first order on the error of every logarithm of a singular value.

Every rounding of every step is a change of the layer, or of the factors beside it; each is carried
to the side of `diag(d)` where it grows no more, and their squares are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import scaled
from gradlab.measuring.product_svd import factorisation, thresholds
from gradlab.measuring.product_svd.factors import Factors, Step
from gradlab.models.chain import Model


class _Changes(NamedTuple):
    """The squares of the changes that go on, of direction j by column i as they stand, `(n, n)`.

    `total` is the sum of the squares of those that are counted already.
    """

    going_on: Array
    total: Array


class _StepError(NamedTuple):
    """Relative changes by the roundings of a step, entry by entry, and what carries changes on.

    Attributes:
        before: beside the columns before the step, `(r, r)`.
        after: beside those after it, `(c, c)`.
        U: of the rows of U, a scalar.
        unit: `|R|` with rows divided by their pivots, `(c, r)`.
        unit_inverse: the inverse of its columns of directions without signs, `(r, c)`.
        growth: the ratio of two pivots, `(c, c)`.
    """

    before: Array
    after: Array
    U: Array
    unit: Array
    unit_inverse: Array
    growth: Array


def error_bound(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """A bound of first order on the error of every `log sigma_i` (nats), `(num_depths,)`."""
    n = factorisation.most_columns(model, x)

    def observe(after: Factors, step: Step, so_far: _Changes) -> _Changes:
        del after
        r, order = step.before.d.mantissa.size, step.order
        error = _step_error(step)
        changes = so_far.going_on[:r, :r][order][:, order] + jnp.square(error.before)
        left, right = _sides(changes, step.before)
        carried = jnp.square(error.unit) @ left @ jnp.square(error.unit_inverse)
        changes = carried * jnp.square(error.growth) + jnp.square(error.after)
        own = jnp.square(_condition(step.before.U)) * (right + jnp.square(error.U))
        return _Changes(
            jnp.zeros((n, n), x.dtype).at[: len(changes), : len(changes)].set(changes),
            so_far.total + own,
        )

    none = jnp.zeros((), x.dtype)
    nothing = _Changes(jnp.zeros((n, n), x.dtype), none)
    factors, changes = factorisation.factorise(model, x, depths, observe, nothing)
    return jax.vmap(_bound)(factors, changes)


def _step_error(step: Step) -> _StepError:
    """`|E|` with `A (I + E) = L R` for the roundings of one step, in the columns of directions."""
    L, R, pivots = step.L, step.R, jnp.abs(jnp.diagonal(step.R))
    c, r = R.shape
    eps = scaled.eps(R.dtype)
    # A direction that has ended belongs to no singular value that is given.
    is_direction = (pivots != 0) & (step.before.d.mantissa[:c] != 0)
    both = is_direction[:, None] & is_direction[None, :]
    square = jnp.where(both, R[:, :c], jnp.eye(c, dtype=R.dtype))
    inverse = jax.scipy.linalg.solve_triangular(square, jnp.eye(c, dtype=R.dtype))
    inverse = jnp.where(both, jnp.abs(jnp.triu(inverse)), 0)
    inverse = jnp.zeros((r, c), R.dtype).at[:c].set(inverse)
    L_inverse, L, R = jnp.abs(jnp.linalg.pinv(L)), jnp.abs(L), jnp.abs(R)
    # Sums over a width and an elimination over another, and the layer's own derivative.
    terms = max(step.J.shape) + 4
    sums = jnp.abs(step.J) @ jnp.abs(step.before.L) + L @ R
    own = step.error * terms * (L_inverse @ sums)
    if step.uncertain is not None:
        own += L_inverse @ (step.uncertain @ jnp.abs(step.before.L))
    rounded = jnp.where(step.error < eps, eps, 0)
    # Columns that do not span everything are a sample of what is outside the range.
    outside = jnp.where(is_direction, 0, thresholds.SAMPLE_MARGIN if len(L) > c else 1)[:, None]
    # R diag(d) = diag(new d) T; the update of U rounds the rows of T U.
    ratios = _ratios(step.before)
    by_pivot = 1 / jnp.where(pivots == 0, 1, pivots)[:, None]
    unit, unit_inverse = R * by_pivot, inverse * pivots[None, :]
    return _StepError(
        inverse @ (own + rounded * R),
        jnp.where(step.error < eps, step.error, 0) * (L_inverse @ L)
        + outside * (own[:, :c] @ inverse[:c]),
        terms * eps * jnp.linalg.norm((ratios[:, :c] * unit_inverse) @ (ratios[:c] * unit)),
        unit,
        unit_inverse,
        pivots[:, None] * by_pivot.T,
    )


def _sides(changes: Array, factors: Factors) -> tuple[Array, Array]:
    """Squares of changes: those to keep left of `diag(d)`, and the sum of those right of it."""
    right = changes * jnp.square(_ratios(factors))
    is_direction = factors.d.mantissa != 0
    is_small = is_direction[:, None] & (right <= thresholds.RIGHT_SIDE_RATIO**2 * changes)
    return (
        jnp.where(is_direction[None, :] & ~is_small, changes, 0),
        jnp.sum(jnp.where(is_direction[None, :] & is_small, right, 0)),
    )


def _bound(factors: Factors, changes: _Changes) -> Array:
    left, right = _sides(changes.going_on, factors)
    L, U = jnp.square(_condition(factors.L.T)), jnp.square(_condition(factors.U))
    closing = jnp.square(8 * len(factors.U) * scaled.eps(factors.U.dtype)) * L * U
    bound = jnp.sqrt(changes.total + L * jnp.sum(left) + U * right + closing)
    # A direction that is lost may have grown again, past any other.
    return jnp.where((bound < thresholds.FIRST_ORDER) & (factors.num_lost == 0), bound, jnp.inf)


def _ratios(factors: Factors) -> Array:
    """`d_j / d_i`, `(c, c)`, or about the largest number where it is larger."""
    d = factors.d
    most = scaled.largest_exponent(d.mantissa.dtype)
    shift = jnp.minimum(d.exponent[None, :] - d.exponent[:, None], most)
    mantissa = d.mantissa[None, :] / jnp.where(d.mantissa == 0, 1, d.mantissa)[:, None]
    return mantissa * scaled.power_of_two(shift, d.mantissa.dtype)


def _condition(rows: Array) -> Array:
    """The condition of rows scaled to unit length; zeros and padding are left out."""
    lengths = jnp.linalg.norm(rows, axis=1)
    values = jnp.linalg.svd(rows / jnp.where(lengths == 0, 1, lengths)[:, None], compute_uv=False)
    smallest = jnp.min(jnp.where(values > 0.5 * scaled.eps(rows.dtype), values, values[0]))
    # Of no rows at all it is 1.
    return jnp.where(values[0] == 0, 1, values[0] / smallest)
