"""What is known of a sweep at its end, point by point: numbers, verdicts, and what failed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.experiment.claim import Claim
from gradlab.experiment.headline import Headline
from gradlab.sweeping.points import Point, Sweep

# What a claim said at a point.
HOLDS, FAILS, NOT_MADE = 1, 0, -1

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass
class HeadlineOver:
    """One headline number at all points; nan where there is none.

    Attributes:
        name: what it is.
        unit: its unit.
        parts: `value`, `law`, `low` and `high`, `(num_points,)` each.
        there: at which points it was told.
    """

    name: str
    unit: str
    parts: dict[str, Any]
    there: Any


@dataclass
class Verdict:
    """One claim at all points where it was made.

    Attributes:
        sentence: its words, with a mark for the numbers in which they differ.
        said: what it said at each point, `(num_points,)`.
        off: how far it is off where it is farthest, in tolerances.
        farthest: the place of that point.
    """

    sentence: str
    said: Any
    off: float = -1.0
    farthest: int = 0

    @property
    def num_made(self) -> int:
        """At how many points it was made."""
        return int((self.said != NOT_MADE).sum())

    @property
    def num_held(self) -> int:
        """At how many it holds."""
        return int((self.said == HOLDS).sum())


@dataclass
class Summary:
    """The headline numbers and verdicts of a sweep as they come in.

    Attributes:
        sweep: its axes and points.
        numbers: the headline numbers by name.
        verdicts: the claims by their words.
        unfinished: which points have no result, or no verdict.
    """

    sweep: Sweep
    numbers: dict[str, HeadlineOver] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unfinished = np.ones(len(self.sweep.points), bool)

    def put(self, place: int, claims: Sequence[Claim], headline: Sequence[Headline]) -> None:
        """What the run of the point at a place says."""
        size = len(self.unfinished)
        for number in headline:
            if number.name not in self.numbers:
                parts = {name: np.full(size, np.nan) for name in ("value", "law", "low", "high")}
                self.numbers[number.name] = HeadlineOver(
                    number.name, number.unit, parts, np.zeros(size, bool)
                )
            known = self.numbers[number.name]
            known.there[place] = True
            for name, values in known.parts.items():
                values[place] = getattr(number, name)
        heard: dict[str, int] = {}
        for claim in claims:
            words = _NUMBER.sub("…", claim.sentence)
            heard[words] = heard.get(words, 0) + 1
            # Two sentences of one run may differ in their numbers alone.
            known_as = f"{words} {heard[words]}"
            if known_as not in self.verdicts:
                said = np.full(size, NOT_MADE, np.int8)
                self.verdicts[known_as] = Verdict(claim.sentence, said)
            verdict = self.verdicts[known_as]
            verdict.sentence = verdict.sentence if verdict.sentence == claim.sentence else words
            verdict.said[place] = HOLDS if claim.holds else FAILS
            if off(claim) > verdict.off:
                verdict.off, verdict.farthest = off(claim), place
        self.unfinished[place] = False

    @property
    def failing(self) -> Any:
        """At which points a claim fails."""
        fails = [verdict.said == FAILS for verdict in self.verdicts.values()]
        return np.any(fails, axis=0) if fails else np.zeros_like(self.unfinished)

    @property
    def num_claims(self) -> tuple[int, int]:
        """How many claims hold at all points together, and how many were made."""
        verdicts = self.verdicts.values()
        return sum(one.num_held for one in verdicts), sum(one.num_made for one in verdicts)

    def point(self, place: int) -> Point:
        """The point at a place."""
        return self.sweep.points[place]


def off(claim: Claim) -> float:
    """How far a claim's number is on the wrong side of what is expected, in tolerances."""
    if claim.measured == claim.expected:
        return 0.0
    wrong = claim.measured - claim.expected
    wrong = {"=": abs(wrong), "<=": wrong, ">=": -wrong}[claim.relation]
    if math.isnan(wrong):
        return math.inf
    allowed = sum(claim.tolerance.values())
    return max(0.0, wrong / allowed if allowed else math.copysign(math.inf, wrong))
