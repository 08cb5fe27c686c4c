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
from typing import Any, NamedTuple

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
        help="skip what has not begun by then; what passed longest ago by the record comes first",
    )


@pytest.hookimpl(trylast=True)  # of what is to run
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What has not passed yet is first, then what did longest ago, by the record if there is one.

    Then workers begin with what has slow tests, then most tests: none waits long at the end.
    """
    rows = recorded(config.getoption("record"))
    passed = {row.test: row.when for row in rows if row.outcome == "passed"}
    if not hasattr(config, "workerinput"):
        items.sort(key=lambda item: passed.get(item.nodeid, ""))
        return
    scopes = {item.nodeid: taken_together(item.nodeid) for item in items}
    slow = Counter(scopes[item.nodeid] for item in items if item.get_closest_marker("slow"))
    held, oldest = Counter(scopes.values()), dict[str, str]()
    for nodeid, scope in scopes.items():
        oldest[scope] = min(oldest.get(scope, "9"), passed.get(nodeid, ""))

    def turn(item: pytest.Item) -> tuple[str, int, int, str]:
        scope = scopes[item.nodeid]
        return oldest[scope], -slow[scope], -held[scope], scope

    items.sort(key=turn)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Nothing begins when the time is over."""
    if time.monotonic() > START + 60 * item.config.getoption("minutes"):
        pytest.skip(NOT_REACHED)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The record of `make verify`: with what, and how and when each of its tests last ended."""
    file: Path | None = config.getoption("record")
    if file is None or hasattr(config, "workerinput"):  # a worker knows of its own tests alone
        return
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    ended = [
        outcome(report, today)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call" or getattr(report, "outcome", "passed") != "passed"
    ]
    before = {row.test: row for row in recorded(file) if row.outcome != NOT_REACHED}
    rows = [before.get(row.test, row) if row.outcome == NOT_REACHED else row for row in ended]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy", "optax"))
    head = [f"# make verify, {today}", "", f"{versions}, Python {python_version()}.", ""]
    table = ["| test | outcome | seconds | when |", "|---|---|---|---|"]
    lines = [f"| {' | '.join(row)} |" for row in sorted(rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*head, *table, *lines, ""]), encoding="utf-8")


class Row(NamedTuple):
    """How a test ended, and on which day; the cells of a line of the record."""

    test: str
    outcome: str
    seconds: str
    when: str


def outcome(report: Any, today: str) -> Row:
    """A test's line in the record."""
    is_late = report.outcome == "skipped" and NOT_REACHED in str(report.longrepr)
    if is_late:
        return Row(report.nodeid, NOT_REACHED, "", "")
    return Row(report.nodeid, report.outcome, f"{getattr(report, 'duration', 0.0):.1f}", today)


def recorded(file: Path | None) -> list[Row]:
    """The lines of a record, none where there is no file; a test's name may hold a bar."""
    if file is None or not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    cells = [line[2:-2].rsplit(" | ", 3) for line in lines if line.startswith("| ")]
    return [Row(*found) for found in cells if len(found) == len(Row._fields)][1:]  # below the head
