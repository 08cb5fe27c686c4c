"""Panels, marks and the house style; the only room that imports matplotlib.

Measurements are points (`measured`, `band`), predictions are lines (`predicted`), limits are dashed
(`bound`) and what only guides the eye is grey (`rule`); series differ in shade and in mark, so that
they can be told apart in grey and by colour-blind readers. A point that is infinite, or no number,
is drawn at the rim of its panel: nothing that was measured is left out without a mark.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradlab.errors import BadInput

__all__ = [
    "COLOURS",
    "COLUMN",
    "DASHES",
    "EDGE",
    "EXPLODING",
    "GUIDE",
    "LIMIT",
    "MARKS",
    "PAGE",
    "STYLE",
    "THEORY",
    "VANISHING",
    "Axes",
    "Figure",
    "band",
    "bound",
    "draw",
    "ends",
    "key",
    "measured",
    "named",
    "panels",
    "predicted",
    "regime",
    "regions",
    "rule",
    "series",
    "shades",
    "surface",
    "title",
    "titles",
    "words",
]

# Inches; one and two columns of a journal page.
COLUMN, PAGE = 3.4, 7.0

# Okabe and Ito's colours, those that differ in lightness first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
THEORY: dict[str, Any] = {"color": "0.15", "linewidth": 0.9, "zorder": 1.5}
LIMIT: dict[str, Any] = THEORY | {"linestyle": (0, (4, 2))}
GUIDE: dict[str, Any] = {"color": "0.75", "linewidth": 0.6, "zorder": 0}

# What a product of Jacobians does, wherever it is drawn.
VANISHING, EDGE, EXPLODING = COLOURS[0], "0.0", COLOURS[1]

# Marks of a series that has more places than are readable: some twenty of them.
NUM_MARKS = 20

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.2,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.hashsalt": "gradlab",
    "xtick.direction": "out",
    "xtick.labelsize": 6.5,
    "ytick.direction": "out",
    "ytick.labelsize": 6.5,
}

# Without these every file would carry the time of its making and differ from run to run.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}

# Where each format keeps a caption.
_CAPTION = {"png": "Description", "pdf": "Subject", "svg": "Description"}


class _Shown(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return _file(self, "png", "")


def panels(
    rows: int = 1, columns: int = 1, *, width: float = PAGE, height: float = 2.5, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure (inches) and its axes, row by row, each titled with its letter."""
    if not all(isinstance(number, int) and number > 0 for number in (rows, columns)):
        raise BadInput(f"panels are {rows!r} by {columns!r}; allowed: whole numbers above 0")
    figure = _Shown(figsize=(width, height))
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    if len(axes) > 1:
        for letter, axis in zip("abcdefghijkl", axes, strict=False):
            axis.set_title(letter, fontweight="bold")
    return figure, axes


def title(axes: Axes, text: str) -> None:
    """Name a panel after its letter."""
    axes.set_title(" ".join(filter(None, (axes.get_title(loc="left"), text))))


def titles(figure: Figure, *texts: str) -> None:
    """Name the panels of a figure, in their order."""
    for axes, text in zip(figure.axes, texts, strict=False):
        title(axes, text)


def series(count: int) -> Iterator[dict[str, Any]]:
    """A colour, a mark and a dash for each of `count` unordered series."""
    looks = zip(cycle(COLOURS), cycle(MARKS), cycle(DASHES), strict=False)
    for colour, mark, dash in islice(looks, count):
        yield {"color": colour, "marker": mark, "linestyle": dash}


def shades(count: int) -> Iterator[dict[str, Any]]:
    """A shade and a mark for each of `count` ordered values, dark to light in grey too."""
    colours = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, count))
    for colour, mark in zip(colours, cycle(MARKS), strict=False):
        yield {"color": tuple(map(float, colour)), "marker": mark, "linestyle": "none"}


# ---- marks


