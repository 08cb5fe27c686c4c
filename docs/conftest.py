"""Every example of these pages is executed, in an empty project of its own, and compared."""

import shutil
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def project_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the experiments and configs, and no results."""
    for name in ("experiments", "configs"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
