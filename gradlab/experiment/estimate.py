"""From many draws to one number with its error, and from a number to a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Claim:
    """A sentence held against a number: `measured` `relation` `expected`, within the tolerance.

    Attributes:
        sentence: the statement, as a reader would say it.
        measured: the number that the dataset gives.
        expected: the number that the source or the theory gives.
        tolerance: cause to amount, in the unit of `measured`; the amounts add up.
        source: where the statement is made (author, year, equation).
        relation: "=" for agreement, "<=" and ">=" for a bound on one side.
    """

    sentence: str
    measured: float
    expected: float
    tolerance: Mapping[str, float]
    source: str
    relation: Literal["=", "<=", ">="] = "="

    def __post_init__(self) -> None:
        """Plain floats, whatever array type they came in."""
        object.__setattr__(self, "measured", float(self.measured))
        object.__setattr__(self, "expected", float(self.expected))
        tolerance = {cause: float(amount) for cause, amount in self.tolerance.items()}
        object.__setattr__(self, "tolerance", tolerance)
        if any(not amount >= 0 for amount in tolerance.values()):
            raise ValueError(f"tolerance of '{self.sentence}' is {tolerance}; allowed: at least 0")

    @property
    def holds(self) -> bool:
        """The verdict; infinities must agree exactly, and nan never agrees with anything."""
        if self.measured == self.expected:
            return True
        allowed = sum(self.tolerance.values())
        off = self.measured - self.expected
        if not math.isfinite(off):
            return {"<=": off == -math.inf, ">=": off == math.inf, "=": False}[self.relation]
        return {"<=": off <= allowed, ">=": -off <= allowed, "=": abs(off) <= allowed}[
            self.relation
        ]

    def record(self) -> dict[str, Any]:
        """The claim and its verdict as JSON holds them; inf and nan as text, which JSON lacks."""
        plain = dataclasses.asdict(self) | {"verdict": "holds" if self.holds else "fails"}
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in plain.items()
        }


class Interval(NamedTuple):
    """An estimate and its standard error, in the same unit."""

    value: Any
    error: Any


def mean(draws: ArrayLike, axis: int = 0) -> Interval:
    """The mean over one axis and its standard error."""
    values = np.asarray(draws)
    error = values.std(axis, ddof=1) / math.sqrt(values.shape[axis])
    return Interval(values.mean(axis), error)


def slope(x: ArrayLike, y: ArrayLike) -> Interval:
    """The least-squares slope of each row of `y (..., n)` over `x (n,)`, and its standard error.

    The error is that of independent residuals of one variance; it is nan for two points, which
    leave no residual.
    """
    places, rows = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    places = places - places.mean()
    squares = np.sum(places**2)
    freedom = places.size - 2
    with np.errstate(invalid="ignore"):  # a row with an infinity has no slope: nan
        rows = rows - rows.mean(-1, keepdims=True)
        value = np.sum(places * rows, -1) / squares
        residuals = rows - value[..., None] * places
        variance = np.sum(residuals**2, -1) / freedom if freedom else np.full(value.shape, np.nan)
    return Interval(value, np.sqrt(variance / squares))
