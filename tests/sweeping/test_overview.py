"""The figure of a sweep: whatever its numbers are, each stands in it or at its rim."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gradlab.experiment import figures
from gradlab.experiment.claim import Claim
from gradlab.experiment.headline import Headline
from gradlab.running.provenance import Asked
from gradlab.sweeping import overview, scales
from gradlab.sweeping.points import Axis, Point, Points, Sweep
from gradlab.sweeping.summary import Summary

ODD = (math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324, 0.0, 1.0)


def swept(**axes: Sequence[Any]) -> Sweep:
    columns = tuple(Axis({key: values}) for key, values in axes.items())

    def at(index: tuple[int, ...]) -> Point:
        values = {key: axis[row] for (key, axis), row in zip(axes.items(), index, strict=True)}
        words = tuple(f"{key}={value}" for key, value in values.items())
        return Point(None, 0, "float64", "", index, values, words)

    return Sweep(columns, Points(tuple(map(len, columns)), at), (), Asked("python e.py"))


def summary(sweep: Sweep, numbers: Any, holds: Any = lambda _: True) -> Summary:
    seen = Summary(sweep)
    for place, point in enumerate(sweep.points):
        claim = Claim(f"claim of {place}", 0.0 if holds(place) else 9.0, 0.0, {"chance": 1.0}, "")
        number = Headline("number", numbers(place, point), "m", law=1.0, low=0.5, high=2.0)
        seen.put(place, [claim], [number])
    return seen


@pytest.mark.parametrize(
    "axes",
    [
        {"w": np.geomspace(0.1, 10, 8).tolist()},
        {"w": [[0.5], [1.0], [1e300], [-2.0]], "phi": ["tanh", "relu"]},
        {"phi": list("abcdefgh"), "seed": range(3)},
        {"w": np.linspace(1, 2, 8).tolist(), "depth": list(range(8)), "seed": range(2)},
        {"seed": range(120)},
        {"w": [0.5]},
    ],
)
def test_nothing_that_a_number_can_be_ends_in_an_error(axes: dict[str, Any]) -> None:
    values = itertools.cycle(ODD)
    seen = summary(swept(**axes), lambda *_: next(values), lambda place: place % 3)
    drawn = figures.draw(lambda _: overview.figure("What?", seen), None)
    assert drawn["png"].startswith(b"\x89PNG")


def test_points_stand_on_a_log_axis_where_they_are_geometric_and_odd_ones_at_the_rim() -> None:
    w = np.geomspace(0.1, 10, 5).tolist()
    given = dict(enumerate([1.0, -math.inf, 2.0, math.nan, math.inf]))
    seen = summary(swept(w=w), lambda place, _: given[place], lambda place: place != 2)
    panel, strip = overview.figure("What?", seen).axes
    assert panel.get_xscale() == "log"
    rims = {
        line.get_marker(): np.asarray(line.get_xdata()).tolist()
        for line in panel.lines
        if line.get_transform() == panel.get_xaxis_transform()
        and line.get_color() == figures.COLOURS[0]
    }
    assert rims == {"^": [w[4]], "v": [w[1]], "x": [w[3]]}
    (failing,) = [line for line in panel.lines if line.get_color() == figures.COLOURS[1]]
    assert np.asarray(failing.get_xdata()).tolist() == [w[2]]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["claim of …"]


@pytest.mark.parametrize(
    ("axes", "across", "rows", "over", "is_map"),
    [
        ({"depth": [1, 2], "seed": range(9)}, 0, (), (1,), False),
        ({"phi": ["a", "b"], "depth": [1, 2, 4]}, 1, (0,), (), False),
        ({"w": list(range(20)), "b": list(range(9)), "seed": range(3)}, 0, (1,), (2,), True),
        ({"seed": range(500)}, 0, (), (), False),
    ],
)
def test_each_axis_has_its_part(
    axes: dict[str, Any],
    across: int,
    rows: tuple[int, ...],
    over: tuple[int, ...],
    is_map: bool,
) -> None:
    chosen = overview.plan(swept(**axes).axes)
    assert chosen == overview.Plan(across, rows, over, is_map)


def test_geometric_is_told_from_even() -> None:
    assert scales.is_geometric(np.geomspace(1e-3, 1e3, 7))
    assert scales.is_geometric(np.array([10, 100, 1000]))
    assert not scales.is_geometric(np.linspace(1, 100, 7))
    assert not scales.is_geometric(np.array([-1.0, 1.0, 10.0]))
    assert not scales.is_geometric(np.array([1.0, 100.0]))


def test_two_claims_of_a_run_that_differ_in_numbers_alone_are_two() -> None:
    sweep = swept(w=[1.0, 2.0])
    seen = Summary(sweep)
    for place in range(2):
        claims = [Claim(f"{n}^50 is {n}", float(n + place), 1.0, {}, "") for n in range(2)]
        seen.put(place, claims, [])
    assert [verdict.said.tolist() for verdict in seen.verdicts.values()] == [[0, 1], [1, 0]]
