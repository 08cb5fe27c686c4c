"""What both pages owe every reader: addresses, no network, no JavaScript, print, phone, axe."""

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from gradlab.page import build
from tests.page.hands import CHECKS, DESK, NAME, PHONE, check_chain, read, until


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


def test_the_page_is_ready_within_a_second(visit: Callable[..., Page]) -> None:
    times = []
    for _ in range(5):
        page = visit()
        times.append(float(page.evaluate("document.documentElement.dataset.ready")))
        page.close()
    assert statistics.median(times) < 1000


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
    lesson = visit("lesson", java_script_enabled=False)
    lesson.emulate_media(media="print")
    for answer in lesson.locator("details data").all():
        assert answer.is_visible()


def test_a_command_is_copied_by_one_press(visit: Callable[..., Page]) -> None:
    page = visit()
    button = page.locator(f"#{NAME} .inside > .command button")
    button.click()
    page.wait_for_function(
        "b => ['copied', 'selected'].includes(b.textContent)", arg=button.element_handle()
    )
