"""The figure of a sweep: its headline numbers over what was swept, and which claims hold where.

One axis gives points with their intervals on the law's line, a second one a series for each of its
values, or a map where both are long; seeds become a band, and a histogram where they are alone and
many. What is infinite or no number stands at the rim, and points that fail are named.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.experiment import figures
from gradlab.sweeping import strip
from gradlab.sweeping.points import Axis
from gradlab.sweeping.scales import (
    LARGEST,
    MOST_TICKS,
    SMALLEST,
    is_numeric,
    labels,
    positions,
    set_across,
)
from gradlab.sweeping.summary import HeadlineOver, Summary

MOST_SERIES, MANY_SEEDS = 6, 100

# So many decades of positive numbers are drawn on a log axis.
_DECADES_OF_LOG = 3.0

_FAIL: dict[str, Any] = {"color": figures.COLOURS[1], "linestyle": "none", "clip_on": False}


@dataclass(frozen=True)
class Plan:
    """What the axes of a sweep are in its panels, by their number.

    Attributes:
        across: the one that the panels' x axis is.
        rows: those whose values are series, or the second direction of a map.
        over: those over which a band is drawn.
        is_map: whether the panels are maps.
    """

    across: int
    rows: tuple[int, ...]
    over: tuple[int, ...]
    is_map: bool = False


def plan(axes: Sequence[Axis]) -> Plan:
    """What each axis of a sweep is drawn as."""
    long = [number for number, axis in enumerate(axes) if len(axis) > 1] or [0]
    seeds = [number for number in long if axes[number].name == "seed" and len(long) > 1]
    free = [number for number in long if number not in seeds]
    across = max(free, key=lambda number: (is_numeric(axes[number]), len(axes[number])))
    rest = [number for number in free if number != across]
    if math.prod(len(axes[number]) for number in rest) <= MOST_SERIES:
        return Plan(across, tuple(rest), tuple(seeds))
    second = max(rest, key=lambda number: (is_numeric(axes[number]), len(axes[number])))
    over = (*(number for number in rest if number != second), *seeds)
    return Plan(across, (second,), over, is_map=len(axes[second]) > MOST_SERIES)


def figure(question: str, seen: Summary) -> figures.Figure:
    """The panels of the headline numbers, and the strip of claims below them."""
    chosen = plan(seen.sweep.axes)
    numbers = [number for number in seen.numbers.values() if number.there.any()]
    rows = strip.rows_of(seen)
    columns = min(2, max(1, len(numbers)))
    lines = -(-len(numbers) // columns)
    lines_of_ticks = max(name.count("\n") for name in labels(seen.sweep.axes[chosen.across]))
    heights = [max(0.3, 2.35 * lines), 0.55 + 0.24 * len(rows) + 0.1 * lines_of_ticks]
    failed = [*strip.told(seen), *_rims(numbers)]
    heights[1] += 0.12 * len(failed)
    drawn = figures.Figure(figsize=(figures.PAGE, sum(heights) + 0.35))
    parts: Any = drawn.subfigures(2, 1, height_ratios=heights)
    above, below = parts
    if numbers:
        panels = above.subplots(lines, columns, squeeze=False).flat
        for panel, number in itertools.zip_longest(panels, numbers):
            if number is None:
                panel.set_axis_off()
            else:
                _panel(panel, number, seen, chosen)
    else:
        above.text(0.01, 0.3, "no headline numbers: the experiment may define headline(data)")
    swept = seen.sweep.axes[chosen.across]
    strip.draw_strip(below.subplots(), rows, seen, swept, lambda one: _by_role(one, seen, chosen))
    if failed:
        below.supxlabel("\n".join(failed), x=0.01, ha="left", fontsize=6.5)
    drawn.suptitle("\n".join(textwrap.wrap(question, 105)), x=0.01, ha="left", fontsize=8)
    return drawn


def _rims(numbers: Sequence[HeadlineOver]) -> list[str]:
    """What the marks at the rims of panels stand for, in a line; none where there are none."""
    held = np.concatenate([number.parts["value"][number.there] for number in numbers] or [[]])
    kinds = (
        ("▲ infinite, or too large to be drawn", held > LARGEST),
        ("▼ minus infinity, or as far below", held < -LARGEST),
        ("× no number", np.isnan(held)),
    )
    there = [words for words, those in kinds if those.any()]
    return [f"at the rim of a panel: {'; '.join(there)}"] if there else []


# ---- one number


def _by_role(values: Any, seen: Summary, chosen: Plan) -> Any:
    """Values of all points as `(across, rows, over)`."""
    shape = seen.sweep.shape
    order = (chosen.across, *chosen.rows, *chosen.over)
    order += tuple(number for number in range(len(shape)) if number not in order)
    num_rows = math.prod(shape[number] for number in chosen.rows)
    ordered = values.reshape(shape).transpose(order)
    return ordered.reshape(shape[chosen.across], num_rows, -1)


def _panel(axes: figures.Axes, number: HeadlineOver, seen: Summary, chosen: Plan) -> None:
    parts = {name: _by_role(held, seen, chosen) for name, held in number.parts.items()}
    there = _by_role(number.there, seen, chosen)
    swept = seen.sweep.axes[chosen.across]
    if swept.name == "seed" and len(swept) >= MANY_SEEDS:
        _histogram(axes, parts, number)
    elif chosen.is_map:
        _map(axes, parts, there, number, seen, chosen)
    else:
        _series(axes, parts, there, number, seen, chosen)
    figures.title(axes, number.name)


def _name(number: HeadlineOver) -> str:
    return number.unit or number.name


def _is_log(values: Any) -> bool:
    """Whether all numbers that can be drawn are positive, over several decades."""
    held = values[np.isfinite(values)]
    if not held.size or held.min() <= 0:
        return False
    return bool(np.log10(held.max()) - np.log10(held.min()) > _DECADES_OF_LOG)


def _drawable(values: Any, log: bool) -> Any:
    """Which values a panel can show; the others stand at its rim."""
    size = np.abs(values)
    return np.isfinite(values) & (size < LARGEST) & ((size > SMALLEST) | (not log))


def _series(
    axes: figures.Axes,
    parts: dict[str, Any],
    there: Any,
    number: HeadlineOver,
    seen: Summary,
    chosen: Plan,
) -> None:
    x, log = positions(seen.sweep.axes[chosen.across]), _is_log(parts["value"][there])
    names = list(_row_names(seen, chosen))
    for row, (name, look) in enumerate(zip(names, figures.series(len(names)), strict=True)):
        value, law, low, high = (parts[part][:, row] for part in ("value", "law", "low", "high"))
        _law(axes, x, law, look if len(names) > 1 else figures.THEORY)
        if value.shape[1] > 1:
            _band(axes, x, value, look, log)
            middle = np.array([_middle(some, log) for some in value])
        else:
            middle = np.where(_drawable(value[:, 0], log), value[:, 0], np.nan)
            _intervals(axes, x, middle, low[:, 0], high[:, 0], look, log)
        axes.plot(x, middle, **look | {"linestyle": "none"}, label=name or None)
        _at_rims(axes, x, value, there[:, row], look, log)
    if log:
        axes.set_yscale("log")
    set_across(axes, seen.sweep.axes[chosen.across])
    axes.set_ylabel(_name(number))
    _mark_failing(axes, x, seen, chosen)
    if len(names) > 1:
        keys = ", ".join(key for at in chosen.rows for key in seen.sweep.axes[at].columns)
        axes.legend(title=keys, ncols=-(-len(names) // 3))


def _row_names(seen: Summary, chosen: Plan) -> Iterator[str]:
    """The name of each series: the values of the keys that it stands for."""
    of_axes = [labels(seen.sweep.axes[number]) for number in chosen.rows]
    for values in itertools.product(*of_axes):
        yield ", ".join(values).replace("\n", " ")


def _law(axes: figures.Axes, x: Any, law: Any, look: dict[str, Any]) -> None:
    """The law's line: its mean over a band, where it is known and can be drawn."""
    known = np.where(_drawable(law, log=False), law, np.nan)
    if np.isnan(known).all():
        return
    with np.errstate(invalid="ignore"):
        line = [
            np.median(row[~np.isnan(row)]) if not np.isnan(row).all() else np.nan for row in known
        ]
    order = np.argsort(x)
    style: dict[str, Any] = {"color": look["color"], "linewidth": 0.9, "zorder": 1.5}
    # One point has no line.
    mark: dict[str, Any] = {"marker": "_", "markersize": 12} if np.isfinite(line).sum() == 1 else {}
    axes.plot(x[order], np.array(line)[order], **style, **mark)


