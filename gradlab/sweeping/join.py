"""From the datasets of many points to one labelled dataset; nothing is ever filled in.

A full grid of points of one shape becomes arrays whose leading axes are the swept parameters. What
is not a full grid of one shape becomes a table along one axis `point`; an axis whose length differs
from point to point is laid end to end, with the number of its point beside each entry (the indexed
ragged array of the CF conventions). A swept list that already is an axis of the data stays one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from gradlab.experiment import schema
from gradlab.sweeping.points import Sweep

POINT = "point"


@dataclass(frozen=True)
class Joined:
    """One dataset of a sweep.

    Attributes:
        data: the dataset.
        as_one_run: whether it has the axes of a single run, because only such axes were swept.
    """

    data: xr.Dataset
    as_one_run: bool


def join(sweep: Sweep, runs: Sequence[xr.Dataset]) -> Joined:
    """The datasets of the sweep's points, each as a single run leaves it, as one."""
    pieces = [{str(name): var for name, var in run.variables.items()} for run in runs]
    whole = math.prod(map(len, sweep.axes.values())) == len(runs)
    if whole and all(_shapes(piece) == _shapes(pieces[0]) for piece in pieces):
        joined = _grid(sweep, pieces)
    else:
        joined = Joined(_table(sweep, pieces), as_one_run=False)
    joined.data.attrs.update(_attributes(sweep, runs))
    return joined


def _shapes(piece: Mapping[str, xr.Variable]) -> dict[str, tuple[Any, ...]]:
    return {name: (variable.dims, variable.shape) for name, variable in piece.items()}


def _lists(sweep: Sweep, dims: set[str]) -> list[str]:
    """The swept keys that hold lists and name an axis of the data."""
    entries = schema.entries(sweep.points[0].cfg.__class__)
    return [
        entry.name for entry in entries if entry.is_list and entry.name in dims & set(sweep.axes)
    ]


def _dims(pieces: Sequence[Mapping[str, xr.Variable]]) -> set[str]:
    return {str(dim) for piece in pieces for variable in piece.values() for dim in variable.dims}


def _free(name: str, taken: set[str]) -> str:
    return f"swept_{name}" if name in taken else name


def _grid(sweep: Sweep, pieces: Sequence[Mapping[str, xr.Variable]]) -> Joined:
    dims = _dims(pieces)
    lists = _lists(sweep, dims)
    # Where every list has one entry, a variable without the list's axis may take it as its own.
    names = {
        key: key if key in lists and _single(sweep.axes[key]) else _free(key, dims)
        for key in sweep.axes
    }
    lengths = [len(values) for values in sweep.axes.values()]
    variables: dict[str, xr.Variable] = {}
    as_one_run = set(lists) == set(sweep.axes)
    for name, first in pieces[0].items():
        values = np.stack([piece[name].values for piece in pieces])
        grid = xr.Variable(
            [*map(_raw, sweep.axes), *first.dims],
            values.reshape(*lengths, *first.shape),
            first.attrs,
        )
        for key in sweep.axes:
            if key in lists and key in first.dims:
                grid = _end_to_end(grid, key)
            # Coordinates, and what does not depend on a list, stay as in a single run.
            elif (key in lists or name in first.dims) and _same_along(grid, _raw(key)):
                grid = grid.isel({_raw(key): 0})
            else:
                grid = _renamed(grid, _raw(key), names[key])
        changed = set(grid.dims) != set(first.dims)
        as_one_run = as_one_run and not changed
        variables[f"{name}_values" if name in first.dims and changed else name] = grid
    used = {dim for variable in variables.values() for dim in variable.dims}
    for key, name in names.items():
        if name not in variables and (key not in lists or name in used):
            variables[name] = xr.Variable((name,), coordinate(sweep.axes[key]))
    return Joined(_dataset(variables), as_one_run)


def _raw(key: str) -> str:
    return f"sweep {key}"


def _single(lists: Sequence[Sequence[Any]]) -> bool:
    return all(len(values) == 1 for values in lists)


def _end_to_end(grid: xr.Variable, key: str) -> xr.Variable:
    """The swept lists of `key` laid end to end along the axis that is theirs in a single run."""
    rest = [dim for dim in grid.dims if dim != _raw(key)]
    at = rest.index(key)
    ordered = grid.transpose(*rest[:at], _raw(key), *rest[at:])
    shape = [*ordered.shape[:at], -1, *ordered.shape[at + 2 :]]
    return xr.Variable(rest, ordered.values.reshape(shape), grid.attrs)


def _same_along(grid: xr.Variable, dim: str) -> bool:
    """Whether the values do not change along an axis, to the last bit."""
    values = np.moveaxis(grid.values, grid.dims.index(dim), 0)
    return all(np.array_equal(row, values[0]) or _bits(row) == _bits(values[0]) for row in values)


def _bits(values: Any) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def _renamed(grid: xr.Variable, old: str, new: str) -> xr.Variable:
    return xr.Variable([new if dim == old else dim for dim in grid.dims], grid.values, grid.attrs)


# ---- a table


