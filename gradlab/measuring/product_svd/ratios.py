"""How far scales have fallen behind each other and risen again, which amplifies old roundings.

A rounding that was small beside one scale is as much larger beside it later as the ratio of the
other scale to it has risen meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring.product_svd import thresholds


class Ratios(NamedTuple):
    """Ratios of the scales d so far, in powers of two.

    Attributes:
        lowest: `(c, c)`, the least that d_i / d_j has been, for a direction j: negative, or any
            number where column i is no direction.
        rise: `(c,)`, the most that any ratio to d_j has risen since then; that of a direction at
            most to 1.
    """

    lowest: Array
    rise: Array


def start(x: Array) -> Ratios:
    """Those of the empty product, whose scales are all 1."""
    return Ratios(jnp.zeros((x.size, x.size), jnp.int32), jnp.zeros(x.size, jnp.int32))


def after_layer(ratios: Ratios, d: Scaled, pivots: Array) -> Ratios:
    """The ratios after one more layer, which has made d and has these pivots, `(c,)`."""
    c, is_complement = len(pivots), d.mantissa == 0
    ratio = exponents(d)
    # A column without a pivot holds nothing any more: it starts anew.
    is_new = is_complement & (pivots == 0)
    lowest = jnp.where(is_new[:, None], ratio, jnp.minimum(ratios.lowest[:c, :c], ratio))
    rise = jnp.max(jnp.where(is_complement[None, :], 0, ratio - lowest), axis=0)
    return Ratios(lowest, jnp.maximum(ratios.rise[:c], rise))


def exponents(d: Scaled) -> Array:
    """The exponent of d_i / d_j, `(c, c)`; that of two directions is at most 0."""
    ratio = d.exponent[:, None] - d.exponent[None, :]
    return jnp.where((d.mantissa == 0)[:, None], ratio, jnp.minimum(ratio, 0))


def with_columns(ratios: Ratios, more: int) -> Ratios:
    """The same with so many columns more, to which there has been no ratio."""
    pads = ((0, more), (0, more))
    lowest = jnp.pad(ratios.lowest, pads, constant_values=thresholds.NO_RATIO)
    return Ratios(lowest, jnp.pad(ratios.rise, (0, more)))
