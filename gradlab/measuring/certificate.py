"""How wrong a product may be: running bounds, residuals of every step, and proved enclosures.

All of it is about the product of the Jacobians at the states *as computed*: what rounding does to
the states themselves, which a chaotic chain amplifies, is the chain's own sensitivity.

The bounds are of first order in the rounding unit and cost a few more passes; `enclosure` is
a proof, of what it is given, and is affordable for a few thousand layers of a few units.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import precision, scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import jacobians, linearisation, loops, spectra
from gradlab.measuring.product_svd import graded, one_sided, passes
from gradlab.measuring.product_svd.graded import Factors, Step
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model

# Where a bound of first order is above this, it is none.
_FIRST_ORDER = 0.1

# A change that is no more than this times larger right of `diag(d)` is counted there.
_CATCH_UP = 16

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Residuals(NamedTuple):
    """What each QR step leaves, relative to its layer: the product is exact for such a change.

    Attributes:
        backward: `|J_k Q_{k-1} - Q_k R_k| / |J_k Q_{k-1}|` (Frobenius), `(depth,)`.
        orthogonality: `|Q_k^T Q_k - I|` (Frobenius), `(depth,)`.
    """

    backward: Array
    orthogonality: Array


class Enclosure(NamedTuple):
    """Bounds that are proved: `lower <= log sigma_i <= upper` (nats), `(n,)`, descending."""

    lower: Floats
    upper: Floats


@precision.highest
def log_norm_bound(model: Model, x: Array) -> Array:
    """A bound of first order on the error of `log |P_L|` (Frobenius, nats), a scalar.

    The rounding of step k is carried to the end by `J_L ... J_{k+1}`, so the bound is
    `sum_k gamma |J_L ... J_{k+1}| |J_k| |P_{k-1}| / |P_L|` (Higham 2002, chapter 3), with
    gamma = (width + 8) eps: the sums, and a few roundings in the layer's own derivative.
    """
    parts = chain.checked(model, x)
    forward = jacobians.log_norms(model, x)
    before = jnp.concatenate([jnp.log(jnp.full(1, x.size, x.dtype)) / 2, forward[:-1]])
    own, after = _own_and_later_log_norms(parts, x)
    gamma = (max(chain.widths(model, x)) + 8) * scaled.eps(x.dtype)
    return gamma * jnp.sum(jnp.exp(own + after + before - forward[-1]))


@precision.highest
def singular_value_bound(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """A bound of first order on the error of every `log sigma_i` (nats), `(num_depths,)`.

    Infinite where it is not small, since changes of first order then say nothing.

    Each step's `L R` is exact for a layer changed by a factor `I + E`, which is small unless the
    layer is nearly singular. To the right of `diag(d)` such a change no longer grows; what is
    small there is counted there, and the rest, which is where a direction had fallen behind
    another, goes on through the layers and grows as that direction catches up. Every rounding is
    taken as large as it may be, and as independent of the others (Higham and Mary 2019).
    """
    n = passes.num_columns(model, x)

    def see(after: Factors, step: Step, seen: _Seen) -> _Seen:
        del after
        r, order = step.before.d.mantissa.size, step.order
        error = _step_error(step)
        changes = seen.changes[:r, :r][order][:, order] + jnp.square(error.before)
        left, right = _sides(changes, step.before)
        carried = jnp.square(error.unit) @ left @ jnp.square(error.unit_inverse)
        changes = carried * jnp.square(error.growth) + jnp.square(error.after)
        own = jnp.square(_condition(step.before.U)) * (right + jnp.square(error.U))
        return _Seen(
            jnp.zeros((n, n), x.dtype).at[: len(changes), : len(changes)].set(changes),
            seen.total + own,
        )

    none = jnp.zeros((), x.dtype)
    nothing = _Seen(jnp.zeros((n, n), x.dtype), none)
    factors, seen = passes.through(model, x, depths, see, nothing)
    return jax.vmap(_bound)(factors, seen)


@precision.highest
def residuals(model: Model, x: Array) -> Residuals:
    """What the QR of every layer leaves, `(depth,)` each: exact for a chain so much changed."""
    carry: tuple[Array, Array] = x, spectra.orthogonal_start(x)
    seen = []
    for segment in chain.checked(model, x):
        carry, left = loops.scan(partial(_residual, segment.layer), carry, segment)
        seen.append(left)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)


def enclosure(matrices: Sequence[Any], tolerance: float) -> Enclosure:
    """Proved bounds of every `log sigma_i` of the product of given matrices, by ball arithmetic.

    One-sided Jacobi rotations that are exactly orthogonal, on the exact product; the angles left
    are bounded, and Ostrowski's theorem gives the rest. Needs python-flint (the extra `certify`).

    Args:
        matrices: `J_1 ... J_L`, arrays whose shapes chain; `chain.jacobians` of a model.
        tolerance: the width allowed of each enclosure (nats). The precision is doubled until it
            is met, or to a million bits. An exact zero is enclosed by minus infinity and the log
            of what the precision can exclude.
    """
    try:
        from gradlab.arithmetic import balls
    except ImportError as error:
        raise ImportError(
            "An enclosure needs python-flint, which the extra `certify` brings: "
            "pip install 'gradlab[certify]'."
        ) from error
    lower, upper = balls.log_singular_values([np.asarray(J, float) for J in matrices], tolerance)
    return Enclosure(lower, upper)


# ---- the product's norm -----------------------------------------------------------------------


def _own_and_later_log_norms(parts: Sequence[Chain], x: Array) -> tuple[Array, Array]:
    """`log |J_k|` and `log |J_L ... J_{k+1}|` (Frobenius) for every k, `(depth,)` each."""
    stacks = []
    for segment in parts:
        stacks.append(chain.layer_inputs(segment, x))
        x = segment(x)
    rows = scaled.scale(jnp.eye(x.size, dtype=x.dtype))
    own, later = [], []
    for segment, stack in zip(reversed(parts), reversed(stacks), strict=True):
        paired = Chain(segment.layer, (segment.params, stack))
        rows, logs = loops.scan(partial(_pull, segment.layer), rows, paired, reverse=True)
        own.append(logs[0])
        later.append(logs[1])
    return jnp.concatenate(own[::-1]), jnp.concatenate(later[::-1])


def _pull(layer: Layer, rows: Scaled, at_layer: Any) -> tuple[Scaled, tuple[Array, Array]]:
    """The rows of `J_L ... J_{k+1}` times J_k, and both norms."""
    params, z = at_layer
    _, J = linearisation.jacobian(layer, params, z)
    before = scaled.rescale(Scaled(rows.mantissa @ J, rows.exponent))
    logs = (scaled.log_magnitude(scaled.norm(s)) for s in (scaled.scale(J), rows))
    own, later = logs
    return before, (own, later)


# ---- the singular values ----------------------------------------------------------------------


class _Seen(NamedTuple):
    """The squares of the changes that go on, of direction j by column i as they stand, `(n, n)`.

    `total` is the sum of the squares of those that are counted already.
    """

    changes: Array
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


def _step_error(step: Step) -> _StepError:
    """`|E|` with `A (I + E) = L R` for the roundings of one step, in the columns of directions."""
    L, R, pivots = step.L, step.R, jnp.abs(jnp.diagonal(step.R))
    c, r = R.shape
    eps = scaled.eps(R.dtype)
    # A direction that has ended belongs to no singular value that is given.
    is_alive = (pivots != 0) & (step.before.d.mantissa[:c] != 0)
    both = is_alive[:, None] & is_alive[None, :]
    square = jnp.where(both, R[:, :c], jnp.eye(c, dtype=R.dtype))
    inverse = jax.scipy.linalg.solve_triangular(square, jnp.eye(c, dtype=R.dtype))
    inverse = jnp.where(both, jnp.abs(jnp.triu(inverse)), 0)
    inverse = jnp.zeros((r, c), R.dtype).at[:c].set(inverse)
    L_inverse, L, R = jnp.abs(jnp.linalg.pinv(L)), jnp.abs(L), jnp.abs(R)
    # Sums over a width and an elimination over another, and the layer's own derivative.
    terms = max(step.J.shape) + 4
    sums = jnp.abs(step.J) @ jnp.abs(step.before.L) + L @ R
    own = step.error * terms * (L_inverse @ sums)
    rounded = jnp.where(step.error < eps, eps, 0)
    # Columns that do not span everything are a sample of what is beside the directions.
    beside = jnp.where(is_alive, 0, graded.STRAY if len(L) > c else 1)[:, None]
    # R diag(d) = diag(new d) T; the update of U rounds the rows of T U.
    ratios = _ratios(step.before)
    by_pivot = 1 / jnp.where(pivots == 0, 1, pivots)[:, None]
    unit, unit_inverse = R * by_pivot, inverse * pivots[None, :]
    return _StepError(
        inverse @ (own + rounded * R),
        jnp.where(step.error < eps, step.error, 0) * (L_inverse @ L)
        + beside * (own[:, :c] @ inverse[:c]),
        terms * eps * jnp.linalg.norm((ratios[:, :c] * unit_inverse) @ (ratios[:c] * unit)),
        unit,
        unit_inverse,
        pivots[:, None] * by_pivot.T,
    )


def _sides(changes: Array, factors: Factors) -> tuple[Array, Array]:
    """Squares of changes: those to keep left of `diag(d)`, and the sum of those right of it."""
    right = changes * jnp.square(_ratios(factors))
    is_alive = factors.d.mantissa != 0
    is_small = is_alive[:, None] & (right <= _CATCH_UP**2 * changes)
    return (
        jnp.where(is_alive[None, :] & ~is_small, changes, 0),
        jnp.sum(jnp.where(is_alive[None, :] & is_small, right, 0)),
    )


def _bound(factors: Factors, seen: _Seen) -> Array:
    left, right = _sides(seen.changes, factors)
    L, U = jnp.square(_condition(factors.L.T)), jnp.square(_condition(factors.U))
    closing = jnp.square(8 * len(factors.U) * scaled.eps(factors.U.dtype)) * L * U
    bound = jnp.sqrt(seen.total + L * jnp.sum(left) + U * right + closing)
    # A direction that is lost may have grown again, past any other.
    return jnp.where((bound < _FIRST_ORDER) & (factors.num_lost == 0), bound, jnp.inf)


def _ratios(factors: Factors) -> Array:
    """`d_j / d_i` where it is no more than 2^64, which no column that stays in order passes."""
    d = factors.d
    shift = jnp.minimum(d.exponent[None, :] - d.exponent[:, None], 64)
    mantissa = d.mantissa[None, :] / jnp.where(d.mantissa == 0, 1, d.mantissa)[:, None]
    return mantissa * scaled.power_of_two(shift, d.mantissa.dtype)


def _condition(rows: Array) -> Array:
    """The condition of rows scaled to unit length; zeros and padding are left out."""
    lengths = jnp.linalg.norm(rows, axis=1)
    values = jnp.linalg.svd(rows / jnp.where(lengths == 0, 1, lengths)[:, None], compute_uv=False)
    smallest = jnp.min(jnp.where(values > 0.5 * scaled.eps(rows.dtype), values, values[0]))
    # Of no rows at all it is 1.
    return jnp.where(values[0] == 0, 1, values[0] / smallest)


def _residual(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, A = linearisation.push(layer, params, *carry)
    Q, R, _ = one_sided.graded_qr(A)
    backward = jnp.linalg.norm(A - Q @ R) / jnp.linalg.norm(A)
    orthogonality = jnp.linalg.norm(Q.T @ Q - jnp.eye(Q.shape[1], dtype=Q.dtype))
    return (z, Q), Residuals(backward, orthogonality)
