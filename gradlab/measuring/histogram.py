"""Running quantiles: positive numbers counted in bins of a sixteenth of their power of two.

A bin is what the first bits of a float32 say, so that counting costs one addition. A quantile is
the middle of its bin, and so within 1/32 of the number that has that rank; numbers outside
float32's normal range are counted at its ends, and those that are not finite are not counted.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import bits

DIGITS = 4  # of the mantissa, beside the exponent
BINS = 256 << DIGITS
_SHIFT = 23 - DIGITS


def empty(num_kinds: int) -> Array:
    """No number yet of each kind, `(num_kinds, BINS)`."""
    return jnp.zeros((num_kinds, BINS), jnp.int32)


def counted(counts: Array, values: Array) -> Array:
    """The counts with one value `(num_kinds,)` more of each kind, unless it is not finite."""
    short = values.astype(jnp.float32)
    largest = jnp.asarray(np.finfo(np.float32).max)
    short = jnp.where(jnp.isfinite(values), jnp.minimum(short, largest), short)
    place = bits.magnitude(short) >> _SHIFT
    # Compared, and not scattered, which compiles to a loop.
    is_here = (jnp.arange(BINS)[None] == place[:, None]) & jnp.isfinite(values)[:, None]
    return counts + is_here.astype(jnp.int32)


def quantile(counts: Any, part: float) -> float:
    """The smallest number that at least this part of all are not above, to 1/32; nan of none."""
    counts = np.asarray(counts)
    if not counts.sum():
        return float("nan")
    place = int(np.searchsorted(np.cumsum(counts), max(part * counts.sum(), 1)))
    if place < 1 << DIGITS:
        return 0.0
    low, high = (np.array([place, place + 1], np.int32) << _SHIFT).view(np.float32)
    return float(low) if np.isinf(high) else (float(low) + float(high)) / 2
