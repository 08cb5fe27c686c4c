"""How wrong a product may be: running bounds, residuals of every step, and proved enclosures.

All of it is about the product of the Jacobians at the states *as computed*: what rounding does to
the states themselves, which a chaotic chain amplifies, is the chain's own sensitivity.

The bounds are of first order in the rounding unit and cost a few more passes; `enclosure` is
a proof, of what it is given, and is affordable for a few thousand layers of a few units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import precision, qr, scaled
from gradlab.arithmetic.balls import Float64s
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import (
    chain_rule,
    compiled,
    jacobians,
    linearisation,
    loops,
    product_svd,
    roundings,
    spectra,
)
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model

FEW = 8
"""Layers whose products are multiplied out to judge that of many."""


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

    lower: Float64s
    upper: Float64s


class BothWays(NamedTuple):
    """One chain's products by the fast path and multiplied out; each `(4, depth)`, k = 1 ... L.

    Attributes:
        fast: `log |v J_L ... J_k|/|v|`, backpropagated, `log |P_k|_2`, `log |P_k|` and
            `log |v P_k|/|v|` (nats), by `jacobians`.
        literal: the same of every `J_k`, multiplied.
        rounding: by how much rounding can make them differ.
    """

    fast: Array
    literal: Array
    rounding: Array


@precision.highest
def both_ways(model: Chain, x: Array, v: Array) -> BothWays:
    """A row through the last and the first layers, and two norms, at every layer by both paths.

    Either path adds `D_k |P_{k-1}|` to `P_k` in layer k, with `D_k` as in `log_norm_bound`, and
    what it had lost before grows by `|J_k|_2` at most; of a row it is the same, from the end. And
    either is off by its states: one that is moved by as many roundings as there are layers before
    it moves its Jacobian, relative to its norm, by no more in a layer whose second derivative is at
    most as large as its first.

    Args:
        model: a chain that keeps the width, of so few layers that its products are in range.
        x: its input, `(width,)`.
        v: a row, `(width,)`.
    """
    back = jacobians.log_gradient_norms(model, x, lambda z: v @ z)
    ahead = jacobians.log_spectral_norms(model, x), jacobians.log_norms(model, x)
    through = jacobians.along(model, x, lambda P: _log_norm(Scaled(v @ P.mantissa, P.exponent[0])))
    log_v = jnp.log(jnp.linalg.norm(v))
    J, P = chain_rule.products(model, x)
    first, later = chain_rule.rows_through(v, J)
    row = jnp.log(jnp.linalg.norm(jnp.concatenate([first[None], later]), axis=1))
    scale = jnp.log(2.0) * P.exponent[:, 0, 0].astype(x.dtype)
    spectral, norm = (jnp.log(_norms(P.mantissa, order)) + scale for order in (2, "fro"))
    gamma = (x.size + 8) * scaled.eps(x.dtype)
    states = len(J) * gamma * _norms(J, "fro")
    own = jnp.exp(_own_and_later_log_norms((model,), x, gamma)[0]) + states
    stretch = _norms(J, 2)
    of_product = _running_error(own, stretch, jnp.append(jnp.log(x.size) / 2, norm))
    of_row = _running_error(own[::-1], stretch[::-1], row[::-1])[::-1]
    part = chain_rule.log_lengths(v, P) - log_v
    lost = jnp.stack(
        [of_row, *(of_product * jnp.exp(norm - log) for log in (spectral, norm, part))]
    )
    rounding = jnp.where(lost < 1, -2 * jnp.log1p(-jnp.minimum(lost, 1)), jnp.inf)
    fast = jnp.stack([back[:-1] - log_v, *ahead, through - log_v])
    literal = jnp.stack([row[:-1] - log_v, spectral, norm, part])
    return BothWays(fast, literal, rounding)


def of_few_layers(
    key: Array, drawn: Callable[[Array, int], Chain], width: int, depth: int
) -> BothWays:
    """`both_ways` of at most `FEW` layers, so that rounding hides no wrong step of any.

    Args:
        key: of weights, input and row, which are normal.
        drawn: from a key and a depth to a chain.
        width: of its input and its output.
        depth: of the model that it speaks for; it has no more layers.
    """
    key_W, key_x, key_v = jax.random.split(key, 3)
    x, v = (jax.random.normal(key, (width,)) for key in (key_x, key_v))
    return both_ways(drawn(key_W, min(FEW, depth)), x, v)


@precision.highest
@compiled.once
def log_norm_bound(model: Model, x: Array) -> Array:
    """A bound on the error of `log |P_L|` (Frobenius, nats), a scalar; inf where `P_L` may be 0.

    The rounding of step k is carried to the end by `J_L ... J_{k+1}`, so that of the product is
    `r = sum_k |J_L ... J_{k+1}| D_k |P_{k-1}| / |P_L|` (Higham 2002, chapter 3), relative and to
    first order, with `D_k = gamma |J_k|` and gamma = (width + 8) eps for the sums and a few
    roundings in the layer's own derivative, and what terms that cancel inside the layer leave. The
    bound is `-log(1 - r)`.
    """
    parts = chain.checked(model, x)
    forward = jacobians.log_norms(model, x)
    before = jnp.concatenate([jnp.log(jnp.full(1, x.size, x.dtype)) / 2, forward[:-1]])
    gamma = (max(chain.widths(model, x)) + 8) * scaled.eps(x.dtype)
    own, after = _own_and_later_log_norms(parts, x, gamma)
    r = jnp.sum(jnp.exp(own + after + before - forward[-1]))
    return jnp.where(r < 1, -jnp.log1p(-jnp.minimum(r, 1)), jnp.inf)


@precision.highest
def multiplied_out(model: Chain, x: Array) -> Array:
    """`log |P_L|` (Frobenius, nats) of every `J_k`, multiplied, and its rounding and another's.

    `(2,)`; the rounding is twice `log_norm_bound`, of either of two ways.
    """
    products = chain_rule.products(model, x).products
    logs = scaled.log_magnitude(scaled.norm(products, (1, 2)))
    return jnp.stack([logs.ravel()[-1], 2 * log_norm_bound(model, x)])


@precision.highest
@compiled.once
def singular_value_bound(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """A bound of first order on the error of every `log sigma_i` (nats), `(num_depths,)`.

    Infinite where it is not small, since changes of first order then say nothing.

    Each step's `L R` is exact for a layer changed by a factor `I + E`, which is small unless the
    layer is nearly singular. To the right of `diag(d)` such a change no longer grows; what is
    small there is counted there, and the rest, which is where a direction had fallen behind
    another, goes on through the layers and grows as that direction catches up. Every rounding is
    taken as large as it may be, and as independent of the others (Higham and Mary 2019).
    """
    return product_svd.error_bound(model, x, depths)


@precision.highest
@compiled.once
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


def _norms(matrices: Array, order: Any) -> Array:
    return jnp.linalg.norm(matrices, order, axis=(1, 2))


def _running_error(own: Array, stretch: Array, logs: Array) -> Array:
    """`e_k = |J_k|_2 e_{k-1} + D_k |P_{k-1}|` over `|P_k|`, whose logs they are, `(depth,)`."""
    shrunk = jnp.exp(logs[:-1] - logs[1:])

    def step(error: Array, at_layer: tuple[Array, Array]) -> tuple[Array, Array]:
        error = at_layer[0] * error + at_layer[1]
        return error, error

    return jax.lax.scan(step, jnp.zeros((), own.dtype), (stretch * shrunk, own * shrunk))[1]


def _own_and_later_log_norms(parts: Sequence[Chain], x: Array, gamma: float) -> tuple[Array, Array]:
    """The log of what rounding may add to `J_k`, and `log |J_L ... J_{k+1}|`, `(depth,)` each."""
    stacks = []
    for segment in parts:
        stacks.append(chain.layer_inputs(segment, x))
        x = segment(x)
    rows = scaled.scale(jnp.eye(x.size, dtype=x.dtype))
    own, later = [], []
    for segment, stack in zip(reversed(parts), reversed(stacks), strict=True):
        paired = Chain(segment.layer, (segment.params, stack))
        rows, logs = loops.scan(partial(_pull, segment.layer, gamma), rows, paired, reverse=True)
        own.append(logs[0])
        later.append(logs[1])
    return jnp.concatenate(own[::-1]), jnp.concatenate(later[::-1])


def _pull(
    layer: Layer, gamma: float, rows: Scaled, at_layer: Any
) -> tuple[Scaled, tuple[Array, Array]]:
    """The rows of `J_L ... J_{k+1}` times J_k; what rounding adds to J_k, and the rows' norm."""
    params, z = at_layer
    _, linear = linearisation.linearise(layer, params, z)
    J, uncertain = linear.jacobian(params), roundings.of_jacobian(linear, params)
    before = scaled.rescale(Scaled(rows.mantissa @ J, rows.exponent))
    own = _log_norm(scaled.scale(J)) + jnp.log(gamma)
    if uncertain is not None:
        own = jnp.logaddexp(own, _log_norm(scaled.scale(uncertain)))
    return before, (own, _log_norm(rows))


def _log_norm(A: Scaled) -> Array:
    return scaled.log_magnitude(scaled.norm(A))


# ---- the forward QR ---------------------------------------------------------------------------


def _residual(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, A = linearisation.push(layer, params, *carry)
    Q, R = qr.row_sorted(A)
    backward = jnp.linalg.norm(A - Q @ R) / jnp.linalg.norm(A)
    orthogonality = jnp.linalg.norm(Q.T @ Q - jnp.eye(Q.shape[1], dtype=Q.dtype))
    return (z, Q), Residuals(backward, orthogonality)
