"""Numbers that neither under- nor overflow: a mantissa and an integer power of two.

Arithmetic only. Rescaling multiplies by a power of two and is therefore exact: a scaled product
has the same bits as the plain one wherever that is in range. Infinity, zero and nan pass through
unchanged, with whatever exponent they had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import bits, doubled, formats, precision

Axes = int | tuple[int, ...] | None

LN2 = math.log(2)

# Stands for the exponent of zero, which loses against every other when two are compared.
_NOTHING = -(2**30)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaled:
    """The array `mantissa * 2**exponent`.

    `exponent` (int32) has the rank of `mantissa` and broadcasts against it: an axis of length 1
    shares one exponent. `(..., 1, 1)` is one exponent a matrix, `(..., 1, n)` one a column.
    Entries that share an exponent keep their digits down to 2**-1022 (float32: 2**-126) of the
    largest; smaller ones are flushed to zero.
    """

    mantissa: Array
    exponent: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that this stands for."""
        return self.mantissa.shape


class Converted(NamedTuple):
    """A plain array, and the entries where it could not hold the scaled one."""

    value: Array
    overflow: Array
    underflow: Array


def scale(x: Array, axis: Axes = None) -> Scaled:
    """`x` as a scaled array whose largest mantissa over `axis` is in [1, 2), or [2, 4) at the top.

    Args:
        x: any floating array; subnormal entries keep all their digits.
        axis: the axes that share one exponent: all (None), `(-2, -1)` for one a matrix, `-2` for
            one a column, `()` for one an entry.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"Only a real floating array can be scaled, not one of dtype {x.dtype}.")
    axes = tuple(range(x.ndim)) if axis is None else axis
    field = jnp.max(bits.exponent_field(x), axis=axes, keepdims=True)
    digits = formats.finfo(x.dtype).nmant
    # A group is lifted as one, by the mantissa's length, and only if nothing overflows; in
    # a larger group a subnormal entry is out of range in any case.
    lift = field < 2 * _bias(x.dtype) - digits
    exponent = jnp.where(lift, -digits, 0).astype(jnp.int32)
    return rescale(Scaled(jnp.where(lift, _lifted(x), x), exponent))


def rescale(s: Scaled) -> Scaled:
    """The same number with the largest mantissa of every exponent's group in [1, 2)."""
    axes = tuple(i for i, length in enumerate(s.exponent.shape) if length == 1)
    shift = exponent_of(jnp.max(jnp.abs(jax.lax.stop_gradient(s.mantissa)), axes, keepdims=True))
    return Scaled(s.mantissa * power_of_two(-shift, s.mantissa.dtype), s.exponent + shift)


def share(s: Scaled, axis: Axes = None) -> Scaled:
    """The same number with one exponent over `axis` (all: None), the largest that is there.

    What is smaller than the largest by more than the dtype's range is flushed to zero.
    """
    axes = tuple(range(s.mantissa.ndim)) if axis is None else axis
    own = _exponent_or_nothing(s)
    largest = jnp.max(own, axis=axes, keepdims=True)
    mantissa = s.mantissa * power_of_two(own - largest, s.mantissa.dtype)
    return Scaled(mantissa, jnp.where(largest == _NOTHING, 0, largest))


def multiply(a: Scaled, b: Scaled) -> Scaled:
    """The elementwise product."""
    return rescale(Scaled(a.mantissa * b.mantissa, a.exponent + b.exponent))


def add(a: Scaled, b: Scaled) -> Scaled:
    """The sum; a term smaller than the other by more than the dtype's range is lost in it."""
    a, b = rescale(a), rescale(b)
    exponents = [_exponent_or_nothing(s) for s in (a, b)]
    largest = jnp.maximum(*exponents)
    one, other = (
        s.mantissa * power_of_two(e - largest, s.mantissa.dtype)
        for s, e in zip((a, b), exponents, strict=True)
    )
    return rescale(Scaled(one + other, jnp.where(largest == _NOTHING, 0, largest)))


