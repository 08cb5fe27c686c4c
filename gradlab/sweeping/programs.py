"""Many points in one compiled program: the only room that says how.

`each` calls the single run's own program once a point: nothing is compiled twice, a point that
raises harms no other, and the bits are those of a single run because the program is the same one.
`vmap` puts many points into one call, batch after batch. XLA lays a program out anew inside a loop
and inside a batch, so their last bits may differ from a single run's; in a chaotic network one ulp
becomes 20 % within a few dozen layers. On a CPU a call costs microseconds and `each` is the
default; on an accelerator a small point leaves the device idle and `vmap` is.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradlab.experiment import dataset, memory, schema
from gradlab.sweeping.points import Point, resolved, structure

Arrays = dict[str, Any]
Compute = Callable[[Any, jax.Array], Arrays]


@dataclass(frozen=True)
class Failure:
    """A point that raised, and what it said."""

    error: str
    traceback: str


@dataclass(frozen=True)
class Method:
    """How points are evaluated: `each` or `vmap`; points in a batch, 0 as memory allows."""

    name: str
    batch: int
    devices: tuple[jax.Device, ...]

    def record(self) -> dict[str, Any]:
        """The method as JSON holds it."""
        kind = self.devices[0].device_kind
        return {"method": self.name, "batch": self.batch, "devices": [kind] * len(self.devices)}


def choose(method: str, batch: int) -> Method:
    """The method to use here; `auto` chooses by the kind of device."""
    name = resolved(method, jax.default_backend())
    return Method(name, batch if name == "vmap" else 1, tuple(jax.local_devices()))


def platform() -> str:
    """The kind of device that jax computes on here."""
    return jax.default_backend()


def ask_for(platform: str) -> None:
    """Leave GPUs alone that nobody asked for; too late once a process has computed something."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")


def failure(error: Exception) -> Failure:
    """What an error said, in one line and in full."""
    lines = str(error).strip().splitlines() or [""]
    # What a callback raises comes with its traceback in the message, and its own words last.
    words = lines[-1] if "Traceback" in lines[0] else f"{type(error).__name__}: {lines[0]}"
    return Failure(
        words,
        "".join(traceback.format_exception(error)),
    )


def check(compute: Compute, point: Point) -> None:
    """Raise unless a file can hold what `compute` returns at a point, which computes nothing.

    Raises:
        BadInput: it cannot.
    """
    try:
        told = jax.eval_shape(compute, *_arguments(point))
    except Exception:
        return  # what cannot be traced is a failure of the point
    dataset.check_returned(told, schema.values(point.cfg))


class Program:
    """An experiment's `compute`, compiled once for each structure of its points.

    Points of one structure come one after another; another structure drops what was compiled. A
    program is mapped into memory in hundreds of pieces, of which Linux allows a process 65,530.
    """

    def __init__(self, compute: Compute, method: Method) -> None:
        self.method = method
        self._single = jax.jit(compute)
        self._compute = compute
        self._programs: dict[Any, Callable[..., Arrays]] = {}
        self._structure: tuple[Any, ...] | None = None

    def evaluate(self, points: Sequence[Point]) -> Iterator[tuple[Point, Arrays | Failure]]:
        """Each point of one structure with its arrays on the host, or with its failure.

        Raises:
            BadInput: no file can hold what `compute` returns.
        """
        self._make_room(structure(points[0]))
        try:
            told = self._single.eval_shape(*_arguments(points[0]))
        except Exception as error:  # what cannot be traced fails alike at all points
            yield from ((point, failure(error)) for point in points)
            return
        dataset.check_returned(told, schema.values(points[0].cfg))
        if self.method.name == "each":
            yield from self._each(points)
        else:
            yield from self._together(points)

    def _make_room(self, structure: tuple[Any, ...]) -> None:
        if self._structure not in (None, structure):
            self._programs.clear()
            jax.clear_caches()
        self._structure = structure

    def _each(self, points: Sequence[Point]) -> Iterator[tuple[Point, Arrays | Failure]]:
        devices = self.method.devices
        if len(devices) == 1:
            for point in points:
                yield point, self._one(point, None)
            return
        turns = [devices[number % len(devices)] for number in range(len(points))]
        pool = ThreadPoolExecutor(len(devices))
        try:
            yield from zip(points, pool.map(self._one, points, turns), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, point: Point, device: jax.Device | None) -> Arrays | Failure:
        try:
            arguments = _arguments(point)
            if device is not None:
                arguments = jax.device_put(arguments, device)
            return _on_host(self._single(*arguments))
        except Exception as error:
            return failure(error)

    def _together(self, points: Sequence[Point]) -> Iterator[tuple[Point, Arrays | Failure]]:
        num_devices = len(self.method.devices)
        rows = -(-len(points) // num_devices) * num_devices
        try:
            arrays: Sequence[Arrays | Failure] = self._rows(points, rows)
        except Exception:  # which of the points it was is found one by one, in the same program
            arrays = [self._alone(point, rows) for point in points]
        yield from zip(points, arrays, strict=True)

    def _alone(self, point: Point, rows: int) -> Arrays | Failure:
        try:
            return self._rows([point], rows)[0]
        except Exception as error:
            return failure(error)

    def _rows(self, points: Sequence[Point], rows: int) -> list[Arrays]:
        padded = [*points, *[points[-1]] * (rows - len(points))]
        cfgs = jax.tree.map(lambda *leaves: np.stack(leaves), *map(_config, padded))
        keys = jax.vmap(jax.random.key)(np.array([point.seed for point in padded]))
        mesh = Mesh(np.array(self.method.devices), ("points",))
        arguments = jax.device_put((cfgs, keys), NamedSharding(mesh, PartitionSpec("points")))
        program = self._compiled(mesh, rows, arguments)
        arrays = _on_host(program(*arguments))
        return [jax.tree.map(lambda leaf, row=row: leaf[row], arrays) for row in range(len(points))]

    def _compiled(self, mesh: Mesh, rows: int, arguments: Any) -> Callable[..., Arrays]:
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
        known = (jax.tree.structure(arguments), shapes)
        if known not in self._programs:
            batch = min(self.method.batch or rows, rows)
            while True:
                program = self._lowered(mesh, batch, arguments)
                share = _share_of_memory(program, mesh.devices.flat[0])
                if self.method.batch or batch == 1 or share <= 1:
                    break
                batch = max(1, int(batch / share))
            self._programs[known] = program
        return self._programs[known]

    def _lowered(self, mesh: Mesh, batch: int, arguments: Any) -> Any:
        def one(pair: tuple[Any, jax.Array]) -> Arrays:
            return self._compute(*pair)

        def local(cfgs: Any, keys: jax.Array) -> Arrays:
            return jax.lax.map(one, (cfgs, keys), batch_size=batch)

        along = PartitionSpec("points")
        sharded = jax.shard_map(local, mesh=mesh, in_specs=along, out_specs=along, check_vma=False)
        return jax.jit(sharded).lower(*arguments).compile()


def _config(point: Point) -> Any:
    return schema.arrays(point.cfg)


@functools.lru_cache(maxsize=4096)
def _key(seed: int) -> jax.Array:
    return jax.random.key(seed)


def _arguments(point: Point) -> tuple[Any, jax.Array]:
    return _config(point), _key(point.seed)


def _on_host(arrays: Arrays) -> Arrays:
    return jax.tree.map(np.asarray, arrays)


def _share_of_memory(program: Any, device: jax.Device) -> float:
    """What the program needs, in units of half the memory that is free."""
    return memory.needed(program) / (0.5 * memory.free(device))
