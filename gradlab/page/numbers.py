"""Numbers as a reader sees them: the same digits everywhere, and none that were not computed."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

MINUS, TIMES, INFINITY = "−", "×", "∞"


def significant(value: Any, digits: int = 6) -> Markup:
    """A number to so many significant digits, with a power of ten where it is long.

    `significant` of `assets/numbers.js` writes the same.
    """
    value = float(value)
    if math.isnan(value):
        return Markup("nan")
    if math.isinf(value):
        return Markup(MINUS * (value < 0) + INFINITY)
    text = f"{value:.{digits - 1}e}"
    mantissa, _, exponent = text.partition("e")
    if -4 <= int(exponent) < 6:
        return Markup(f"{float(text):.15g}".replace("-", MINUS))
    return _power(f"{float(mantissa):g}".replace("-", MINUS), int(exponent))


def fixed(value: Any, decimals: int) -> Markup:
    """A number to so many decimals."""
    value = float(value)
    return (
        Markup(f"{value:.{decimals}f}".replace("-", MINUS))
        if math.isfinite(value)
        else significant(value)
    )


def power_of_ten(log10: Any, digits: int = 5) -> Markup:
    """10 to the given power in scientific notation: no float holds the number itself."""
    log10 = float(log10)
    if not math.isfinite(log10):
        return Markup({math.inf: INFINITY, -math.inf: "0"}.get(log10, "nan"))
    exponent = math.floor(log10)
    mantissa = f"{10 ** (log10 - exponent):.{digits - 1}f}"
    if mantissa.startswith("10"):
        exponent, mantissa = exponent + 1, f"{1:.{digits - 1}f}"
    return _power(mantissa, exponent)


def _power(mantissa: str, exponent: int) -> Markup:
    sign = MINUS * (exponent < 0)
    return Markup(f"{mantissa} {TIMES} 10<sup>{sign}{abs(exponent)}</sup>")
