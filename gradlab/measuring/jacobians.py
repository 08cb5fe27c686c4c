"""Products of per-layer Jacobians: measured exactly, at every depth in one pass, in any range.

The partial product `P_k = J_k ... J_1` is pushed forward through the linearisation of each layer
(`linearisation`), so memory does not grow with depth, and a layer may be any function. It is
rescaled by powers of two (`forward`), which adds no rounding, and neither under- nor overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import precision, scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import blocks, compiled, forward, linearisation, loops, roundings
from gradlab.measuring.chain_rule import Loss
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model


@precision.highest
@compiled.once
def product(model: Model, x: Array) -> Array:
    """`J_L ... J_1` as a plain array, `(width_L, width_0)`: the Jacobian of the whole chain.

    It under- and overflows as its dtype does; `scaled_product` does not.
    """
    return _plain_product(chain.checked(model, x), x)[1]


@precision.highest
@compiled.once
def scaled_product(model: Model, x: Array) -> Scaled:
    """`J_L ... J_1` with one exponent for the matrix, `(width_L, width_0)`."""
    carry = forward.start(x)
    for segment in chain.checked(model, x):
        carry, _ = forward.walk(segment, carry, lambda *_: None)
    return scaled.rescale(forward.matrix(carry))


@precision.highest
def along(model: Model, x: Array, measure: Callable[[Scaled], Any]) -> Any:
    """`measure(P_k)` for every depth k = 1 ... L, stacked on a leading axis `depth`.

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        measure: from a scaled matrix `(width_k, width_0)` to any pytree of arrays whose shapes
            do not depend on `width_k`. It runs inside the scan: nothing else is stored. Outside
            `jax.jit` it is compiled at every call.
    """
    return _along(model, x, lambda P, _: measure(P))


@precision.highest
@compiled.once
def log_norms(model: Model, x: Array) -> Array:
    """`log |P_k|` (Frobenius, nats) for every depth k = 1 ... L, `(depth,)`."""
    carry, logs = forward.start(x), []
    for segment in chain.checked(model, x):
        carry, found = blocks.log_norms(segment, carry)
        logs.append(found)
    return jnp.concatenate(logs)


@precision.highest
@compiled.once
def log_spectral_norms(model: Model, x: Array) -> Array:
    """`log` of the largest singular value of `P_k` (nats) for every depth k, `(depth,)`."""
    return forward.log_root(along(model, x, _square_of_spectral_norm), x.dtype)


@precision.highest
@compiled.once
def partial_products(model: Model, x: Array) -> tuple[Scaled, ...]:
    """`P_k` for every depth k, one scaled matrix `(width_k, width_0)` each: memory grows."""
    stacks = _by_segment(model, x, lambda P, _: scaled.rescale(P))
    return tuple(chain.params_at(stack, k) for stack in stacks for k in range(stack.shape[0]))


@precision.highest
@compiled.once
def log_abs_det(model: Model, x: Array) -> Array:
    """`log |det P_k|` (nats) for every depth k, `(depth,)`; every layer keeps the width.

    nan from the first layer on whose determinant rounding may change by more than a tenth: a layer
    without rank, but for rows or columns of zeros, which give minus infinity.
    """
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


@precision.highest
@compiled.once
def weight_gradient(model: Model, x: Array, loss: Loss, layer: int) -> Any:
    """`dL/dz_L  J_L ... J_{k+1}  dz_k/dtheta_k` for layer k, a pytree like its parameters.

    Bools, ints and keys among them have no gradient: None.

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
    z_k, pull_back = jax.vjp(lambda params: own.layer(params, x), chain.params_at(own.params, 0))
    z_L, P = _plain_product(after, z_k)
    return chain.real_part(pull_back(jax.grad(loss)(z_L) @ P)[0])


@precision.highest
@compiled.once
def weight_gradients(model: Model, x: Array, loss: Loss) -> Any:
    """The gradient of every layer's weights, a pytree like the parameters of a `Chain`.

    For a sequence, a tuple with one pytree a layer. It under- and overflows as its dtype does.
    Bools, ints and keys have no gradient: None.
    """
    _, parts = _backward(model, x, loss, _plain_gradient)
    if isinstance(model, Chain):
        return parts[0]
    depths = [segment.depth for segment in chain.segments(model)]
    return tuple(
        chain.params_at(part, k)
        for part, depth in zip(parts, depths, strict=True)
        for k in range(depth)
    )


@precision.highest
@compiled.once
def log_gradient_norms(model: Model, x: Array, loss: Loss) -> Array:
    """`log |dL/dz_k|` (nats) for every state k = 0 ... L, `(depth + 1,)`."""
    last, parts = _backward(model, x, loss, lambda row, _: _log_row_norm(row))
    return jnp.concatenate([*parts, _log_row_norm(last)[None]])


@precision.highest
@compiled.once
def log_weight_gradient_norms(model: Model, x: Array, loss: Loss) -> Array:
    """`log |dL/dtheta_k|` (nats) for every layer k = 1 ... L, over all its weights, `(depth,)`.

    Minus infinity for a layer that has no weights, such as an activation in a list: the norm of no
    numbers is 0.
    """
    return jnp.concatenate(_backward(model, x, loss, _log_weight_norm)[1])


# ---- forward --------------------------------------------------------------------------------


