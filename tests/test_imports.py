"""The house as law: which wing may import which, which room which, and where a library lives."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import gradlab

PACKAGE = Path(gradlab.__file__).parent
ROOT = PACKAGE.parent

# Each wing, and the wings that its rooms may import. `errors` and `lazy` are open to all.
WINGS: dict[str, set[str]] = {
    "arithmetic": set(),
    "models": {"arithmetic"},
    "measuring": {"models", "arithmetic"},
    "theory": {"models"},
    "experiment": set(),
    "running": {"experiment"},
    "sweeping": {"running", "experiment"},
    "calibration": {"running", "experiment", "measuring", "models"},
    "page": {"experiment"},
    "__main__": {"experiment", "running", "page", "diagnosis"},
    "diagnosis": {"measuring", "theory", "models", "page", "experiment"},
}
OPEN_TO_ALL = {"errors", "lazy"}

# What stands in no wing: the package's own face, and where Hydra looks for plugins.
FACE: dict[str, set[str]] = {"gradlab": {"starting"}, "hydra_plugins": {"sweeping", "running"}}

# The rooms of each wing from the ground up: a room imports only rooms that stand before it.
ROOMS: dict[str, tuple[str, ...]] = {
    "arithmetic": (
        *("formats", "bits", "precision", "doubled", "scaled", "norms", "quick_norms", "qr"),
        "balls",
    ),
    "models": (
        *("activations", "callables", "chain", "ensembles", "initialisers", "mixing", "networks"),
        *("recurrent", "transformer"),
    ),
    "measuring": (
        *("compiled", "chain_rule", "loops", "linearisation", "roundings", "forward", "blocks"),
        "jacobians",
        *("product_svd", "spectra", "certificate", "global_norm", "histogram", "leaf_norms"),
        *("monitor", "clip_report", "clipping", "clip_rules", "training", "coordinates"),
        *("one_block", "backpropagation", "trials", "forecast", "one_layer"),
        *("passes", "by_name", "wide"),
    ),
    "measuring.product_svd": (
        *("thresholds", "elimination", "complete_pivoting", "factors", "ratios", "trial"),
        *("extended", "factorisation", "one_sided", "spectrum", "error_bound"),
    ),
    "theory": (
        *("gauss", "meanfield", "dropout", "scalar", "residual", "normalisation", "finite_width"),
        *("products", "ranges", "spectra", "tangent_kernel"),
        *("clipping", "attention", "transformer", "collapse", "parametrisation"),
    ),
    "experiment": (
        *(
            "schema",
            "lesson",
            "files",
            "fileset",
            "files",
            "dataset",
            "estimate",
            "claim",
            "memory",
            "headline",
            "loading",
            "fault",
            "figures",
        ),
        "grid",
    ),
    "running": (
        *("settings", "interrupts", "console", "provenance", "machine", "recall", "identity"),
        *(
            "store",
            "grammar",
            "composition",
            "naming",
            "usage",
            "refusals",
            "single",
            "command_line",
            "question",
        ),
    ),
    "sweeping": (
        *(
            "points",
            "programs",
            "join",
            "summary",
            "gathered",
            "scales",
            "strip",
            "overview",
            "sweep",
            "queues",
            "cluster",
            "outcomes",
            "launchers",
            "lines",
            "grid",
            "multirun",
            "from_python",
        ),
    ),
    "calibration": (
        "workers",
        "records",
        "rehearsal",
        "wrong",
        "mutations",
        "outcomes",
        "variants",
        "power",
        "seeds",
        "__main__",
    ),
    "diagnosis": (
        *("door", "program", "dependence", "layers", "sums", "softmaxes", "gates", "skips"),
        *("outputs", "anatomy"),
        *("changes", "operations", "rewiring", "exceptional", "entries", "measures"),
        "memory",
        *("laws", "facts", "verdicts"),
        *("checks_weights", "checks_flow", "checks_logits", "checks_learning", "checks_streams"),
        *("embeddings", "counting", "examination", "planning", "report", "record"),
        *("singular", "exact", "audit", "command", "spikes", "watching", "lag", "coordinates"),
    ),
    "page": (
        *(
            "numbers",
            "vector",
            "panels",
            "worth",
            "shelves",
            "citation",
            "gallery",
            "still",
            "readme",
            "offers",
            "evidence",
            "build",
            "site",
            "__main__",
        ),
    ),
}

# What a wing shows of itself to the others, where that is less than all of its rooms.
FACES = {"models": {"theory": {"activations"}}, "experiment": {"diagnosis": {"estimate"}}}
CLOSED = {"measuring.product_svd": {"measuring.spectra", "measuring.certificate"}}

# Outside libraries and their homes: wings, or rooms of them. jax and numpy are at home everywhere.
HOMES: dict[str, set[str]] = {
    "cycler": {"experiment.figures"},
    "flint": {"arithmetic.balls"},
    "h5py": {"experiment.dataset"},
    "hydra": {
        *("running", "sweeping.multirun", "sweeping.lines", "sweeping.grid"),
        *("sweeping.launchers", "sweeping.from_python", "hydra_plugins"),
    },
    "jinja2": {"page"},
    "joblib": {"sweeping.cluster"},
    "lazy_loader": {"gradlab", *WINGS},
    "markupsafe": {"page"},
    "matplotlib": {"experiment.figures"},
    "omegaconf": {
        *("running", "sweeping.multirun", "sweeping.lines", "sweeping.grid"),
        *("sweeping.launchers", "sweeping.from_python", "hydra_plugins"),
    },
    "optax": {
        *("lazy", "measuring.clip_rules", "measuring.clipping", "measuring.monitor"),
        *("measuring.training", "measuring.coordinates", "measuring.by_name"),
        *("measuring.trials", "diagnosis.watching"),
    },
    "pandas": {"sweeping.from_python", "sweeping.outcomes"},
    "rich": {"running", "sweeping"},
    "scipy": {"theory", "experiment.claim", "experiment.estimate", "calibration.seeds"},
    "submitit": {"sweeping.cluster", "sweeping.queues"},
    "xarray": {"lazy", "experiment", "running", "sweeping", "calibration", "page"},
    "yaml": {"running"},
}
EVERYWHERE = {"jax", "numpy", "gradlab", "typing_extensions"}


def place(path: Path) -> str:
    """Where a file stands: `wing.room`, a wing for its face, `gradlab` for the package's own."""
    if PACKAGE not in path.parents:
        return path.relative_to(ROOT).parts[0]
    parts = [*path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(part for part in parts if part != "__init__") or "gradlab"


def imports(path: Path) -> Iterator[str]:
    """Every module or name that a file imports."""
    return imported(path.read_text(), path.relative_to(ROOT).parts[:-1])


def imported(code: str, package: tuple[str, ...]) -> Iterator[str]:
    """Every module or name that code imports: at the top, in a function, or for types only.

    `from a import b` gives `a.b`, since b may be a room; a relative import is made absolute.
    """
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*up, *filter(None, [node.module])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    """The `wing.room`s that a file imports."""
    return rooms(imports(path))


def rooms(names: Iterable[str]) -> set[str]:
    """The `wing.room`s among imported names; one that goes by a public name is resolved."""
    found = set()
    for name in names:
        if name.startswith("gradlab."):
            real = PUBLIC.get(name.removeprefix("gradlab."), name.removeprefix("gradlab."))
            known = [room for room in STANDING if real == room or real.startswith(room + ".")]
            found.add(max(known, key=len, default=real))
    return found


def files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")])


def public_names() -> dict[str, str]:
    """`chain` -> `models.chain`: what `gradlab.chain` is, by the list in `__init__.pyi`."""
    names = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.name] = ".".join(filter(None, [node.module, alias.name]))
    return names


