"""Arithmetic in twice the digits of its dtype, by pairs of numbers: double words.

A pair is an unevaluated sum `high + low` (Dekker 1971). Numbers are split so that every product of
parts is exact but that of two low ones, whose rounding is beyond the digits of a pair; and no step
relies on a rounded product being rounded: a compiler may fuse multiplications into additions
without harm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import bits, formats


class Doubled(NamedTuple):
    """The number `high + low`, of which `high` is the rounded one."""

    high: Array
    low: Array


def roundoff(dtype: Any) -> float:
    """What the relative error of one operation is below."""
    return 2.0 ** (3 - 2 * int(formats.finfo(dtype).nmant))


def zeros(shape: tuple[int, ...], dtype: Any) -> Doubled:
    """An array of zeros."""
    return Doubled(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def sum_of(a: Array, b: Array) -> Doubled:
    """`a + b` of plain numbers, elementwise."""
    return Doubled(*_sum(a, b))


def product_of(a: Array, b: Array) -> Doubled:
    """`a b` of plain numbers, elementwise."""
    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    middle, rest = _sum(a_high * b_low, a_low * b_high)
    total, lost = _sum(a_high * b_high, middle)
    return _normal(total, lost + (rest + a_low * b_low))


def add(x: Doubled, y: Doubled) -> Doubled:
    """`x + y`, elementwise."""
    total, lost = _sum(x.high, y.high)
    return _normal(total, lost + (x.low + y.low))


def subtract(x: Doubled, y: Doubled) -> Doubled:
    """`x - y`, elementwise."""
    return add(x, Doubled(-y.high, -y.low))


def multiply(x: Doubled, y: Doubled) -> Doubled:
    """`x y`, elementwise."""
    p = product_of(x.high, y.high)
    return _normal(p.high, p.low + (x.high * y.low + x.low * y.high))


def divide(x: Doubled, y: Doubled) -> Doubled:
    """`x / y`, elementwise."""
    ratio = x.high / y.high
    rest = subtract(x, multiply(Doubled(ratio, jnp.zeros_like(ratio)), y))
    return _normal(ratio, rest.high / y.high)


def root(x: Array) -> Array:
    """`√x` of plain numbers, to a roundoff also where the device's own root is off by more."""
    found = jnp.sqrt(x)
    return found if formats.root_error(x.dtype) == 1 else _nearer_root(x, found)


def quotient(x: Array, y: Array) -> Array:
    """`x / y` of plain numbers, to a roundoff also where the device's own is off by more."""
    found = x / y
    return found if formats.quotient_error(x.dtype) == 1 else _nearer_quotient(x, y, found)


def halves(x: Array) -> tuple[Array, Array]:
    """`x` as a sum of two numbers of half its digits; products with a high one are exact."""
    keep = jnp.asarray((-1) << (formats.finfo(x.dtype).nmant // 2 + 1), bits.integer(x.dtype))
    high = jax.lax.bitcast_convert_type(bits.of(x) & keep, x.dtype)
    return high, x - high


def _nearer_root(x: Array, found: Array) -> Array:
    return _corrected(found, _rest(x, found, found) / (2 * found))


def _nearer_quotient(x: Array, y: Array, found: Array) -> Array:
    return _corrected(found, _rest(x, found, y) / y)


def _rest(x: Array, a: Array, b: Array) -> Array:
    """`x - a b`, where the product is near x."""
    product, error = product_of(a, b)
    return (x - product) - error


def _corrected(found: Array, correction: Array) -> Array:
    """The sum, or what was found where that is 0 or not finite and so cannot be corrected."""
    return jnp.where(jnp.isfinite(correction), found + correction, found)


def _sum(x: Array, y: Array) -> tuple[Array, Array]:
    """The rounded sum, and what rounding has lost of it (Knuth's two-sum)."""
    total = x + y
    taken = total - x
    return total, (x - (total - taken)) + (y - taken)


def _normal(high: Array, low: Array) -> Doubled:
    """The same sum with a `low` that is only the rounding of `high` (|low| <= |high|)."""
    total = high + low
    return Doubled(total, low - (total - high))
