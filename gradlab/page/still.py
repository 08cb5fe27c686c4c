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
