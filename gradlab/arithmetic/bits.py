"""Floating point numbers by their bits: exact where arithmetic is not.

XLA on a CPU takes subnormal numbers for 0 and fuses products into sums, and on a GPU it takes what
was converted to a short format for what it was before; bits are what they are. Nothing here has a
derivative.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from gradlab.arithmetic import formats

# JAX gives it no types.
_iinfo: Any = jnp.iinfo


def integer(dtype: Any) -> Any:
    """The integer type with the bits of a float type."""
    return jnp.dtype(f"int{formats.finfo(dtype).bits}")


def of(x: Array) -> Array:
    """The bits of `x`, in `integer`."""
    return lax.bitcast_convert_type(lax.stop_gradient(x), integer(x.dtype))


def magnitude(x: Array) -> Array:
    """The bits of `|x|`, which order as `|x|` does."""
    return jnp.asarray(of(x) & _iinfo(integer(x.dtype)).max)


def is_negative(x: Array) -> Array:
    """Whether the sign is a minus, that of -0 too."""
    return jnp.asarray(of(x) < 0)


def exponent_field(x: Array) -> Array:
    """The biased exponent as it stands in the bits, int32: 0 for zero and subnormal numbers."""
    field: Array = magnitude(x) >> formats.finfo(x.dtype).nmant
    return field.astype(jnp.int32)


def is_finite(x: Array) -> Array:
    """Whether a number is neither infinite nor nan in its own format."""
    return exponent_field(x) < 2 * int(formats.finfo(x.dtype).maxexp) - 1


def split(x: Array, wide: Any) -> tuple[Array, Array]:
    """Mantissa in `wide` and exponent, exactly; 1 <= |mantissa| < 2 for normal numbers.

    Zero, infinity and nan are their own mantissas.
    """
    info = formats.finfo(x.dtype)
    field = exponent_field(x)
    fraction = of(x) & ((1 << info.nmant) - 1)
    mantissa = fraction.astype(wide) * 2.0**-info.nmant + (field > 0)
    mantissa = jnp.where(is_finite(x), mantissa, jnp.where(fraction == 0, jnp.inf, jnp.nan))
    mantissa = jnp.where(is_negative(x), -mantissa, mantissa)
    return mantissa, jnp.maximum(field, 1) + (int(info.minexp) - 1)


def assembled(mantissa: Array, exponent: Array, dtype: Any) -> Array:
    """The number mantissa 2^exponent in `dtype`, rounded toward zero; inf above the range."""
    wide, info = formats.finfo(mantissa.dtype), formats.finfo(dtype)
    size = magnitude(mantissa)
    implicit = jnp.where(size == 0, 0, 1 << wide.nmant).astype(size.dtype)
    fraction = implicit | (size & ((1 << wide.nmant) - 1))
    field = exponent_field(mantissa) + int(wide.minexp - info.minexp) + exponent
    # Below the normal numbers the exponent stays and the fraction moves to the right instead.
    place = jnp.maximum(field, 1)
    shift = jnp.clip(wide.nmant - info.nmant + place - field, 0, wide.nmant + 1)
    bits = ((place - 1).astype(size.dtype) << info.nmant) + (fraction >> shift.astype(size.dtype))
    value = lax.bitcast_convert_type(bits.astype(integer(dtype)), dtype)
    value = jnp.where((field > 2 * (int(info.maxexp) - 1)) & (size > 0), jnp.inf, value)
    value = jnp.where(is_negative(mantissa), -value, value)
    return jnp.where(jnp.isfinite(mantissa), value, mantissa.astype(dtype))


def one_ulp_lower(x: Array) -> Array:
    """The next float toward zero; `x` where it is 0 or not finite."""
    lower = lax.bitcast_convert_type(of(x) - 1, x.dtype)
    return jnp.where((magnitude(x) != 0) & is_finite(x), lower, x)
