"""The norm of every partial product, block by block of layers, near the cost of the products.

The states of a block come first, then its product, in two loops: what a step of a narrow chain
costs is to start its kernels, and XLA on a CPU starts up to eight of them in a loop's body much
faster than more. Every column of the product has an exponent of its own, of its largest entry, so
that no branch is needed, of which `jax.vmap` would take both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import precision, scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import forward, linearisation
from gradlab.measuring.forward import Carry
from gradlab.measuring.linearisation import Linearised
from gradlab.models import chain
from gradlab.models.chain import Chain

_LONGEST = 128


def log_norms(segment: Chain, carry: Carry) -> tuple[Carry, Array]:
    """Through one segment: the product after it, and `log |P|` (nats) after each layer."""
    if segment.depth == 1 or carry[0].size >= forward.WIDE:
        return _step_by_step(segment, carry)
    one: Any = jax.eval_shape(partial(chain.params_at, layer=0), segment.params)
    # What a layer closes over may be differentiated too, and has to be an argument for that.
    layer, closed_over = jax.closure_convert(segment.layer, one, carry[0])
    found: tuple[Carry, Array] = _narrow(layer, segment.params, closed_over, carry)
    return found


def _step_by_step(segment: Chain, carry: Carry) -> tuple[Carry, Array]:
    def measure(P: Scaled, square: Array) -> Array:
        return forward.log_root(Scaled(square, 2 * P.exponent[0, 0]), P.mantissa.dtype)

    carry, logs = forward.walk(segment, carry, measure)
    return carry, logs


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _narrow(
    layer: Callable[..., Array], params: Any, closed_over: Any, carry: Carry
) -> tuple[Carry, Array]:
    z, P, exponent = carry
    start = z, P, jnp.broadcast_to(exponent, (1, P.shape[1]))
    (z, P, exponent), logs = _blocks(_closed(layer, params, closed_over), start)
    shared = scaled.share(Scaled(P, exponent))
    return (z, shared.mantissa, shared.exponent), logs


@_narrow.defjvp
@precision.highest
def _(layer: Callable[..., Array], primals: Any, tangents: Any) -> Any:
    # Backwards, an index into the parameters would cost as much as all of them.
    def walk(params: Any, closed_over: Any, carry: Carry) -> tuple[Carry, Array]:
        return _step_by_step(_closed(layer, params, closed_over), carry)

    return jax.jvp(walk, primals, tangents)


def _closed(layer: Callable[..., Array], params: Any, closed_over: Any) -> Chain:
    return Chain(lambda params, z: layer(params, z, *closed_over), params)


def _blocks(segment: Chain, carry: Carry) -> tuple[Carry, Array]:
    """Through a segment block by block: constant memory, one compilation at any depth."""
    depth = segment.depth
    lengths = range(_LONGEST, _LONGEST // 2 - 1, -1)
    length = min(lengths, key=lambda n: -depth % n) if depth > _LONGEST else depth
    # The first block is filled up with layers that do nothing.
    idle = -depth % length
    layers = jnp.arange(-idle, depth).reshape(-1, length)
    carry, logs = jax.lax.scan(partial(_block, segment, idle > 0), carry, layers)
    return carry, logs.reshape(-1)[idle:]


def _block(segment: Chain, idle: bool, carry: Carry, layers: Array) -> tuple[Carry, Array]:
    """Through the given layers of a segment, of which those below 0 do nothing, if any do."""
    z, P, exponent = carry
    is_tiny = z.size <= linearisation.TINY

    def state(z: Array, layer: Array) -> tuple[Array, Linearised]:
        params = _at(idle, segment.params, layer)
        output, linear = linearisation.linearise(segment.layer, params, z)
        return jnp.where(layer < 0, z, output) if idle else output, linear

    def jacobian(at_layer: tuple[Array, Linearised]) -> Array:
        layer, linear = at_layer
        return linear.jacobian(_at(idle, segment.params, layer))

    def times_layer(P: Array, at_layer: tuple[Array, Any]) -> tuple[Array, tuple[Array, Array]]:
        layer, linear = at_layer
        if is_tiny:
            after = linearisation.matmul(linear, P)
        else:
            after = linear.times(_at(idle, segment.params, layer), P)
        after = jnp.where(layer < 0, P, after) if idle else after
        shift = scaled.exponent_of_largest(after, axis=0)
        # Made once a column, not once an entry.
        factor = jax.lax.optimization_barrier(scaled.power_of_two(-shift, P.dtype))
        P = after * factor[None, :]
        return P, (forward.squares(P), factor)

    maps: Any
    z, maps = jax.lax.scan(state, z, layers)
    if is_tiny:
        maps = jax.vmap(jacobian)((layers, maps))
    P, (squares, factors) = jax.lax.scan(times_layer, P, (layers, maps))
    exponents = exponent + _running_sum(-scaled.exponent_of(factors))
    square = scaled.share(Scaled(squares, 2 * exponents), 1)
    total = Scaled(jnp.sum(square.mantissa, axis=1), square.exponent[:, 0])
    return (z, P, exponents[-1:]), forward.log_root(total, P.dtype)


def _running_sum(shifts: Array) -> Array:
    """`jnp.cumsum` of integers of at most 2^10, at most 2^7 of them, which compiles faster."""
    ones = np.tri(len(shifts), dtype=np.float32)
    return jnp.matmul(ones, shifts.astype(np.float32), precision="highest").astype(np.int32)


def _at(idle: bool, params: Any, layer: Array) -> Any:
    """The parameters of a layer; an idle one goes through the first and throws the result away."""
    index: Any = jnp.maximum(layer, 0) if idle else layer
    return chain.params_at(params, index)
