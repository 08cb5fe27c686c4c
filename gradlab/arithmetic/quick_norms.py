"""The global norm of a pytree and a multiplication by a factor, at the speed of plain ones.

One sum of squares and one product an entry, in `wide` (`norms`), whose half ulp is u. A norm that
a plain sum loses is taken again, scaled: a branch on one scalar, from which only scalars come. The
product keeps what XLA flushes on a CPU: it is put together from its bits.
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


class Factor(NamedTuple):
    """The factor of `_product`, as the parts of which its three ways need one each.

    Attributes:
        plain: the factor, or 2^lift times it where no normal float holds it.
        drop: what the bits of a product with it are too large by.
        lifted: 2^lift times the factor.
        unit: eps times the factor; 0 where no product with a subnormal number is left.
        base: 2^(lift + minexp), a little less to round toward zero.
        floor: the same, or without that little where `plain` is not the factor.
        origin: the bits of 2^(lift + minexp).
    """

    plain: Array
    drop: Array
    lifted: Array
    unit: Array
    base: Array
    floor: Array
    origin: Array


def measure(leaves: list[Array], dtype: Any, axis_name: AxisName = None) -> Size:
    """The norm over all leaves, and over all shards along the named axes.

    The relative error is that of the sums, and so below `(n/2 + 4) u` for n numbers whatever the
    order; XLA's order gives a few u.
    """
    total = total_square(leaves, dtype, axis_name)

    def plain(_: list[Array]) -> Size:
        return Size(doubled.root(total), jnp.zeros((), jnp.int32))

    def anywhere(leaves: list[Array]) -> Size:
        return _measure(leaves, total, axis_name)

    size: Size = lax.cond(is_in_range(total), plain, anywhere, leaves)
    return size


def clip(leaves: list[Array], tau: Array, axis_name: AxisName = None) -> list[Array]:
    """The leaves brought to a norm of tau, which is in `wide`, where theirs is above it.

    Each in its dtype: to 16 u, toward zero in 16 bits and where subnormal; nan for a tau below 0
    or nan.
    """
    total = total_square(leaves, tau.dtype, axis_name)

    def plain(_: list[Array]) -> Array:
        root = doubled.root(total)
        ratio = doubled.quotient(tau, root)
        return _packed(_factor(root <= tau, ratio, jnp.zeros((), jnp.int32)))

    def anywhere(leaves: list[Array]) -> Array:
        size = _measure(leaves, total, axis_name)
        return _packed(_factor(_is_at_most(size, tau), *quotient(tau, size)))

    # As one array, since a compiler would work out each scalar of several by itself.
    factor = lax.cond(_is_plain(total, tau), plain, anywhere, leaves)
    # A copy costs less than a product by 1, which is exact and what a shorter program would take.
    keep = factor[0] == bits.of(jnp.ones((), tau.dtype))
    done: list[Array] = lax.cond(
        keep, lambda leaves: leaves, lambda leaves: [_times(x, factor) for x in leaves], leaves
    )
    return done


def is_within(leaves: list[Array], tau: Array, axis_name: AxisName = None) -> Array:
    """Whether `clip` leaves everything as it is."""
    total = total_square(leaves, tau.dtype, axis_name)

    def anywhere(leaves: list[Array]) -> Array:
        return _is_at_most(_measure(leaves, total, axis_name), tau)

    keep: Array = lax.cond(
        _is_plain(total, tau), lambda _: doubled.root(total) <= tau, anywhere, leaves
    )
    return keep


def square(leaf: Array, dtype: Any) -> Array:
    """The sum of the squares of a leaf, as far as they are in range."""
    return jnp.sum(jnp.square(leaf.astype(dtype)))


def total_square(leaves: list[Array], dtype: Any, axis_name: AxisName = None) -> Array:
    """The sum of all squares; over the leaves neighbours first, so that its error stays small."""
    terms = [square(leaf, dtype) for leaf in leaves] or [jnp.zeros((), dtype)]
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return _over_shards(terms[0], axis_name)


def measure_each(table: Array, owner: Any, sums: Array) -> Array:
    """The norm of each leaf, `(leaf,)`, of which plain sums of squares give `sums`.

    Its entries are in those rows of `(row, entry)` whose `(row,)` owner it is, padded with zeros;
    owners ascend. It is 0 below the normal numbers.
    """
    exponent = jnp.where(is_in_range(sums), 0, _lift(sums))
    moved = table * _power(exponent, sums.dtype)[owner][:, None]
    squares = jnp.sum(jnp.square(moved), axis=1)
    total = jax.ops.segment_sum(squares, owner, len(sums), indices_are_sorted=True)
    return jnp.sqrt(total) * _power(-exponent, sums.dtype)


def quotient(tau: Array, size: Size) -> tuple[Array, Array]:
    """Tau / |g| as `(mantissa, exponent)`, to u; nan for a tau below 0 or nan."""
    numerator, exponent = bits.split(jnp.where(tau >= 0, tau, jnp.nan), tau.dtype)
    mantissa, carry = bits.split(doubled.quotient(numerator, size.root), tau.dtype)
    is_number = jnp.isfinite(mantissa) & (mantissa != 0)
    return mantissa, jnp.where(is_number, exponent - size.exponent + carry, 0)


def powers(exponent: Array, dtype: Any) -> tuple[Array, Array]:
    """2^exponent as a product of two numbers, so that neither leaves the range."""
    half = exponent // 2
    return _power(half, dtype), _power(exponent - half, dtype)


def is_in_range(square: Array) -> Array:
    """Whether a sum of squares has lost nothing: neither infinite nor near the smallest numbers."""
    info = formats.finfo(square.dtype)
    # Squares that are flushed add up to less than half an ulp of this, for up to 2^34 numbers.
    return (square >= 2.0 ** int(info.minexp + info.nmant + 37)) & (square < jnp.inf)


def _is_plain(total: Array, tau: Array) -> Array:
    """Whether the norm has lost nothing, and tau over it is one factor that `_times` takes."""
    return is_in_range(total) & (tau > 2.0 ** (int(formats.finfo(tau.dtype).minexp) // 4))


def _is_at_most(size: Size, tau: Array) -> Array:
    """Whether a norm is at most tau, whatever the exponents of both."""
    level, exponent = bits.split(tau, tau.dtype)
    # The root is nearer to 1 than this power and the digits of a subnormal tau.
    most = _widest(tau.dtype)
    level *= _power(jnp.clip(exponent - size.exponent, -most, most), tau.dtype)
    return size.root <= level


def _widest(dtype: Any) -> int:
    """The power of two that a normal number may be below 1, and an ulp of it still be normal."""
    info = formats.finfo(dtype)
    return -int(info.minexp + info.nmant) - 1


def _factor(keep: Array, mantissa: Array, exponent: Array) -> Factor:
    """The factor `mantissa 2^exponent`, `MARGIN` u low; 1, and exactly so, to keep."""
    dtype, info = mantissa.dtype, formats.finfo(mantissa.dtype)
    mantissa = jnp.where(keep, 1, mantissa * (1 - MARGIN / 2 * float(info.eps)))
    exponent = jnp.where(keep, 0, exponent)
    is_tiny = exponent < -_widest(dtype)
    # So that 2^lift times a tiny factor is about 1/2, and never beyond what an exponent can say.
    lift = jnp.minimum(-exponent - 1, 2 * int(info.maxexp) - 6)
    lift = jnp.where(is_tiny, lift, -int(info.minexp))
    plain = mantissa * _power(exponent + jnp.where(is_tiny, lift, 0), dtype)
    origin = _power(lift + int(info.minexp), dtype)
    base = origin * jnp.where(keep, 1, 1 - float(info.eps) / 2)
    return Factor(
        plain=plain,
        drop=jnp.where(is_tiny, lift, 0).astype(bits.integer(dtype)) << int(info.nmant),
        lifted=jnp.where(is_tiny, plain, plain * 2.0 ** -int(info.minexp)),
        unit=jnp.where(is_tiny, 0, plain * float(info.eps)),
        base=base,
        floor=jnp.where(is_tiny, origin, base),
        origin=bits.of(origin),
    )


def _packed(factor: Factor) -> Array:
    """The parts of a factor, by their bits, `(7,)`."""
    return jnp.stack([x if jnp.issubdtype(x.dtype, jnp.integer) else bits.of(x) for x in factor])


def _unpacked(parts: Array, dtype: Any) -> Factor:
    """What `_packed` was given."""
    whole = Factor(*parts)
    floats = {
        name: lax.bitcast_convert_type(part, dtype)
        for name, part in whole._asdict().items()
        if name not in ("drop", "origin")
    }
    return whole._replace(**floats)


@jax.jit  # traced once for all leaves of a shape
def _times(leaf: Array, parts: Array) -> Array:
    wide = jnp.float64 if parts.dtype == jnp.int64 else jnp.float32
    factor = _unpacked(parts, wide)
    if leaf.dtype == jnp.float16:
        # Its range ends far above the numbers that are flushed.
        number = jnp.where(factor.drop > 0, 0, factor.plain)
        return _toward_zero(leaf.astype(wide) * number, leaf.dtype)
    return _toward_zero(_product(_widened(leaf, wide), factor), leaf.dtype)


def _product(leaf: Array, factor: Factor) -> Array:
    """The product with all its bits: what the processor flushes is put together from whole units.

    A subnormal number is a whole number of smallest ones, and that number is its bits. It is found
    as the last digits of 1 plus it, in a unit of eps: half a one less, to round toward zero. The
    three ways to take the product are below it where they do not hold, and so it is the largest:
    the plain one is 0 where it is flushed, the one in units is right below 2^minexp alone, and the
    one of a subnormal leaf, whose value is its bits, grows too slowly above.
    """
    size = bits.magnitude(leaf)
    plain = bits.of(jnp.abs(leaf) * factor.plain) - factor.drop
    normal = bits.of(jnp.abs(leaf) * factor.lifted + factor.base)
    subnormal = bits.of(size.astype(leaf.dtype) * factor.unit + factor.floor)
    # Of a nan, by its sign, the plain one is the largest, or all units are -1: a nan, too.
    product = jnp.maximum(plain, jnp.maximum(normal, subnormal) - factor.origin)
    return lax.bitcast_convert_type(product | (bits.of(leaf) ^ size), leaf.dtype)


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


def _measure(leaves: list[Array], total: Array, axis_name: AxisName) -> Size:
    """The norm by squares of entries brought up or down where their plain sum is out of range."""
    dtype, info = total.dtype, formats.finfo(total.dtype)
    known = dict.fromkeys(leaf.dtype for leaf in leaves)
    flat = [jnp.concatenate([x.ravel() for x in leaves if x.dtype == one]) for one in known]
    entries = jnp.concatenate([jnp.zeros(0, dtype)] + [_widened(part, dtype) for part in flat])
    exponent = jnp.where(is_in_range(total), 0, _lift(total))
    # Subnormal numbers, which are flushed, are their bits, and count where all others are small.
    unit = _power(exponent + int(info.minexp) - int(info.nmant), dtype)
    units = bits.magnitude(entries).astype(dtype) * jnp.where(exponent > 0, unit, 0)
    is_normal = bits.exponent_field(entries) > 0
    moved = jnp.where(is_normal, entries * _power(exponent, dtype), units)
    root = doubled.root(_over_shards(jnp.sum(jnp.square(moved)), axis_name))
    return Size(root, -exponent)


def _lift(total: Array) -> Array:
    """The exponent of the power of two that brings what has this sum of squares into range."""
    info = formats.finfo(total.dtype)
    # Brought up the square of a smallest number is normal, and brought down 2^40 largest ones are.
    lift = int(info.maxexp) // 2 + int(info.nmant) + 1
    return jnp.where(total < 1, lift, -lift).astype(jnp.int32)


def _power(exponent: Array, dtype: Any) -> Array:
    """2^exponent, and the smallest normal number for exponents below its own."""
    return scaled.power_of_two(jnp.maximum(exponent, int(formats.finfo(dtype).minexp)), dtype)


def _over_shards(sum_of_squares: Array, axis_name: AxisName) -> Array:
    return sum_of_squares if axis_name is None else lax.psum(sum_of_squares, axis_name)
