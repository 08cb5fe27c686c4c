"""Which claims of a sweep hold where: one compact strip, and the points that fail by name."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gradlab.experiment import figures
from gradlab.sweeping.points import Axis
from gradlab.sweeping.scales import MOST_TICKS, labels, named, short, thinned
from gradlab.sweeping.summary import FAILS, HOLDS, NOT_MADE, Summary, Verdict

MOST_ROWS, MOST_NAMED = 12, 3

_SHADES = {HOLDS: "0.86", FAILS: figures.COLOURS[1], NOT_MADE: "1.0"}
_SOME = figures.COLOURS[5]


def rows_of(seen: Summary) -> list[tuple[str, Any]]:
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


def draw_strip(
    axes: figures.Axes,
    rows: Sequence[tuple[str, Any]],
    seen: Summary,
    swept: Axis,
    across: Callable[[Any], Any],
) -> None:
    """A line for each row of claims, a cell for each place across.

    `across` gives values of all points as `(places along the swept axis, ...)`.
    """
    if not rows:
        axes.set_axis_off()
        axes.text(0, 0.5, "no claims", fontsize=6.5)
        return
    for height, (_, said) in enumerate(rows):
        cells = across(said).reshape(len(swept), -1)
        for start, stop, shade, mark in _runs(cells):
            axes.barh(height, stop - start, left=start, height=0.8, color=shade, linewidth=0)
            if mark and len(swept) <= 8 * MOST_TICKS:
                middles = np.arange(start, stop) + 0.5
                axes.plot(middles, np.full(middles.size, height), mark, color="k", markersize=3)
    axes.set_yticks(range(len(rows)), [words for words, _ in rows], fontsize=6)
    axes.set(xlim=(0, len(swept)), ylim=(len(rows) - 0.5, -0.5))
    every, look = thinned(swept, 70)
    axes.set_xticks(np.arange(0, len(swept), every) + 0.5, labels(swept)[::every], **look)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set(xlabel=named(swept), ylabel=" ")
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


def told(seen: Summary) -> list[str]:
    """What failed, by name, in lines."""
    lines: list[str] = []
    for failed, what in ((seen.failing, "a claim fails (×)"), (seen.unfinished, "no result (○)")):
        places_of = np.flatnonzero(failed)
        if places_of.size:
            values = [seen.point(int(place)).values for place in places_of[:MOST_NAMED]]
            names = [" ".join(f"{k}={short(v)}" for k, v in held.items()) for held in values]
            more = f" and {places_of.size - MOST_NAMED} more" * (places_of.size > MOST_NAMED)
            line = f"{what} at {'; '.join(names)}{more}"
            lines += textwrap.wrap(line, 120)
    return lines
