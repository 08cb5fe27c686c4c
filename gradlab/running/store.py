"""Finished points of an experiment on disk: files that appear whole and carry their checksum.

A file says in itself which points it holds, so that what is finished is known from the files alone,
whoever wrote them and however a sweep was cut. Nothing is removed because it could not be read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import xarray as xr

from gradlab.errors import BadInput, NotWritten
from gradlab.experiment import dataset, files
from gradlab.experiment.dataset import Named
from gradlab.running.console import say
from gradlab.running.identity import Case, digest

AnyCase = TypeVar("AnyCase", bound=Case)

_ROWS = "rows_of_file"
# Beside the experiment's own arrays, whose names have no space.
_POINTS = "points of this file"
_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})\.nc")
_INDEX = ".index"


class Stored(Protocol):
    """A case as the store sees it: its name, and what it tells about itself as JSON holds it."""

    @property
    def key(self) -> str:
        """The name of its content."""

    def plain(self) -> dict[str, Any]:
        """What a file tells about it."""


@dataclass(frozen=True)
class Store:
    """The files of finished points in one folder, which other processes may use meanwhile."""

    folder: Path

    def save(self, done: Sequence[tuple[Stored, Mapping[str, Named]]], how: Any) -> None:
        """Put the arrays of points of equal structure in one file; `how` they were computed."""
        files.folder_for(self.folder)
        points = [point for point, _ in done]
        content = _stacked([arrays for _, arrays in done])
        told = json.dumps([point.plain() for point in points]).encode()
        # As numbers: these are compressed, and a text is not.
        content[_POINTS] = xr.Variable("bytes_of_points", np.frombuffer(told, np.uint8))
        content.attrs["how"] = json.dumps(how)
        held = dataset.as_bytes(content)
        name = f"{_together([point.key for point in points])}-{_checksum(held)}.nc"
        files.write_bytes(self.folder / name, held)

    def save_failure(self, point: Stored, error: str, traceback: str) -> None:
        """Note that a point raised, and what it said."""
        files.folder_for(self.folder)
        note = {"error": error, "traceback": traceback}
        files.write_json(self.folder / f"{point.key}.failed.json", note)

    def failures(self, points: Iterable[Stored]) -> dict[str, dict[str, str]]:
        """Point key to the note of its failure, for those of the points that have one."""
        there = {path.name.partition(".")[0] for path in self.folder.glob("*.failed.json")}
        if not there:
            return {}
        other = self._others()
        keys = {point.key: other.get(point.key, point.key) for point in points}
        notes = {
            key: _json(self.folder / f"{own}.failed.json")
            for key, own in keys.items()
            if own in there
        }
        told = ("error", "traceback")
        return {key: note for key, note in notes.items() if sorted(note) == sorted(told)}

    def forget_failures(self, points: Iterable[Stored]) -> None:
        """Remove the notes of failures, so that the points are tried again."""
        other = self._others()
        for key in self.failures(points):
            (self.folder / f"{other.get(key, key)}.failed.json").unlink(missing_ok=True)

    def forget(self, keys: Iterable[str]) -> None:
        """Remove finished points; the others of their files are saved anew."""
        unwanted = set(keys)
        for name, held in self._index().items():
            if unwanted.intersection(held):
                self._keep(name, [key for key in held if key not in unwanted])
                (self.folder / name).unlink(missing_ok=True)

    def has(self, points: Sequence[Stored]) -> bool:
        """Whether exactly these points are finished as one file."""
        name = _together([point.key for point in points])
        return any(path.is_file() for path in self.folder.glob(f"{name}-*.nc"))

    def keys(self) -> set[str]:
        """The keys of all finished points, those by which others ask for them among it."""
        own = {key for keys in self._index().values() for key in keys}
        return own | {other for other, key in self._others().items() if key in own}

    def also_called(self, names: Mapping[str, str]) -> None:
        """Note for points the names by which others ask for them: name to their own key."""
        other = {name: key for name, key in names.items() if name != key}
        if other:
            files.folder_for(self.folder)
            files.write_json(self.folder / f"{digest(other)}.names.json", other)

    def _others(self) -> dict[str, str]:
        """Every name by which others ask for a point, and the point's own key."""
        notes = [_json(path) for path in sorted(self.folder.glob("*.names.json"))]
        told = {name: key for note in notes for name, key in note.items()}
        return {name: key for name, key in told.items() if isinstance(key, str)}

    def load(self, points: Iterable[Stored]) -> tuple[dict[str, dict[str, Named]], list[Any]]:
        """Point key to arrays, where the point is finished, and the ways they were computed."""
        asked = {point.key for point in points}
        other = {name: key for name, key in self._others().items() if name in asked}
        wanted = asked | set(other.values())
        found: dict[str, dict[str, Named]] = {}
        ways: list[Any] = []
        for name, keys in sorted(self._index().items()):
            if wanted.isdisjoint(keys) or (content := self._content(self.folder / name)) is None:
                continue
            for row, key in enumerate(keys):
                if key in wanted and key not in found:
                    found[key] = _row(content, row)
            way = json.loads(content.attrs["how"])
            ways += [] if way in ways else [way]
        found |= {name: found[key] for name, key in other.items() if key in found}
        return {key: arrays for key, arrays in found.items() if key in asked}, ways

    def told(self) -> list[tuple[dict[str, Any], Any]]:
        """What every finished point tells about itself, and how it was computed, by age."""
        paths = [self.folder / name for name in self._index()]
        contents = map(self._content, sorted(paths, key=_age))
        return [
            (plain, json.loads(content.attrs["how"]))
            for content in contents
            if content is not None
            for plain in _told(content)
        ]

    def as_saved(self, points: Sequence[AnyCase]) -> list[AnyCase]:
        """The points with the keys under which they were saved last, whatever code did it."""
        last = {_without_key(plain): str(plain["key"]) for plain, _ in self.told()}
        return [
            replace(point, key=last.get(_without_key(point.plain()), point.key)) for point in points
        ]

    def _keep(self, name: str, keys: Sequence[str]) -> None:
        """Save some of a file's points in a file of their own."""
        content = self._content(self.folder / name) if keys else None
        if content is not None:
            told = {plain["key"]: plain for plain in _told(content)}
            rows = [row for row, key in enumerate(told) if key in set(keys)]
            done = [(_Told(plain), _row(content, row)) for row, plain in enumerate(told.values())]
            self.save([done[row] for row in rows], json.loads(content.attrs["how"]))

    # ---- which points are where

    def _index(self) -> dict[str, list[str]]:
        """File to the keys of its points; a file that is new or was changed is read."""
        there = {path.name: _stamp(path) for path in self.folder.glob("*.nc")}
        there = {name: stamp for name, stamp in there.items() if _NAME.fullmatch(name)}
        known = {
            name: keys
            for name, (stamp, keys) in self._read_index().items()
            if there.get(name) == stamp
        }
        new = {name: self._keys_of(name) for name in sorted(there.keys() - known.keys())}
        # What it saves is worth its time only now and then: it grows with all points.
        if sum(map(len, new.values())) > sum(map(len, known.values())) / 8 + 8:
            self._write_index({name: (there[name], keys) for name, keys in (known | new).items()})
        return known | new

    def _keys_of(self, name: str) -> list[str]:
        content = self._content(self.folder / name)
        return [] if content is None else [plain["key"] for plain in _told(content)]

    def _read_index(self) -> dict[str, tuple[str, list[str]]]:
        """The index as it was written last; it only saves time, and any fault in it is as none."""
        try:
            head, keys = (self.folder / _INDEX).read_text(encoding="utf-8").splitlines()
            files_there = json.loads(head)
            starts = np.cumsum([0, *(count for _, count in files_there.values())]) * 32
            if len(keys) != starts[-1]:
                return {}
            return {
                name: (stamp, [keys[at : at + 32] for at in range(first, last, 32)])
                for (name, (stamp, _)), first, last in zip(
                    files_there.items(), starts[:-1], starts[1:], strict=True
                )
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _write_index(self, index: Mapping[str, tuple[str, Sequence[str]]]) -> None:
        head = json.dumps({name: (stamp, len(keys)) for name, (stamp, keys) in index.items()})
        text = f"{head}\n{''.join(key for _, keys in index.values() for key in keys)}\n"
        try:
            files.write_bytes(self.folder / _INDEX, text.encode())
        except NotWritten:
            return  # a folder that may only be read is a store all the same

    # ---- what a file holds

    def _content(self, path: Path) -> xr.Dataset | None:
        """What a file holds; None, and a line that says why, where that cannot be known."""
        try:
            held = path.read_bytes()
        except FileNotFoundError:
            return None  # removed by another process
        except IsADirectoryError:
            self._aside(path, "is a folder")
            return None
        except OSError as error:
            say(f"note: '{path}' cannot be read ({error.strerror}); its points count as missing")
            return None
        match = _NAME.fullmatch(path.name)
        if match is None or _checksum(held) != match[2]:
            self._aside(path, "is damaged")
            return None
        try:
            content = dataset.parsed(held, path)
        except BadInput as error:
            say(f"note: {error}")
            return None
        if _together([plain["key"] for plain in _told(content)]) != match[1]:
            self._aside(path, "has another file's content")
            return None
        return content

    def _aside(self, path: Path, what: str) -> None:
        """Put a file where it is kept and no longer asked."""
        place = path.parent / "damaged" / path.name
        try:
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
            say(f"note: '{path}' {what}; moved to '{place}', its points are computed again")
        except OSError as error:
            say(f"note: '{path}' {what} and stays ({error.strerror}); its points count as missing")


@dataclass(frozen=True)
class _Told:
    """A point of which only is known what a file told."""

    told: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.told["key"])

    def plain(self) -> dict[str, Any]:
        return self.told


