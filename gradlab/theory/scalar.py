"""The scalar linear chain z_k = w z_{k-1}: its product w^depth, and where each format loses it.

With one shared weight the product of the Jacobians of `depth` layers is w^depth: Pascanu, Mikolov
and Bengio 2013, section 2.3. Depths are returned as floating point numbers, inf meaning never.
Give float64: a depth of thousands asks for more digits of log |w| than float32 has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike


def product(w: ArrayLike, depth: ArrayLike) -> Array:
    """`w^depth`, broadcast: Pascanu et al. 2013, section 2.3."""
    return jnp.power(jnp.asarray(w, float), jnp.asarray(depth, float))


def log10_product(w: ArrayLike, depth: ArrayLike) -> Array:
    """`log10 |w^depth|`, broadcast: finite at any depth, -inf for w = 0; 0 of no layers."""
    return _times(jnp.asarray(depth, float), slope(w))


def slope(w: ArrayLike) -> Array:
    """`log10 |w|`: the decades that one layer adds, the slope of the line on a log axis."""
    return jnp.log10(jnp.abs(jnp.asarray(w, float)))


def limit(w: ArrayLike) -> Array:
    """The limit of w^depth as depth grows: 0, 1 or inf, and nan for w <= -1, where none exists.

    (For w < -1 the magnitude still tends to inf: that is `limit(abs(w))`.)
    """
    w = jnp.asarray(w, float)
    held = jnp.where(w > 1, jnp.inf, jnp.where(w == 1, 1.0, jnp.nan))
    return jnp.where(jnp.abs(w) < 1, 0.0, held)


def derivative(w: ArrayLike, t: ArrayLike, x_0: ArrayLike) -> Array:
    """`d x_t / dw = t x_0 w^(t-1)` of x_t = x_0 w^t, w shared: Pascanu et al. 2013, section 2.3."""
    t = jnp.asarray(t, float)
    return _times(t * jnp.asarray(x_0, float), product(w, t - 1))


# ---- what a floating point format makes of it


@dataclass(frozen=True)
class Format:
    """A binary floating point format: IEEE 754-2019, section 3.3.

    `num_bits` is its precision, the hidden bit included; `min_exponent` and `max_exponent` are
    those of its smallest and largest normal numbers.
    """

    name: str
    num_bits: int
    min_exponent: int
    max_exponent: int

    @property
    def log2_smallest_normal(self) -> float:
        """Below this, a device that flushes subnormals has 0."""
        return float(self.min_exponent)

    @property
    def log2_smallest(self) -> float:
        """The smallest subnormal number."""
        return float(self.min_exponent - self.num_bits + 1)

    @property
    def log2_overflow(self) -> float:
        """From here on, rounding to nearest gives inf."""
        return self.max_exponent + 1 + math.log2(1 - 2.0 ** (-self.num_bits - 1))

    @property
    def unit(self) -> float:
        """The unit roundoff: the largest relative error of one rounding."""
        return 2.0**-self.num_bits

    @property
    def log10_smallest_whole(self) -> float:
        """log10 of the smallest norm of which what underflows in an entry is below one rounding."""
        return self.log2_smallest_normal * math.log10(2) - math.log10(self.unit)

    def rounded(self, w: ArrayLike) -> Array:
        """`w` as this format has it, in the type of `w`.

        `astype` there and back is nothing at all to a compiler that keeps excess digits, as XLA
        does on a GPU. Subnormal numbers are kept where the type of `w` has them as normal ones.
        """
        w = jnp.asarray(w, float)
        exponent_bits = int(self.max_exponent + 1).bit_length()
        normal = lax.reduce_precision(w, exponent_bits, self.num_bits - 1)
        if self.log2_smallest < np.finfo(w.dtype).minexp:
            return normal
        smallest = 2.0**self.log2_smallest
        is_subnormal = jnp.abs(w) < 2.0**self.log2_smallest_normal
        return jnp.where(is_subnormal, jnp.round(w / smallest) * smallest, normal)


FORMATS = {
    format_.name: format_
    for format_ in (
        Format("float16", 11, -14, 15),
        Format("bfloat16", 8, -126, 127),
        Format("float32", 24, -126, 127),
        Format("float64", 53, -1022, 1023),
    )
}


def depth_of_subnormal(w: ArrayLike, name: str) -> Array:
    """The first depth at which the product is below the smallest normal number."""
    format_ = _format(name)
    size = jnp.abs(format_.rounded(w))
    first = jnp.floor(format_.log2_smallest_normal / jnp.log2(size)) + 1
    return _reached(size < 1, jnp.maximum(first, 1), size)


def depth_of_zero(w: ArrayLike, name: str, flushed: bool) -> Array:
    """The first depth at which the product, multiplied up layer by layer, is exactly 0.

    With subnormals flushed, where |w|^depth falls below the smallest normal number. Without, it
    never is 0 for 1/2 < |w| < 1: the product is held at `held_at`; for |w| <= 1/2 it is 0 (to
    one layer) where |w|^depth is at most half of the smallest number.

    Args:
        w: the weight, before the format rounds it.
        name: a name in `FORMATS`.
        flushed: whether the device flushes subnormals. XLA on CPU flushes those of float64 and
            float32, and with them bfloat16's, but computes float16 in float32 and keeps its.
    """
    if flushed:
        return depth_of_subnormal(w, name)
    format_ = _format(name)
    size = jnp.abs(format_.rounded(w))
    first = jnp.ceil((format_.log2_smallest - 1) / jnp.log2(size))
    return _reached(size <= 0.5, jnp.maximum(first, 1), size)


def held_at(w: ArrayLike, name: str) -> Array:
    """The magnitude at which gradual underflow holds the product for ever; nan for |w| >= 1.

    k times the smallest number is rounded back to itself once k (1 - |w|) <= 1/2 (a tie, which
    only an even k has, goes to it); for |w| <= 1/2 that is no k but 0.
    """
    format_ = _format(name)
    size = jnp.abs(format_.rounded(w))
    num_units = jnp.floor(0.5 / (1 - size))
    held = jnp.where(size > 0.5, num_units * 2.0**format_.log2_smallest, 0.0)
    return jnp.where(size < 1, held, jnp.nan)


def depth_of_inf(w: ArrayLike, name: str) -> Array:
    """The first depth at which the product overflows; inf where |w| <= 1 as the format has it."""
    format_ = _format(name)
    size = jnp.abs(format_.rounded(w))
    return _reached(size > 1, jnp.ceil(format_.log2_overflow / jnp.log2(size)), size)


def depth_of_error(w: ArrayLike, name: str, error: ArrayLike) -> Array:
    """The depth before which the product cannot be wrong by `error`, relative.

    Every layer multiplies by the rounded weight and, in the normal range, rounds once, so that
    depth layers err by at most (1 + |delta|)^depth (1 + unit)^depth - 1: Higham 2002, lemma 3.1.
    """
    format_ = _format(name)
    w = jnp.asarray(w, float)
    delta = jnp.abs(format_.rounded(w) / w - 1)
    allowed = jnp.ceil(
        jnp.log1p(jnp.asarray(error, float)) / (jnp.log1p(delta) + math.log1p(format_.unit))
    )
    return jnp.minimum(allowed, jnp.minimum(depth_of_subnormal(w, name), depth_of_inf(w, name)))


def depth_uncertainty(w: ArrayLike, name: str, depth: ArrayLike) -> Array:
    """How far roundings can move the depth at which a threshold is crossed, in layers.

    Each layer rounds once, by at most the unit roundoff, and changes log |product| by log |w|.
    """
    format_ = _format(name)
    rate = jnp.abs(jnp.log(jnp.abs(format_.rounded(w))))
    return jnp.asarray(depth, float) * math.log1p(format_.unit) / rate


def _times(number: Array, factor: Array) -> Array:
    """The product, which is 0 of no layers also where what one of them does is infinite."""
    return jnp.where((number == 0) & jnp.isinf(factor), 0.0, number * factor)


def _reached(is_reached: Array, depth: Array, size: Array) -> Array:
    """The depth where it is reached, else inf; nan where the size is."""
    return jnp.where(is_reached, depth, jnp.where(jnp.isnan(size), jnp.nan, jnp.inf))


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"a format is one of {', '.join(FORMATS)}, not {name!r}.")
    return FORMATS[name]
