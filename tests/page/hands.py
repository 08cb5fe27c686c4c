"""What the tests in a browser do with their hands: read a figure, drag it, wait for it."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from playwright.sync_api import Page

CHECKS = Path(__file__).parent
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
NAME = "every_place"

READ = """(name) => {
  const figure = document.querySelector(`[data-figure=${name}]`);
  const all = (selector, pair) =>
    Object.fromEntries([...figure.querySelectorAll(selector)].map(pair));
  return {
    ...all("[data-out]", (e) => [e.dataset.out, e.textContent]),
    ...all("input[type=range]", (e) => [`at ${e.name}`, e.value]),
    ...all("input[type=range]", (e) => [`said ${e.name}`, e.getAttribute("aria-valuetext")]),
    line: figure.querySelector("path[data-line]").getAttribute("d"),
  };
}"""


def read(page: Page, figure: str) -> dict[str, str]:
    """All that a figure shows, by name: read-outs, sliders, what they say, and its line."""
    found = page.evaluate(READ, figure)
    return {name: text.replace("−", "-").replace("\u202f", "") for name, text in found.items()}


def until(happens: Callable[[], bool]) -> None:
    for _ in range(100):
        if happens():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 5 seconds")


def box_of(page: Page, selector: str) -> dict[str, float]:
    place = page.locator(selector).first
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    assert box
    return cast(dict[str, float], box)


def number(text: str, digits: int) -> tuple[float, float]:
    """The log10 of a number as shown, and by how much its rounding to so many digits moves that."""
    raised = {raised: str(i) for i, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "-"}
    mantissa, _, power = text.partition(" × 10")
    log10 = math.log10(float(mantissa)) + int("".join(raised[c] for c in power) or 0)
    half_of_last = 0.5 * 10.0 ** (1 - digits) / 10 ** (log10 - math.floor(log10))
    return log10, half_of_last / math.log(10)


def check_chain(page: Page, chain: dict[str, Any]) -> tuple[float, str]:
    """The w and the line shown, after the numbers were held against the dataset."""
    now = read(page, "chain")
    i, j = int(now["at w"]), int(now["at L"])
    w, log10 = float(chain["w"][i]), float(chain["log10"][i, j])
    assert now["w"] == now["w-again"] == f"{w:.3f}"
    assert now["L"] == now["L-again"] == f"{chain['layer'][j]}"
    assert now["log10"] == f"{log10:.4f}"
    value, half = number(now["magnitude"], 5)
    # A rounding of 1 ulp of log10 comes on top of the digits that are shown.
    assert abs(value - log10) <= half * (1 + 1e-6) + 1e-12
    edge = "knife edge" if w == 1 else "vanishing" if w < 1 else "exploding"
    assert now["regime"] == edge
    assert now["said w"] == f"w = {w:.3f}, {edge}"
    return w, now["line"]


def drag(page: Page, figure: str, place: int, start: list[float], end: list[float]) -> None:
    """From one point of a plot to another, both in the plot's own units, by the mouse."""
    box = page.locator(f"[data-figure={figure}] .place svg").nth(place)
    box.scroll_into_view_if_needed()
    at = box.bounding_box()
    assert at
    page.mouse.move(at["x"] + start[0], at["y"] + start[1])
    page.mouse.down()
    page.mouse.move(at["x"] + end[0], at["y"] + end[1], steps=4)
    page.mouse.up()


POINT = """([figure, place, selector]) => {
  const svg = document.querySelectorAll(`[data-figure=${figure}] .place svg`)[place];
  const drawn = svg.querySelector(selector);
  return [Number(drawn.getAttribute("cx")), Number(drawn.getAttribute("cy"))];
}"""
