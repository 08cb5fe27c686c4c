"""The figures that can be dragged: by mouse, keys and finger, against the datasets.

Times are medians, and the limits are those that a reader notices.
"""

import math
import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from tests.page.hands import PHONE, POINT, box_of, check_chain, drag, number, read, until


def test_the_mouse_drags_w_through_one_and_every_step_moves_the_line(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit()
    box = box_of(page, "#chain-w")
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 9, middle)
    page.mouse.down()
    seen: dict[float, str] = {}
    for part in np.linspace(0, 1, 121):
        page.mouse.move(box["x"] + 9 + part * (box["width"] - 18), middle)
        w, line = check_chain(page, chain)
        assert seen.setdefault(w, line) == line
    page.mouse.up()
    assert (min(seen), max(seen)) == (0.5, 1.5)
    assert len(set(seen.values())) == len(seen) > 90


def test_the_keyboard_walks_w_from_end_to_end(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit()

    def press(key: str) -> tuple[float, str]:
        page.keyboard.press(key)
        return check_chain(page, chain)

    page.locator("#chain-w").focus()
    steps = [press("Home"), *(press("ArrowRight") for _ in chain["w"][1:])]
    assert [w for w, _ in steps] == chain["w"].tolist()
    assert len({line for _, line in steps}) == len(chain["w"])
    assert press("Home") == steps[0]
    assert press("End") == steps[-1]
    assert press("ArrowLeft") == steps[-2]


def test_a_finger_drags_w(visit: Callable[..., Page], chain: dict[str, Any]) -> None:
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    box = box_of(page, "#chain-w")
    touch = page.context.new_cdp_session(page)

    def point(kind: str, part: float | None = None) -> None:
        x, y = box["x"] + 8 + (part or 0) * (box["width"] - 16), box["y"] + box["height"] / 2
        points = [{"x": x, "y": y}] if part is not None else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    start = int(page.locator("#chain-w").input_value()) / (len(chain["w"]) - 1)
    point("touchStart", start)
    seen: dict[float, str] = {}
    for part in [*np.linspace(start, 0, 31), *np.linspace(0, 1, 61)]:
        point("touchMove", part)
        w, line = check_chain(page, chain)
        assert seen.setdefault(w, line) == line
    point("touchEnd")
    assert (min(seen), max(seen)) == (0.5, 1.5)
    assert len(set(seen.values())) == len(seen) > 50


def test_the_line_can_be_read_by_pointing_at_it(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit()
    box = box_of(page, "[data-figure=chain] .place svg")
    page.mouse.move(box["x"] + 100, box["y"] + 200)
    page.mouse.down()
    depths = []
    for x in np.linspace(100, box["width"] - 20, 12):
        page.mouse.move(box["x"] + x, box["y"] + 200)
        check_chain(page, chain)
        depths.append(int(read(page, "chain")["L"]))
    page.mouse.up()
    assert depths == sorted(set(depths))


def test_the_table_of_formats_is_the_datasets(
    visit: Callable[..., Page], given: Callable[[str], dict[str, Any]]
) -> None:
    now, ends = read(visit(state="#w=0.6"), "chain"), given("format ends")
    i = int(np.argmin(abs(ends["w"] - 0.6)))
    for f in range(len(ends["formats"])):
        for kind in ("zero", "infinite", "wrong"):
            depth = float(ends[f"first_{kind}"][f, i])
            expected = f"{depth:.0f}" if math.isfinite(depth) else "never"
            assert now[f"{kind}-{f}"] == expected


def test_the_network_figure_shows_the_datasets_numbers(
    visit: Callable[..., Page], given: Callable[[str], dict[str, Any]]
) -> None:
    data = given("network")
    page = visit()
    lines = set()
    for a, name in enumerate(data["activations"]):
        page.locator(f"[data-figure=network] input[value={name}]").check()
        page.locator("#network-sigma_w").focus()
        page.keyboard.press("Home")
        for i, sigma_w in enumerate(data["sigma_w"]):
            now = read(page, "network")
            j = int(now["at back"])
            assert now["sigma_w"] == f"{sigma_w:.2f}"
            assert now["chi"] == f"{data['chi_1'][a, i]:.4f}"
            for k in range(len(data["kinds"])):
                for part in ("median", "low", "high"):
                    # Shown to two decimals.
                    off = float(now[f"{part}-{k}"]) - data[part][a, k, i, j]
                    assert abs(off) <= 0.005 + 1e-9
            lines.add(now["line"])
            page.keyboard.press("ArrowRight")
    assert len(lines) == len(data["activations"]) * len(data["sigma_w"])


def test_the_clipping_figure_shows_the_datasets_numbers(
    visit: Callable[..., Page], given: Callable[[str], dict[str, Any]]
) -> None:
    data = given("clipping")
    page = visit()
    page.locator("#clipping-tau").focus()
    page.keyboard.press("Home")
    for i, tau in enumerate(data["tau"]):
        now = read(page, "clipping")
        j = int(now["at step"])
        for name, variable in (
            *(("gradient", "gradient_norm"), ("clipped", "clipped_norm")),
            *(("moved", "step_size"), ("loss", "loss")),
        ):
            value, half = number(now[name], 4)
            assert abs(value - math.log10(data[variable][i, j])) <= half * (1 + 1e-6)
        fired = int((data["gradient_norm"][i] > tau).sum())
        assert now["fired"] == f"{fired} of {data['num_steps']}"
        clipped = data["gradient_norm"][i, j] > tau
        assert now["regime"] == ("clipped" if clipped else "untouched")
        page.keyboard.press("ArrowRight")
    assert read(page, "clipping")["tau"] == "∞, no clipping"


def test_the_branch_figure_shows_the_datasets_numbers(
    visit: Callable[..., Page], given: Callable[[str], dict[str, Any]]
) -> None:
    data = given("branch")
    page = visit()
    for depth, layers in enumerate(data["depths"]):
        page.locator(f"[data-figure=branch] input[value='{layers}']").check()
        for w in (-1.0, 0.0, 0.1, 2.0):
            i = int(np.argmin(abs(data["w"] - w)))
            page.locator("#branch-w").fill(str(i))
            now = read(page, "branch")
            assert now["branch"] == f"{w:.3f}"
            for name in ("plain", "residual", "small"):
                log10 = data[name][depth, i]
                if math.isinf(log10):
                    assert now[name] == "0"
                    continue
                value, half = number(now[name], 4)
                # Rounded to four decimals on its way, which shows where few digits are left.
                assert abs(value - log10) <= half + 5e-5
            left = data["residual"][depth, i]
            edge = "knife edge" if left == 0 else "vanishing" if left < 0 else "exploding"
            assert now["regime"] == edge
    page.locator("[data-figure=branch] [data-step='-1']").click()
    assert read(page, "branch")["residual"] == "0"


def test_the_layers_of_the_training_figure_move_with_the_steps(
    visit: Callable[..., Page], given: Callable[[str], dict[str, Any]]
) -> None:
    data = given("moved")
    page = visit(state="#steps=5&mover=3")
    assert read(page, "moved")["steps"] == "5"
    for s in range(len(data["steps"])):
        page.locator("#moved-steps").fill(str(s))
        now = read(page, "moved")
        for k in range(3):
            value, half = number(now[f"way-{k}"], 3)
            assert abs(value - data["log10_moved"][k, s, 2]) <= half + 5e-5


def test_a_finger_that_scrolls_the_page_moves_nothing(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    touch = page.context.new_cdp_session(page)
    for selector in ("#chain-w", "[data-figure=chain] .place svg"):
        box, before = box_of(page, selector), check_chain(page, chain)
        depth, top = read(page, "chain")["L"], page.evaluate("scrollY")
        x, y = box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2
        for kind, down in [("touchStart", 0), *(("touchMove", 12 * k) for k in range(1, 12))]:
            points = [{"x": x, "y": y - down}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        until(lambda top=top: page.evaluate("scrollY") != top)  # type: ignore[misc]
        assert check_chain(page, chain) == before
        assert read(page, "chain")["L"] == depth


def test_a_finger_takes_the_knob_of_the_threshold_in_any_direction(
    visit: Callable[..., Page],
) -> None:
    page = visit(state="#tau=1&step=3", viewport=PHONE, has_touch=True, is_mobile=True)
    box, before = box_of(page, ".knob .hold"), read(page, "clipping")
    touch = page.context.new_cdp_session(page)
    plot = page.locator("[data-figure=clipping] .place svg").nth(1)
    place = plot.bounding_box()  # what is read out above may take another line; the page follows
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, up in [("touchStart", 0), *(("touchMove", 5 * k) for k in range(1, 8))]:
        points = [{"x": x, "y": y - up}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    after = read(page, "clipping")
    assert float(after["tau"]) > 1.5 * float(before["tau"])
    assert (after["at step"], plot.bounding_box()) == (before["at step"], place)


def test_one_button_sets_w_to_exactly_one(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit()
    page.locator("[data-figure=chain] [data-step]").click()
    assert check_chain(page, chain)[0] == 1


def test_the_line_itself_is_dragged_and_what_lies_beside_it_moves_the_depth_alone(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit()
    here = page.evaluate(POINT, ["chain", 0, ".here"])
    drag(page, "chain", 0, here, [here[0], here[1] - 60])
    w, _ = check_chain(page, chain)
    assert w > 1  # it was 0.9, and the line goes where it is taken
    now = page.evaluate(POINT, ["chain", 0, ".here"])
    assert abs(now[1] - (here[1] - 60)) < 12  # half a step of the grid of weights, at this depth
    drag(page, "chain", 0, [here[0], 330], [here[0] + 80, 300])
    assert check_chain(page, chain)[0] == w
    assert page.evaluate(POINT, ["chain", 0, ".here"])[0] > here[0] + 60


def test_the_threshold_and_the_point_on_the_map_are_dragged(
    visit: Callable[..., Page], given: Callable[[str], dict[str, Any]]
) -> None:
    data = given("clipping")
    page = visit(state="#tau=1&step=3")
    before = read(page, "clipping")
    line = page.locator("[data-figure=clipping] .place svg").nth(1).locator(".theory")
    height = float(re.findall(r"[\d.]+", line.get_attribute("d") or "")[1])
    drag(page, "clipping", 1, [150, height], [150, height - 40])
    after = read(page, "clipping")
    assert float(after["tau"]) > 1.5 * float(before["tau"])
    assert after["at step"] == before["at step"]
    here = page.evaluate(POINT, ["clipping", 0, ".here"])
    drag(page, "clipping", 0, here, [here[0] - 60, here[1]])
    i, j = (int(read(page, "clipping")[f"at {name}"]) for name in ("tau", "step"))
    assert data["w"][i, j] < data["w"][i, 3]


@pytest.mark.parametrize(
    ("slider", "steps"),
    [
        *(("chain-w", 100), ("network-sigma_w", 8), ("clipping-tau", 13)),
        *(("branch-w", 50), ("moved-steps", 4)),
    ],
)
def test_a_redraw_takes_less_than_a_frame_of_thirty_a_second(
    visit: Callable[..., Page], slider: str, steps: int
) -> None:
    times = visit().evaluate(
        """async ([id, steps]) => {
          const slider = document.getElementById(id), times = [];
          for (let k = 0; k < 60; k++) {
            await new Promise(requestAnimationFrame);
            const begun = performance.now();
            slider.value = k % (steps + 1);
            slider.dispatchEvent(new Event("input", {bubbles: true}));
            document.querySelector("[data-figure] path").getBoundingClientRect();  // lay it out
            times.push(performance.now() - begun);
          }
          return times;
        }""",
        [slider, steps],
    )
    assert statistics.median(times) < 33
