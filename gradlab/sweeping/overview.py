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
from gradlab.sweeping.points import Axis
from gradlab.sweeping.summary import FAILS, HOLDS, NOT_MADE, Number, Summary, Verdict

MOST_SERIES, MOST_TICKS, MOST_ROWS, MOST_NAMED, MANY_SEEDS = 6, 9, 12, 3, 100

# Beyond these a panel cannot show a number, nor place a tick beside it.
LARGEST, SMALLEST = 1e290, 1e-290

# So many decades of positive numbers are drawn on a log axis.
_DECADES_OF_LOG = 3.0

_FAIL: dict[str, Any] = {"color": figures.COLOURS[1], "linestyle": "none", "clip_on": False}
_SHADES = {HOLDS: "0.86", FAILS: figures.COLOURS[1], NOT_MADE: "1.0"}
_SOME = figures.COLOURS[5]


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
    rows = _strip_rows(seen)
    columns = min(2, max(1, len(numbers)))
    lines = -(-len(numbers) // columns)
    lines_of_ticks = max(name.count("\n") for name in labels(seen.sweep.axes[chosen.across]))
    heights = [max(0.3, 2.35 * lines), 0.55 + 0.24 * len(rows) + 0.1 * lines_of_ticks]
    told = _told(seen)
    heights[1] += 0.12 * len(told)
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
    _strip(below.subplots(), rows, seen, chosen)
    if told:
        below.supxlabel("\n".join(told), x=0.01, ha="left", fontsize=6.5)
    drawn.suptitle("\n".join(textwrap.wrap(question, 105)), x=0.01, ha="left", fontsize=8)
    return drawn


# ---- places along an axis


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


def places(axis: Axis) -> Any:
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


def labels(axis: Axis) -> list[str]:
    """The values of an axis as its ticks say them."""
    rows = zip(*axis.columns.values(), strict=True)
    if len(axis.columns) == 1:
        return [_short(row[0]) for row in rows]
    if len(axis) > MOST_SERIES:  # of which the table of the data says more
        return [str(row) for row in range(len(axis))]
    return [
        "\n".join(f"{key}={_short(value)}" for key, value in zip(axis.columns, row, strict=True))
        for row in rows
    ]


def _short(value: Any) -> str:
    value = _bare(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return textwrap.shorten(", ".join(map(_short, value)), 24, placeholder="…")
    return textwrap.shorten(str(value), 24, placeholder="…")


def _set_across(axes: figures.Axes, axis: Axis, which: str = "x") -> None:
    """Scale, ticks and name of one direction of a panel."""
    numeric, x = is_numeric(axis), places(axis)
    if numeric and is_geometric(x):
        getattr(axes, f"set_{which}scale")("log")
    few_decades = numeric and x.min() > 0 and x.max() < 100 * x.min()
    if len(axis) <= MOST_TICKS or not numeric or (is_geometric(x) and few_decades):
        every, look = _thinned(axis, 45) if which == "x" else (_every(axis, MOST_TICKS), {})
        getattr(axes, f"set_{which}ticks")(x[::every], labels(axis)[::every], **look)
        getattr(axes, f"set_{which}ticks")([], minor=True)
    getattr(axes, f"set_{which}label")(_named(axis))


def _every(axis: Axis, most: int) -> int:
    return max(1, -(-len(axis) // most))


def _thinned(axis: Axis, room: int) -> tuple[int, dict[str, Any]]:
    """Every which value has a tick where there is room for so many letters, and its look."""
    every = _every(axis, 2 * MOST_TICKS)
    if not is_numeric(axis):
        turned = _width(labels(axis)[::every]) > 1.4 * room
        return every, {"rotation": 90, "fontsize": 5.5} if turned else {}
    while every < len(axis) and _width(labels(axis)[::every]) > room:
        every += 1
    return every, {}


def _width(names: Sequence[str]) -> int:
    """How wide names are side by side, in letters."""
    return len(names) * max(len(line) for name in names for line in name.splitlines())


def _named(axis: Axis) -> str:
    return axis.name if len(axis.columns) == 1 else f"{axis.name} ({', '.join(axis.columns)})"


# ---- one number


def _by_role(values: Any, seen: Summary, chosen: Plan) -> Any:
    """Values of all points as `(across, rows, over)`."""
    shape = seen.sweep.shape
    order = (chosen.across, *chosen.rows, *chosen.over)
    order += tuple(number for number in range(len(shape)) if number not in order)
    num_rows = math.prod(shape[number] for number in chosen.rows)
    ordered = values.reshape(shape).transpose(order)
    return ordered.reshape(shape[chosen.across], num_rows, -1)


def _panel(axes: figures.Axes, number: Number, seen: Summary, chosen: Plan) -> None:
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


def _name(number: Number) -> str:
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
    number: Number,
    seen: Summary,
    chosen: Plan,
) -> None:
    x, log = places(seen.sweep.axes[chosen.across]), _is_log(parts["value"][there])
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
    _set_across(axes, seen.sweep.axes[chosen.across])
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


def _histogram(axes: figures.Axes, parts: dict[str, Any], number: Number) -> None:
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
    number: Number,
    seen: Summary,
    chosen: Plan,
) -> None:
    """The median over what is left, in colour; the law as contour lines."""
    across, up = (seen.sweep.axes[n] for n in (chosen.across, chosen.rows[0]))
    x, y, log = places(across), places(up), _is_log(parts["value"][there])
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
    _set_across(axes, across)
    _set_across(axes, up, "y")
    rims = (np.isposinf, "^"), (np.isneginf, "v"), (np.isnan, "x")
    for test, mark in rims:
        at = np.argwhere((test(parts["value"]) & there).any(axis=2))
        axes.plot(x[at[:, 0]], y[at[:, 1]], marker=mark, color="k", linestyle="none", markersize=2)
    for failed, mark in ((seen.failing, "x"), (seen.unfinished, "o")):
        at = np.argwhere(_by_role(failed, seen, chosen).any(axis=2))
        style = _FAIL | {"marker": mark, "fillstyle": "none", "markersize": 2}
        axes.plot(x[at[:, 0]], y[at[:, 1]], **style)


# ---- which claims hold where


def _strip_rows(seen: Summary) -> list[tuple[str, Any]]:
    """A row for each claim that fails somewhere, and one for all that do not: words, and said."""
    fail = [one for one in seen.verdicts.values() if (one.said == FAILS).any()]
    hold = [one for one in seen.verdicts.values() if not (one.said == FAILS).any()]
    rows = [(_wrapped(one), one.said) for one in fail[:MOST_ROWS]]
    if len(fail) > MOST_ROWS:
        said = np.min([np.where(one.said == NOT_MADE, HOLDS, one.said) for one in fail], axis=0)
        rows[-1] = (f"{len(fail) - MOST_ROWS + 1} more that fail somewhere", said)
    if hold:
        words = "the claim holds" if len(hold) == 1 else f"{len(hold)} claims hold"
        every = "" if seen.unfinished.any() else " at every point"
        words = f"{'the other ' if fail and len(hold) > 1 else ''}{words}{every}"
        rows.append((words, np.max([one.said for one in hold], axis=0)))
    return rows


def _wrapped(verdict: Verdict) -> str:
    return "\n".join(textwrap.wrap(verdict.sentence, 62, max_lines=2, placeholder=" …"))


def _strip(
    axes: figures.Axes, rows: Sequence[tuple[str, Any]], seen: Summary, chosen: Plan
) -> None:
    """A line for each row of claims, a cell for each place across."""
    swept = seen.sweep.axes[chosen.across]
    if not rows:
        axes.set_axis_off()
        axes.text(0, 0.5, "no claims", fontsize=6.5)
        return
    for height, (_, said) in enumerate(rows):
        cells = _by_role(said, seen, chosen).reshape(len(swept), -1)
        for start, stop, shade, mark in _runs(cells):
            axes.barh(height, stop - start, left=start, height=0.8, color=shade, linewidth=0)
            if mark and len(swept) <= 8 * MOST_TICKS:
                middles = np.arange(start, stop) + 0.5
                axes.plot(middles, np.full(middles.size, height), mark, color="k", markersize=3)
    axes.set_yticks(range(len(rows)), [words for words, _ in rows], fontsize=6)
    axes.set(xlim=(0, len(swept)), ylim=(len(rows) - 0.5, -0.5))
    every, look = _thinned(swept, 70)
    axes.set_xticks(np.arange(0, len(swept), every) + 0.5, labels(swept)[::every], **look)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set(xlabel=_named(swept), ylabel=" ")
    if seen.failing.any():
        words = "grey: holds; red ×: fails; yellow ·: fails at some of the points"
        figures.words(axes, 1.0, 1.03, words, ha="right", va="bottom", fontsize=6)


def _runs(cells: Any) -> Iterator[tuple[int, int, str, str]]:
    """Neighbouring cells of one shade: start, stop, the shade and its mark."""
    looks = [_look(cell) for cell in cells]
    start = 0
    for look, run in itertools.groupby(looks):
        stop = start + len(list(run))
        yield start, stop, *look
        start = stop


def _look(cell: Any) -> tuple[str, str]:
    made = cell[cell != NOT_MADE]
    if not made.size:
        return _SHADES[NOT_MADE], ""
    if (made == HOLDS).all():
        return _SHADES[HOLDS], ""
    return (_SHADES[FAILS], "x") if (made == FAILS).all() else (_SOME, ".")


def _told(seen: Summary) -> list[str]:
    """What failed, by name, in lines."""
    lines: list[str] = []
    for failed, what in ((seen.failing, "a claim fails (×)"), (seen.unfinished, "no result (○)")):
        places_of = np.flatnonzero(failed)
        if places_of.size:
            values = [seen.point(int(place)).values for place in places_of[:MOST_NAMED]]
            names = [" ".join(f"{k}={_short(v)}" for k, v in held.items()) for held in values]
            more = f" and {places_of.size - MOST_NAMED} more" * (places_of.size > MOST_NAMED)
            line = f"{what} at {'; '.join(names)}{more}"
            lines += textwrap.wrap(line, 120)
    return lines
