"""The headline numbers of a run: one to four named scalars, each with its unit, law and interval.

A sweep draws them over its axes; tables of runs, comparisons and the gallery show them. What is not
known is nan, and what is infinite is infinite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.errors import BadInput
from gradlab.experiment import estimate

MOST = 4

# Standard errors on either side of a mean: it is beyond them once in twenty times.
NUM_ERRORS = 2.0

_NUMBERS = ("value", "law", "low", "high")


@dataclass(frozen=True)
class Headline:
    """One number that a run is remembered by.

    Attributes:
        name: what it is, in a few words; the name of a column.
        value: the number that the dataset gives.
        unit: its unit; empty for a plain number.
        law: what theory gives for it; nan where there is none.
        low: the lower end of its interval; nan where it has none.
        high: the upper end.
    """

    name: str
    value: float
    unit: str = ""
    law: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __post_init__(self) -> None:
        """Plain floats, whatever array type they came in.

        Raises:
            BadInput: a part is not one number; the sentence says which.
        """
        for name in _NUMBERS:
            given = getattr(self, name)
            if np.size(given) != 1:
                raise BadInput(
                    f"headline number '{self.name}' has a {name} of shape {np.shape(given)}; "
                    "allowed: one number"
                )
            object.__setattr__(self, name, float(given))

    def record(self) -> dict[str, Any]:
        """The number as JSON holds it; inf and nan as text, which JSON lacks."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def words(self) -> str:
        """The number as it is read: `-0.046 decades a layer (-0.05 to -0.04; law -0.0458)`."""
        beside = [f"{self.low:.4g} to {self.high:.4g}"] if self.has_interval else []
        beside += [] if math.isnan(self.law) else [f"law {self.law:.4g}"]
        value = " ".join(filter(None, (f"{self.value:.4g}", self.unit)))
        return f"{value} ({'; '.join(beside)})" if beside else value

    @property
    def has_interval(self) -> bool:
        """Whether both ends of its interval are known."""
        return not (math.isnan(self.low) or math.isnan(self.high))


def recorded(plain: Mapping[str, Any]) -> Headline:
    """The number that a record holds."""
    numbers = {name: float(plain[name]) for name in _NUMBERS}
    return Headline(name=str(plain["name"]), unit=str(plain["unit"]), **numbers)


def mean(name: str, draws: Any, unit: str = "", law: float = math.nan) -> Headline:
    """The mean over draws, and two standard errors on either side; no interval of one draw."""
    values = np.ravel(draws).astype(float)
    with np.errstate(invalid="ignore"):  # an infinite draw has no standard error: nan
        found = estimate.mean(values) if values.size > 1 else estimate.Interval(*values, math.nan)
        ends = (found.value + side * NUM_ERRORS * found.error for side in (-1, 1))
        return Headline(name, found.value, unit, law, *ends)
