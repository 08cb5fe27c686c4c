"""Panels, marks and the house style; the only room that imports matplotlib.

Measurements are points, predictions are lines; series differ in shade and in mark or dash, so
that they can be told apart in grey and by colour-blind readers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "COLUMN",
    "DASHES",
    "MARKS",
    "PAGE",
    "STYLE",
    "THEORY",
    "Axes",
    "Figure",
    "draw",
    "panels",
    "series",
    "shades",
    "title",
]

# Inches; one and two columns of a journal page.
COLUMN, PAGE = 3.4, 7.0

# Okabe and Ito's colours, those that differ in lightness first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
THEORY: dict[str, Any] = {"color": "0.15", "linewidth": 0.9, "zorder": 1.5}

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
_METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


def panels(
    rows: int = 1, columns: int = 1, *, width: float = PAGE, height: float = 2.5, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure (inches) and its axes, row by row, each titled with its letter."""
    figure = Figure(figsize=(width, height))
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    if len(axes) > 1:
        for letter, axis in zip("abcdefghijkl", axes, strict=False):
            axis.set_title(letter, fontweight="bold")
    return figure, axes


def title(axes: Axes, text: str) -> None:
    """Name a panel after its letter."""
    axes.set_title(" ".join(filter(None, (axes.get_title(loc="left"), text))))


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


def draw(figure: Callable[[Any], Figure], data: Any) -> dict[str, bytes]:
    """The figure of the data in the house style, by file ending: png, pdf and svg."""
    with mpl.rc_context(STYLE):
        drawn = figure(data)
        return {ending: _file(drawn, ending) for ending in _METADATA}


def _file(figure: Figure, ending: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=ending, metadata=_METADATA[ending])
    return file.getvalue()
