"""Bits against whole numbers and fractions: every pattern of 16 bits, and edges of the wider ones.

Nothing here is rounded, so nothing has a tolerance.
"""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from gradlab.arithmetic import bits, formats

DTYPES = ("float16", "bfloat16", "float32", "float64")
WIDE = {"float16": "float32", "bfloat16": "float32", "float32": "float64", "float64": "float64"}


def unsigned(dtype: Any) -> Any:
    return np.dtype(f"uint{formats.finfo(dtype).bits}")


def numbers(name: str) -> Array:
    """All numbers of a format of 16 bits; of a wider one its edges and a thousand at random.

    Of nan only the quiet ones: NumPy warns of the others whatever is asked of them.
    """
    dtype = jnp.dtype(name)
    info, one = formats.finfo(dtype), 1
    num_bits = info.bits
    infinity = ((one << (num_bits - 1 - info.nmant)) - 1) << info.nmant
    if num_bits == 16:
        patterns = np.arange(2**16, dtype=np.uint16)
    else:
        fraction = (one << info.nmant) - 1
        edges = [0, 1, fraction, fraction + 1, infinity - 1, infinity, infinity + 1]
        signed = [*edges, *(edge + (one << (num_bits - 1)) for edge in edges)]
        drawn = np.random.default_rng(0).integers(0, 2**num_bits - 1, 1000, np.uint64)
        patterns = np.concatenate([np.array(signed, np.uint64), drawn]).astype(unsigned(dtype))
    is_nan = (patterns & unsigned(dtype).type(2 ** (num_bits - 1) - 1)) > infinity
    quiet = np.where(is_nan, unsigned(dtype).type(1 << (info.nmant - 1)), 0)
    return jnp.asarray((patterns | quiet.astype(patterns.dtype)).view(dtype))


def exact(x: Array) -> list[Fraction]:
    return [Fraction(value) for value in np.asarray(x).astype(np.float64).tolist()]


def truncated(value: Fraction, dtype: Any) -> float:
    """The number of the format next to `value` toward zero; inf where its exponent is too large."""
    info, size = formats.finfo(dtype), abs(value)
    if size == 0:
        return 0.0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    if exponent >= info.maxexp:
        return float("inf") * (1 if value > 0 else -1)
    ulp = Fraction(2) ** (max(exponent, int(info.minexp)) - int(info.nmant))
    return float((size // ulp) * ulp) * (1 if value > 0 else -1)


@pytest.mark.parametrize("name", DTYPES)
def test_fields_are_those_of_the_pattern(name: str) -> None:
    x = numbers(name)
    info = formats.finfo(x.dtype)
    pattern = np.asarray(x).view(unsigned(x.dtype)).astype(object)
    assert bits.integer(x.dtype) == np.dtype(f"int{info.bits}")
    magnitude = pattern % 2 ** (info.bits - 1)
    assert np.asarray(bits.of(x)).view(unsigned(x.dtype)).tolist() == pattern.tolist()
    assert np.asarray(bits.magnitude(x)).tolist() == magnitude.tolist()
    np.testing.assert_array_equal(bits.is_negative(x), pattern // 2 ** (info.bits - 1) == 1)
    assert np.asarray(bits.exponent_field(x)).tolist() == (magnitude // 2**info.nmant).tolist()


@pytest.mark.parametrize("name", DTYPES)
def test_a_number_is_its_mantissa_times_two_to_its_exponent(name: str) -> None:
    x = numbers(name)
    mantissa, exponent = bits.split(x, WIDE[name])
    assert mantissa.dtype == WIDE[name]
    finite = np.isfinite(np.asarray(x, float))
    values, parts = exact(x[finite]), exact(mantissa[finite])
    powers = np.asarray(exponent)[finite].tolist()
    assert [m * Fraction(2) ** e for m, e in zip(parts, powers, strict=True)] == values
    tiny = Fraction(float(formats.finfo(x.dtype).tiny))
    normal = [abs(m) for m, value in zip(parts, values, strict=True) if abs(value) >= tiny]
    assert normal
    assert min(normal) >= 1
    assert max(normal) < 2
    np.testing.assert_array_equal(
        np.asarray(mantissa, float)[~finite], np.asarray(x, float)[~finite]
    )


@pytest.mark.parametrize("name", DTYPES)
def test_parts_are_assembled_to_the_number_they_were(name: str) -> None:
    x = numbers(name)
    again = bits.assembled(*bits.split(x, WIDE[name]), x.dtype)
    defined = ~np.isnan(np.asarray(x, float))
    np.testing.assert_array_equal(bits.of(again)[defined], bits.of(x)[defined])
    assert np.isnan(np.asarray(again, float)[~defined]).all()


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("name", DTYPES)
def test_assembling_rounds_toward_zero_over_the_whole_range_and_beyond(
    name: str, wide: str
) -> None:
    if (name, wide) == ("float64", "float32"):
        wide = "float64"
    rng = np.random.default_rng(1)
    info = formats.finfo(jnp.dtype(name))
    reach = int(info.nmant) + 4
    exponent = rng.integers(int(info.minexp) - reach, int(info.maxexp) + 3, 2000)
    mantissa = rng.uniform(1, 2, 2000) * rng.choice([-1, 1], 2000)
    mantissa[:200] = np.sign(mantissa[:200])  # powers of two
    mantissa[200:400] = np.sign(mantissa[200:400]) * np.nextafter(2, 1)  # all ones
    m = jnp.asarray(mantissa, wide)
    got = bits.assembled(m, jnp.asarray(exponent, jnp.int32), jnp.dtype(name))
    powers = [Fraction(2) ** int(e) for e in exponent]
    expected = [truncated(a * b, name) for a, b in zip(exact(m), powers, strict=True)]
    assert np.asarray(got).astype(float).tolist() == expected
    assert {0.0, float("inf")} < set(map(abs, expected))


@pytest.mark.parametrize("name", DTYPES)
def test_one_ulp_lower_is_the_next_number_toward_zero(name: str) -> None:
    x = numbers(name)
    values = np.asarray(x)
    moves = (values != 0) & np.isfinite(values)
    expected = np.where(moves, np.nextafter(values, np.zeros_like(values)), values)
    lower = bits.one_ulp_lower(x)
    defined = ~np.isnan(values)
    np.testing.assert_array_equal(
        np.asarray(lower)[defined].view(unsigned(x.dtype)),
        expected.astype(values.dtype)[defined].view(unsigned(x.dtype)),
    )
    assert np.isnan(np.asarray(lower)[~defined].astype(float)).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_number_converted_in_the_same_program_is_that_of_its_format(name: str) -> None:
    """A GPU's compiler may go on with the digits, and the range, of before the conversion."""
    x = jnp.asarray([1 + 2**-12, 70000.0, -3e38 * 1.17, 1e-9, 0.0, np.inf])

    def converted(x: Array) -> Any:
        short = x.astype(name)
        return bits.split(short, "float32"), bits.one_ulp_lower(short), bits.is_finite(short)

    together, apart = jax.jit(converted)(x), converted(x.astype(name))
    jax.tree.map(np.testing.assert_array_equal, together, apart)
    largest = float(formats.finfo(name).max)
    assert np.asarray(together[2]).tolist() == (np.abs(np.asarray(x)) <= largest).tolist()
