"""Every example of these pages is executed, in an empty project of its own, and compared."""

import shutil
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
LONG = {"functions.md"}  # a minute of programs that are compiled for one line each: `make verify`


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the pages that take long, before the marks are read."""
    for item in items:
        if item.path.name in LONG:
            item.add_marker("verify")


@pytest.fixture(autouse=True)
def project_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the experiments and configs, and no results."""
    for name in ("experiments", "configs"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
