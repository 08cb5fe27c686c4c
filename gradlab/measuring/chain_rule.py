"""The product of Jacobians as the chain rule is written down, and as a student reads it.

Every Jacobian by `jax.jacfwd`, one multiplication after another, all of them kept. `jacobians`
takes the fast path to the same numbers: it pushes the product through each layer's linear map and
keeps only what is asked for (docs/fast_path.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from gradlab.arithmetic import precision, scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import compiled
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model

Loss = Callable[[Array], Array]


class JacobiansAndProducts(NamedTuple):
    """Every factor and every partial product of a chain.

    Attributes:
        jacobians: `J_k = dz_k/dz_{k-1}`, `(depth, width, width)`.
        products: `P_k = J_k ... J_1`, `(depth, width, width)`, one exponent a matrix.

    For a sequence, whose widths may differ, both are tuples of `depth` matrices.
    """

    jacobians: Any
    products: Any


class LogNorms(NamedTuple):
    """The gradient in every state of a chain, `(depth + 1,)` each.

    Attributes:
        logs: `log |dL/dz_k|` (nats), k = 0 ... L.
        rounding: by how much rounding can make another way to it differ.
    """

    logs: Array
    rounding: Array


@precision.highest
@compiled.once
def products(model: Model, x: Array) -> JacobiansAndProducts:
    """Every `J_k` by `jax.jacfwd`, and every `J_k ... J_1` by multiplying, rescaled by powers of 2.

    Args:
        model: a chain, or a sequence of chains and callables, each one layer.
        x: its input, `(width_0,)`.
    """
    carry = x, scaled.scale(jnp.eye(x.size, dtype=x.dtype), (-2, -1))
    found = []
    for segment in chain.checked(model, x):
        carry, factors = _through(segment, carry)
        found.append(factors)
    if isinstance(model, Chain):
        return found[0]
    matrices = [
        jax.tree.map(lambda leaf, k=k: leaf[k], stack)
        for stack in found
        for k in range(len(stack.jacobians))
    ]
    return JacobiansAndProducts(*zip(*matrices, strict=True))


@precision.highest
@compiled.once
def log_norms_back(model: Chain, x: Array, loss: Loss) -> LogNorms:
    """`log |dL/dz_L J_L ... J_{k+1}|` for every state, by every `J_k`, one after another.

    The rounding is that of `rounding_back`.
    """
    z = jax.lax.scan(lambda z, params: (model.layer(params, z), None), x, model.params)[0]
    J, last = products(model, x).jacobians, scaled.scale(jax.grad(loss)(z))

    def step(row: Scaled, J: Array) -> tuple[Scaled, Array]:
        before = scaled.rescale(Scaled(row.mantissa @ J, row.exponent))
        return before, scaled.log_magnitude(scaled.norm(before))

    before = jax.lax.scan(step, last, J, reverse=True)[1]
    logs = jnp.append(before, scaled.log_magnitude(scaled.norm(last)))
    return LogNorms(logs, rounding_back(logs, x.size, x.dtype))


def rounding_back(logs: Array, width: int, dtype: DTypeLike) -> Array:
    """By how much rounding can make two ways to `log |dL/dz_k|` differ (nats), `(..., depth + 1)`.

    A row times a factor is off by n eps of |row| |J_k| (Higham 2002, section 3.5), which is no more
    than twice √n of the row behind it, relatively, where a layer stretches rows alike; that makes
    depth n^1.5 eps, in either way. A state that is off by a rounding is so much farther off in the
    last layer as the gradient is larger in the first, and moves the later Jacobians as much.

    Args:
        logs: the log norms in every state, `(..., depth + 1)`.
        width: of the states.
        dtype: their format.
    """
    grown = jnp.exp(jnp.max(logs, axis=-1, keepdims=True) - logs[..., -1:])
    relative = 4 * (logs.shape[-1] - 1) * width**1.5 * scaled.eps(dtype)
    return jnp.broadcast_to(relative * grown, logs.shape)


@precision.highest
def weight_gradients(model: Sequence[Chain], x: Array, loss: Loss) -> list[Chain]:
    """`dL/dz_L J_L ... J_{k+1} dz_k/dtheta_k` for every layer k, shaped as the model.

    In plain numbers, as `jax.grad` has them: they under- and overflow as their type does.

    Args:
        model: chains, one after another.
        x: its input, `(width_0,)`.
        loss: from the last layer's output to a scalar.
    """
    stacks = _weight_gradients(model, x, loss)
    found: list[Chain] = []
    own = iter(model)
    for stack, segment in zip(stacks, chain.segments(model), strict=True):
        # Neighbours that share a layer are stacked.
        start = 0
        while start < segment.depth:
            part = next(own)
            end = start + part.depth
            cut = jax.tree.map(lambda leaf, start=start, end=end: leaf[start:end], stack)
            found.append(Chain(part.layer, cut))
            start = end
    return found


@precision.highest
@compiled.once
def _weight_gradients(model: Sequence[Chain], x: Array, loss: Loss) -> list[Any]:
    """The gradient of every segment's parameters."""
    seen = []
    for segment in chain.checked(model, x):
        seen.append((segment, chain.layer_inputs(segment, x), products(segment, x).jacobians))
        x = segment(x)
    row, found = jax.grad(loss)(x), []
    for segment, inputs, J in reversed(seen):
        row, rows = rows_through(row, J)
        found.append(jax.vmap(partial(_own_gradient, segment.layer))(segment.params, inputs, rows))
    return found[::-1]


def rows_through(row: Array, J: Array) -> tuple[Array, Array]:
    """`row J_n ... J_1`, and what stands left of each factor: `row J_n ... J_{k+1}`, `(n, width)`.

    Args:
        row: `(width_n,)`.
        J: the factors of a chain, `(n, width, width)`; one alone may have any shape.
    """
    if len(J) == 1:
        return row @ J[0], row[None]
    return jax.lax.scan(lambda row, J: (row @ J, row), row, J, reverse=True)


def log_lengths(v: Array, products: Scaled) -> Array:
    """`log |v P_k|` (nats) for every product of a chain, `(depth,)`: what arrives of a gradient v.

    Args:
        v: a row, `(width,)`.
        products: as `products` gives them, one exponent a matrix.
    """
    rows = Scaled(v @ products.mantissa, products.exponent[:, 0])
    return jax.vmap(lambda row: scaled.log_magnitude(scaled.norm(row)))(rows)


def _through(
    segment: Chain, carry: tuple[Array, Scaled]
) -> tuple[tuple[Array, Scaled], JacobiansAndProducts]:
    def layer(
        carry: tuple[Array, Scaled], params: Any
    ) -> tuple[tuple[Array, Scaled], JacobiansAndProducts]:
        z, P = carry
        J = jax.jacfwd(lambda z: segment.layer(params, z))(z)
        P = scaled.rescale(Scaled(J @ P.mantissa, P.exponent))
        return (segment.layer(params, z), P), JacobiansAndProducts(J, P)

    if segment.depth > 1:
        return jax.lax.scan(layer, carry, segment.params)
    carry, factors = layer(carry, chain.params_at(segment.params, 0))  # it may change the width
    return carry, jax.tree.map(lambda leaf: leaf[None], factors)


def _own_gradient(layer: Layer, params: Any, z: Array, row: Array) -> Any:
    """`row dz_k/dtheta_k` of one layer, shaped as its parameters."""
    return chain.real_part(jax.vjp(lambda params: layer(params, z), params)[1](row)[0])
