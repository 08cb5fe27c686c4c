"""What a floating point format is: its digits, its range, its spacing, and a device's roundings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def finfo(dtype: Any) -> Any:
    """`jnp.finfo(dtype)`, to which JAX gives no types: `bits`, `nmant`, `eps`, `tiny`, `max`."""
    info: Any = jnp.finfo
    return info(dtype)


def quotient_error(dtype: Any) -> float:
    """What a quotient is off by at most on this device, relative, in unit roundoffs.

    1 by IEEE 754. XLA divides float32 on a GPU by an instruction that is right to 2 ulps, which are
    4 roundoffs (NVIDIA, PTX ISA, `div.full.f32`), and shorter formats in float32.
    """
    return _rounded_in_float32(dtype, 4.0)


def root_error(dtype: Any) -> float:
    """What a square root is off by at most on this device, relative, in unit roundoffs.

    1 by IEEE 754. XLA takes roots of float32 on a GPU by an instruction that is off by up to 2^-23,
    which are 2 roundoffs (NVIDIA, PTX ISA, `sqrt.approx.f32`).
    """
    return _rounded_in_float32(dtype, 2.0)


def ratio(x: Array, y: Array) -> Array:
    """`x / y`, and 1 where they are equal numbers: a GPU's quotient of float32 need not be."""
    are_equal = (x == y) & (x != 0) & jnp.isfinite(x)
    return jnp.where(are_equal, 1.0, x / y)


def settled(x: Array) -> Array:
    """`x` with the digits of its own format alone, also where a longer one became it just before.

    On a GPU XLA takes a conversion to a shorter format and back for nothing at all: what is traced
    together with the conversion may meet digits, and a range, that the format does not have.
    """
    return lax.optimization_barrier(x) if isinstance(x, jax.core.Tracer) else x


def _rounded_in_float32(dtype: Any, error: float) -> float:
    """The error of an operation that is done in float32 where the format is not longer."""
    ratio = float(finfo(jnp.float32).eps / finfo(dtype).eps)
    if jax.default_backend() != "gpu" or ratio > 1:
        return 1.0
    return error if ratio == 1 else 1.0 + error * ratio
