"""What the lesson may state: numbers that a dataset holds, and claims that were judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from gradlab.experiment.lesson import LAST, At
from gradlab.page import numbers
from gradlab.page.offers import Offered, Offers, Place, nobody

if TYPE_CHECKING:
    import xarray as xr

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
        return numbers.significant(value)
    return Markup(f"{round(value):,}".replace(",", "\u202f"))


def _depth(value: float, digits: int) -> Markup:
    return Markup("never") if math.isinf(value) else _count(value, digits)


LOOKS: dict[str, Callable[[float, int], Markup]] = {
    "plain": numbers.significant,
    "fixed": numbers.fixed,
    "count": _count,
    "depth": _depth,
}


def _power(log10: float, digits: int) -> Markup:
    if -4 <= log10 < 6:
        return numbers.significant(10**log10, digits)
    return numbers.power_of_ten(log10, digits)


# How a number is shown whose logarithm is what the dataset holds.
POWERS: dict[str, Callable[[float, int], Markup]] = {
    "log10": _power,
    "ln": lambda log, digits: _power(log / math.log(10), digits),
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
    """What the lesson may speak of, and a record of the numbers that it did."""

    offers: Offers
    uses: list[Use] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def number(
        self, name: str, look: str = "plain", digits: int = 4, along: str | None = None
    ) -> Markup:
        """The number at a place, marked with its source; a note where it is not there.

        Args:
            name: the place.
            look: an entry of `LOOKS`.
            digits: how many significant digits, or decimals for the look "fixed".
            along: which of the numbers, where the offer has one for each text of an axis.
        """
        place = Place("number", name)
        offered = self.offers.places.get(place)
        if offered is None:
            return _note(nobody(place))
        if offered.run.data is None:
            return _not_yet(offered, "number")
        at: At = offered.what
        where = dict(at.where) | ({} if at.along is None else {at.along: along})
        try:
            value = _value(offered.run.data, at, where)
        except (LookupError, ValueError, TypeError, AttributeError):
            return _note(f"the dataset of {offered.experiment} lacks {place}")
        return self._shown(offered, value, POWERS.get(at.scale, LOOKS[look])(value, digits), where)

    def _shown(
        self, offered: Offered, value: float, shown: Markup, where: Mapping[str, Any]
    ) -> Markup:
        experiment, at = offered.experiment, offered.what
        said = ", ".join(
            f"the last {name}" if here == LAST else f"{name} = {here}"
            for name, here in where.items()
        )
        said = f"{at.how} over the rest; {said}".strip("; ") if at.how else said
        self.uses.append(Use(shown, experiment, at.variable, said))
        source = f"{experiment}: {at.variable}" + (f" at {said}" if said else "")
        told = Markup("<span>{}</span><span>read from {}</span>").format(repr(value), source)
        return Markup('<data value="{}" data-from="{}">{}</data>').format(
            repr(value), f"{experiment}/{at.variable}", self._asked("", shown, told, experiment)
        )

    def _asked(self, kind: str, shown: Markup, told: Markup, experiment: str) -> Markup:
        """A text that answers a tap, a key or a pointer, by the browser's own popover."""
        self.answers.append(experiment)
        name = f"answer-{len(self.answers)}"
        return Markup(
            '<button type="button" class="asked{}" popovertarget="{}">{}</button>'
            '<span popover id="{}" class="answer">{}<span><a href="index.html#{}">{} in the '
            "gallery</a></span></span>"
        ).format(kind, name, shown, name, told, experiment, experiment)

    def labels(self, name: str) -> list[str]:
        """The texts along the axis of a number's offer; none where they are not there."""
        offered = self.offers.places.get(Place("number", name))
        data = offered.run.data if offered else None
        if offered is None or data is None or offered.what.along not in data.variables:
            return []
        return [str(label) for label in data[offered.what.along].values]

    def claim(self, name: str) -> Markup:
        """The verdict on the claims at a place, to stand behind the lesson's own sentence."""
        place = Place("claim", name)
        offered = self.offers.places.get(place)
        if offered is None:
            return _note(nobody(place))
        if not offered.run.claims:
            return _not_yet(offered, "check")
        found = [claim for claim in offered.run.claims if offered.what in claim["sentence"]]
        if not found:
            return _note(f"no claim of {offered.experiment} says '{offered.what}'")
        failed = [claim for claim in found if claim["verdict"] != "holds"]
        if failed:
            worst = failed[0]
            return Markup(
                '<strong class="verdict inline fails">✗ This failed here: “{}”: measured {}, '
                "expected {}.</strong>"
            ).format(
                worst["sentence"],
                numbers.significant(worst["measured"]),
                numbers.significant(worst["expected"]),
            )
        told = Markup("").join(map(_judged, found))
        shown = Markup('✓<span class="spoken"> checked</span>')
        return self._asked(" verdict inline holds", shown, told, offered.experiment)


def _judged(claim: Mapping[str, Any]) -> Markup:
    tolerance = sum(map(float, claim["tolerance"].values()))
    return Markup("<span>{}: measured {}, expected {} {}, tolerance {}</span>").format(
        claim["sentence"],
        numbers.significant(claim["measured"]),
        {"<=": "at most", ">=": "at least"}.get(claim["relation"], ""),
        numbers.significant(claim["expected"]),
        numbers.significant(tolerance, 2),
    )


def _value(data: xr.Dataset, at: At, where: Mapping[str, Any]) -> float:
    if at.variable in data.attrs and at.variable not in data.variables:
        return float(data.attrs[at.variable])
    values = data[at.variable]
    for name, here in where.items():
        values = values.isel({name: -1 if here == LAST else _index(data[name].values, here)})
    return float(REDUCTIONS[at.how](values.values) if at.how else values.item())


def _index(along: Any, at: Any) -> int:
    if along.dtype.kind in "fi":
        index = int(np.argmin(np.abs(along - at)))
        if not math.isclose(float(along[index]), at, rel_tol=1e-9, abs_tol=1e-12):
            raise KeyError(at)
        return index
    return list(along).index(at)


def _note(sentence: str) -> Markup:
    return Markup('<span class="verdict inline unknown">({})</span>').format(sentence)


def _not_yet(offered: Offered, what: str) -> Markup:
    return _note(f"{what} not computed yet: {offered.command}")
