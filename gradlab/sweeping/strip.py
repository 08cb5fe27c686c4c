"""Which claims of a sweep hold where: one compact strip, and the points that fail by name."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradlab.experiment import figures
from gradlab.sweeping.points import Axis
from gradlab.sweeping.scales import MOST_TICKS, labels, named, short, thinned
from gradlab.sweeping.summary import FAILS, HOLDS, NOT_MADE, Summary, Verdict

MOST_ROWS, MOST_NAMED = 12, 3

# The shade and the mark of a cell: no claim was made, it holds, it fails, it does one or the other.
_LOOKS = (("1.0", ""), ("0.86", ""), (figures.COLOURS[1], "x"), (figures.COLOURS[5], "."))


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
        starts, kinds = _runs(cells)
        runs = list(zip(starts[:-1], np.diff(starts), strict=True))
        shades = [_LOOKS[kind][0] for kind in kinds]
        axes.broken_barh(runs, (height - 0.4, 0.8), color=shades, linewidth=0)
        for (start, length), kind in zip(runs, kinds, strict=True):
            if _LOOKS[kind][1] and len(swept) <= 8 * MOST_TICKS:
                middles = np.arange(start, start + length) + 0.5
                axes.plot(
                    middles, np.full(length, height), _LOOKS[kind][1], color="k", markersize=3
                )
    axes.set_yticks(range(len(rows)), [words for words, _ in rows], fontsize=6)
    axes.set(xlim=(0, len(swept)), ylim=(len(rows) - 0.5, -0.5))
    every, look = thinned(swept, 70)
    axes.set_xticks(np.arange(0, len(swept), every) + 0.5, labels(swept, every), **look)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set(xlabel=named(swept), ylabel=" ")
    if seen.failing.any():
        words = "grey: holds; red ×: fails; yellow ·: fails at some of the points"
        figures.words(axes, 1.0, 1.03, words, ha="right", va="bottom", fontsize=6)


def _runs(cells: Any) -> tuple[Any, Any]:
    """Where runs of neighbouring cells of one kind start, and the end; and the kind of each."""
    kinds = (cells == HOLDS).any(axis=1) + 2 * (cells == FAILS).any(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(kinds)) + 1])
    return np.append(starts, len(kinds)), kinds[starts]


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
