"""What IEEE 754 and bfloat16 say of their formats, in whole numbers."""

from fractions import Fraction
from typing import Any

import jax
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


# ---- what a device makes of them


@pytest.mark.parametrize("name", SHAPES)
def test_quotients_and_roots_are_off_by_no_more_than_is_said(name: str) -> None:
    x, y = (jnp.asarray(a).astype(name) for a in np.random.default_rng(0).uniform(1, 4, (2, 10**5)))
    unit = np.longdouble(float(formats.finfo(name).eps)) / 2
    a, b = (np.asarray(z).astype(np.longdouble) for z in (x, y))
    for operation, exact, most in (
        (jnp.divide(x, y), a / b, formats.quotient_error(name)),
        (jnp.sqrt(x), np.sqrt(a), formats.root_error(name)),
    ):
        off = np.abs(np.asarray(operation).astype(np.longdouble) / exact - 1)
        # 2^-63 is what the longer format itself is off.
        assert off.max() <= most * unit + 2.0**-62


def test_on_a_cpu_both_are_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, in_float32, in_bfloat16 in (("cpu", (1, 1), (1, 1)), ("gpu", (4, 2), (1, 1))):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        errors = formats.quotient_error, formats.root_error
        assert [error("float32") for error in errors] == list(in_float32)
        assert [error("float64") for error in errors] == [1, 1]
        # Done in float32: 2^-16 of those errors, and the one rounding of the short format.
        excess = [error("bfloat16") - one for error, one in zip(errors, in_bfloat16, strict=True)]
        assert all(0 <= part <= 4 * 2.0**-16 for part in excess)
