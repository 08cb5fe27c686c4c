"""`make verify` ends in time: what it does not come to keeps its last outcome, or is first next."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest

LATE = ("b.py", 1, "Skipped: not reached")


def report(nodeid: str, outcome: str, longrepr: Any = None) -> Any:
    return SimpleNamespace(
        nodeid=nodeid, outcome=outcome, longrepr=longrepr, duration=1.25, when="call"
    )


def session(minutes: float, record: Path | None = None) -> Any:
    given = {"minutes": minutes, "record": record}
    return SimpleNamespace(getoption=given.__getitem__)


def written(file: Path, *reports: Any) -> dict[str, list[str]]:
    """The record after a session with these outcomes, by test."""
    told: Any = SimpleNamespace(stats={"": [*reports]})
    conftest.pytest_terminal_summary(told, session(1.0, file))
    return {test: rest for test, *rest in conftest.recorded(file)}


def test_what_was_not_reached_keeps_how_it_last_ended(tmp_path: Path) -> None:
    file = tmp_path / "of" / "verify.md"
    lacking = report("a.py::lacks a library", "skipped", ("a.py", 1, "Skipped: no torch"))
    first = written(
        file, report("a.py::x[x | y]", "passed"), report("b.py::y", "skipped", LATE), lacking
    )
    outcome, seconds, when = first["a.py::x[x | y]"]
    assert (outcome, seconds) == ("passed", "1.2")
    assert first["b.py::y"] == [conftest.NOT_REACHED, "", ""]
    assert first["a.py::lacks a library"][0] == "skipped"

    second = written(file, report("a.py::x[x | y]", "skipped", LATE), report("b.py::y", "failed"))
    assert second == {"a.py::x[x | y]": ["passed", "1.2", when], "b.py::y": ["failed", "1.2", when]}


def test_what_never_passed_is_first_then_what_did_longest_ago(tmp_path: Path) -> None:
    file = tmp_path / "verify.md"
    head = "| test | outcome | seconds | when |"
    rows = "| a | passed | 1.0 | 2026-02-03 |", "| b | passed | 1.0 | 2025-12-31 |"
    file.write_text("\n".join([head, *rows, "| c | failed | 1.0 | 2026-02-03 |"]))
    items: Any = [SimpleNamespace(nodeid=name) for name in "abcd"]

    conftest.pytest_collection_modifyitems(session(1.0, file), items)
    assert [item.nodeid for item in items] == ["c", "d", "b", "a"]


def test_nothing_begins_when_the_time_is_over() -> None:
    conftest.pytest_runtest_setup(SimpleNamespace(config=session(float("inf"))))  # type: ignore[arg-type]
    with pytest.raises(pytest.skip.Exception, match=conftest.NOT_REACHED):
        conftest.pytest_runtest_setup(SimpleNamespace(config=session(0.0)))  # type: ignore[arg-type]