def _without_key(plain: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in plain.items() if name != "key"})


def _stamp(path: Path) -> str:
    """What tells that a file was changed without reading it."""
    try:
        told = path.stat()
        return f"{told.st_size} {told.st_mtime_ns}"
    except OSError:
        return ""


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _json(path: Path) -> dict[str, str]:
    """What a note says; empty where it is none."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _checksum(held: bytes) -> str:
    return hashlib.sha256(held).hexdigest()[:16]


def _together(keys: Sequence[str]) -> str:
    """The name of several points as one."""
    return digest(list(keys))


def _told(content: xr.Dataset) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = json.loads(content[_POINTS].values.tobytes())
    return plain


def _stacked(arrays: Sequence[Mapping[str, Named]]) -> xr.Dataset:
    # Axes are renamed because a variable may have the name of one of its axes.
    return xr.Dataset({name: _rows([row[name] for row in arrays]) for name in arrays[0]})


def _rows(same: Sequence[Named]) -> xr.Variable:
    variables = [dataset.as_variable(one) for one in same]
    dims = (_ROWS, *(f"axis_{dim}" for dim in same[0].dims))
    return xr.Variable(dims, np.stack([one.values for one in variables]), variables[0].attrs)


def _row(content: xr.Dataset, row: int) -> dict[str, Named]:
    return {
        str(name): dataset.from_variable(
            xr.Variable(
                [str(dim).removeprefix("axis_") for dim in variable.dims[1:]],
                variable.values[row],
                variable.attrs,
            )
        )
        for name, variable in content.variables.items()
        if name != _POINTS
    }