def predicted(axes: Axes, x: Any, y: Any, label: str | None = None, **style: Any) -> None:
    """A law: a dark line."""
    axes.plot(x, y, **THEORY | style, label=label)


def bound(axes: Axes, x: Any, y: Any, label: str | None = None, **style: Any) -> None:
    """A limit that nothing should cross: a dark dashed line."""
    axes.plot(x, y, **LIMIT | style, label=label)


def rule(axes: Axes, *, x: float | None = None, y: float | None = None, **style: Any) -> None:
    """A grey line that guides the eye, across the panel at `y` or up it at `x`."""
    if y is not None:
        axes.axhline(y, **GUIDE | style)
    if x is not None:
        axes.axvline(x, **GUIDE | style)


def measured(
    axes: Axes, x: Any, y: Any, look: dict[str, Any], label: str | None = None, **style: Any
) -> None:
    """Measurements: marks without a line, some twenty of them.

    What is infinite stands as an arrowhead at the upper or lower rim, and what is no number as a
    cross at the lower one.
    """
    x, y = np.asarray(x), np.asarray(y, dtype=float)
    every = max(1, -(-y.size // NUM_MARKS))
    look = look | {"linestyle": "none", "markevery": every} | style
    axes.plot(x, np.where(np.isfinite(y), y, np.nan), **look, label=label)
    rims = (np.isposinf(y), 0.985, "^"), (np.isneginf(y), 0.015, "v"), (np.isnan(y), 0.015, "x")
    for picked, height, mark in rims:
        if picked.any():
            at_rim = look | {"marker": mark, "markevery": None, "clip_on": False}
            across = axes.get_xaxis_transform()
            axes.plot(x[picked], np.full(picked.sum(), height), **at_rim, transform=across)


def band(
    axes: Axes,
    x: Any,
    draws: Any,
    look: dict[str, Any],
    label: str | None = None,
    *,
    over: str = "draw",
    share: float = 1.0,
) -> None:
    """The median over draws as marks, in a band that holds `share` of the draws (1: all of them).

    `draws` is a labelled array with the axis `over` and one more, x's.
    """
    low, middle, high = draws.quantile([(1 - share) / 2, 0.5, (1 + share) / 2], dim=over).values
    axes.fill_between(x, low, high, color=look["color"], alpha=0.22, linewidth=0)
    measured(axes, x, middle, look, label)


def surface(axes: Axes, values: Any, label: str, **style: Any) -> None:
    """A labelled array over a plane, in shades of grey that leave room for paths, with their bar.

    Its first axis is x, its second y, labelled by their long names; what is drawn later does not
    widen the panel.
    """
    look: dict[str, Any] = {"cmap": "Greys", "alpha": 0.6, "shading": "nearest"} | style
    x, y = (values[dim] for dim in values.dims)
    shown = axes.pcolormesh(x, y, values.T, rasterized=True, **look)
    axes.figure.colorbar(shown, ax=axes, label=label, pad=0.02)
    axes.set(xlim=x[[0, -1]], ylim=y[[0, -1]], xlabel=x.long_name, ylabel=y.long_name)


def key(axes: Axes, looks: dict[str, dict[str, Any]], **options: Any) -> None:
    """A legend that is made of looks alone, by name, besides any that the panel has."""
    before = axes.get_legend()
    handles = [Line2D([], [], **look) for look in looks.values()]
    axes.legend(handles, list(looks), **options)
    if before is not None:
        axes.add_artist(before)


def ends(axes: Axes, x: float, y: Any, gap: float = 0.062, **style: Any) -> None:
    """Names to the right of the ends `(x, y)` of lines, none over another, each with its leader.

    `y` is a labelled array with one axis of names; `gap` is between two names, in heights of the
    panel. Call it when all is drawn: the limits of the panel stay as they are.
    """
    y = y.sortby(y)
    (names,) = (y[dim].values for dim in y.dims)
    low, high = axes.get_ylim()
    axes.set(ylim=(low, high), xlim=axes.get_xlim())
    at = np.clip((y.values - low) / (high - low), 0, 1)
    look: dict[str, Any] = {"fontsize": 6.5, "va": "center", "color": "0.15"} | style
    leader = {
        "arrowstyle": "-",
        "color": "0.6",
        "linewidth": 0.5,
        "shrinkA": 0,
        "shrinkB": 0,
        "relpos": (0, 0.5),
    }
    for name, end, height in zip(names, at, _spread(at, gap), strict=True):
        axes.annotate(
            str(name),
            xy=(x, low + end * (high - low)),
            xytext=(1.04, height),
            textcoords="axes fraction",
            arrowprops=leader,
            annotation_clip=False,
            **look,
        )


def _spread(at: Any, gap: float) -> Any:
    """Heights in increasing order, at least `gap` apart, as near to `at` as least squares say."""
    steps = gap * np.arange(len(at))
    # Isotonic regression of what is left without the steps: pool neighbours that are out of order.
    pools: list[list[float]] = []
    for value in np.asarray(at) - steps:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) + steps


def words(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Words at a place of a panel, in fractions of it: (0, 0) is its lower left corner."""
    look: dict[str, Any] = {"fontsize": 6.5, "color": "0.25"} | style
    axes.text(x, y, text, transform=axes.transAxes, **look)


def named(axes: Axes, x: float, y: float, text: str, colour: Any, **style: Any) -> None:
    """Words beside the point (x, y), in its colour: the name of the line that ends there."""
    look: dict[str, Any] = {"xytext": (5, 0), "va": "center", "annotation_clip": False} | style
    axes.annotate(text, (x, y), textcoords="offset points", color=colour, **look)


def regime(factor: float) -> str:
    """The colour of what a layer multiplies by that factor."""
    return EDGE if factor == 1 else EXPLODING if factor > 1 else VANISHING


def regions(axes: Axes, low: float, high: float) -> None:
    """A log axis from `low` to `high`, tinted and named where products vanish and explode."""
    axes.set(yscale="log", ylim=(low, high))
    for edge, colour, height, text in (
        (low, VANISHING, 0.03, "vanishing"),
        (high, EXPLODING, 0.93, "exploding"),
    ):
        axes.axhspan(1, edge, color=colour, alpha=0.06, linewidth=0)
        words(axes, 0.62, height, text, color=colour, fontsize=9, style="italic", ha="center")


# ---- files


def draw(figure: Callable[[Any], Figure], data: Any, caption: str = "") -> dict[str, bytes]:
    """The figure of the data in the house style, by file ending: png, pdf and svg.

    The caption goes into each file's metadata.

    A panel whose axes have no labels is warned of, which fails a test but loses no run.

    Raises:
        BadInput: what `figure` returns is no figure.
    """
    with mpl.rc_context(STYLE):
        drawn = figure(data)
        if not isinstance(drawn, Figure):
            raise BadInput(
                f"figure returns {type(drawn).__name__}; allowed: what gl.figures.panels made"
            )
        _check_labels(drawn)
        return {ending: _file(drawn, ending, caption) for ending in _METADATA}


def _check_labels(drawn: Figure) -> None:
    for number, axes in enumerate(drawn.axes, start=1):
        if not axes.axison or not axes.has_data() or axes.get_label() == "<colorbar>":
            continue
        shared = {"x": axes.get_shared_x_axes(), "y": axes.get_shared_y_axes()}
        for name, groups in shared.items():
            if not any(getattr(one, f"get_{name}label")() for one in groups.get_siblings(axes)):
                warnings.warn(
                    f"panel {number} of the figure has no label on its {name} axis: "
                    f"axes.set_{name}label(...) with the quantity and its unit",
                    stacklevel=3,
                )


def _file(figure: Figure, ending: str, caption: str) -> bytes:
    file = io.BytesIO()
    told = {_CAPTION[ending]: caption} if caption else {}
    figure.savefig(file, format=ending, metadata=_METADATA[ending] | told)
    return file.getvalue()
