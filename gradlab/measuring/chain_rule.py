"""The product of Jacobians as the chain rule is written down, and as a student reads it.

Every Jacobian by `jax.jacfwd`, one multiplication after another, all of them kept. `jacobians`
takes the fast path to the same numbers: it pushes the product through each layer's linear map and
keeps only what is asked for (docs/fast_path.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import precision, scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.models import chain
from gradlab.models.chain import Chain, Model

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


@precision.highest
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
def gradients(model: Chain, x: Array, loss: Loss) -> Array:
    """`dL/dz_l = dL/dz_L J_L ... J_{l+1}` for every layer l = 1 ... L, `(depth, width)`.

    In plain numbers, as `jax.grad` has them: they under- and overflow as their type does.

    Args:
        model: the chain.
        x: their input, `(width,)`.
        loss: from the last layer's output to a scalar.
    """
    J = chain.jacobians(model, x)
    last = jax.grad(loss)(model(x))
    return jax.lax.scan(lambda row, J: (row @ J, row), last, J, reverse=True)[1]


@precision.highest
def gradients_by_jax(model: Chain, x: Array, loss: Loss) -> Array:
    """The same by `jax.grad`, in a nudge that is added to every z_l, `(depth, width)`."""

    def nudged(nudges: Array) -> Array:
        def layer(z: Array, at: Any) -> tuple[Array, None]:
            params, nudge = at
            return model.layer(params, z) + nudge, None

        return loss(jax.lax.scan(layer, x, (model.params, nudges))[0])

    return jax.grad(nudged)(jnp.zeros((model.depth, x.size), x.dtype))


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
