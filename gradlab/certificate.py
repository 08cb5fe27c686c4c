"""How wrong a product may be: running bounds, residuals of every step, and proved enclosures.

All of it is about the product of the Jacobians at the states *as computed*: what rounding does to
the states themselves, which a chaotic chain amplifies, is the chain's own sensitivity.

The bounds are of first order in the rounding unit and cost one more pass; `enclosure` is a proof,
of what it is given, and is affordable for a few thousand layers of a few units.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab import chain, jacobi, jacobians, scaled, spectra
from gradlab.chain import Chain, Layer, Model
from gradlab.scaled import Scaled
from gradlab.spectra import Factors, Step

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
    gamma = (_widest(parts, x) + 8) * scaled.eps(x.dtype)
    return gamma * jnp.sum(jnp.exp(own + after + before - forward[-1]))


def singular_value_bound(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """A bound of first order on the error of every `log sigma_i` (nats), `(num_depths,)`.

    Each QR step is exact for a layer changed by a factor `I + E_k`, with E_k as small as the
    layer is well conditioned once its rows are scaled; the change is passed on multiplied by how
    far a direction that had fallen behind another has caught up since (a chain that undoes what
    it did far beyond 1/eps is lost, and the bound says so), and by the condition of `U`.
    """
    n = x.size

    def see(factors: Factors, step: Step, seen: Any) -> Any:
        total, least = seen
        return total + _step_error(step), jnp.minimum(least, _log_2_ratios(factors, n)[0])

    nothing = jnp.zeros((), x.dtype), jnp.zeros((n, n), jnp.float32)
    factors, (total, least) = spectra.at_depths(model, x, depths, see, nothing)
    last, alive = jax.vmap(lambda f: _log_2_ratios(f, n))(factors)
    caught_up = jnp.max(jnp.where(alive, last - least, 0), axis=(1, 2))
    return total * jnp.exp2(caught_up).astype(x.dtype) * jax.vmap(_condition)(factors.U)


def residuals(model: Model, x: Array) -> Residuals:
    """What the QR of every layer leaves, `(depth,)` each: exact for a chain so much changed."""
    carry: tuple[Array, Array] = x, spectra.orthogonal_start(x).T
    seen = []
    for segment in chain.checked(model, x):
        carry, left = jacobians.scan(partial(_residual, segment.layer), carry, segment)
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
        from gradlab import balls
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
        rows, logs = jacobians.scan(partial(_pull, segment.layer), rows, paired, reverse=True)
        own.append(logs[0])
        later.append(logs[1])
    return jnp.concatenate(own[::-1]), jnp.concatenate(later[::-1])


def _pull(layer: Layer, rows: Scaled, at_layer: Any) -> tuple[Scaled, tuple[Array, Array]]:
    """The rows of `J_L ... J_{k+1}` times J_k, and both norms."""
    params, z = at_layer
    output, pull_back = jax.vjp(partial(layer, params), z)
    (J,) = jax.vmap(pull_back)(jnp.eye(output.size, dtype=z.dtype))
    before = scaled.rescale(Scaled(rows.mantissa @ J, rows.exponent))
    logs = (scaled.log_magnitude(scaled.norm(s)) for s in (scaled.scale(J), rows))
    own, later = logs
    return before, (own, later)


def _widest(parts: Sequence[Chain], x: Array) -> int:
    """The largest width on the way: the longest sum of a matrix product."""
    widths = [x.size]
    for segment in parts:
        x = segment(x)
        widths.append(x.size)
    return max(widths)


# ---- the singular values ----------------------------------------------------------------------


def _step_error(step: Step) -> Array:
    """`|E|` with `A (I + E) = Q R` for an error of every row that is small beside that row.

    `E = A^-1 dA = R^-1 Q^T dA`, and every row of dA is below gamma times the row's size (Cox and
    Higham 1998), with gamma = 2 width eps.
    """
    k = step.R.shape[0]
    # Q is as graded as the rows are, so that row i of Q^T dA is small beside row size i.
    size = jnp.diag(jnp.where(step.sizes == 0, 1, step.sizes))
    # A pivot that was set to zero belongs to no singular value that is given.
    R = jnp.where(step.gone[:, None], size, step.R[:, :k])
    inverse = jax.scipy.linalg.solve_triangular(R, size)
    gamma = 2 * max(step.Q.shape) * scaled.eps(R.dtype)
    return gamma * jnp.linalg.norm(inverse)


def _log_2_ratios(factors: Factors, size: int) -> tuple[Array, Array]:
    """`min(0, log2 d_i / d_j)` by the columns' labels, and where neither is 0, `(size, size)`."""
    d, label = factors.d, factors.label
    known = jnp.zeros(size, bool).at[label].set(d.mantissa != 0)
    log = jnp.log2(d.mantissa) + d.exponent.astype(d.mantissa.dtype)
    logs = (
        jnp.zeros(size, jnp.float32)
        .at[label]
        .set(jnp.where(d.mantissa != 0, log, 0).astype(jnp.float32))
    )
    both = known[:, None] & known[None, :]
    return jnp.where(both, jnp.minimum(logs[:, None] - logs[None, :], 0), 0), both


def _condition(U: Array) -> Array:
    """The condition of the rows of U, each of unit length; padding is left out."""
    lengths = jnp.linalg.norm(U, axis=1)
    values = jnp.linalg.svd(U / jnp.where(lengths == 0, 1, lengths)[:, None], compute_uv=False)
    return values[0] / jnp.min(jnp.where(values > 0.5 * scaled.eps(U.dtype), values, values[0]))


def _residual(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, columns = jacobians.push(layer, params, *carry)
    A = columns.T
    Q, R, _ = jacobi.graded_qr(A)
    backward = jnp.linalg.norm(A - Q @ R) / jnp.linalg.norm(A)
    orthogonality = jnp.linalg.norm(Q.T @ Q - jnp.eye(Q.shape[1], dtype=Q.dtype))
    return (z, Q.T), Residuals(backward, orthogonality)
