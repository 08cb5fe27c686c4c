"""`make verify` ends in time: what it does not come to is skipped, recorded, first next time."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest


def report(nodeid: str, outcome: str, longrepr: Any = None) -> Any:
    return SimpleNamespace(nodeid=nodeid, outcome=outcome, longrepr=longrepr, duration=1.25)


def session(minutes: float, record: Any = None) -> Any:
    given = {"minutes": minutes, "record": record}
    return SimpleNamespace(getoption=given.__getitem__)


def test_what_was_not_reached_is_told_from_what_was_skipped_and_is_first_the_next_time(
    tmp_path: Any,
) -> None:
    rows = [
        conftest.row(report("a.py::passes[x | y]", "passed")),
        conftest.row(report("a.py::lacks a library", "skipped", ("a.py", 1, "Skipped: no torch"))),
        conftest.row(report("b.py::late[x | y]", "skipped", ("b.py", 1, "Skipped: not reached"))),
    ]
    file = tmp_path / "verify.md"
    file.write_text("\n".join(["# make verify", "", "| test | outcome | seconds |", *rows]))
    items: Any = [SimpleNamespace(nodeid=name) for name in ("a.py::new", "b.py::late[x | y]", "c")]

    assert rows[0] == "| a.py::passes[x | y] | passed | 1.2 |"
    assert conftest.not_reached(file.read_text()) == {"b.py::late[x | y]"}
    conftest.pytest_collection_modifyitems(session(1.0, file), items)
    assert [item.nodeid for item in items] == ["b.py::late[x | y]", "a.py::new", "c"]


def test_nothing_begins_when_the_time_is_over() -> None:
    conftest.pytest_runtest_setup(SimpleNamespace(config=session(float("inf"))))  # type: ignore[arg-type]
    with pytest.raises(pytest.skip.Exception, match=conftest.NOT_REACHED):
        conftest.pytest_runtest_setup(SimpleNamespace(config=session(0.0)))  # type: ignore[arg-type]
