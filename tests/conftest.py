"""Strict arithmetic for every test, and the experiments by name."""

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from gradlab.experiment import loading
from tests.toys import rendering_toy, toy

__all__ = ["rendering_toy", "toy"]  # fixtures

PROJECT = Path(__file__).parent.parent

# A shell that runs the tests in the background makes them, and all that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