def _table(sweep: Sweep, pieces: Sequence[Mapping[str, xr.Variable]]) -> xr.Dataset:
    lists = _lists(sweep, _dims(pieces))
    single = [key for key in lists if _single([point.values[key] for point in sweep.points])]
    pieces = [_without(piece, single) for piece in pieces]
    sizes = [_sizes(piece) for piece in pieces]
    dims = _dims(pieces)
    ragged = {dim for dim in dims if len({size.get(dim) for size in sizes} - {None}) > 1}
    ragged |= set(lists) - set(single)
    variables: dict[str, xr.Variable] = {}
    for name in dict.fromkeys(name for piece in pieces for name in piece):
        rows = [piece.get(name) for piece in pieces]
        variables |= _column(name, rows, ragged, pieces)
    swept = {
        _free(key, dims): coordinate([point.values[key] for point in sweep.points])
        for key in sweep.axes
        if key not in ragged
    } | {POINT: np.arange(len(pieces), dtype="int32")}
    variables |= {name: xr.Variable((POINT,), values) for name, values in swept.items()}
    return _dataset(variables, swept)


def _without(piece: Mapping[str, xr.Variable], keys: Sequence[str]) -> dict[str, xr.Variable]:
    """The variables without the axes of length one that `keys` name; `point` takes their place."""
    return {
        name: variable.isel({key: 0 for key in keys if key in variable.dims})
        for name, variable in piece.items()
        if name not in keys
    }


def _sizes(piece: Mapping[str, xr.Variable]) -> dict[str, int]:
    return {str(dim): size for variable in piece.values() for dim, size in variable.sizes.items()}


def _column(
    name: str,
    rows: Sequence[xr.Variable | None],
    ragged: set[str],
    pieces: Sequence[Mapping[str, xr.Variable]],
) -> dict[str, xr.Variable]:
    """One variable of all points, with the coordinates of its own that it needs."""
    there = [row for row in rows if row is not None]
    dims = there[0].dims
    if len(there) < len(rows) or any(row.dims != dims for row in there):
        return _laid(name, rows, f"{name}_row", None, pieces)
    uneven = [str(dim) for dim in dims if dim in ragged]
    if uneven:
        return _laid(name, rows, "_".join(uneven), uneven, pieces)
    stacked = xr.Variable((POINT, *dims), np.stack([row.values for row in there]), there[0].attrs)
    if name not in dims:
        return {name: stacked}
    if _same_along(stacked, POINT):
        return {name: there[0]}
    return {f"{name}_values": stacked}


def _laid(
    name: str,
    rows: Sequence[xr.Variable | None],
    axis: str,
    uneven: Sequence[str] | None,
    pieces: Sequence[Mapping[str, xr.Variable]],
) -> dict[str, xr.Variable]:
    """The variable with its uneven axes (None: all) laid end to end along `axis`."""
    parts, owners = [], []
    labels: dict[str, list[Any]] = {}
    for number, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
        if row is None:
            continue
        along = list(row.dims) if uneven is None else uneven
        ordered = row.transpose(*along, *(dim for dim in row.dims if dim not in along))
        shape = ordered.shape[: len(along)]
        parts.append(ordered.values.reshape(-1, *ordered.shape[len(along) :]))
        owners.append(np.full(len(parts[-1]), number, dtype="int32"))
        for place, dim in enumerate(along):
            marks = piece[str(dim)].values.reshape(
                [-1 if at == place else 1 for at in range(len(shape))]
            )
            labels.setdefault(str(dim), []).append(np.broadcast_to(marks, shape).reshape(-1))
        rest = ordered.dims[len(along) :]
        attrs = row.attrs
    found = {name: xr.Variable((axis, *rest), np.concatenate(parts), attrs)}
    found[f"{axis}_point"] = xr.Variable(
        (axis,),
        np.concatenate(owners),
        {"long_name": "the point of each entry", "instance_dimension": POINT},
    )
    for dim, pieces_of_marks in labels.items():
        if dim != axis:
            found[f"{axis}_{dim}"] = xr.Variable((axis,), np.concatenate(pieces_of_marks))
    return found


# ---- both


def coordinate(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """The plain values as a coordinate: numbers where all are numbers, text otherwise."""
    if all(isinstance(value, list) and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if all(type(value) is int for value in values):
        return np.array(values, dtype="int32")
    if all(type(value) in (int, float) for value in values):
        return np.array(values, dtype="float64")
    return np.array([value if isinstance(value, str) else json.dumps(value) for value in values])


def _dataset(variables: Mapping[str, xr.Variable], coords: Iterable[str] = ()) -> xr.Dataset:
    used = {dim for variable in variables.values() for dim in variable.dims}
    beside = {f"{dim}_{ending}" for dim in used for ending in (POINT, *used)} | set(coords)
    return xr.Dataset(dict(variables)).set_coords([name for name in variables if name in beside])


def _attributes(sweep: Sweep, runs: Sequence[xr.Dataset]) -> dict[str, Any]:
    """What all points have in common, and the sweep."""
    common = {
        name: value
        for name, value in runs[0].attrs.items()
        if name not in sweep.axes and all(_equal(run.attrs.get(name), value) for run in runs)
    }
    return common | {"config": json.dumps(sweep.shared()), "sweep": json.dumps(dict(sweep.axes))}


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(np.all(one == other))
