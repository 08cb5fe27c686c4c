"""What the claims of a sweep's points look like together: a pure function of points and claims.

A single run's own figure has no room for further axes, so a sweep is drawn by what its experiment
measures: each claim's number over the swept parameters, beside what was expected there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.experiment import figures
from gradlab.experiment.claim import Claim
from gradlab.sweeping.points import Point

# None stands for a sweep that is judged as one run.
Judged = tuple[Point | None, list[Claim]]

MOST_PANELS, MOST_SERIES, FEW_SERIES, MOST_TICKS = 12, 6, 2, 8


@dataclass(frozen=True)
class Row:
    """One claim at every point where it was made."""

    sentence: str
    claims: Sequence[tuple[Point, Claim]]


def rows(judged: Sequence[Judged]) -> list[Row]:
    """The claims by their place in the experiment's list, each over all points."""
    most = max((len(claims) for _, claims in judged), default=0)
    by_place = (
        [(point, claims[place]) for point, claims in judged if point and place < len(claims)]
        for place in range(most)
    )
    return [Row(_common([claim.sentence for _, claim in pairs]), pairs) for pairs in by_place]


def _common(sentences: Sequence[str]) -> str:
    """The words that all sentences share, with a mark for those in which they differ."""
    split = [sentence.split() for sentence in sentences]
    if len({len(words) for words in split}) > 1:
        return sentences[0]
    columns = zip(*split, strict=True)
    return " ".join(words[0] if len(set(words)) == 1 else "…" for words in columns)


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


def figure(
    question: str, axes: Mapping[str, Sequence[Any]], judged: Sequence[Judged]
) -> figures.Figure:
    """A panel for each claim: measured (marks) and expected (lines) over one swept parameter."""
    found = rows(judged)
    shown = found[:MOST_PANELS]
    columns = min(3, max(1, len(shown)))
    lines = -(-max(1, len(shown)) // columns)
    drawn, panels = figures.panels(lines, columns, width=figures.PAGE, height=0.5 + 2.1 * lines)
    across = _across(axes)
    for panel, row in zip(panels, shown, strict=False):
        _panel(panel, row, across, [key for key in axes if key != across], axes[across])
        figures.title(panel, _wrapped(row.sentence))
        panel.set_xlabel(across)
        panel.set_ylabel("measured")
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    if not shown:
        panels[0].text(0.0, 0.5, f"{len(judged)} points; the experiment makes no claims")
    more = f" (the first {len(shown)} of {len(found)} claims)" if len(found) > len(shown) else ""
    drawn.suptitle(question + more, x=0.01, ha="left", fontsize=8)
    return drawn


def _across(axes: Mapping[str, Sequence[Any]]) -> str:
    """The parameter to draw over: the numeric one with most values, the seed only if alone."""

    def rank(key: str) -> tuple[bool, bool, int]:
        return key != "seed", all(map(_is_number, axes[key])), len(axes[key])

    return max(axes, key=rank)


def _is_number(value: Any) -> bool:
    return isinstance(_bare(value), int | float) and not isinstance(value, bool)


def _bare(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _panel(
    panel: figures.Axes, row: Row, across: str, others: Sequence[str], values: Sequence[Any]
) -> None:
    places = _places(values)
    series: dict[str, list[tuple[float, Claim]]] = {}
    for name, (point, claim) in zip(_names(row, others), row.claims, strict=True):
        series.setdefault(name, []).append((places[repr(point.values[across])], claim))
    for (name, pairs), look in zip(series.items(), figures.series(len(series)), strict=True):
        x, measured, low, high, expected = np.array(list(_summaries(pairs))).T
        panel.errorbar(
            x,
            measured,
            np.stack([measured - low, high - measured]),
            **(look | {"linestyle": "none", "elinewidth": 0.7}),
            label=name or "measured",
        )
        panel.plot(x, expected, color=look["color"], linestyle=look["linestyle"], linewidth=0.9)
    failing = [
        (places[repr(point.values[across])], claim.measured)
        for point, claim in row.claims
        if not claim.holds
    ]
    if failing:
        panel.plot(*zip(*failing, strict=True), "kx", markersize=5, label="fails")
    panel.plot([], [], **figures.THEORY, label={"=": "expected"}.get(_relation(row), "bound"))
    if len(values) <= MOST_TICKS or not all(map(_is_number, values)):
        panel.set_xticks(list(places.values()), [str(_bare(value)) for value in values])
    if panel is panel.figure.axes[0] or len(series) <= FEW_SERIES:
        panel.legend()


def _relation(row: Row) -> str:
    return row.claims[0][1].relation


def _names(row: Row, others: Sequence[str]) -> list[str]:
    """The series of each point: all other parameters, or all but the seed, or one for all."""
    for kept in (others, [key for key in others if key != "seed"]):
        names = [
            ", ".join(f"{key}={_bare(point.values[key])}" for key in kept)
            for point, _ in row.claims
        ]
        if len(set(names)) <= MOST_SERIES:
            return names
    return [f"median, range over {' and '.join(others)}"] * len(row.claims)


def _places(values: Sequence[Any]) -> dict[str, float]:
    if all(map(_is_number, values)):
        return {repr(value): float(_bare(value)) for value in values}
    return {repr(value): float(place) for place, value in enumerate(values)}


def _summaries(pairs: Sequence[tuple[float, Claim]]) -> Iterator[tuple[float, ...]]:
    """For each place: the median and the range of what was measured, the median expected.

    What is not finite cannot be drawn; the table of claims holds it.
    """
    for place in sorted({place for place, _ in pairs}):
        claims = [claim for where, claim in pairs if where == place]
        measured = _finite([claim.measured for claim in claims])
        expected = _finite([claim.expected for claim in claims])
        yield place, np.median(measured), min(measured), max(measured), np.median(expected)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)] or [math.nan]


def _wrapped(sentence: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(sentence, 40)[:3])