STANDING = {place(path) for path in files() if PACKAGE in path.parents}
PUBLIC = public_names()


def wing(room: str) -> str:
    return room.partition(".")[0]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_its_place_in_the_law() -> None:
    listed = {f"{wing}.{room}" for wing, rooms in ROOMS.items() for room in rooms}

    assert STANDING - listed - set(WINGS) == {"gradlab", "starting", *OPEN_TO_ALL}
    assert listed - STANDING == set()


@pytest.mark.parametrize("path", files(), ids=named)
def test_a_wing_imports_only_wings_below_it(path: Path) -> None:
    own = wing(place(path))
    allowed = WINGS.get(own, FACE.get(own, set()))
    others = {room for room in rooms_imported(path) if wing(room) not in {own, *OPEN_TO_ALL}}

    # `gradlab` itself is the public face: `fault` reaches what it breaks through it, by name.
    assert {room for room in others if wing(room) not in allowed | {"gradlab"}} == set()
    for other, faces in FACES.items():
        if own in faces:
            seen = {room.partition(".")[2] for room in others if wing(room) == other}
            assert seen <= faces[own]


@pytest.mark.parametrize("path", files(), ids=named)
def test_a_room_imports_only_rooms_that_stand_before_it(path: Path) -> None:
    own = place(path)
    house = own.rpartition(".")[0]
    if house not in ROOMS:  # a wing's face, or a room of no wing
        return
    order = ROOMS[house]
    below = {f"{house}.{room}" for room in order[: order.index(own.rpartition(".")[2])]}
    beside = {room for room in rooms_imported(path) if room.rpartition(".")[0] == house}

    assert beside <= below


@pytest.mark.parametrize("path", files(), ids=named)
def test_a_closed_room_is_entered_by_its_door_and_only_by_its_callers(path: Path) -> None:
    for closed, callers in CLOSED.items():
        entered = {room for room in rooms_imported(path) if room.startswith(closed)}
        if entered and not place(path).startswith(closed):
            assert place(path) in callers
            assert entered == {closed}


@pytest.mark.parametrize("path", files(), ids=named)
def test_an_outside_library_is_used_only_at_home(path: Path) -> None:
    outside = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    own = place(path)
    astray = {
        library
        for library in outside - EVERYWHERE
        if not {own, wing(own)} & HOMES.get(library, set())
    }

    assert astray == set()


def test_theory_and_measurement_never_meet() -> None:
    assert "measuring" not in WINGS["theory"]
    assert "theory" not in WINGS["measuring"] | WINGS["models"] | WINGS["arithmetic"]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_an_experiment_imports_the_library_by_its_front_door(path: Path) -> None:
    names = set(imports(path))

    assert {name.partition(".")[0] for name in names} <= {
        *sys.stdlib_module_names,
        *("gradlab", "jax", "numpy", "optax", "xarray"),
    }
    assert {name for name in names if name.startswith("gradlab.")} <= {
        f"gradlab.lazy.{name}" for name in ("jax", "jnp", "np", "optax", "xr")
    }


def test_a_relative_import_and_one_by_a_public_name_are_seen() -> None:
    code = "from ..measuring import jacobians\nfrom gradlab import chain\nfrom . import scalar\n"
    seen = rooms(imported(code, ("gradlab", "theory")))

    assert seen == {"measuring.jacobians", "models.chain", "theory.scalar"}
