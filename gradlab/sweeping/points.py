"""What a sweep is before anything is computed: its points, their groups, chunks and names.

A point is one single run: its own config, seed and precision. Points are made when they are asked
for, so that a sweep of a million takes no room. This room needs neither jax nor a file of results:
a sweep is planned, and bad input told, before the heavy imports.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

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

# The axis of points that are no grid.
POINT = "point"


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
class Axis:
    """One axis of a sweep: the values of one key, or a table of several that go along together.

    Attributes:
        columns: swept key to its values along the axis.
    """

    columns: Mapping[str, Sequence[Any]]

    @property
    def name(self) -> str:
        """The key, or `point` for a table."""
        return next(iter(self.columns)) if len(self.columns) == 1 else POINT

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True)
class Points(Sequence[Point]):
    """The product of axes, its points made one by one.

    Attributes:
        shape: the lengths of the axes, the first of which goes slowest.
        at: makes the point at an index.
        alike: the axes along which all points are of one structure.
    """

    shape: tuple[int, ...]
    at: Callable[[tuple[int, ...]], Point]
    alike: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return math.prod(self.shape)

    @overload
    def __getitem__(self, place: int) -> Point: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Point]: ...
    def __getitem__(self, place: int | slice) -> Point | Sequence[Point]:
        if isinstance(place, slice):
            return Some(self, np.arange(len(self))[place])
        place = range(len(self))[place]
        index = np.unravel_index(place, self.shape) if self.shape else ()
        return self.at(tuple(map(int, index)))

    def kinds(self) -> np.ndarray[Any, Any]:
        """A number for each point; what has an equal one is of one structure."""
        steps = [1 if axis in self.alike else size for axis, size in enumerate(self.shape)]
        kinds = np.arange(math.prod(steps), dtype=np.int64).reshape(steps)
        return np.broadcast_to(kinds, self.shape).reshape(-1)


@dataclass(frozen=True, eq=False)
class Some(Sequence[Point]):
    """Some of the points of a sweep, by their places in it."""

    points: Sequence[Point]
    places: Any

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Point: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Point]: ...
    def __getitem__(self, place: int | slice) -> Point | Sequence[Point]:
        if isinstance(place, slice):
            return Some(self.points, self.places[place])
        return self.points[int(self.places[place])]


@dataclass(frozen=True)
class Sweep:
    """All points of a sweep, in the order of their indices.

    Attributes:
        axes: what is swept.
        points: the points, the product of the axes.
        fixed: the overrides that all points share.
        asked: what the sweep was asked for.
    """

    axes: tuple[Axis, ...]
    points: Sequence[Point]
    fixed: tuple[str, ...]
    asked: Asked

    @property
    def columns(self) -> dict[str, Sequence[Any]]:
        """Swept key to its values along the axis that it is of."""
        return {key: values for axis in self.axes for key, values in axis.columns.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return tuple(map(len, self.axes))

    def shared(self) -> dict[str, Any]:
        """The config values that all points have in common."""
        configs = [schema.values(point.cfg) for point in self.corners()]
        return {
            name: value
            for name, value in configs[0].items()
            if all(config[name] == value for config in configs)
        }

    def corners(self) -> Iterator[Point]:
        """The first point, and those that differ from it along one axis, but for the seed."""
        yield self.points[0]
        for number, axis in enumerate(self.axes):
            step = math.prod(self.shape[number + 1 :])
            if axis.name == "seed":
                continue
            yield from (self.points[at * step] for at in range(1, self.shape[number]))

    def alone(self, point: Point) -> str:
        """The command line that computes one point alone."""
        program = shlex.split(self.asked.command)[:2]
        what = [line for line in self.fixed if line.partition("=")[0] not in NOT_ALONE]
        return shlex.join([*program, *what, *point.overrides])


def structure(point: Case) -> tuple[Any, ...]:
    """What two points must have in common to be one compiled program."""
    return (point.precision, *schema.structure(point.cfg))


def by_structure(points: Sequence[Point]) -> list[Some]:
    """The points by structure, both in the order of their first appearance."""
    kinds = points.kinds() if isinstance(points, Points) else np.arange(len(points))
    _, first, kinds = np.unique(kinds, return_index=True, return_inverse=True)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for kind in np.argsort(first):
        groups.setdefault(structure(points[int(first[kind])]), []).append(int(kind))
    of_kind = np.empty(len(first), dtype=np.int64)
    for number, members in enumerate(groups.values()):
        of_kind[members] = number
    order = np.argsort(of_kind[kinds], kind="stable")
    ends = np.cumsum(np.bincount(of_kind[kinds], minlength=len(groups)))
    return [Some(points, places) for places in np.split(order, ends[:-1])]


def chunks(points: Sequence[Point], size: int | None) -> list[Sequence[Point]]:
    """The points of equal structure in pieces of `size`; None chooses by the number of points.

    The pieces depend on the sweep alone, never on what is already finished, so that a sweep that
    was stopped and resumed ends with the same files as an undisturbed one.
    """
    size = size or -(-len(points) // NUM_CHUNKS)
    return [piece for group in by_structure(points) for piece in _pieces(group, size)]


def _pieces(points: Sequence[Point], size: int) -> Iterator[Sequence[Point]]:
    for start in range(0, len(points), size):
        yield points[start : start + size]


def in_words(point: Point) -> str:
    """The point in words: `key=value` for each swept key."""
    return " ".join(point.overrides)


def resolved(method: str, platform: str) -> str:
    """The method of evaluation that `auto` stands for on a platform ("cpu", "gpu", "tpu")."""
    return {"cpu": "each"}.get(platform, "vmap") if method == "auto" else method


def computed_by(settings: Settings, platform: str) -> str:
    """How the points of a sweep are evaluated, where that may change their last bits."""
    return method_in_words(resolved(settings.sweep.method, platform), settings.sweep.batch)


def method_in_words(method: str, batch: int = 0, **_: Any) -> str:
    """A method of evaluation with what may change a point's last bits."""
    return f"{method} {batch}" if method == "vmap" else method
