"""The lesson in a browser: its numbers, questions, colours and answers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from gradlab.experiment import dataset
from tests.page.hands import DESK, NAME


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
        ["vanishing", "exploding", "edge", "plain", "residual", "clipped", "jacobian", "panel"],
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
