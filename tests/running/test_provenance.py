"""What a run says it was made with is what is there."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax

from gradlab.running import provenance

SETTINGS: Any = SimpleNamespace(seed=7, precision="float32")


def git(folder: Path, *words: str) -> str:
    own = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(
        ["git", "-C", str(folder), *own, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_versions_are_those_that_are_installed_and_none_for_what_is_not() -> None:
    found = provenance.versions(("jax", "numpy", "a-package-that-is-not-there"))
    assert found == {"jax": version("jax"), "numpy": version("numpy")}
    assert provenance.versions().keys() <= set(provenance.COMPUTING)
    assert {"gradlab", "jax", "jaxlib", "numpy"} <= provenance.versions().keys()


def test_a_record_has_the_seed_the_machine_and_the_versions(tmp_path: Path) -> None:
    made = provenance.made_with(tmp_path, SETTINGS)
    assert (made["seed"], made["precision"]) == (7, "float32")
    assert made["device"] == jax.devices()[0].device_kind
    assert made["platform"] == platform.platform()
    assert made["versions"]["python"] == platform.python_version()
    assert made["versions"]["matplotlib"] == version("matplotlib")


def test_a_commit_is_told_with_whether_anything_but_results_was_changed(tmp_path: Path) -> None:
    assert provenance.made_with(tmp_path, SETTINGS)["commit"] is None
    git(tmp_path, "init", "--quiet")
    assert provenance.made_with(tmp_path, SETTINGS)["commit"] is None  # nothing is committed
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "code")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.made_with(tmp_path, SETTINGS)["commit"] == head
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "data.nc").write_text("of a run")
    assert provenance.made_with(tmp_path, SETTINGS)["commit"] == head
    (tmp_path / "code.py").write_text("x = 2\n")
    assert provenance.made_with(tmp_path, SETTINGS)["commit"] == f"{head}+changes"
