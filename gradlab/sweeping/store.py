"""Finished points on disk: each chunk is one file that appears whole, named by its content.

A file says in itself which points it holds, so that what is finished is known from the files alone,
whoever wrote them and however a sweep was cut into chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from gradlab.errors import BadInput
from gradlab.experiment import dataset, files
from gradlab.experiment.dataset import Named
from gradlab.sweeping.points import Point, chunk_name

_ROWS = "rows_of_chunk"


@dataclass(frozen=True)
class Store:
    """The chunk files of one sweep's folder."""

    folder: Path

    def save(self, done: Sequence[tuple[Point, Mapping[str, Named]]], how: Any) -> None:
        """Put the arrays of points of equal structure in one file; `how` they were computed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        points = [point for point, _ in done]
        content = _stacked([arrays for _, arrays in done])
        content.attrs["points"] = json.dumps([point.plain() for point in points])
        content.attrs["how"] = json.dumps(how)
        dataset.write(self.folder / f"{chunk_name(points)}.nc", content)

    def save_failure(self, point: Point, error: str, traceback: str) -> None:
        """Note that a point raised, and what it said."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"error": error, "traceback": traceback}
        files.write_json(self.folder / f"{point.key}.failed.json", note)

    def failures(self, points: Iterable[Point]) -> dict[str, dict[str, str]]:
        """Point key to the note of its failure, for those of the points that have one."""
        notes = {point.key: self.folder / f"{point.key}.failed.json" for point in points}
        return {key: json.loads(path.read_text()) for key, path in notes.items() if path.is_file()}

    def forget_failures(self, points: Iterable[Point]) -> None:
        """Remove the notes of failures, so that the points are tried again."""
        for point in points:
            (self.folder / f"{point.key}.failed.json").unlink(missing_ok=True)

    def forget(self, points: Iterable[Point]) -> None:
        """Remove every file that holds one of the points, so that they are computed again."""
        wanted = {point.key for point in points}
        for path, content in self._contents():
            if wanted.intersection(_keys(content)):
                path.unlink(missing_ok=True)

    def has(self, points: Sequence[Point]) -> bool:
        """Whether exactly these points are finished as one chunk."""
        return (self.folder / f"{chunk_name(points)}.nc").is_file()

    def keys(self) -> set[str]:
        """The keys of all finished points."""
        return {key for _, content in self._contents() for key in _keys(content)}

    def load(self, points: Iterable[Point]) -> tuple[dict[str, dict[str, Named]], list[Any]]:
        """Point key to arrays, where the point is finished, and the ways they were computed."""
        wanted = {point.key for point in points}
        found: dict[str, dict[str, Named]] = {}
        ways: list[Any] = []
        for _, content in self._contents():
            for row, key in enumerate(_keys(content)):
                if key in wanted and key not in found:
                    found[key] = _row(content, row)
                    way = json.loads(content.attrs["how"])
                    ways += [] if way in ways else [way]
        return found, ways

    def as_saved(self, points: Iterable[Point]) -> list[Point]:
        """The points with the keys under which they were saved last, whatever code did it."""
        last: dict[str, str] = {}
        for _, content in sorted(self._contents(), key=lambda pair: pair[0].stat().st_mtime_ns):
            for plain in json.loads(content.attrs["points"]):
                last[_without_key(plain)] = plain["key"]
        return [
            replace(point, key=last.get(_without_key(point.plain()), point.key)) for point in points
        ]

    def prune(self, points: Iterable[Point]) -> None:
        """Remove the files that hold none of the points: what older code has left."""
        wanted = {point.key for point in points}
        for path, content in self._contents():
            if wanted.isdisjoint(_keys(content)):
                path.unlink(missing_ok=True)

    def _contents(self) -> Iterator[tuple[Path, xr.Dataset]]:
        for path in sorted(self.folder.glob("*.nc")):
            try:
                yield path, dataset.read(path)
            except BadInput:
                path.unlink(missing_ok=True)  # damaged from outside: its points are missing again


def _without_key(plain: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in plain.items() if name != "key"})


def _keys(content: xr.Dataset) -> list[str]:
    return [point["key"] for point in json.loads(content.attrs["points"])]


def _stacked(arrays: Sequence[Mapping[str, Named]]) -> xr.Dataset:
    # Axes are renamed because a variable may have the name of one of its axes.
    return xr.Dataset(
        {
            name: xr.Variable(
                (_ROWS, *(f"axis_{dim}" for dim in first.dims)),
                np.stack([dataset.as_variable(row[name]).values for row in arrays]),
                {"long_name": first.long_name, "unit": first.units},
            )
            for name, first in arrays[0].items()
        }
    )


def _row(content: xr.Dataset, row: int) -> dict[str, Named]:
    return {
        str(name): Named(
            variable.values[row],
            tuple(str(dim).removeprefix("axis_") for dim in variable.dims[1:]),
            variable.attrs["long_name"],
            variable.attrs["unit"],
        )
        for name, variable in content.variables.items()
    }
