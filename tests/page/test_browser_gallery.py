"""The gallery in a browser: of one experiment, and of more than thirty."""

import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from gradlab.experiment import loading
from gradlab.page import build
from tests.page.hands import DESK, NAME, PHONE, box_of, until


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


def test_a_figure_of_the_gallery_reads_out_under_the_pointer(
    visit: Callable[..., Page], many: Path
) -> None:
    page = visit(state="#scalar_chain", folder=many)
    box = box_of(page, "#scalar_chain img")
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.4 * box["height"])
    assert re.match(r"x [\d.]+,  y ", page.locator(".under").inner_text())
    page.mouse.move(2, 2)
    assert not page.locator(".under").is_visible()
