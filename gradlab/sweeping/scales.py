"""Where the values of a swept axis stand on a panel, and what its ticks say."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.experiment import figures
from gradlab.sweeping.points import Axis

MOST_TICKS, MOST_NAMES = 9, 6

# Beyond these a panel cannot show a number, nor place a tick beside it.
LARGEST, SMALLEST = 1e290, 1e-290


def is_numeric(axis: Axis) -> bool:
    """Whether an axis is drawn by its values, and not as names in a row."""
    if len(axis.columns) > 1:
        return False
    values = [_bare(value) for value in _ends(next(iter(axis.columns.values())))]
    return all(
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (value == 0 or SMALLEST < abs(value) < LARGEST)
        for value in values
    )


def _ends(values: Sequence[Any]) -> Sequence[Any]:
    return (values[0], values[-1]) if isinstance(values, range) else values


def _bare(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def positions(axis: Axis) -> Any:
    """Where the values of an axis stand on a panel."""
    if is_numeric(axis):
        (values,) = axis.columns.values()
        return np.array([_bare(value) for value in values], dtype=float)
    return np.arange(len(axis), dtype=float)


def is_geometric(values: Any) -> bool:
    """Whether positive values are spaced more evenly over their logarithm than as they are."""
    x = np.sort(np.unique(values))
    if x.size < 3 or x[0] <= 0 or x[-1] / x[0] < 4:
        return False
    steps, ratios = np.diff(x), np.diff(np.log(x))
    return bool(np.std(ratios) / np.mean(ratios) < 0.9 * np.std(steps) / np.mean(steps))


def labels(axis: Axis, every: int = 1) -> list[str]:
    """The values of an axis as its ticks say them, every so many of them."""
    places = range(0, len(axis), every)
    rows = [tuple(column[row] for column in axis.columns.values()) for row in places]
    if len(axis.columns) == 1:
        return [short(row[0]) for row in rows]
    if len(axis) > MOST_NAMES:  # of which the table of the data says more
        return list(map(str, places))
    return [
        "\n".join(f"{key}={short(value)}" for key, value in zip(axis.columns, row, strict=True))
        for row in rows
    ]


def short(value: Any) -> str:
    """A value in few letters."""
    value = _bare(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return textwrap.shorten(", ".join(map(short, value)), 24, placeholder="…")
    return textwrap.shorten(str(value), 24, placeholder="…")


def set_across(axes: figures.Axes, axis: Axis, which: str = "x") -> None:
    """Scale, ticks and name of one direction of a panel."""
    numeric, x = is_numeric(axis), positions(axis)
    if numeric and is_geometric(x):
        getattr(axes, f"set_{which}scale")("log")
    few_decades = numeric and x.min() > 0 and x.max() < 100 * x.min()
    if len(axis) <= MOST_TICKS or not numeric or (is_geometric(x) and few_decades):
        every, look = thinned(axis, 45) if which == "x" else (_every(axis, MOST_TICKS), {})
        getattr(axes, f"set_{which}ticks")(x[::every], labels(axis, every), **look)
        getattr(axes, f"set_{which}ticks")([], minor=True)
    getattr(axes, f"set_{which}label")(named(axis))


def _every(axis: Axis, most: int) -> int:
    return max(1, -(-len(axis) // most))


def thinned(axis: Axis, room: int) -> tuple[int, dict[str, Any]]:
    """Every which value has a tick where there is room for so many letters, and its look."""
    every = _every(axis, 2 * MOST_TICKS)
    if not is_numeric(axis):
        turned = _width(labels(axis, every)) > 1.4 * room
        return every, {"rotation": 90, "fontsize": 5.5} if turned else {}
    while every < len(axis) and _width(labels(axis, every)) > room:
        every += 1
    return every, {}


def _width(names: Sequence[str]) -> int:
    """How wide names are side by side, in letters."""
    return len(names) * max(len(line) for name in names for line in name.splitlines())


def named(axis: Axis) -> str:
    """What an axis is called below a panel."""
    return axis.name if len(axis.columns) == 1 else f"{axis.name} ({', '.join(axis.columns)})"
