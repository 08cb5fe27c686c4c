"""Products of per-layer Jacobians: measured exactly, at every depth in one pass, in any range.

The partial product `P_k = J_k ... J_1` is pushed forward through the linearisation of each layer,
so no Jacobian is formed, memory does not grow with depth, and a layer may be any function. It is
rescaled by powers of two (`scaled`), which adds no rounding, and neither under- nor overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab import chain, scaled
from gradlab.chain import Chain, Layer, Model
from gradlab.scaled import Scaled

# Up to this width XLA's own loops are cheaper, on a CPU, than its call of a matrix product.
_TINY = 8

Loss = Callable[[Array], Array]
Measure = Callable[[Scaled], Any]
# The same, given also the square of the mantissa's norm, which rescaling has found.
_Measure = Callable[[Scaled, Array], Any]


def push(layer: Layer, params: Any, z: Array, columns: Array) -> tuple[Array, Array]:
    """`layer(z)`, and `J` applied to each of the `columns`, `(num_columns, width)`.

    The columns of a product lie in rows, so that XLA neither transposes nor recomputes phi'.
    """
    output, apply_J = jax.linearize(partial(layer, params), z)
    return output, jax.vmap(apply_J)(columns)


def product(model: Model, x: Array) -> Array:
    """`J_L ... J_1` as a plain array, `(width_L, width_0)`: the Jacobian of the whole chain.

    It under- and overflows as its dtype does; `scaled_product` does not.
    """
    return _plain_product(chain.checked(model, x), x)[1]


def scaled_product(model: Model, x: Array) -> Scaled:
    """`J_L ... J_1` with one exponent for the matrix, `(width_L, width_0)`."""
    carry = _start(x)
    for segment in chain.checked(model, x):
        carry, _ = _walk(segment, carry, lambda *_: None)
    return scaled.rescale(_matrix(carry))


def along(model: Model, x: Array, measure: Measure) -> Any:
    """`measure(P_k)` for every depth k = 1 ... L, stacked on a leading axis `depth`.

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        measure: from a scaled matrix `(width_k, width_0)` to any pytree of arrays whose shapes
            do not depend on `width_k`. It runs inside the scan: nothing else is stored.
    """
    return _along(model, x, lambda P, _: measure(P))


def log_norms(model: Model, x: Array) -> Array:
    """`log |P_k|` (Frobenius, nats) for every depth k = 1 ... L, `(depth,)`."""
    carry, norms = _start(x), []
    for segment in chain.checked(model, x):
        carry, found = _norms(segment, carry)
        norms.append(found)
    squares, exponents = (jnp.concatenate(parts) for parts in zip(*norms, strict=True))
    return _log_of_square(squares, exponents, x.dtype)


def log_spectral_norms(model: Model, x: Array) -> Array:
    """`log` of the largest singular value of `P_k` (nats) for every depth k, `(depth,)`."""
    squares, exponents = along(model, x, _square_spectral_norm)
    return _log_of_square(squares, exponents, x.dtype)


def partial_products(model: Model, x: Array) -> tuple[Scaled, ...]:
    """`P_k` for every depth k, one scaled matrix `(width_k, width_0)` each: memory grows."""
    stacks = _by_segment(model, x, lambda P, _: scaled.rescale(P))
    return tuple(chain.at(stack, k) for stack in stacks for k in range(stack.shape[0]))


def log_abs_det(model: Model, x: Array) -> Array:
    """`log |det P_k|` (nats) for every depth k, `(depth,)`; every layer keeps the width."""
    logs, first = [], 1
    for segment in chain.checked(model, x):
        z = x
        x, log = _log_abs_det(segment, x)
        if x.shape != z.shape:
            raise ValueError(
                f"Layer {first} goes from width {z.size} to {x.size}, so it has no determinant."
            )
        logs.append(log)
        first += segment.depth
    return jnp.cumsum(jnp.concatenate(logs))


def weight_gradient(model: Model, x: Array, loss: Loss, layer: int) -> Any:
    """`dL/dz_L  J_L ... J_{k+1}  dz_k/dtheta_k` for layer k, a pytree like its parameters.

    The product of Jacobians is formed explicitly; the last factor is one layer's derivative.

    Args:
        model: the chain.
        x: its input, `(width_0,)`; a batch goes through `jax.vmap`.
        loss: from the last layer's output to a scalar.
        layer: k, counted from 1.
    """
    before, own, after = _split(chain.checked(model, x), layer)
    for segment in before:
        x = segment(x)
    z_k, pull_back = jax.vjp(lambda params: own.layer(params, x), chain.at(own.params, 0))
    z_L, P = _plain_product(after, z_k)
    return pull_back(jax.grad(loss)(z_L) @ P)[0]


def weight_gradients(model: Model, x: Array, loss: Loss) -> Any:
    """The gradient of every layer's weights, a pytree like the parameters of a `Chain`.

    For a sequence, a tuple with one pytree a layer. It under- and overflows as its dtype does.
    """
    _, parts = _backward(model, x, loss, _plain_gradient)
    if isinstance(model, Chain):
        return parts[0]
    depths = [segment.depth for segment in chain.segments(model)]
    return tuple(
        chain.at(part, k) for part, depth in zip(parts, depths, strict=True) for k in range(depth)
    )


def log_gradient_norms(model: Model, x: Array, loss: Loss) -> Array:
    """`log |dL/dz_k|` (nats) for every state k = 0 ... L, `(depth + 1,)`."""
    last, parts = _backward(model, x, loss, lambda row, _: _log_row_norm(row))
    return jnp.concatenate([*parts, _log_row_norm(last)[None]])


def log_weight_gradient_norms(model: Model, x: Array, loss: Loss) -> Array:
    """`log |dL/dtheta_k|` (nats) for every layer k = 1 ... L, over all its weights, `(depth,)`."""
    return jnp.concatenate(_backward(model, x, loss, _log_weight_norm)[1])


# ---- forward: the columns of P, one a row, and their common exponent -------------------------

Carry = tuple[Array, Array, Array]


def _start(x: Array) -> Carry:
    return x, jnp.eye(x.size, dtype=x.dtype), jnp.zeros((1, 1), jnp.int32)


def _matrix(carry: Carry) -> Scaled:
    return Scaled(carry[1].T, carry[2])


def _walk(segment: Chain, carry: Carry, measure: _Measure) -> tuple[Carry, Any]:
    """Through one segment: the product after it, and the measure of P after each layer."""

    def step(carry: Carry, params: Any) -> tuple[Carry, Any]:
        z, columns, exponent = carry
        z, columns = push(segment.layer, params, z, columns)
        shift, square = _size(columns)
        columns = columns * scaled.power_of_two(-shift, columns.dtype)
        carry = z, columns, exponent + shift
        return carry, measure(_matrix(carry), square)

    carry, measured = scan(step, carry, segment)
    return carry, measured


def _size(columns: Array) -> tuple[Array, Array]:
    """The exponent to take out of a matrix, and the square of its norm without that exponent.

    One pass over the matrix where its square is in range, which is nearly always.
    """
    square = _square(columns)
    # A quarter of the exponents to each side: no square that matters leaves the range.
    reach = 2.0 ** (scaled.largest_exponent(square.dtype) // 2)
    return jax.lax.cond(
        (square > 1 / reach) & (square < reach), _ordinary, _careful, columns, square
    )


def _ordinary(columns: Array, square: Array) -> tuple[Array, Array]:
    half = scaled.exponent_of(square) // 2
    most = scaled.largest_exponent(columns.dtype)
    shift = jnp.clip(half, -most, most)
    return shift, square * scaled.power_of_two(-2 * shift, square.dtype)


def _careful(columns: Array, square: Array) -> tuple[Array, Array]:
    del square
    shift = scaled.exponent_of_largest(columns)
    return shift, _square(columns * scaled.power_of_two(-shift, columns.dtype))


def _square(columns: Array) -> Array:
    """The square of the norm, in at least float32."""
    return jnp.sum(jnp.square(columns.astype(jnp.promote_types(columns.dtype, jnp.float32))))


def matmul(A: Array, B: Array) -> Array:
    """`A @ B` for matrices, however small."""
    if max(*A.shape, *B.shape) > _TINY:
        return A @ B
    return jnp.sum(A[:, :, None] * B[None], axis=1)


def scan(step: Any, carry: Any, segment: Chain, reverse: bool = False) -> Any:
    """`jax.lax.scan` over the layers of a segment; one layer alone may change the carry's shape."""
    if segment.depth == 1:
        carry, seen = step(carry, chain.at(segment.params, 0))
        return carry, jax.tree.map(lambda leaf: leaf[None], seen)
    return jax.lax.scan(step, carry, segment.params, reverse=reverse)


