"""What a floating point format is: its digits, its range, and its spacing at 1."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def finfo(dtype: Any) -> Any:
    """`jnp.finfo(dtype)`, to which JAX gives no types: `bits`, `nmant`, `eps`, `tiny`, `max`."""
    info: Any = jnp.finfo
    return info(dtype)