def _along(model: Model, x: Array, measure: forward.Measure) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *_by_segment(model, x, measure))


def _by_segment(model: Model, x: Array, measure: forward.Measure) -> list[Any]:
    carry, seen = forward.start(x), []
    for segment in chain.checked(model, x):
        carry, measured = forward.walk(segment, carry, measure)
        seen.append(measured)
    return seen


def _plain_product(parts: Sequence[Chain], x: Array) -> tuple[Array, Array]:
    """The last state, and the product without rescaling."""
    carry = x, jnp.eye(x.size, dtype=x.dtype)
    for segment in parts:
        carry, _ = loops.scan(partial(_push_only, segment.layer), carry, segment)
    return carry


def _push_only(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    return linearisation.push(layer, params, *carry), None


def _square_of_spectral_norm(P: Scaled) -> Scaled:
    m = P.mantissa
    gram = m @ m.T if m.shape[0] < m.shape[1] else m.T @ m
    # The largest eigenvalue of the Gram matrix, unlike the others, keeps its relative accuracy.
    return Scaled(jnp.linalg.eigvalsh(gram)[-1], 2 * P.exponent[0, 0])


def _log_abs_det(segment: Chain, x: Array) -> tuple[Array, Array]:
    def step(z: Array, params: Any) -> tuple[Array, Array]:
        z_next, linear = linearisation.linearise(segment.layer, params, z)
        J = linear.jacobian(params)
        if J.shape[0] != J.shape[1]:
            return z_next, jnp.zeros((), z.dtype)
        is_known = _is_det_known(J, roundings.of_jacobian(linear, params))
        return z_next, jnp.where(is_known, jnp.linalg.slogdet(J)[1], jnp.nan)

    z, logs = loops.scan(step, x, segment)
    return z, logs


def _is_det_known(J: Array, uncertain: Array | None) -> Array:
    """Whether rounding may change a determinant by less than a tenth, or zeros make it zero.

    Of a change D of J it is the trace of `J^-1 D`, relative and to first order. D is the layer's
    own and that of an elimination, whose roundings are independent (Higham and Mary 2019).
    """
    J = jax.lax.stop_gradient(J)
    own = len(J) ** 0.5 * scaled.eps(J.dtype) * jnp.abs(J)
    own = own if uncertain is None else own + jax.lax.stop_gradient(uncertain)
    change = jnp.linalg.norm(jnp.linalg.inv(J).T * own)
    is_zero = jnp.any(jnp.all(J == 0, axis=0) | jnp.all(J == 0, axis=1))
    return is_zero | (change < roundings.UNKNOWN)


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


# ---- backward: the row dL/dz_k, and its exponent ---------------------------------------------


def _backward(
    model: Model, x: Array, loss: Loss, measure: Callable[[Scaled, Scaled], Any]
) -> tuple[Scaled, list[Any]]:
    """`dL/dz_L`, and the measure of `dL/dz_{k-1}` and `dL/dtheta_k` (raveled) for every layer k.

    The row is pulled back through one layer at a time and rescaled; the states are stored. The
    measures come a segment, stacked over its layers.
    """
    parts = chain.checked(model, x, "reverse")
    stacks = []
    for segment in parts:
        stacks.append(chain.layer_inputs(segment, x))
        x = segment(x)
    last = scaled.scale(jax.grad(loss)(x))
    row, seen = last, []
    for segment, stack in zip(reversed(parts), reversed(stacks), strict=True):
        paired = Chain(segment.layer, (segment.params, stack))
        row, measured = loops.scan(
            partial(_pull, segment.layer, measure), row, paired, reverse=True
        )
        seen.append(measured)
    return last, seen[::-1]


def _pull(
    layer: Layer, measure: Callable[[Scaled, Any], Any], row: Scaled, at_layer: Any
) -> tuple[Scaled, Any]:
    """One layer back: the row `dL/dz_{k-1}`, and what is measured there."""
    params, z = at_layer
    gradient, before = jax.vjp(layer, params, z)[1](row.mantissa)
    scaled_gradient = jax.tree.map(
        lambda leaf: Scaled(leaf, row.exponent.reshape((1,) * leaf.ndim)), chain.real_part(gradient)
    )
    row = scaled.rescale(Scaled(before, row.exponent))
    return row, measure(row, scaled_gradient)


def _plain_gradient(row: Scaled, gradient: Any) -> Any:
    del row
    return jax.tree.map(lambda leaf: scaled.unscale(leaf).value, gradient, is_leaf=_is_scaled)


def _log_weight_norm(row: Scaled, gradient: Any) -> Array:
    leaves = jax.tree.leaves(gradient, is_leaf=_is_scaled)
    leaves = [leaf for leaf in leaves if leaf.mantissa.size]
    if not leaves:
        return jnp.full((), -jnp.inf, row.mantissa.dtype)
    norms = [scaled.norm(leaf) for leaf in leaves]
    stack = Scaled(jnp.stack([n.mantissa for n in norms]), jnp.stack([n.exponent for n in norms]))
    return scaled.log_magnitude(scaled.norm(stack))


def _log_row_norm(row: Scaled) -> Array:
    return scaled.log_magnitude(scaled.norm(row))


def _is_scaled(leaf: Any) -> bool:
    return isinstance(leaf, Scaled)
