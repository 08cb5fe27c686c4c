"""The house as law: who may import whom, and which outside library lives where."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradlab

PACKAGE = Path(gradlab.__file__).parent
ROOT = PACKAGE.parent

# Each room and the rooms of gradlab that it may import. `lazy` and `schema` are open to all.
ROOMS: dict[str, set[str]] = {
    "activations": set(),
    "balls": set(),
    "bits": set(),
    "blocks": {"chain", "forward", "linearisation", "precision", "scaled"},
    "certificate": {
        *("balls", "chain", "graded", "jacobi", "jacobians", "linearisation", "loops", "passes"),
        *("precision", "scaled", "spectra"),
    },
    "chain": {"precision"},
    "chunks": {"dataset", "points"},
    "clipping": {"bits", "norms"},
    "cluster": {
        *("chunks", "dataset", "evaluate", "experiment", "points", "report", "settings", "sweep"),
    },
    "dataset": set(),
    "doubled": {"bits"},
    "elimination": {"doubled", "scaled"},
    "ensembles": {"activations", "chain"},
    "estimate": set(),
    "evaluate": {"experiment", "points"},
    "experiment": {"dataset", "estimate"},
    "figures": set(),
    "forward": {"chain", "linearisation", "loops", "scaled"},
    "graded": {"chain", "doubled", "elimination", "linearisation", "loops", "scaled"},
    "interrupts": set(),
    "jacobi": {"scaled"},
    "jacobians": {
        *("blocks", "chain", "forward", "linearisation", "loops", "precision", "scaled"),
    },
    "join": {"dataset", "points"},
    "launcher": {
        *("chunks", "cluster", "evaluate", "experiment", "points", "report", "runner"),
        *("settings", "sweep"),
    },
    "lazy": set(),
    "linearisation": {"chain"},
    "loops": {"chain"},
    "norms": {"bits", "doubled", "scaled"},
    "overview": {"estimate", "figures", "points"},
    "page": {"dataset", "estimate", "experiment"},
    "passes": {"chain", "graded", "loops", "scaled"},
    "points": {"experiment", "settings"},
    "precision": set(),
    "report": {"dataset", "estimate", "experiment", "figures", "settings"},
    "runner": {"experiment", "interrupts", "report", "settings"},
    "scaled": {"bits", "doubled", "precision"},
    "schema": set(),
    "settings": set(),
    "spectra": {
        *("chain", "graded", "jacobi", "linearisation", "loops", "passes", "precision", "scaled"),
    },
    "sweep": {
        *("chunks", "dataset", "estimate", "evaluate", "experiment", "figures", "interrupts"),
        *("join", "overview", "points", "report", "settings"),
    },
    "theory": {"activations", "theory"},
    "training": {"chain", "clipping"},
}
OPEN_TO_ALL = {"errors", "lazy", "schema"}

# Outside libraries that have one home, or two.
HOMES: dict[str, set[str]] = {
    "flint": {"balls", "certificate"},
    "hydra": {"runner", "launcher"},
    "jinja2": {"page"},
    "matplotlib": {"figures"},
    "omegaconf": {"runner", "launcher"},
    "optax": {"clipping", "training"},
    "submitit": {"cluster"},
}
MEASURING = {
    *("bits", "blocks", "certificate", "chain", "doubled", "elimination", "ensembles", "forward"),
    *("graded", "jacobi", "jacobians", "linearisation", "loops", "norms", "passes", "precision"),
    *("scaled", "spectra", "training"),
}


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top, in a function or for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("gradlab", "gradlab.theory"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("gradlab.")}
    assert used - OPEN_TO_ALL <= ROOMS[room(path)] | {room(path)}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_outside_library_is_used_only_in_its_home(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)}
    astray = {library for library in outside & set(HOMES) if room(path) not in HOMES[library]}
    assert not astray


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    below = {room: rooms - {room} for room, rooms in ROOMS.items()}
    graphlib.TopologicalSorter(below).prepare()  # raises CycleError, with the circle


def test_theory_and_measurement_never_import_each_other() -> None:
    assert not ROOMS["theory"] & MEASURING
    assert not [name for name in MEASURING if "theory" in ROOMS[name]]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_an_experiment_imports_neither_hydra_nor_matplotlib(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"hydra", "omegaconf", "matplotlib"}
