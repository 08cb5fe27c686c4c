"""What a lesson may state: numbers that a dataset holds, and claims that were judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from gradlab.page import numbers
from gradlab.page.gallery import Run

LAST = "last"  # the place at the end of an axis
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "max": np.max,
    "min": np.min,
    "mean": np.mean,
    "median": np.median,
    "count": np.size,
}


def _count(value: float, digits: int) -> Markup:
    del digits  # a count has all of them
    if not math.isfinite(value):
        return numbers.plain(value)
    return Markup(f"{round(value):,}".replace(",", "\u202f"))


def _power(log10: float, digits: int) -> Markup:
    if -4 <= log10 < 6:
        return numbers.plain(10**log10, digits)
    return numbers.power_of_ten(log10, digits)


def _exponential(log: float, digits: int) -> Markup:
    return _power(log / math.log(10), digits)


def _depth(value: float, digits: int) -> Markup:
    return Markup("never") if math.isinf(value) else _count(value, digits)


LOOKS: dict[str, Callable[[float, int], Markup]] = {
    "plain": numbers.plain,
    "power": _power,
    "exp": _exponential,
    "fixed": numbers.fixed,
    "count": _count,
    "depth": _depth,
}


@dataclass(frozen=True)
class Use:
    """A number in the lesson and where it comes from."""

    shown: Markup
    experiment: str
    variable: str
    where: str


@dataclass(frozen=True)
class Evidence:
    """The results that the lesson may speak of, and a record of those that it did."""

    runs: Mapping[str, Run]
    uses: list[Use] = field(default_factory=list)

    def number(
        self,
        experiment: str,
        variable: str,
        look: str = "plain",
        digits: int = 4,
        *,
        how: str | None = None,
        sign: int = 1,
        **where: Any,
    ) -> Markup:
        """A number of a dataset, marked with its source; a note where it is not there.

        Args:
            experiment: whose dataset.
            variable: an array of it, an axis, or an attribute.
            look: an entry of `LOOKS`.
            digits: how many significant digits, or decimals for the look "fixed".
            how: an entry of `REDUCTIONS` that makes one number of many.
            sign: -1 shows the number without the sign that the sentence says in words.
            where: the place along each axis, by its value (for floats to rounding), or
                "last".
        """
        try:
            value = self._value(experiment, variable, how, where)
        except (KeyError, ValueError, IndexError, AttributeError):
            return _missing(experiment, "number")
        place = ", ".join(
            f"the last {name}" if at == LAST else f"{name} = {at}" for name, at in where.items()
        )
        place = f"{how} over the rest; {place}".strip("; ") if how else place
        shown = LOOKS[look](sign * value, digits)
        self.uses.append(Use(shown, experiment, variable, place))
        return Markup('<data value="{}" data-from="{}" title="{}">{}</data>').format(
            repr(value),
            f"{experiment}/{variable}",
            f"{experiment}: {variable}" + (f" at {place}" if place else ""),
            shown,
        )

    def _value(self, experiment: str, variable: str, how: str | None, where: Any) -> float:
        run = self.runs.get(experiment)
        if run is None or run.data is None:
            raise KeyError(experiment)
        data = run.data
        if variable in data.attrs:
            return float(data.attrs[variable])
        values = data[variable]
        for name, at in where.items():
            values = values.isel({name: -1 if at == LAST else _index(data[name].values, at)})
        return float(REDUCTIONS[how](values.values) if how else values.item())

    def labels(self, experiment: str, axis: str) -> list[str]:
        """The names along an axis; none where the experiment has no dataset."""
        run = self.runs.get(experiment)
        return [] if run is None or run.data is None else [str(at) for at in run.data[axis].values]

    def claim(self, experiment: str, words: str) -> Markup:
        """The verdict on the claims with these words, to stand behind the lesson's own."""
        run = self.runs.get(experiment)
        found = [c for c in run.claims if words in c["sentence"]] if run else []
        if not found:
            return _missing(experiment, "check")
        failed = [claim for claim in found if claim["verdict"] != "holds"]
        if failed:
            worst = failed[0]
            return Markup(
                '<strong class="verdict inline fails">✗ This failed here: “{}”: measured {}, '
                "expected {}.</strong>"
            ).format(
                worst["sentence"],
                numbers.plain(worst["measured"]),
                numbers.plain(worst["expected"]),
            )
        sentences = "; ".join(claim["sentence"] for claim in found)
        return Markup(
            '<span class="verdict inline holds" title="{}">✓'
            '<span class="spoken"> checked</span></span>'
        ).format(f"checked by {experiment}: {sentences}")


def _index(along: Any, at: Any) -> int:
    if along.dtype.kind in "fi":
        index = int(np.argmin(np.abs(along - at)))
        if not math.isclose(float(along[index]), at, rel_tol=1e-9, abs_tol=1e-12):
            raise KeyError(at)
        return index
    return list(along).index(at)


def _missing(experiment: str, what: str) -> Markup:
    return Markup(
        '<span class="verdict inline unknown">({} not computed yet: '
        "python experiments/{}.py)</span>"
    ).format(what, experiment)
