"""The pages in a real browser: opened from disk, with the network refused, and driven by hand.

What is drawn is offered by a made-up experiment, `page/experiments/every_place.py`, so that the
real ones come and go freely. Times are medians, and the limits are those that a reader notices.
"""

import json
import math
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from gradlab.experiment import dataset, files, fileset, lesson, loading
from gradlab.page import build

CHECKS = Path(__file__).parent
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
NAME = "every_place"
SIGMA_W = (0.5, 0.8, 1.0, 1.2, 1.5, 1.8, 2.0, 2.2, 2.5)


@pytest.fixture(scope="module")
def experiment() -> loading.Experiment:
    return loading.load(CHECKS / "experiments" / f"{NAME}.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, experiment: loading.Experiment) -> Path:
    """Both pages over a run of the made-up experiment."""
    folder = tmp_path_factory.mktemp("results")
    with jax.numpy_rank_promotion("allow"):  # as in a run
        data = loading.evaluate(experiment, experiment.module.Config(sigma_w=SIGMA_W), 0)
    (folder / NAME).mkdir()
    dataset.write(folder / NAME / "data.nc", data)
    claims = [claim.record() for claim in loading.judge(experiment, data)]
    files.write_json(folder / NAME / "claims.json", claims)
    record = {"command": f"python experiments/{NAME}.py", "config": {"sigma_w": SIGMA_W}}
    (folder / NAME / "figure.svg").write_text('<svg viewBox="0 0 9 4"><path d="M 0 0"/></svg>')
    (folder / NAME / "caption.md").write_text("A caption.")
    fileset.close(folder / NAME, record)
    build.pages(CHECKS, folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "these tests need Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser, results: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end nothing may have been said on the console or asked of a network."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def refuse(route: Route) -> None:
        if not route.request.url.startswith(("file:", "data:")):
            complaints.append(f"asked for {route.request.url}")
            route.abort()
        else:
            route.continue_()

    def opened(
        name: str = "index", state: str = "", folder: Path = results, **options: Any
    ) -> Page:
        context = browser.new_context(**{"viewport": DESK, "offline": True, **options})
        contexts.append(context)
        context.route("**/*", refuse)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.goto((folder / f"{name}.html").as_uri() + state)
        if options.get("java_script_enabled", True):
            page.locator("html[data-ready]").wait_for(state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def given(results: Path, experiment: loading.Experiment) -> Callable[[str], dict[str, Any]]:
    """What a figure is given, its arrays unpacked."""
    data = dataset.read(results / NAME / "data.nc")

    def payload(name: str) -> dict[str, Any]:
        return {
            key: lesson.unpacked(value) if isinstance(value, dict) and "base64" in value else value
            for key, value in experiment.module.LESSON.figures[name](data).items()
        }

    return payload


@pytest.fixture(scope="module")
def chain(given: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return given("chain")


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


def number(text: str) -> tuple[float, float]:
    """A number as shown, and half a unit of its last digit; a power of ten as its log10."""
    digits = {raised: str(i) for i, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "-"}
    mantissa, _, power = text.partition(" × 10")
    exponent = int("".join(digits[c] for c in power) or 0)
    half = 0.5 * 10.0 ** -len(mantissa.partition(".")[2])
    return math.log10(float(mantissa)) + exponent, half / float(mantissa) / math.log(10)


def check_chain(page: Page, chain: dict[str, Any]) -> tuple[float, str]:
    """The w and the line shown, after the numbers were held against the dataset."""
    now = read(page, "chain")
    i, j = int(now["at w"]), int(now["at L"])
    w, log10 = float(chain["w"][i]), float(chain["log10"][i, j])
    assert now["w"] == now["w-again"] == f"{w:.3f}"
    assert now["L"] == now["L-again"] == f"{chain['layer'][j]}"
    assert now["log10"] == f"{log10:.4f}"
    value, half = number(now["magnitude"])
    # A rounding of 1 ulp of log10 comes on top of the digits that are shown.
    assert abs(value - log10) <= half * (1 + 1e-6) + 1e-12
    edge = "knife edge" if w == 1 else "vanishing" if w < 1 else "exploding"
    assert now["regime"] == edge
    assert now["said w"] == f"w = {w:.3f}, {edge}"
    return w, now["line"]


# ---- the first figure, by every kind of hand


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


# ---- the other figures


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
            assert float(now[name]) == float(f"{data[variable][i, j]:.4g}")
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
                value, half = number(now[name])
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
            value, half = number(now[f"way-{k}"])
            assert abs(value - data["log10_moved"][k, s, 2]) <= half + 5e-5


@pytest.mark.parametrize("name", ["index", "lesson"])
def test_the_figures_of_the_published_results_come_alive(
    visit: Callable[..., Page], name: str, project: Path, tmp_path: Path
) -> None:
    for folder in (project / "results").glob("*/"):
        (tmp_path / folder.name).symlink_to(folder)
    build.pages(project, tmp_path)
    page = visit(name, folder=tmp_path)
    shown = page.locator("[data-figure]").evaluate_all("all => all.map((f) => f.dataset.from)")
    assert len({*shown}) == page.locator("script[id^=data-]").count()
    assert page.locator("[data-figure]:not(.alive)").count() == 0
    # A choice has a name and not the letters of one.
    names = page.locator("[name=activation]").evaluate_all("all => all.map((a) => a.value)")
    assert min(map(len, names)) > 2
    if name == "lesson":
        assert (tmp_path / "lesson.html").stat().st_size < 2e6
        assert page.locator(".verdict:is(.fails, .unknown), .notes").count() == 0


# ---- the address


@pytest.mark.parametrize("name", ["index", "lesson"])
def test_an_address_opens_a_figure_as_it_was(
    visit: Callable[..., Page], name: str, chain: dict[str, Any]
) -> None:
    page = visit(name, "#w=1.1&L=20&sigma_w=1.5&activation=linear&tau=inf")
    assert check_chain(page, chain)[0] == chain["w"][60]
    assert read(page, "chain")["L"] == "20"
    assert read(page, "network")["sigma_w"] == "1.50"
    assert page.locator("[data-figure=network] input[value=linear]").is_checked()
    assert read(page, "clipping")["tau"] == "∞, no clipping"
    assert page.evaluate("scrollY") > 0


def test_a_moved_slider_is_in_the_address_and_an_edited_address_moves_the_slider(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit()
    page.locator("#chain-w").focus()
    page.keyboard.press("End")
    until(lambda: "w=1.5" in page.evaluate("location.hash"))
    page.evaluate("location.hash = 'w=0.7'")
    until(lambda: page.locator("#chain-w").input_value() == "20")
    assert check_chain(page, chain)[0] == chain["w"][20]


@pytest.mark.parametrize(
    "state", ["#w=nonsense", "#w=", f"#{NAME}", "#view=7&L=-3&tau=x&activation=%3Cscript%3E"]
)
def test_an_address_that_makes_no_sense_does_no_harm(
    visit: Callable[..., Page], state: str, chain: dict[str, Any]
) -> None:
    check_chain(visit(state=state), chain)


def test_an_address_that_cannot_be_shown_is_refused_in_words(visit: Callable[..., Page]) -> None:
    page = visit(state="#w=abc&L=1e9&view=7")
    told = page.locator("[data-figure=chain] [data-refused]")
    assert told.is_visible()
    assert "w = abc cannot be shown; allowed: 0.5 to 1.5" in told.inner_text()
    assert "L = 1e9 cannot be shown" in told.inner_text()
    assert "view = 7 cannot be shown; allowed: 100, 500" in told.inner_text()
    page.evaluate("location.hash = 'w=0.7'")
    until(lambda: not told.is_visible())


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


def test_one_button_sets_w_to_exactly_one(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit()
    page.locator("[data-figure=chain] [data-step]").click()
    assert check_chain(page, chain)[0] == 1


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


def test_a_figure_of_the_gallery_reads_out_under_the_pointer(
    visit: Callable[..., Page], many: Path
) -> None:
    page = visit(state="#scalar_chain", folder=many)
    box = box_of(page, "#scalar_chain img")
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.4 * box["height"])
    assert re.match(r"x [\d.]+,  y ", page.locator(".under").inner_text())
    page.mouse.move(2, 2)
    assert not page.locator(".under").is_visible()


# ---- speed


def test_the_page_is_ready_within_a_second(visit: Callable[..., Page]) -> None:
    times = []
    for _ in range(5):
        page = visit()
        times.append(float(page.evaluate("document.documentElement.dataset.ready")))
        page.close()
    assert statistics.median(times) < 1000


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


# ---- for everyone


@pytest.fixture(scope="module")
def axe() -> str:
    source = CHECKS / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        assert npm, "these tests need npm: apt-get install npm"
        install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=CHECKS, check=True, capture_output=True, timeout=120)
    return source.read_text()


@pytest.mark.parametrize(
    ("name", "viewport", "scheme"),
    [
        *(("index", DESK, "light"), ("index", PHONE, "dark")),
        *(("lesson", PHONE, "light"), ("lesson", DESK, "dark")),
    ],
)
def test_axe_finds_nothing_serious(
    visit: Callable[..., Page], axe: str, name: str, viewport: dict[str, int], scheme: str
) -> None:
    page = visit(name, viewport=viewport, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    told = [
        f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']][:3]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical", "moderate")
    ]
    assert told == []


@pytest.mark.parametrize("name", ["index", "lesson"])
def test_nothing_sticks_out_on_a_phone(visit: Callable[..., Page], name: str) -> None:
    page = visit(name, viewport={"width": 320, "height": 640}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_without_javascript_the_claims_are_there(visit: Callable[..., Page], results: Path) -> None:
    page = visit(java_script_enabled=False)
    records = json.loads((results / NAME / "claims.json").read_text())
    tables = page.locator(f"#{NAME} table")
    assert tables.count() == 1
    assert tables.locator("tbody tr").count() == len(records)
    assert tables.locator("th[scope=col]").count() == 6
    assert page.locator("[data-figure=chain] .still").is_visible()
    assert not page.locator("#chain-w").is_visible()


def test_a_caption_stands_below_its_figure(visit: Callable[..., Page]) -> None:
    figure = visit().locator(f"#{NAME} figure")
    assert figure.locator("figcaption").text_content() == "A caption."
    assert figure.locator("img").get_attribute("alt") == "A caption."


def test_a_print_shows_every_claim_and_no_control(visit: Callable[..., Page]) -> None:
    page = visit()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(f"#{NAME} tbody tr").first.is_visible()
    assert not page.locator("#chain-w").is_visible()
    assert page.locator("[data-figure=chain] .place svg").first.is_visible()


def test_a_command_is_copied_by_one_press(visit: Callable[..., Page]) -> None:
    page = visit()
    button = page.locator(f"#{NAME} .inside > .command button")
    button.click()
    page.wait_for_function(
        "b => ['copied', 'selected'].includes(b.textContent)", arg=button.element_handle()
    )


# ---- the lesson


def test_every_number_of_the_lesson_is_the_datasets(
    visit: Callable[..., Page], results: Path
) -> None:
    page = visit("lesson")
    numbers = page.locator("main data")
    assert numbers.count() > 10
    data = dataset.read(results / NAME / "data.nc")
    for value, source in numbers.evaluate_all("all => all.map((d) => [d.value, d.dataset.from])"):
        name, variable = source.split("/")
        assert name == NAME
        given = data.attrs[variable] if variable in data.attrs else data[variable].values
        assert np.any(np.asarray(given, float) == float(value))


def test_the_first_screen_shows_the_gradient_in_each_layer(
    visit: Callable[..., Page], chain: dict[str, Any]
) -> None:
    page = visit("lesson")
    figure = page.locator("[data-figure=signal]")
    bars, slider = figure.locator(".bars rect"), page.locator("#signal-w")
    heights = "all => all.map((r) => Number(r.getAttribute('height')))"
    for i in (40, 50, 60):
        slider.fill(str(i))
        shown = bars.evaluate_all(heights)
        w = float(chain["w"][i])
        unit = shown[0]  # the last layer's
        assert len(shown) == 51
        for back in (1, 5, 10):  # one pixel is the smallest bar, and two units the largest
            assert abs(shown[back] - min(2.1, w**back) * unit) <= 1 + 1e-6
    box = figure.bounding_box()
    assert box
    assert box["y"] + box["height"] <= DESK["height"]


def test_before_each_figure_stands_a_question_with_three_answers(
    visit: Callable[..., Page],
) -> None:
    page = visit("lesson", java_script_enabled=False)
    figures, before = page.locator("[data-figure]"), page.locator(".predict + [data-figure]")
    assert before.count() == figures.count() >= 6
    for question in page.locator(".predict").all():
        answers = question.locator("details")
        assert answers.count() == 3
        answers.first.locator("summary").click()
        answers.last.locator("summary").click()
        assert answers.locator("nth=2").get_attribute("open") is not None
        assert answers.first.get_attribute("open") is None  # one at a time, by its name
    exercises = page.locator(".exercises > li")
    assert exercises.count() == 5
    assert exercises.locator("details data").count() >= 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_colour_means_one_thing_and_can_be_told_from_the_paper(
    visit: Callable[..., Page], scheme: str
) -> None:
    found = visit(color_scheme=scheme).evaluate(
        """(names) => names.map((name) =>
          getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim())""",
        ["vanishing", "exploding", "edge", "plain", "residual", "clipped", "panel"],
    )
    channels = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in found]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    *lightness, paper = linear @ [0.2126, 0.7152, 0.0722]  # WCAG 2.2, relative luminance
    contrast = [(max(one, paper) + 0.05) / (min(one, paper) + 0.05) for one in lightness]
    assert len({*found}) == len(found)
    assert min(contrast) >= 4.5


def test_formulas_have_the_font_that_the_page_brings(visit: Callable[..., Page]) -> None:
    page = visit("lesson")
    assert page.evaluate("document.fonts.load('1em \"Lesson Math\"').then((f) => f.length)") == 1


def test_a_mark_of_the_lesson_answers_without_a_script(visit: Callable[..., Page]) -> None:
    page = visit("lesson", java_script_enabled=False)
    mark = page.locator("button.verdict").first
    mark.click()
    answer = page.locator("[popover]:popover-open")
    assert "measured" in answer.inner_text()
    assert answer.locator("a").get_attribute("href") == f"index.html#{NAME}"
    assert page.locator("svg.stands").first.is_visible()


def test_the_lesson_holds_its_claims_and_figures(visit: Callable[..., Page]) -> None:
    page = visit("lesson")
    assert page.locator(".verdict.holds").count() > 8
    assert page.locator(".verdict.fails").count() == 0
    assert page.locator(".verdict.unknown").count() == 0
    figures = page.locator("[data-figure]").evaluate_all("all => all.map((f) => f.dataset.figure)")
    assert figures == ["signal", "chain", "network", "clipping", "branch", "moved"]
    headings = page.locator("h2").all_text_contents()
    assert len([h for h in headings if re.match(r"\w", h)]) == len(headings) >= 9


def test_the_gallery_is_searched_as_one_types(visit: Callable[..., Page]) -> None:
    page = visit()
    page.locator("#search").fill(f"{NAME} caption")
    assert page.locator(f"#{NAME}").is_visible()
    page.locator("#search").fill("no such thing")
    assert not page.locator(f"#{NAME}").is_visible()
    assert page.locator("#found").inner_text() == "0 of 1"


def test_a_claim_has_an_address_that_opens_its_table(visit: Callable[..., Page]) -> None:
    page = visit(state=f"#{NAME}-1")
    assert page.locator(f"[id='{NAME}-1']").is_visible()


# ---- a gallery of many


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published results, and copies where they are fewer than thirty-two; one has more runs."""
    folder = tmp_path_factory.mktemp("many")
    found = sorted(path.parent for path in (loading.PUBLISHED / "results").glob("*/run.json"))
    for i in range(max(32, len(found))):
        copy = f"_{i // len(found)}" if i >= len(found) else ""
        shutil.copytree(found[i % len(found)], folder / f"{found[i % len(found)].name}{copy}")
    for name in ("one", "two"):
        shutil.copytree(found[0], folder / "more" / name)
    build.pages(folder, folder)
    return folder


def test_thirty_experiments_are_ready_within_a_second(
    visit: Callable[..., Page], many: Path
) -> None:
    assert (many / "index.html").stat().st_size < 4e6
    times = []
    for _ in range(3):
        page = visit(folder=many)
        times.append(float(page.evaluate("document.documentElement.dataset.ready")))
        assert page.locator("article.card > details").count() >= 30
        assert page.locator("article.card > details[open]").count() == 0
        page.close()
    assert statistics.median(times) < 1000


def test_an_address_opens_the_card_and_the_table_of_its_claim(
    visit: Callable[..., Page], many: Path
) -> None:
    page = visit(state="#clip_threshold-2", folder=many)
    claim = page.locator("[id='clip_threshold-2']")
    assert claim.is_visible()
    until(lambda: 0 <= claim.evaluate("row => row.getBoundingClientRect().top") < DESK["height"])
    page.locator(".contents a[href='#wall']").click()
    page.locator("#wall .inside").wait_for()


@pytest.mark.parametrize("viewport", [DESK, PHONE])
def test_the_contents_stay_in_sight(
    visit: Callable[..., Page], many: Path, viewport: dict[str, int]
) -> None:
    page = visit(state="#wall", folder=many, viewport=viewport)
    nav = page.locator("nav.shelf")
    until(lambda: -1 <= nav.evaluate("n => n.getBoundingClientRect().top") <= 1)
    assert page.evaluate("scrollY") > 1000
    if viewport is PHONE:
        nav.locator("summary").click()
    nav.locator("a[href='#residual']").click()
    assert page.locator("#residual .inside").is_visible()
    assert nav.locator(".contents").first.is_visible() is (viewport is DESK)


def test_a_key_shows_a_figure_at_full_size(visit: Callable[..., Page]) -> None:
    page = visit()
    page.locator(f"#{NAME} a[data-zoom]").press("Enter")
    large = page.locator("dialog#zoom img")
    assert box_of(page, "dialog#zoom img")["width"] > 900
    assert large.get_attribute("src") == page.locator(f"#{NAME} img").get_attribute("src")
    page.keyboard.press("Escape")
    large.wait_for(state="detached")


def test_two_runs_stand_side_by_side(visit: Callable[..., Page], many: Path) -> None:
    page = visit(state="#more", folder=many)
    left, right = page.locator("#more .compare select").all()
    left.select_option("as written")
    right.select_option("two")
    pair = page.locator("#more .compare .pair > *")
    assert pair.count() == 2
    boxes = [pair.nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]
    assert boxes[1]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert pair.locator("[id]").count() == 0
    assert pair.locator("img").count() == 1  # it was not run as written
    assert pair.locator("h4").all_text_contents() == ["as written", "two"]