@precision.highest
def matmul(a: Scaled, b: Scaled) -> Scaled:
    """The matrix product `a @ b`, `(..., n, m)` by `(..., m, k)`.

    `a` may have one exponent a matrix or a row, `b` one a matrix or a column: along the axis that
    is summed over, an exponent is shared.
    """
    if a.exponent.shape[-1] != 1 or b.exponent.shape[-2] != 1:
        raise ValueError(
            "A product sums over one exponent: the left factor's must be shared along its last "
            f"axis and the right factor's along the one before, not {a.exponent.shape} and "
            f"{b.exponent.shape}."
        )
    return rescale(Scaled(a.mantissa @ b.mantissa, a.exponent + b.exponent))


def norm(s: Scaled, axis: Axes = None) -> Scaled:
    """The Euclidean norm over `axis` (all: None), which is dropped."""
    axes = tuple(range(s.mantissa.ndim)) if axis is None else axis
    s = share(rescale(s), axes)
    dtype = s.mantissa.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    length = jnp.sqrt(jnp.sum(s.mantissa.astype(wide) ** 2, axis=axes)).astype(dtype)
    rank = (1,) * s.mantissa.ndim
    exponent = jnp.broadcast_to(s.exponent, np.broadcast_shapes(s.exponent.shape, rank))
    return rescale(Scaled(length, jnp.max(exponent, axis=axes)))


def prod(x: Array) -> Scaled:
    """The product over the leading axis, `(length, ...)` to `(...)`, with its rounding repaid.

    Every multiplication's rounding error is known exactly (Dekker 1971) and carried along to
    first order, so the relative error stays at a few ulp at any length below 1e6.
    """
    s = scale(x, ())
    ones = jnp.ones(x.shape[1:], x.dtype)
    start = (ones, jnp.zeros_like(ones), jnp.zeros(x.shape[1:], jnp.int32))

    def step(carry: Any, factor: Scaled) -> tuple[Any, None]:
        mantissa, debt, exponent = carry
        after = mantissa * factor.mantissa
        lost = jax.lax.stop_gradient(_rounding(mantissa, factor.mantissa, after))
        debt = debt + jnp.where(jnp.isfinite(lost) & (after != 0), lost / after, 0)
        scaled = rescale(Scaled(after, exponent + factor.exponent))
        return (scaled.mantissa, debt, scaled.exponent), None

    (mantissa, debt, exponent), _ = jax.lax.scan(step, start, s)
    # Infinity times no debt is no number.
    repaid = jnp.where(jnp.isfinite(mantissa), mantissa * debt, 0)
    return rescale(Scaled(mantissa + repaid, exponent))


def log_magnitude(s: Scaled) -> Array:
    """`log|s|` (nats), elementwise; minus infinity for zero.

    The error is an ulp or two of the result, or of 1 where |s| is near 1: in float32 that is 0.008
    at -1e5. `log_on_host` is right in float64 whatever the dtype.
    """
    dtype = s.mantissa.dtype
    return jnp.log(jnp.abs(s.mantissa)) + s.exponent.astype(dtype) * jnp.asarray(LN2, dtype)


def log_2(s: Scaled) -> Array:
    """`log2 |s|`, elementwise, to sort by; minus infinity for zero."""
    return jnp.log2(jnp.abs(s.mantissa)) + s.exponent.astype(s.mantissa.dtype)


