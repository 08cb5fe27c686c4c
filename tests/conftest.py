"""Strict arithmetic for every test, and the experiments by name."""

import math
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import absl.logging
import hypothesis
import jax
import pytest

from gradlab.experiment import loading
from tests.toys import rendering_toy, toy
from tests.twice import lab

__all__ = ["lab", "rendering_toy", "toy"]  # fixtures

PROJECT = Path(__file__).parent.parent

START = time.monotonic()
NOT_REACHED = "not reached"

# A shell that runs the tests in the background makes them, and all that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# As does `nohup` to the end of a terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# absl, which optax brings, closes its log's stream when logging is configured anew, as Hydra does;
# were that stream the one that pytest reads from, every later test would end in an error.
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

# The same cases in every run: what fails once fails again.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# Warnings are errors too: pyproject.toml says so.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """Compiled programs go with the file that needed them.

    Each of them is mapped into memory in tens of pieces, of which Linux allows a process 65,530: a
    worker that kept those of all its files would end in a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def project() -> Path:
    return PROJECT


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for `experiment_file` runs for each experiment of the project."""
    if "experiment_file" in metafunc.fixturenames:
        files = loading.discover(PROJECT)
        metafunc.parametrize("experiment_file", files, ids=[file.stem for file in files])


@pytest.hookimpl(optionalhook=True)  # the oldest versions are tested without pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file, and of what runs for every experiment one experiment, as a whole."""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = taken_together
    return scheduler


def taken_together(nodeid: str) -> str:
    """What goes to one worker with this test, read from its name: no mark need reach it."""
    file, _, test = nodeid.partition("::")
    experiment = re.search(r"\[(\w+)", test) if file.endswith("test_experiments.py") else None
    return f"{file}:{experiment[1]}" if experiment else file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="write the outcomes with their date to this file")
    parser.addoption(
        "--minutes",
        type=float,
        default=math.inf,
        help="skip what has not begun by then; what the record says was skipped comes first",
    )


@pytest.hookimpl(trylast=True)  # of what is to run
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the last record was too short of time for is first.

    Then workers begin with what has slow tests, then most tests: none waits long at the end.
    """
    file: Path | None = config.getoption("record")
    late = not_reached(file.read_text(encoding="utf-8")) if file and file.is_file() else set[str]()
    if not hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.nodeid not in late)
        return
    scopes = {item.nodeid: taken_together(item.nodeid) for item in items}
    slow = Counter(scopes[item.nodeid] for item in items if item.get_closest_marker("slow"))
    held, missed = Counter(scopes.values()), {taken_together(nodeid) for nodeid in late}

    def turn(item: pytest.Item) -> tuple[bool, int, int, str]:
        scope = scopes[item.nodeid]
        return scope not in missed, -slow[scope], -held[scope], scope

    items.sort(key=turn)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Nothing begins when the time is over."""
    if time.monotonic() > START + 60 * item.config.getoption("minutes"):
        pytest.skip(NOT_REACHED)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The record of `make verify`: when, with what, and how each of its tests ended."""
    file: Path | None = config.getoption("record")
    if file is None:
        return
    rows = [
        row(report)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call" or getattr(report, "outcome", "passed") != "passed"
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy", "optax"))
    head = (
        f"# make verify, {datetime.now(UTC):%Y-%m-%d}\n\n{versions}, Python {python_version()}.\n"
    )
    table = ["| test | outcome | seconds |", "|---|---|---|", *sorted(rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([head, *table, ""]), encoding="utf-8")


def row(report: Any) -> str:
    """A test's line in the record."""
    is_late = report.outcome == "skipped" and NOT_REACHED in str(report.longrepr)
    outcome = NOT_REACHED if is_late else report.outcome
    return f"| {report.nodeid} | {outcome} | {getattr(report, 'duration', 0.0):.1f} |"


def not_reached(record: str) -> set[str]:
    """The tests of which a record says that there was no time for them."""
    cells = (line.strip("| ").rsplit(" | ", 2) for line in record.splitlines())
    return {found[0] for found in cells if found[1:2] == [NOT_REACHED]}
