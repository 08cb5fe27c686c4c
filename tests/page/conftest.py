"""The pages over a made-up experiment in a browser without a network.

What is drawn is offered by `experiments/every_place.py`, so that the real ones come and go freely.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from gradlab.experiment import dataset, files, fileset, lesson, loading
from gradlab.page import build
from tests.page.hands import CHECKS, DESK, NAME

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SIGMA_W = (0.5, 0.8, 1.0, 1.2, 1.5, 1.8, 2.0, 2.2, 2.5)


@pytest.fixture(scope="session")
def experiment() -> loading.Experiment:
    return loading.load(CHECKS / "experiments" / f"{NAME}.py")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def given(results: Path, experiment: loading.Experiment) -> Callable[[str], dict[str, Any]]:
    """What a figure is given, its arrays unpacked."""
    data = dataset.read(results / NAME / "data.nc")

    def payload(name: str) -> dict[str, Any]:
        return {
            key: lesson.unpacked(value) if isinstance(value, dict) and "base64" in value else value
            for key, value in experiment.module.LESSON.figures[name](data).items()
        }

    return payload


@pytest.fixture(scope="session")
def chain(given: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return given("chain")