def log_on_host(s: Scaled) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`log|s|` (nats) in float64 whatever the dtype, computed outside of JAX."""
    with np.errstate(divide="ignore"):
        log = np.log(np.abs(np.asarray(s.mantissa, np.float64)))
    return np.asarray(log + np.asarray(s.exponent) * LN2)


def sign(s: Scaled) -> Array:
    """The sign of every entry: -1, 0 or 1, or nan."""
    return jnp.sign(s.mantissa)


def unscale(s: Scaled) -> Converted:
    """The plain array, with `overflow` and `underflow` where its dtype cannot hold the number.

    What is too large becomes an infinity of its sign; what is below the smallest normal number
    becomes zero on every device, because some flush subnormal numbers and some do not.
    """
    dtype = s.mantissa.dtype
    bias = _bias(dtype)
    own = bits.exponent_field(s.mantissa) - bias
    plain = jnp.isfinite(s.mantissa) & (s.mantissa != 0)
    overflow = plain & (own + s.exponent > bias)
    underflow = plain & (own + s.exponent < 1 - bias)
    power = jnp.where(plain & ~overflow & ~underflow, s.exponent, 0)
    # Three factors, because one power of two would itself leave the range.
    third = power // 3
    value = s.mantissa * power_of_two(third, dtype) * power_of_two(third, dtype)
    value = value * power_of_two(power - 2 * third, dtype)
    value = jnp.where(overflow, jnp.sign(s.mantissa) * jnp.inf, jnp.where(underflow, 0, value))
    return Converted(value, overflow, underflow)


def exponent_of(x: Array) -> Array:
    """The int32 `e` with `2**e <= |x| < 2**(e + 1)`, read from the bits; 0 for 0, inf and nan.

    One less than that in the topmost binade, so that `2**-e` is always a normal number.
    """
    return _exponent(bits.exponent_field(x), x.dtype)


def exponent_of_largest(x: Array, axis: Axes = None) -> Array:
    """`exponent_of` the entry of largest magnitude: integers have a faster maximum than floats."""
    return _exponent(jnp.max(bits.magnitude(x), axis=axis) >> formats.finfo(x.dtype).nmant, x.dtype)


def rough_log_2(x: Array) -> Array:
    """`log2|x|` to within 0.09, read from the bits: to choose by, not to calculate with."""
    info = formats.finfo(x.dtype)
    return bits.magnitude(x).astype(x.dtype) * 2.0**-info.nmant - _bias(x.dtype)


def power_of_two(exponent: Array, dtype: Any) -> Array:
    """`2**exponent` made of bits: exact, 0 below the normal range, infinity above."""
    bias = _bias(dtype)
    field = (jnp.clip(exponent, -bias, bias + 1) + bias).astype(bits.integer(dtype))
    return jax.lax.bitcast_convert_type(field << formats.finfo(dtype).nmant, dtype)


def largest_exponent(dtype: Any) -> int:
    """The largest e for which both `2**e` and `2**-e` are normal numbers."""
    return _bias(dtype) - 1


def eps(dtype: Any) -> float:
    """The distance from 1 to the next number of a dtype: twice its largest rounding error."""
    return float(formats.finfo(dtype).eps)


def _bias(dtype: Any) -> int:
    return int(formats.finfo(dtype).maxexp) - 1


def _exponent(field: Array, dtype: Any) -> Array:
    bias = _bias(dtype)
    field = field.astype(jnp.int32)
    inside = (field > 0) & (field <= 2 * bias)
    return jnp.where(inside, jnp.minimum(field - bias, bias - 1), 0)


def _lifted(x: Array) -> Array:
    """`x * 2**nmant`, right for subnormal entries also where arithmetic flushes them."""
    info = formats.finfo(x.dtype)
    lifted = x * 2.0**info.nmant
    smallest = 2.0**info.minexp
    digits = bits.magnitude(x).astype(x.dtype) * smallest
    signed = jnp.where(jnp.signbit(x), -digits, digits)
    # The difference is zero and carries the derivative, which bits do not have.
    return jnp.where(
        bits.exponent_field(x) == 0, signed + (lifted - jax.lax.stop_gradient(lifted)), lifted
    )


def _exponent_or_nothing(s: Scaled) -> Array:
    """The exponent, or one that loses every comparison where the whole group is zero."""
    axes = tuple(i for i, length in enumerate(s.exponent.shape) if length == 1)
    empty = jnp.all(s.mantissa == 0, axis=axes, keepdims=True)
    return jnp.where(empty, _NOTHING, s.exponent)


def _rounding(a: Array, b: Array, product: Array) -> Array:
    """`a b - product` without error for a rounded `product` (Dekker 1971)."""
    (a_high, a_low), (b_high, b_low) = doubled.halves(a), doubled.halves(b)
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
