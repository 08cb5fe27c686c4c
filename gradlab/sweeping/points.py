"""What a sweep is before anything is computed: its points, their groups, chunks and names.

A point is one single run: its own config, seed and precision. This room needs neither jax nor a
file of results, so that a sweep is planned, and bad input told, before the heavy imports.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradlab.experiment import schema
from gradlab.running.identity import Case
from gradlab.running.settings import NOT_NAMED

if TYPE_CHECKING:
    from gradlab.running.provenance import Asked
    from gradlab.running.settings import Settings

# What tells how a sweep is made says nothing to one of its points alone.
NOT_ALONE = NOT_NAMED - {"results"} | {"sweep.method", "sweep.batch"}

# A sweep loses at most one chunk of this many when it is killed.
NUM_CHUNKS = 50


@dataclass(frozen=True)
class Point(Case):
    """One single run of a sweep.

    Attributes:
        index: where it is along each axis of the sweep.
        values: swept key to value, as a coordinate holds it.
        overrides: what makes this point on a command line, its sweep aside.
    """

    index: tuple[int, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


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


def structure(point: Case) -> tuple[Any, ...]:
    """What two points must have in common to be one compiled program."""
    return (point.precision, *schema.structure(point.cfg))


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


def computed_by(settings: Settings) -> str:
    """How the points of a sweep are evaluated, where that may change their last bits."""
    platform = "gpu" if settings.cluster.gpus else "cpu"
    if settings.cluster.kind == "none":
        import jax

        platform = jax.default_backend()
    return method_in_words(resolved(settings.sweep.method, platform), settings.sweep.batch)


def method_in_words(method: str, batch: int = 0, **_: Any) -> str:
    """A method of evaluation with what may change a point's last bits."""
    return f"{method} {batch}" if method == "vmap" else method
