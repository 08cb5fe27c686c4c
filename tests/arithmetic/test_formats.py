"""What IEEE 754 and bfloat16 say of their formats, in whole numbers."""

from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.arithmetic import formats

# Digits after the leading one, and the bits of the exponent.
SHAPES = {"float16": (10, 5), "bfloat16": (7, 8), "float32": (23, 8), "float64": (52, 11)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("given", [str, jnp.dtype], ids=["by its name", "by its type"])
def test_every_number_of_a_format_follows_from_its_shape(name: str, given: Any) -> None:
    nmant, num_bits = SHAPES[name]
    bias = 2 ** (num_bits - 1) - 1
    info = formats.finfo(given(name))
    assert (info.nmant, info.bits) == (nmant, 1 + num_bits + nmant)
    assert (info.minexp, info.maxexp) == (1 - bias, bias + 1)
    assert Fraction(float(info.eps)) == Fraction(1, 2**nmant)
    assert Fraction(float(info.tiny)) == Fraction(1, 2 ** (bias - 1))
    assert Fraction(float(info.max)) == (2 - Fraction(1, 2**nmant)) * 2**bias


@pytest.mark.parametrize("name", ["int32", "bool"])
def test_what_is_no_float_has_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"not inexact|not compatible"):
        formats.finfo(np.dtype(name))