def _middle(values: Any, log: bool) -> float:
    shown = values[_drawable(values, log)]
    return float(np.median(shown)) if shown.size else math.nan


def _band(axes: figures.Axes, x: Any, values: Any, look: dict[str, Any], log: bool) -> None:
    """From the smallest to the largest; of very many, what holds nine tenths of them."""
    outer = (5, 95) if values.shape[1] > 4 * MOST_TICKS else (0, 100)
    ends = np.full((len(x), 2), np.nan)
    for at, some in enumerate(values):
        shown = some[_drawable(some, log)]
        if shown.size:
            ends[at] = np.percentile(shown, outer)
    order = np.argsort(x)
    axes.fill_between(x[order], *ends[order].T, color=look["color"], alpha=0.2, linewidth=0)


def _intervals(
    axes: figures.Axes, x: Any, middle: Any, low: Any, high: Any, look: dict[str, Any], log: bool
) -> None:
    known = np.isfinite(middle) & _drawable(low, log) & _drawable(high, log)
    if known.any():
        ends = np.stack([middle - low, high - middle])[:, known]
        style = {"color": look["color"], "linestyle": "none", "elinewidth": 0.7, "capsize": 1.5}
        axes.errorbar(x[known], middle[known], np.maximum(ends, 0), **style)


