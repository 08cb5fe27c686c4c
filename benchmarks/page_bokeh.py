"""The first interactive figure, by Bokeh and by the page's own SVG: bytes, ready, redraw, keyboard.

    .venv/bin/pip install bokeh  # the group "benchmark" of pyproject.toml
    .venv/bin/python benchmarks/page_bokeh.py [results] [chromium]

Both draw the same arrays and are driven the same way, in the same browser, with no network.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, CustomJS, Slider
from bokeh.plotting import figure
from bokeh.resources import INLINE
from playwright.sync_api import Page, sync_playwright

from gradlab.experiment import lesson
from gradlab.page import build, gallery, offers

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


def by_bokeh(payload: Mapping[str, Any]) -> str:
    """The same figure, by Bokeh: a slider, a line of measurements, a line of the formula."""
    layer, grid = payload["layer"], lesson.unpacked(payload["w"])
    log10 = lesson.unpacked(payload["log10"])
    start = int(np.argmin(abs(grid - 0.9)))
    lines = ColumnDataSource({"all": [log10]})
    shown = ColumnDataSource({"layer": layer, "log10": log10[start]})
    formula = ColumnDataSource({"x": [0, layer[-1]], "y": [0, layer[-1] * np.log10(grid[start])]})
    plot = figure(height=420, sizing_mode="stretch_width", x_range=(0, 100), y_range=(-32, 20))
    plot.scatter("layer", "log10", source=shown, size=5)
    plot.line("x", "y", source=formula, line_dash="dashed")
    slider = Slider(start=float(grid[0]), end=float(grid[-1]), value=0.9, step=0.005, title="w")
    slider.js_on_change(
        "value",
        CustomJS(
            args={"lines": lines, "shown": shown, "formula": formula, "num": len(layer)},
            code="""
            const w = cb_obj.value, i = Math.round((w - cb_obj.start) / cb_obj.step);
            shown.data = {...shown.data, log10: lines.data.all[0].slice(i * num, (i + 1) * num)};
            const x = formula.data.x;
            formula.data = {x, y: [0, x[1] * Math.log10(w)]};
            """,
        ),
    )
    return file_html(column(plot, slider, sizing_mode="stretch_width"), INLINE, "bokeh")


def measure(page: Page, path: Path, slider: str) -> dict[str, float]:
    """Milliseconds from navigation to a drawn figure, and from a key press to the next frame."""
    ready, redraw = [], []
    for _ in range(5):
        page.goto(path.as_uri())
        page.locator(slider).first.wait_for()
        ready.append(
            page.evaluate(
                "new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
                "() => done(performance.now()))))"
            )
        )
    page.locator(slider).first.focus()
    for _ in range(60):
        page.evaluate(
            "window.pressed = 0; addEventListener('keydown', () => "
            "{ pressed = performance.now(); }, {capture: true, once: true})"
        )
        page.keyboard.press("ArrowRight")
        redraw.append(
            page.evaluate(
                "new Promise(done => requestAnimationFrame("
                "() => done(performance.now() - pressed)))"
            )
        )
    return {"ready_ms": statistics.median(ready), "redraw_ms": statistics.median(redraw)}


def main() -> None:
    """Print both rows."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    chromium = sys.argv[2] if len(sys.argv) > 2 else "/usr/bin/chromium"
    cards = [c for c in gallery.cards(Path.cwd(), results) if "chain" in c.offer.figures]
    chain = offers.figures(build.offered(cards))["chain"]
    if chain.payload is None:
        sys.exit(chain.problem)
    (card,) = (c for c in cards if c.name == chain.experiment)
    alone = dataclasses.replace(card, run=gallery.Run("", card.name, data=card.run.data), others=())
    pages = {
        "bokeh": (by_bokeh(chain.payload), ".noUi-handle"),
        "svg": (build.index([alone]), "input[type=range]"),
    }
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, (text, slider) in pages.items():
            file = Path(folder) / f"{name}.html"
            file.write_text(text)
            page = browser.new_context(offline=True).new_page()
            row = measure(page, file, slider)
            print(
                f"{name:6s} {len(text.encode()) / 1e6:5.2f} MB",
                *(f"{k} {v:.0f}" for k, v in row.items()),
            )
        browser.close()


if __name__ == "__main__":
    main()
