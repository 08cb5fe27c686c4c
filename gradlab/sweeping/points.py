"""What a sweep is before anything is computed: its points, their groups, chunks and names.

A point is one single run: its own config, seed and precision. This room needs neither jax nor a
file of results, so that a sweep is planned, and bad input told, before the heavy imports.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.experiment import schema
from gradlab.running import provenance
from gradlab.running.settings import NOT_NAMED

if TYPE_CHECKING:
    from gradlab.experiment.loading import Experiment
    from gradlab.running.provenance import Asked

# What tells how a sweep is made says nothing to one of its points alone.
NOT_ALONE = NOT_NAMED - {"results"} | {"sweep.method", "sweep.batch"}

LIBRARY = Path(__file__).parent.parent

# A sweep loses at most one chunk of this many when it is killed.
NUM_CHUNKS = 50


@dataclass(frozen=True)
class Point:
    """One single run of a sweep.

    Attributes:
        index: where it is along each axis of the sweep.
        values: swept key to value, as a coordinate holds it.
        overrides: what makes this point on a command line, its sweep aside.
        cfg: its config.
        seed: its seed.
        precision: its default float format.
        key: the name of its content: what is equal in all that matters has an equal key.
    """

    index: tuple[int, ...]
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    cfg: Any
    seed: int
    precision: str
    key: str

    def plain(self) -> dict[str, Any]:
        """What a chunk file tells about the point, as JSON holds it."""
        return {
            "key": self.key,
            "seed": self.seed,
            "precision": self.precision,
            "config": schema.values(self.cfg),
        }


@dataclass(frozen=True)
class Sweep:
    """All points of a sweep, in the order of their indices.

    Attributes:
        axes: swept key to the values along it.
        points: the points; the product of the axes, or fewer.
        fixed: the overrides that all points share.
        asked: what the sweep was asked for.
    """

    axes: Mapping[str, Sequence[Any]]
    points: Sequence[Point]
    fixed: tuple[str, ...]
    asked: Asked

    def shared(self) -> dict[str, Any]:
        """The config values that all points have in common."""
        configs = [schema.values(point.cfg) for point in self.points]
        return {
            name: value
            for name, value in configs[0].items()
            if all(config[name] == value for config in configs)
        }

    def alone(self, point: Point) -> str:
        """The command line that computes one point alone."""
        program = shlex.split(self.asked.command)[:2]
        what = [line for line in self.fixed if line.partition("=")[0] not in NOT_ALONE]
        return shlex.join([*program, *what, *point.overrides])


def structure(point: Point) -> tuple[Any, ...]:
    """What two points must have in common to be one compiled program.

    Equal exactly where `schema.arrays` gives pytrees of equal structure and shapes.
    """

    def part(entry: schema.Entry, value: Any) -> Any:
        if not entry.traced or value is None:
            return (type(value).__name__, value)
        return len(value) if entry.is_list else "number"

    cfg = point.cfg
    parts = (part(entry, getattr(cfg, entry.name)) for entry in schema.entries(cfg.__class__))
    return (point.precision, *parts)


def by_structure(points: Iterable[Point]) -> list[list[Point]]:
    """The points by structure, both in the order of their first appearance."""
    found: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        found.setdefault(structure(point), []).append(point)
    return list(found.values())


def chunks(points: Sequence[Point], size: int | None) -> list[list[Point]]:
    """The points of equal structure in pieces of `size`; None chooses by the number of points.

    The pieces depend on the sweep alone, never on what is already finished, so that a sweep that
    was stopped and resumed ends with the same files as an undisturbed one.
    """
    size = size or -(-len(points) // NUM_CHUNKS)
    return [list(piece) for group in by_structure(points) for piece in _pieces(group, size)]


def _pieces(points: Sequence[Point], size: int) -> Iterator[Sequence[Point]]:
    for start in range(0, len(points), size):
        yield points[start : start + size]


def resolved(method: str, platform: str) -> str:
    """The method of evaluation that `auto` stands for on a platform ("cpu", "gpu", "tpu")."""
    return {"cpu": "each"}.get(platform, "vmap") if method == "auto" else method


def point_key(code: str, cfg: Any, seed: int, precision: str) -> str:
    """The name of a point's content, 32 hexadecimal digits: equal for what computes the same."""
    return digest([code, schema.values(cfg), seed, precision])


def chunk_name(points: Sequence[Point]) -> str:
    """The name of a chunk's content."""
    return digest([point.key for point in points])


def digest(content: Any) -> str:
    """The name of plain values, 32 hexadecimal digits; floats count to their last bit."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def code_key(experiment: Experiment, *also: str) -> str:
    """The name of all that computes: the experiment, the library, what it stands on, and `also`."""
    path = experiment.file
    files = [path, *sorted(path.parent.glob("_*.py")), *sorted(LIBRARY.rglob("*.py"))]
    return digest([*map(_content, files), provenance.versions(), *also])


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
