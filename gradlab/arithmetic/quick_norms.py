"""The global norm of a pytree and a multiplication by a factor, near the speed of plain ones.

One sum of squares and one multiplication an entry, in `wide` (`norms`), whose half ulp is u. A
norm that a plain sum loses is taken again, scaled: a branch on one scalar. A product among the
subnormal numbers, which XLA flushes on a CPU, is put together from its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gradlab.arithmetic import bits, doubled, formats, scaled

AxisName = str | Sequence[str] | None

# How many u a factor is low, so that a clipped norm is at most tau as it is summed, too: twice the
# sum's error as it is seen, and the roundings of square, root, quotient and product.
MARGIN = 8


class Size(NamedTuple):
    """The number `root 2^exponent`; an infinite or undefined one is all in `root`."""

    root: Array
    exponent: Array


class Clip(NamedTuple):
    """What is done to every entry of a tree whose norm is to be at most tau.

    Attributes:
        keep: whether an entry stays as it is, since the norm is at most tau.
        shift: the factor is `shift² rest`; 1 unless the factor is below the normal numbers.
        lift: the exponent of `shift²`, which itself may be below them.
        rest: the other part, with all the digits.
    """

    keep: Array
    shift: Array
    lift: Array
    rest: Array


def measure(leaves: list[Array], dtype: Any, axis_name: AxisName = None) -> Size:
    """The norm over all leaves, and over all shards along the named axes.

    The relative error is that of the sums, and so below `(n/2 + 4) u` for n numbers whatever the
    order; XLA's order gives a few u.
    """
    total = _total(leaves, dtype, axis_name)

    def plain(_: list[Array]) -> Size:
        return Size(doubled.root(total), jnp.zeros((), jnp.int32))

    def anywhere(leaves: list[Array]) -> Size:
        return _measure(leaves, dtype, axis_name)

    size: Size = lax.cond(is_in_range(total), plain, anywhere, leaves)
    return size


def decide(leaves: list[Array], tau: Array, axis_name: AxisName = None) -> Clip:
    """How to bring the norm that `measure` gives to tau, which is in `wide`.

    The factor is tau / |g|, `MARGIN` u low; nan for a tau below 0 or nan.
    """
    dtype = tau.dtype
    total = _total(leaves, dtype, axis_name)
    info = formats.finfo(dtype)
    # The quotient of such a tau and a norm in range is a normal number.
    is_plain = (tau > 2.0 ** (int(info.minexp) // 4)) & (tau < jnp.inf)

    def plain(_: list[Array]) -> Clip:
        root = doubled.root(total)
        factor = jnp.minimum(doubled.quotient(tau, root), 1) * _lowered(dtype)
        return Clip(root <= tau, jnp.ones((), dtype), jnp.zeros((), jnp.int32), factor)

    def anywhere(leaves: list[Array]) -> Clip:
        return _decide(_measure(leaves, dtype, axis_name), tau)

    clip: Clip = lax.cond(is_plain & is_in_range(total), plain, anywhere, leaves)
    return clip


def apply(leaves: list[Array], clip: Clip) -> list[Array]:
    """The leaves clipped, in their dtypes: to u, toward zero in 16 bits and where subnormal."""

    def scaled_down(leaves: list[Array]) -> list[Array]:
        below = _subnormal_below(clip)
        return [_times(leaf, clip, below) for leaf in leaves]

    # A branch costs less than a choice at every entry, and keeps bfloat16 from being widened twice.
    done: list[Array] = lax.cond(clip.keep, lambda leaves: leaves, scaled_down, leaves)
    return done


def square(leaf: Array, dtype: Any) -> Array:
    """The sum of the squares of a leaf, as far as they are in range."""
    return jnp.sum(jnp.square(leaf.astype(dtype)))


def measure_each(leaves: list[Array], dtype: Any) -> Array:
    """The norm of each leaf, `(leaf,)`, wherever it is; 0 below the normal numbers."""
    return jnp.stack([_anywhere(leaf.astype(dtype)) for leaf in leaves])


def _anywhere(leaf: Array) -> Array:
    """The norm of a leaf: its squares as they are, or those of it brought up, or down."""
    # 24 more than half the exponents: neither 2^40 large numbers nor one small one leave the range.
    power = jnp.asarray(2.0 ** (int(formats.finfo(leaf.dtype).maxexp) // 2 + 24), leaf.dtype)
    # Not a constant, or XLA squares it for itself, which is infinite: 0 times that is nan.
    power = lax.optimization_barrier(power)
    plain = square(leaf, leaf.dtype)
    up = jnp.sqrt(square(leaf * power, leaf.dtype)) / power
    down = jnp.sqrt(square(leaf / power, leaf.dtype)) * power
    return jnp.where(is_in_range(plain), jnp.sqrt(plain), jnp.where(plain < 1, up, down))


def quotient(tau: Array, size: Size) -> tuple[Array, Array]:
    """Tau / |g| as `(mantissa, exponent)`, to u; nan for a tau below 0 or nan."""
    numerator, exponent = bits.split(jnp.where(tau >= 0, tau, jnp.nan), tau.dtype)
    mantissa, carry = bits.split(doubled.quotient(numerator, size.root), tau.dtype)
    is_finite = jnp.isfinite(mantissa)
    return mantissa, jnp.where(is_finite, exponent - size.exponent + carry, 0)


def powers(exponent: Array, dtype: Any) -> tuple[Array, Array]:
    """2^exponent as a product of two numbers, so that neither leaves the range."""
    half = exponent // 2
    return _power(half, dtype), _power(exponent - half, dtype)


def _decide(size: Size, tau: Array) -> Clip:
    """`decide`, whatever the exponents of norm, threshold and quotient."""
    dtype = tau.dtype
    level, exponent = bits.split(tau, dtype)
    # 2^100 is beyond any ratio of `root` to 1, and its inverse below any.
    level *= _power(jnp.clip(exponent - size.exponent, -100, 100), dtype)
    mantissa, exponent = quotient(tau, size)
    # Two above the lowest exponent, since `rest` may be a little below its power.
    lowest = int(formats.finfo(dtype).minexp)
    power = jnp.clip(exponent, lowest + 2, 0)
    power += (exponent - power) & 1
    is_zero = mantissa == 0
    lift = jnp.where(is_zero, 2 * lowest, exponent - power)
    shift = jnp.where(is_zero, 0, _power((exponent - power) // 2, dtype))
    return Clip(size.root <= level, shift, lift, mantissa * _lowered(dtype) * _power(power, dtype))


def _lowered(dtype: Any) -> float:
    return 1 - MARGIN / 2 * float(formats.finfo(dtype).eps)


@jax.jit  # traced once for all leaves of a shape
def _times(leaf: Array, clip: Clip, below: Array) -> Array:
    wide = clip.rest.dtype
    if leaf.dtype == jnp.float16:
        # Its range ends far above the numbers that are flushed.
        return _toward_zero(leaf.astype(wide) * clip.shift * clip.shift * clip.rest, leaf.dtype)
    return _toward_zero(_product(_widened(leaf, wide), clip, below), leaf.dtype)


def _subnormal_below(clip: Clip) -> Array:
    """The bits of the number below which a product with the factor is subnormal; 0 for nan."""
    info = formats.finfo(clip.rest.dtype)
    # Over shift² by its exponent: XLA takes a / b / c for a / (b c), of which b c may be 0.
    first, second = powers(-clip.lift, clip.rest.dtype)
    tiny = jnp.asarray(info.tiny, clip.rest.dtype)
    edge = doubled.quotient(tiny, clip.rest) * first * second * (1 + float(info.eps))
    return jnp.where(jnp.isnan(edge), 0, bits.of(edge))


def _product(leaf: Array, clip: Clip, below: Array) -> Array:
    """The product with all its bits: what the processor flushes is put together from whole units.

    A subnormal number is a whole number of smallest ones, and that number is its bits. It is found
    as the last digits of 1 plus it, in a unit of eps: half a one less, to round toward zero.
    """
    dtype, info = leaf.dtype, formats.finfo(leaf.dtype)
    one, size = bits.of(jnp.ones((), dtype)), bits.magnitude(leaf)
    # 2^-minexp shift² times the leaf, by its exponent: a subnormal one is 1 and its digits there.
    raised = (clip.lift - int(info.minexp)).astype(size.dtype) << int(info.nmant)
    whole = lax.bitcast_convert_type(jnp.maximum(size + raised, 0), dtype)
    whole = jnp.where(size < (1 << info.nmant), 2 * whole - 1, whole)
    units = bits.of(whole * clip.rest + (1 - float(info.eps) / 2)) - one
    tiny = jnp.maximum(units, 0) | (bits.of(leaf) - size)
    product = bits.of(leaf * clip.shift * clip.shift * clip.rest)
    return lax.bitcast_convert_type(jnp.where(size < below, tiny, product), dtype)


def _widened(leaf: Array, wide: Any) -> Array:
    """A leaf in the format of the arithmetic, subnormal numbers of bfloat16 and float32 too."""
    if leaf.dtype == jnp.bfloat16:
        # By its bits, which keeps them, and which is not shared with the sum's conversion.
        leaf = lax.bitcast_convert_type(bits.of(leaf).astype(jnp.int32) << 16, jnp.float32)
    if leaf.dtype == wide or leaf.dtype == jnp.float16:
        return leaf.astype(wide)
    tiny = bits.magnitude(leaf).astype(wide) * 2.0**-149
    is_normal = bits.exponent_field(leaf) > 0
    return jnp.where(is_normal, leaf.astype(wide), jnp.where(bits.is_negative(leaf), -tiny, tiny))


def _toward_zero(value: Array, dtype: Any) -> Array:
    """A number in a shorter format, rounded toward zero."""
    if dtype == value.dtype:
        return value
    if value.dtype == jnp.float64:
        mantissa, exponent = bits.split(value, value.dtype)
        return bits.assembled(mantissa, exponent, dtype)
    if dtype == jnp.bfloat16:
        return lax.bitcast_convert_type((bits.of(value) >> 16).astype(jnp.int16), dtype)
    # There and back is nothing at all to a compiler that keeps excess digits, as on a GPU.
    rounded = lax.optimization_barrier(value.astype(dtype))
    is_above = jnp.abs(rounded.astype(value.dtype)) > jnp.abs(value)
    return lax.bitcast_convert_type(bits.of(rounded) - is_above, dtype)


def _total(leaves: list[Array], dtype: Any, axis_name: AxisName) -> Array:
    """The sum of all squares; over the leaves neighbours first, so that its error stays small."""
    terms = [square(leaf, dtype) for leaf in leaves] or [jnp.zeros((), dtype)]
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return _over_shards(lax.psum, terms[0], axis_name)


def is_in_range(square: Array) -> Array:
    """Whether a sum of squares has lost nothing: neither infinite nor near the smallest numbers."""
    info = formats.finfo(square.dtype)
    # Squares that are flushed add up to less than half an ulp of this, for up to 2^34 numbers.
    return (square >= 2.0 ** int(info.minexp + info.nmant + 37)) & (square < jnp.inf)


def _measure(leaves: list[Array], dtype: Any, axis_name: AxisName) -> Size:
    """The norm with the exponent of the largest entry, wherever that is."""
    nmant = formats.finfo(dtype).nmant
    known = dict.fromkeys(leaf.dtype for leaf in leaves)
    flat = [jnp.concatenate([x.ravel() for x in leaves if x.dtype == one]) for one in known]
    entries = jnp.abs(jnp.concatenate([jnp.zeros(0, dtype), *(_widened(x, dtype) for x in flat)]))
    size = bits.of(entries)
    largest = _over_shards(lax.pmax, jnp.max(size, initial=0), axis_name)
    exponent = jnp.clip((largest >> nmant).astype(jnp.int32), 1, 2 * _bias(dtype)) - _bias(dtype)
    down = powers(-exponent, dtype)
    # Subnormal numbers count only where there are few others, and where 2^-exponent is large.
    units = size.astype(dtype) * 2.0 ** (-nmant - 1)
    units *= _power(1 - _bias(dtype) + 1 - exponent, dtype)
    normal = entries * down[0] * down[1]
    scaled_down = jnp.where(size < (1 << nmant), units, normal)
    root = doubled.root(_over_shards(lax.psum, jnp.sum(jnp.square(scaled_down)), axis_name))
    return Size(root, exponent)


def _bias(dtype: Any) -> int:
    return int(formats.finfo(dtype).maxexp) - 1


def _power(exponent: Array, dtype: Any) -> Array:
    """2^exponent, and the smallest normal number for exponents below its own."""
    return scaled.power_of_two(jnp.maximum(exponent, int(formats.finfo(dtype).minexp)), dtype)


def _over_shards(collective: Any, value: Array, axis_name: AxisName) -> Array:
    return value if axis_name is None else collective(value, axis_name)