def _along(model: Model, x: Array, measure: _Measure) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *_by_segment(model, x, measure))


def _by_segment(model: Model, x: Array, measure: _Measure) -> list[Any]:
    carry, seen = _start(x), []
    for segment in chain.checked(model, x):
        carry, measured = _walk(segment, carry, measure)
        seen.append(measured)
    return seen


def _plain_product(parts: Sequence[Chain], x: Array) -> tuple[Array, Array]:
    """The last state, and the product without rescaling."""
    carry = x, jnp.eye(x.size, dtype=x.dtype)
    for segment in parts:
        carry, _ = scan(partial(_push_only, segment.layer), carry, segment)
    return carry[0], carry[1].T


def _push_only(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    return push(layer, params, *carry), None


def _square_spectral_norm(P: Scaled) -> tuple[Array, Array]:
    m = P.mantissa
    gram = m @ m.T if m.shape[0] < m.shape[1] else m.T @ m
    # The largest eigenvalue of the Gram matrix, unlike the others, keeps its relative accuracy.
    return jnp.linalg.eigvalsh(gram)[-1], P.exponent[0, 0]


def _log_of_square(square: Array, exponent: Array, dtype: Any) -> Array:
    return (jnp.log(square) / 2 + exponent.astype(square.dtype) * math.log(2)).astype(dtype)


def _log_abs_det(segment: Chain, x: Array) -> tuple[Array, Array]:
    def step(z: Array, params: Any) -> tuple[Array, Array]:
        z_next, J = push(segment.layer, params, z, jnp.eye(z.size, dtype=z.dtype))
        square = J.shape[0] == J.shape[1]
        return z_next, jnp.linalg.slogdet(J)[1] if square else jnp.zeros((), z.dtype)

    z, logs = scan(step, x, segment)
    return z, logs


def _split(parts: Sequence[Chain], layer: int) -> tuple[list[Chain], Chain, list[Chain]]:
    """The segments before, at and after one layer, which is counted from 1."""
    num_layers = sum(segment.depth for segment in parts)
    if not 1 <= layer <= num_layers:
        raise ValueError(f"There is no layer {layer}; the layers are 1 to {num_layers}.")
    before: list[Chain] = []
    for index, segment in enumerate(parts):
        if layer <= segment.depth:
            edges = (0, layer - 1, layer, segment.depth)
            cut = [_slice(segment, *ends) for ends in pairwise(edges)]
            head = [cut[0]] if layer > 1 else []
            tail = [cut[2]] if layer < segment.depth else []
            return [*before, *head], cut[1], [*tail, *parts[index + 1 :]]
        before.append(segment)
        layer -= segment.depth
    raise AssertionError("unreachable")


def _slice(segment: Chain, start: int, stop: int) -> Chain:
    return Chain(segment.layer, jax.tree.map(lambda leaf: leaf[start:stop], segment.params))


# ---- forward, norms only: blocks of layers, the states of a block first, then its product -----
#
# A step of a narrow chain costs what it takes to start its kernels. XLA on a CPU starts up to eight
# of them in a loop's body much faster than more, so two short loops beat one that does it all. In
# a wide chain the one loop wins, which reads the matrix less often.

_WIDE = 64
_LONGEST_BLOCK = 32

# The squares of the mantissas' norms and their exponents, `(layers,)` each.
Norms = tuple[Array, Array]


def _norms(segment: Chain, carry: Carry) -> tuple[Carry, Norms]:
    """Through one segment: the product after it, and the norm of P after each layer."""
    if segment.depth == 1 or carry[0].size >= _WIDE:
        return _step_by_step(segment, carry)
    one: Any = jax.eval_shape(partial(chain.at, layer=0), segment.params)
    # What a layer closes over may be differentiated too, and has to be an argument for that.
    layer, closed_over = jax.closure_convert(segment.layer, one, carry[0])
    narrow: tuple[Carry, Norms] = _narrow(layer, segment.params, closed_over, carry)
    return narrow


def _step_by_step(segment: Chain, carry: Carry) -> tuple[Carry, Norms]:
    norms: Norms
    carry, norms = _walk(segment, carry, lambda P, square: (square, P.exponent[0, 0]))
    return carry, norms


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _narrow(
    layer: Callable[..., Array], params: Any, closed_over: Any, carry: Carry
) -> tuple[Carry, Norms]:
    return _blocks(_closed(layer, params, closed_over), carry)


@_narrow.defjvp
def _(layer: Callable[..., Array], primals: Any, tangents: Any) -> Any:
    # Backwards, an index into the parameters would cost as much as all of them.
    def walk(params: Any, closed_over: Any, carry: Carry) -> tuple[Carry, Norms]:
        return _step_by_step(_closed(layer, params, closed_over), carry)

    return jax.jvp(walk, primals, tangents)


def _closed(layer: Callable[..., Array], params: Any, closed_over: Any) -> Chain:
    return Chain(lambda params, z: layer(params, z, *closed_over), params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Linearised:
    """A layer's linear map without the layer's own parameters, which need no second copy.

    `places[i]` is the parameter that constant i of the map is, or None where it is in `kept`.
    """

    kept: list[Array]
    places: tuple[int | None, ...] = field(metadata={"static": True})
    tree: Any = field(metadata={"static": True})

    def __call__(self, params: Any, columns: Array) -> Array:
        """`J` applied to each of the columns, which lie in rows."""
        kept, own = iter(self.kept), jax.tree.leaves(params)
        constants = [next(kept) if place is None else own[place] for place in self.places]
        return jax.vmap(jax.tree.unflatten(self.tree, constants))(columns)


def _linearised(layer: Layer, params: Any, z: Array) -> tuple[Array, _Linearised]:
    output, apply_J = jax.linearize(partial(layer, params), z)
    constants, tree = jax.tree.flatten(apply_J)
    own = jax.tree.leaves(params)
    places = tuple(
        next((place for place, leaf in enumerate(own) if leaf is constant), None)
        for constant in constants
    )
    kept = [c for c, place in zip(constants, places, strict=True) if place is None]
    return output, _Linearised(kept, places, tree)


def _blocks(segment: Chain, carry: Carry) -> tuple[Carry, Norms]:
    """Through a segment block by block: constant memory, one compilation at any depth."""
    depth = segment.depth
    lengths = range(_LONGEST_BLOCK, _LONGEST_BLOCK // 2 - 1, -1)
    length = min(lengths, key=lambda n: -depth % n) if depth > _LONGEST_BLOCK else depth
    # The first block is filled up with layers that do nothing.
    idle = -depth % length
    layers = jnp.arange(-idle, depth).reshape(-1, length)
    carry, norms = jax.lax.scan(partial(_block, segment, idle > 0), carry, layers)
    squares, exponents = (leaf.reshape(-1)[idle:] for leaf in norms)
    return carry, (squares, exponents)


def _block(segment: Chain, idle: bool, carry: Carry, layers: Array) -> tuple[Carry, Norms]:
    """Through the given layers of a segment, of which those below 0 do nothing, if any do."""
    z, columns, exponent = carry

    def state(z: Array, layer: Array) -> tuple[Array, _Linearised]:
        output, linearised = _linearised(segment.layer, _at(idle, segment.params, layer), z)
        return _unless(idle, layer, z, output), linearised

    def push_on(columns: Array, at_layer: tuple[Array, _Linearised]) -> Array:
        layer, linearised = at_layer
        return linearised(_at(idle, segment.params, layer), columns)

    def product(columns: Array, at_layer: tuple[Array, Any]) -> tuple[Array, Norms]:
        layer, J = at_layer
        after = matmul(columns, J) if tiny else push_on(columns, at_layer)
        columns = _unless(idle, layer, columns, after)
        # Right in any range and without a branch, of which `vmap` would take both.
        shift = scaled.exponent_of_largest(columns)
        columns = columns * scaled.power_of_two(-shift, columns.dtype)
        return columns, (_square(columns), shift)

    maps: Any
    z, maps = jax.lax.scan(state, z, layers)
    tiny = z.size <= _TINY
    if tiny:
        # All Jacobians of the block at once, their columns in rows too.
        maps = jax.vmap(partial(push_on, jnp.eye(z.size, dtype=z.dtype)))((layers, maps))
    columns, (squares, shifts) = jax.lax.scan(product, columns, (layers, maps))
    # The running sum; jnp.cumsum takes several times longer to compile.
    exponents = exponent[0] + np.tri(shifts.size, dtype=np.int32) @ shifts
    return (z, columns, exponents[-1:, None]), (squares, exponents)


def _at(idle: bool, params: Any, layer: Array) -> Any:
    """The parameters of a layer; an idle one goes through the first and throws the result away."""
    index: Any = jnp.maximum(layer, 0) if idle else layer
    return chain.at(params, index)


def _unless(idle: bool, layer: Array, before: Array, after: Array) -> Array:
    """What is there after a layer, or before it where the layer is idle."""
    return jnp.where(layer < 0, before, after) if idle else after


# ---- backward: the row dL/dz_k, and its exponent ---------------------------------------------


def _backward(
    model: Model, x: Array, loss: Loss, measure: Callable[[Scaled, Scaled], Any]
) -> tuple[Scaled, list[Any]]:
    """`dL/dz_L`, and the measure of `dL/dz_{k-1}` and `dL/dtheta_k` (raveled) for every layer k.

    The row is pulled back through one layer at a time and rescaled; the states are stored. The
    measures come a segment, stacked over its layers.
    """
    parts = chain.checked(model, x)
    stacks = []
    for segment in parts:
        stacks.append(chain.layer_inputs(segment, x))
        x = segment(x)
    last = scaled.scale(jax.grad(loss)(x))
    row, seen = last, []
    for segment, stack in zip(reversed(parts), reversed(stacks), strict=True):
        paired = Chain(segment.layer, (segment.params, stack))
        row, measured = scan(partial(_pull, segment.layer, measure), row, paired, reverse=True)
        seen.append(measured)
    return last, seen[::-1]


def _pull(
    layer: Layer, measure: Callable[[Scaled, Any], Any], row: Scaled, at_layer: Any
) -> tuple[Scaled, Any]:
    """One layer back: the row `dL/dz_{k-1}`, and what is measured there."""
    params, z = at_layer
    gradient, before = jax.vjp(layer, params, z)[1](row.mantissa)
    scaled_gradient = jax.tree.map(
        lambda leaf: Scaled(leaf, row.exponent.reshape((1,) * leaf.ndim)), gradient
    )
    row = scaled.rescale(Scaled(before, row.exponent))
    return row, measure(row, scaled_gradient)


def _plain_gradient(row: Scaled, gradient: Any) -> Any:
    del row
    return jax.tree.map(lambda leaf: scaled.unscale(leaf).value, gradient, is_leaf=_is_scaled)


def _log_weight_norm(row: Scaled, gradient: Any) -> Array:
    del row
    leaves = jax.tree.leaves(gradient, is_leaf=_is_scaled)
    leaves = [leaf for leaf in leaves if leaf.mantissa.size]
    if not leaves:
        raise ValueError("A layer of this model has no weights; give it as a Chain or a module.")
    norms = [scaled.norm(leaf) for leaf in leaves]
    stack = Scaled(jnp.stack([n.mantissa for n in norms]), jnp.stack([n.exponent for n in norms]))
    return scaled.log_magnitude(scaled.norm(stack))


def _log_row_norm(row: Scaled) -> Array:
    return scaled.log_magnitude(scaled.norm(row))


def _is_scaled(leaf: Any) -> bool:
    return isinstance(leaf, Scaled)
