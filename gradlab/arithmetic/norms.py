"""The global norm of a pytree and a quotient by it, in twice the digits and without a range.

An entry is split into its mantissa and its exponent, so that nothing can leave the range; sums,
roots and quotients are pairs (`doubled`). `wide` is the format of the arithmetic: float64 where
a leaf has it, else float32; u is half an ulp of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gradlab.arithmetic import bits, doubled, formats, scaled
from gradlab.arithmetic.doubled import Doubled


class Number(NamedTuple):
    """The number `mantissa 2^exponent`; an infinite or undefined one is all in `mantissa.high`."""

    mantissa: Doubled
    exponent: Array


def wide(leaves: list[Array]) -> Any:
    """The format of the arithmetic on these leaves."""
    return jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32


def divisor(largest: Array) -> Array:
    """What to divide by so that the largest of some numbers is near 1, `()`: 1 for 0, inf and nan.

    XLA divides by the inverse of a number, which is flushed to 0 where it is subnormal: it is not.
    """
    is_number = (largest > 0) & jnp.isfinite(largest)
    return jnp.minimum(jnp.where(is_number, largest, 1), 1 / formats.finfo(largest.dtype).tiny)


def measure(leaves: list[Array]) -> Number:
    """The norm over all leaves, with the exponent of the largest entry."""
    dtype = wide(leaves)
    parts = [bits.split(leaf.ravel(), dtype) for leaf in leaves]
    mantissa = jnp.concatenate([jnp.zeros(1, dtype), *(part[0] for part in parts)])
    exponent = jnp.concatenate([jnp.zeros(1, jnp.int32), *(part[1] for part in parts)])
    largest = jnp.max(jnp.where(mantissa == 0, -(2**31), exponent))
    largest = jnp.where(jnp.any(mantissa != 0), largest, 0)
    entries = mantissa * _power_of_two(exponent - largest, dtype)
    is_finite = jnp.isfinite(entries)
    finite = jnp.where(is_finite, entries, 0)
    high, low = _root(_sum(doubled.product_of(finite, finite)))
    # 0 where all is finite, else inf, or nan where one entry is.
    wild = jnp.sum(jnp.where(is_finite, 0, jnp.abs(entries)))
    root = Doubled(jnp.where(wild == 0, high, wild), jnp.where(wild == 0, low, 0))
    return Number(root, largest)


def rounded(size: Number) -> Array:
    """A norm as one float, `()`, toward zero: where the low part is negative that costs an ulp."""
    high, low = size.mantissa
    return bits.assembled(
        jnp.where(low < 0, bits.one_ulp_lower(high), high), size.exponent, high.dtype
    )


def slack(dtype: Any) -> float:
    """2^14 u²: what no format could show, and more than the error of a norm."""
    return float(2.0 ** (14 - 2 * (formats.finfo(dtype).nmant + 1)))


def is_within(size: Number, tau: Array) -> Array:
    """Whether a norm is at most tau, up to the slack, `()`; false for nan."""
    mantissa, exponent = bits.split(tau, tau.dtype)
    # 2^100 is beyond any ratio of a norm to its largest entry, and its inverse below any.
    level = mantissa * _power_of_two(jnp.clip(exponent - size.exponent, -100, 100), tau.dtype)
    high, low = size.mantissa
    excess = jnp.where(high == level, 0, high - level) + low
    return excess <= slack(tau.dtype) * level


def quotient(tau: Array, size: Number) -> Number:
    """The factor tau / |g|: nan for a tau below 0 or nan, 0 for an infinite norm."""
    numerator, exponent = bits.split(jnp.where(tau >= 0, tau, jnp.nan), tau.dtype)
    high, low = size.mantissa
    is_finite = jnp.isfinite(high)
    ratio = numerator / high
    product, error = doubled.product_of(ratio, jnp.where(is_finite, high, 1))
    rest = (((numerator - product) - error) - ratio * low) / high
    mantissa = Doubled(ratio, jnp.where(is_finite & (high > 0), rest, 0))
    return Number(mantissa, exponent - size.exponent)


def times(leaf: Array, factor: Number) -> Array:
    """`leaf` times `factor`, which is at most 1: rounded toward zero to the dtype of the leaf."""
    mantissa, exponent = bits.split(leaf, factor.mantissa.high.dtype)
    zero = jnp.zeros_like(mantissa)
    high, low = doubled.multiply(Doubled(mantissa, zero), factor.mantissa)
    is_above = jnp.where(high < 0, -low, low) < -slack(high.dtype) * jnp.abs(high)
    high = jnp.where(is_above, bits.one_ulp_lower(high), high)
    return bits.assembled(high, exponent + factor.exponent, leaf.dtype)


def unit(leaves: list[Array], size: Number) -> list[Array]:
    """The leaves over their global norm, in `wide`."""
    dtype = size.mantissa.high.dtype
    parts = (bits.split(leaf, dtype) for leaf in leaves)
    return [
        mantissa * _power_of_two(exponent - size.exponent, dtype) / size.mantissa.high
        for mantissa, exponent in parts
    ]


def ratio(part: Number, whole: Number) -> Array:
    """One norm over a larger one, `()`, to working precision."""
    power = _power_of_two(part.exponent - whole.exponent, whole.mantissa.high.dtype)
    return part.mantissa.high / whole.mantissa.high * power


def _power_of_two(exponent: Array, dtype: Any) -> Array:
    """2^exponent, and the smallest normal number for exponents below its own."""
    return scaled.power_of_two(jnp.maximum(exponent, int(formats.finfo(dtype).minexp)), dtype)


def _sum(terms: Doubled) -> Doubled:
    """The sum of `(n,)` pairs, along rows and columns: an error of order sqrt(n) u²."""
    num_columns = int(np.ceil(np.sqrt(terms.high.size)))
    padding = (0, -terms.high.size % num_columns)
    table = Doubled(*(jnp.pad(part, padding).reshape(-1, num_columns) for part in terms))
    zero = doubled.zeros((), terms.high.dtype)
    for _ in range(2):
        table = lax.reduce(table, zero, doubled.add, (0,))
    return table


def _root(square: Doubled) -> Doubled:
    root = jnp.sqrt(square.high)
    product, error = doubled.product_of(root, root)
    rest = ((square.high - product) - error) + square.low
    correction = jnp.where(root > 0, rest / (2 * jnp.where(root > 0, root, 1)), 0)
    return doubled.sum_of(root, correction)