def _at_rims(
    axes: figures.Axes, x: Any, values: Any, there: Any, look: dict[str, Any], log: bool
) -> None:
    """Marks for what cannot be drawn in its place: up, down, and no number."""
    beyond = ~_drawable(values, log) & there
    small = (values < 0) | (np.abs(values) < 1)
    kinds = (
        (beyond & ~small & ~np.isnan(values), 0.94, "^"),
        (beyond & small & ~np.isnan(values), 0.03, "v"),
        (beyond & np.isnan(values), 0.03, "x"),
    )
    for picked, height, mark in kinds:
        at = picked.any(axis=1)
        if at.any():
            style = look | {"marker": mark, "linestyle": "none", "markersize": 5, "clip_on": False}
            across = axes.get_xaxis_transform()
            axes.plot(x[at], np.full(at.sum(), height), **style, transform=across)


def _mark_failing(axes: figures.Axes, x: Any, seen: Summary, chosen: Plan) -> None:
    """A cross on the upper rim where a claim fails, a ring where there is no result."""
    for failed, mark in ((seen.failing, "x"), (seen.unfinished, "o")):
        at = _by_role(failed, seen, chosen).any(axis=(1, 2))
        if at.any():
            style = _FAIL | {"marker": mark, "fillstyle": "none", "markersize": 4.5}
            across = axes.get_xaxis_transform()
            axes.plot(x[at], np.full(at.sum(), 1.0), **style, transform=across)


def _histogram(axes: figures.Axes, parts: dict[str, Any], number: HeadlineOver) -> None:
    """How often each value was found over seeds, and the law."""
    values = parts["value"].ravel()
    shown = values[_drawable(values, log=False)]
    if shown.size:
        bins = min(60, max(1, round(2 * shown.size ** (1 / 3)))) if np.ptp(shown) else 1
        axes.hist(shown, bins=bins, color=figures.COLOURS[0], alpha=0.6)
        axes.axvline(np.median(shown), color=figures.COLOURS[0], label="median")
    law = parts["law"].ravel()
    law = law[_drawable(law, log=False)]
    if law.size:
        axes.axvline(np.median(law), **figures.LIMIT, label="law")
    if shown.size:
        axes.legend()
    out = values.size - shown.size
    if out:
        figures.words(axes, 0.98, 0.9, f"{out} of {values.size}: inf or nan", ha="right")
    axes.set(xlabel=_name(number), ylabel="seeds")


def _map(
    axes: figures.Axes,
    parts: dict[str, Any],
    there: Any,
    number: HeadlineOver,
    seen: Summary,
    chosen: Plan,
) -> None:
    """The median over what is left, in colour; the law as contour lines."""
    across, up = (seen.sweep.axes[n] for n in (chosen.across, chosen.rows[0]))
    x, y, log = positions(across), positions(up), _is_log(parts["value"][there])
    middle = np.array([[_middle(cell, log) for cell in row] for row in parts["value"]])
    columns, rows = np.argsort(x), np.argsort(y)
    style: dict[str, Any] = {"shading": "nearest", "cmap": "cividis", "rasterized": True}
    shown = middle[np.ix_(columns, rows)].T
    mesh = axes.pcolormesh(x[columns], y[rows], shown, norm="log" if log else None, **style)
    bar = axes.inset_axes((1.02, 0.0, 0.03, 1.0))
    axes.figure.colorbar(mesh, cax=bar, label=_name(number))
    law = np.array([[_middle(cell, log) for cell in row] for row in parts["law"]])
    law = law[np.ix_(columns, rows)].T
    if min(law.shape) > 2 and np.isfinite(law).all() and np.ptp(law):
        axes.contour(x[columns], y[rows], law, colors="0.95", linewidths=0.6)
    set_across(axes, across)
    set_across(axes, up, "y")
    rims = (np.isposinf, "^"), (np.isneginf, "v"), (np.isnan, "x")
    for test, mark in rims:
        at = np.argwhere((test(parts["value"]) & there).any(axis=2))
        axes.plot(x[at[:, 0]], y[at[:, 1]], marker=mark, color="k", linestyle="none", markersize=2)
    for failed, mark in ((seen.failing, "x"), (seen.unfinished, "o")):
        at = np.argwhere(_by_role(failed, seen, chosen).any(axis=2))
        style = _FAIL | {"marker": mark, "fillstyle": "none", "markersize": 2, "clip_on": True}
        axes.plot(x[at[:, 0]], y[at[:, 1]], **style)
