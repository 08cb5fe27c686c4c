"""The partial product `P_k = J_k ... J_1`, pushed through a chain a layer at a time, in any range.

It is rescaled by powers of two, which adds no rounding, whenever its size is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import linearisation, loops
from gradlab.models.chain import Chain

# The state, the mantissa of P, `(width_k, width_0)`, and its exponent, `(1, 1)`.
Carry = tuple[Array, Array, Array]

# From P and the square of its mantissa's norm, which rescaling has found, to anything.
Measure = Callable[[Scaled, Array], Any]

# From this width on a step costs what its arithmetic does, not what it takes to start its kernels.
WIDE = 64


def start(x: Array) -> Carry:
    """The empty product at the input x."""
    return x, jnp.eye(x.size, dtype=x.dtype), jnp.zeros((1, 1), jnp.int32)


def matrix(carry: Carry) -> Scaled:
    """The product that is carried."""
    return Scaled(carry[1], carry[2])


def walk(segment: Chain, carry: Carry, measure: Measure) -> tuple[Carry, Any]:
    """Through one segment: the product after it, and the measure of P after each layer, stacked."""

    def step(carry: Carry, params: Any) -> tuple[Carry, Any]:
        z, P, exponent = carry
        z, P = linearisation.push(segment.layer, params, z, P)
        shift, square = _size(P)
        P = P * scaled.power_of_two(-shift, P.dtype)
        carry = z, P, exponent + shift
        return carry, measure(matrix(carry), square)

    carry, measured = loops.scan(step, carry, segment)
    return carry, measured


def _size(P: Array) -> tuple[Array, Array]:
    """The exponent to take out of a matrix, and the square of its norm without that exponent.

    One pass over the matrix where its square is in range, which is nearly always.
    """
    square = jnp.sum(squares(P))
    # A quarter of the exponents to each side: no square that matters leaves the range.
    reach = 2.0 ** (scaled.largest_exponent(square.dtype) // 2)
    return jax.lax.cond(
        (square > 1 / reach) & (square < reach), _in_range, _rescaled_first, P, square
    )


def _in_range(P: Array, square: Array) -> tuple[Array, Array]:
    half = scaled.exponent_of(square) // 2
    most = scaled.largest_exponent(P.dtype)
    shift = jnp.clip(half, -most, most)
    return shift, square * scaled.power_of_two(-2 * shift, square.dtype)


def _rescaled_first(P: Array, square: Array) -> tuple[Array, Array]:
    del square
    shift = scaled.exponent_of_largest(P)
    return shift, jnp.sum(squares(P * scaled.power_of_two(-shift, P.dtype)))


def squares(P: Array) -> Array:
    """Numbers that add up to the square of the norm, `(1,)` or `(width_0,)`, in at least float32.

    One a column for a narrow matrix: XLA on a CPU adds up all entries one by one, but rows at once.
    """
    P = P.astype(jnp.promote_types(P.dtype, jnp.float32))
    return jnp.vdot(P, P)[None] if len(P) >= WIDE else jnp.sum(jnp.square(P), axis=0)


def log_root(square: Scaled, dtype: Any) -> Array:
    """The log (nats) of what each number is the square of, such as a norm, in its shape."""
    log = jnp.log(square.mantissa) + square.exponent.astype(square.mantissa.dtype) * scaled.LN2
    return (log / 2).astype(dtype)
