"""Pictures of a figure at rest, for a page whose script does not run: from the same payload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from gradlab.experiment import lesson
from gradlab.page import numbers

WEIGHTS = (0.9, 1.0, 1.1)
REGIMES = ("vanishing", "edge", "exploding")
MOVERS = ("is-plain", "is-clipped", "is-residual")
DECADES = 10.0


def bars(payload: Mapping[str, Any]) -> Markup:
    """Three rows of layers, each bar the gradient in one of them, as an SVG."""
    rows = []
    for place, (w, line) in enumerate(_lines(payload)):
        foot, depth = 90 * (place + 1), min(50, len(line))
        values = 10.0 ** np.concatenate([[0.0], line[:depth]])
        arrives = f"w = {w:g}: {_magnitude(line[depth - 1])} arrives {depth} layers back"
        told = arrives + ("; bars end at 2" if values.max() > 2 else "")
        rows.append(
            Markup('<text x="0" y="{}">{}</text>').format(foot - 66, told)
            + Markup("").join(
                Markup('<rect class="{}" x="{}" y="{:.1f}" width="8" height="{:.1f}"/>').format(
                    REGIMES[place], 12 * (depth - back), foot - height, height
                )
                for back, height in enumerate(np.clip(30 * values, 1, 60))
            )
        )
    return _drawing("The gradient in each of fifty layers", 290, rows)


def lines(payload: Mapping[str, Any]) -> Markup:
    """The logarithm of the product against depth for three weights, as an SVG."""
    shown = payload["views"][0]
    depths = np.array([depth for depth in payload["layer"] if depth <= shown])
    axis = Markup('<path class="axis" d="M0 150H560M0 10V290"/>')
    rows = [axis]
    for place, (w, line) in enumerate(_lines(payload)):
        heights = 150 - 140 / DECADES * np.clip(line[: len(depths)], -DECADES, DECADES)
        points = " ".join(
            f"{560 * x / shown:.1f},{y:.1f}" for x, y in zip(depths, heights, strict=True)
        )
        rows.append(Markup('<polyline class="{}" points="{}"/>').format(REGIMES[place], points))
        end = Markup('<text x="566" y="{:.0f}">w = {:g}</text>')
        rows.append(end.format(heights[-1] + 4, w))
    rows.append(Markup('<text x="0" y="308">depth 0 to {}; ±10 decades</text>').format(shown))
    return _drawing("The size of the product against depth, on a log axis", 315, rows)


def branch(payload: Mapping[str, Any]) -> Markup:
    """What is left over w through the deepest chain: plain, residual, small branch, as an SVG."""
    w, depth = lesson.unpacked(payload["w"]), payload["depths"][-1]
    found = {name: lesson.unpacked(payload[name])[-1] for name in ("plain", "residual", "small")}
    most = max(values.max() for values in found.values())
    along = 560 * (w - w[0]) / (w[-1] - w[0])
    rows = [Markup('<path class="axis" d="M0 150H560M0 10V290"/>')]
    for name, values in found.items():
        heights = 150 - 140 * np.maximum(values / most, -1.1)
        shown = heights <= 290
        rows.append(_line(f"is-{name}", along, heights, shown))
        at = {"plain": 0.12, "residual": 0.72, "small": 0.95}[name]
        place = int(at * (len(w) - 1))
        rows.append(_word(name, along[place] + 8, heights[place] - 8))
    told = f"w from {w[0]:g} to {w[-1]:g}; ±{most:.0f} decades, {depth} layers"
    rows.append(_word(told.replace("-", numbers.MINUS), 0, 308))
    return _drawing("What is left of w, of 1 + w and of 1 + w/L, on a log axis", 315, rows)


def moved(payload: Mapping[str, Any]) -> Markup:
    """How far each layer has moved after the last step: plain, clipped, residual, as an SVG."""
    ways = lesson.unpacked(payload["log10_moved"])[:, -1]
    low, high = np.floor(ways.min()), np.ceil(ways.max())
    along = np.linspace(0, 560, ways.shape[1])
    rows = [Markup('<path class="axis" d="M0 290H560M0 10V290"/>')]
    for kind, look, way in zip(payload["kinds"], MOVERS, ways, strict=True):
        heights = 290 - 280 * (way - low) / (high - low)
        below = 18 if kind == "clipped" else -8  # of two lines that run together the lower one
        rows.append(_line(look, along, heights, np.isfinite(heights)))
        rows.append(_word(kind, 6, heights[0] + below))
    layers, steps = payload["layer"], payload["steps"][-1]
    told = f"layers {layers[0]} to {layers[-1]}; decades {low:.0f} to {high:.0f}, {steps} steps"
    rows.append(_word(told.replace("-", numbers.MINUS), 0, 308))
    return _drawing("How far each layer has moved, on a log axis", 315, rows)


def _line(look: str, along: Any, heights: Any, shown: Any) -> Markup:
    """A line through the points that are shown; what is not breaks it."""
    pen = np.where(shown & ~np.append(False, shown[:-1]), "M", "L")
    points = (f"{at}{x:.1f} {y:.1f}" for at, x, y in zip(pen, along, heights, strict=True))
    path = "".join(point for point, there in zip(points, shown, strict=True) if there)
    return Markup('<path class="{}" d="{}"/>').format(look, path)


def _word(text: str, x: float, y: float) -> Markup:
    return Markup('<text x="{:.0f}" y="{:.0f}">{}</text>').format(x, y, text)


def _lines(payload: Mapping[str, Any]) -> Iterator[tuple[float, Any]]:
    """The weight nearest to each of `WEIGHTS`, and its line over depth."""
    w, log10 = lesson.unpacked(payload["w"]), lesson.unpacked(payload["log10"])
    for wanted in WEIGHTS:
        at = int(np.argmin(np.abs(w - wanted)))
        yield float(w[at]), log10[at]


def _magnitude(log10: float) -> Markup:
    return numbers.significant(10.0 ** float(log10), 3)


def _drawing(name: str, height: int, parts: list[Markup]) -> Markup:
    start = Markup('<svg class="stands" role="img" aria-label="{}" viewBox="0 0 640 {}">')
    return start.format(name, height) + Markup("").join(parts) + Markup("</svg>")


# By the place of the figure; the others stand as their experiment draws them.
PICTURES = {"signal": bars, "chain": lines, "branch": branch, "moved": moved}
