"""From the results of many points to one labelled dataset, and back to each of them.

The swept keys are the leading axes, always. An experiment's own axis that is longer at one point
than at another is padded with what is missing (nan), and `num_<axis>` says how far it goes: that
and no nan is the authority. Points that are no grid stand along one axis `point`, with a coordinate
for every swept key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from gradlab.errors import BadInput
from gradlab.experiment import dataset, schema
from gradlab.sweeping.points import POINT, Sweep

FINISHED = "finished"

# Of the dataset: its axes, and which variables hold the lengths of uneven ones.
SWEEP_LAYOUT = "sweep_layout"

# What a variable says of itself: the lengths beyond which it is missing, and of a run alone its
# name and axes, and the type of its whole numbers.
BEYOND = "missing_beyond"
OWN_NAME, OWN_AXES, PADDED_FROM = "name_in_a_run", "axes_in_a_run", "padded_from"

# Whole numbers up to here are exact as a float64.
_EXACT = 2**53


@dataclass
class OverPoints:
    """One variable at all points of a sweep.

    Attributes:
        dims: its axes at one point.
        attrs: its labels.
        values: those of all points, each as far as it goes, `(num_points, ...)`.
        sizes: how far that is, `(num_points, num_axes)`.
        there: at which points it is.
    """

    dims: tuple[str, ...]
    attrs: dict[str, Any]
    values: Any
    sizes: Any
    there: Any

    @classmethod
    def like(cls, variable: xr.Variable, num_points: int) -> OverPoints:
        """An empty column for variables of this kind."""
        return cls(
            tuple(map(str, variable.dims)),
            dict(variable.attrs),
            np.zeros((num_points, *variable.shape), variable.dtype),
            np.zeros((num_points, variable.ndim), np.int32),
            np.zeros(num_points, bool),
        )

    def put(self, place: int, values: Any) -> None:
        """The values of one point."""
        room = tuple(map(max, zip(self.values.shape[1:], values.shape, strict=True)))
        dtype = np.result_type(self.values.dtype, values.dtype)
        if room != self.values.shape[1:] or dtype != self.values.dtype:
            grown = np.zeros((len(self.values), *room), dtype)
            grown[(slice(None), *map(slice, self.values.shape[1:]))] = self.values
            self.values = grown
        self.values[(place, *map(slice, values.shape))] = values
        self.sizes[place] = values.shape
        self.there[place] = True

    def uneven(self) -> list[str]:
        """The axes that are not as long at one point as at another."""
        sizes = self.sizes[self.there]
        return [dim for dim, of_dim in zip(self.dims, sizes.T, strict=True) if np.ptp(of_dim)]

    def missing(self) -> Any:
        """Where there is nothing, in the shape of the values."""
        beyond = ~self.there.reshape(-1, *[1] * len(self.dims))
        for axis, size in enumerate(self.values.shape[1:]):
            along = np.arange(size).reshape(-1, *[1] * (len(self.dims) - axis - 1))
            beyond = beyond | (along >= self.sizes[:, axis].reshape(-1, *[1] * len(self.dims)))
        return np.broadcast_to(beyond, self.values.shape)

    def one(self) -> Any:
        """The values that all points have as far as they go; None where they differ."""
        longest = int(self.sizes[:, 0].argmax())
        same = (self.values == self.values[longest]) | self.missing()
        return self.values[longest] if same.all() else None


def _with_missing(values: Any, missing: Any) -> tuple[Any, dict[str, str]]:
    """The values with nan where there are none, and what they were computed as if that changes.

    Whole numbers too large for a float keep their type, with the smallest one for missing; texts
    are empty there.
    """
    kind = values.dtype.kind
    if kind in "iub" and np.abs(values.astype(float)).max(initial=0.0) <= _EXACT:
        told = {PADDED_FROM: values.dtype.name}
        return np.where(missing, np.nan, values.astype(float)), told
    fill: Any = {"f": np.nan, "c": complex(np.nan, np.nan), "U": ""}.get(kind)
    fill = np.iinfo(values.dtype).min if fill is None else fill
    return np.where(missing, np.asarray(fill, values.dtype), values), {}


@dataclass
class Joined:
    """The results of points as they come in; `data` is all of them."""

    sweep: Sweep
    columns: dict[tuple[str, tuple[str, ...]], OverPoints] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._finished = np.zeros(len(self.sweep.points), bool)
        self._taken = {*self.sweep.columns, *(axis.name for axis in self.sweep.axes), FINISHED}
        entries = schema.entries(type(self.sweep.points[0].cfg))
        lists = {entry.name for entry in entries if entry.is_list} & set(self.sweep.columns)
        # A swept list of one value each is that value: its own axis would say the same again.
        self._bare = {key for key in lists if all(map(_is_one, self.sweep.columns[key]))}

    def put(self, place: int, run: xr.Dataset) -> None:
        """The run of the point at a place."""
        for name, variable in run.variables.items():
            self._put(place, str(name), variable)
        if not self._finished.any():
            self.attrs = {k: v for k, v in run.attrs.items() if k not in self.sweep.columns}
        self.attrs = {k: v for k, v in self.attrs.items() if _equal(run.attrs.get(k), v)}
        self._finished[place] = True

    def _put(self, place: int, name: str, variable: xr.Variable) -> None:
        bare = self._bare.intersection(map(str, variable.dims))
        if bare:
            if name in bare:
                return
            own_axes = {OWN_AXES: " ".join(map(str, variable.dims))}
            variable = variable.isel(dict.fromkeys(bare, 0))
            variable.attrs = variable.attrs | own_axes
        known = (name, tuple(map(str, variable.dims)))
        if known not in self.columns:
            self.columns[known] = OverPoints.like(variable, len(self.sweep.points))
        self.columns[known].put(place, variable.values)

    def data(self) -> xr.Dataset:
        """One dataset, whose leading axes are what was swept."""
        lengths, variables = self._lengths(), {}
        optional: dict[str, str] = {}
        for name, column in self._named():
            variables[name] = self._variable(name, column, lengths)
            if not (column.there | ~self._finished).all():
                optional[f"has_{name}"] = name
                variables[f"has_{name}"] = self._over(column.there)
        num = {dim: self._unused(f"num_{dim}", variables) for dim in lengths}
        variables |= {num[dim]: self._over(sizes) for dim, sizes in lengths.items()}
        if not self._finished.all():
            variables[FINISHED] = self._over(self._finished)
        coords = {
            key: xr.Variable((axis.name,), coordinate(values))
            for axis in self.sweep.axes
            for key, values in axis.columns.items()
        }
        layout = {
            "axes": [axis.name for axis in self.sweep.axes],
            "keys": {key: _kind(values) for key, values in self.sweep.columns.items()},
            "lengths": {name: dim for dim, name in num.items()},
            "optional": optional,
            "config": list(schema.values(self.sweep.points[0].cfg)),
        }
        told = {
            "config": json.dumps(self.sweep.shared()),
            SWEEP_LAYOUT: json.dumps(layout),
        }
        return xr.Dataset(variables, coords, self.attrs | told)

    def _lengths(self) -> dict[str, Any]:
        """The uneven axes, and how long each is at every point; 0 where there is none."""
        found: dict[str, Any] = {}
        for column in self.columns.values():
            for axis, dim in enumerate(column.dims):
                sizes = found.setdefault(dim, np.zeros(len(self._finished), np.int32))
                np.maximum(sizes, column.sizes[:, axis], out=sizes)
        done = self._finished
        return {self._free(dim): of for dim, of in found.items() if np.ptp(of[done])}

    def _named(self) -> Iterator[tuple[str, OverPoints]]:
        """The columns by the names that they have beside each other."""
        seen: set[str] = set()
        for (name, dims), column in self.columns.items():
            own = self._free(name) + (f"_over_{'_'.join(dims)}" if name in seen else "")
            seen.add(name)
            column.attrs |= {OWN_NAME: name} if own != name else {}
            if dims == (name,) and column.one() is None:
                column.attrs[OWN_NAME] = name
                own = f"{own}_values"
            yield own, column

    def _variable(self, name: str, column: OverPoints, lengths: Mapping[str, Any]) -> xr.Variable:
        dims = tuple(map(self._free, column.dims))
        attrs = dict(column.attrs)
        if dims != column.dims:
            attrs.setdefault(OWN_AXES, " ".join(column.dims))
        if dims == (name,):
            return xr.Variable(dims, column.one(), attrs)
        values, missing = column.values, column.missing()
        if missing.any():
            values, told = _with_missing(values, missing)
            uneven = [f"num_{dim}" for dim in dims if dim in lengths]
            attrs |= told | ({BEYOND: " ".join(uneven)} if uneven else {})
        return self._over(values, dims, attrs)

    @staticmethod
    def _unused(name: str, taken: Mapping[str, Any]) -> str:
        return f"{name}_here" if name in taken else name

    def _over(
        self, values: Any, dims: tuple[str, ...] = (), attrs: dict[str, Any] | None = None
    ) -> xr.Variable:
        """Values of all points along the axes of the sweep, and then their own."""
        axes = [axis.name for axis in self.sweep.axes]
        shape = (*self.sweep.shape, *values.shape[1:])
        return xr.Variable((*axes, *dims), values.reshape(shape), attrs)

    def _free(self, name: str) -> str:
        return f"own_{name}" if name in self._taken else name


def _is_one(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1


def coordinate(values: Sequence[Any]) -> Any:
    """The plain values as a coordinate: numbers where all are numbers, text otherwise."""
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step)
    if all(map(_is_one, values)):
        values = [value[0] for value in values]
    if all(type(value) is int for value in values):
        return np.array(values, dtype="int64")
    if all(type(value) in (int, float) for value in values):
        return np.array(values, dtype="float64")
    return np.array([value if isinstance(value, str) else json.dumps(value) for value in values])


def _kind(values: Sequence[Any]) -> str:
    """How a coordinate holds the values of a key: as they are, as bare entries, or as JSON."""
    if isinstance(values, range):
        return "plain"
    if all(map(_is_one, values)):
        return "bare"
    plain = all(type(value) in (int, float) for value in values)
    return "plain" if plain or all(isinstance(value, str) for value in values) else "json"


def _value(held: Any, kind: str) -> Any:
    """A key's value at a place of its coordinate."""
    value = held.item()
    return {"bare": [value], "plain": value}[kind] if kind != "json" else json.loads(value)


def _equal(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(np.all(one == other)))


# ---- and back


def selectable(data: xr.Dataset) -> xr.Dataset:
    """A sweep's dataset whose table, if it has one, is selected from by its swept keys."""
    columns = [str(name) for name, held in data.coords.items() if held.dims == (POINT,)]
    return data.set_index(point=columns) if len(columns) > 1 else data


def alone(data: xr.Dataset, **values: Any) -> xr.Dataset:
    """The dataset of one point of a sweep, as the run alone leaves it: `alone(data, depth=6)`.

    Each axis ends where it does at this point.

    Args:
        data: of a sweep.
        values: swept key to value; a key with one value may be left out.

    Raises:
        BadInput: it is of no sweep; or no point, or more than one, has these values.
    """
    if not isinstance(data, xr.Dataset) or SWEEP_LAYOUT not in data.attrs:
        what = "a Dataset of a run" if isinstance(data, xr.Dataset) else repr(data)
        raise BadInput(f"{what} is no dataset of a sweep; allowed: what gl.sweep returns")
    data = data.reset_index(POINT) if POINT in data.dims and POINT in data.indexes else data
    layout = json.loads(data.attrs[SWEEP_LAYOUT])
    kinds = layout.get("keys", {})
    for key in values:
        if key not in kinds:
            raise BadInput(schema.unknown("swept key", key, kinds))
    index = {axis: _row(data, axis, values) for axis in layout.get("axes", ())}
    picked = data.isel(index)
    if FINISHED in picked and not bool(picked[FINISHED]):
        raise BadInput(f"the point {values} was not finished; allowed: one that was")
    chosen = {
        key: _value(data[key].values[index[_axis_of(data, key)]], kind)
        for key, kind in kinds.items()
    }
    return _as_a_run(picked, chosen, layout)


def _axis_of(data: xr.Dataset, key: str) -> str:
    return str(data[key].dims[0])


def _row(data: xr.Dataset, axis: str, values: Mapping[str, Any]) -> int:
    here = {key: value for key, value in values.items() if _axis_of(data, key) == axis}
    rows = np.ones(data.sizes[axis], bool)
    for key, value in here.items():
        held = json.dumps(value) if isinstance(value, list | tuple) else value
        rows &= data[key].values == held
    if rows.sum() != 1:
        said = ", ".join(f"{key}={value}" for key, value in here.items()) or f"no '{axis}'"
        raise BadInput(
            f"{int(rows.sum())} points along '{axis}' have {said}; allowed: what one point has"
        )
    return int(rows.argmax())


def _as_a_run(
    picked: xr.Dataset, chosen: Mapping[str, Any], layout: Mapping[str, Any]
) -> xr.Dataset:
    lengths, optional = layout["lengths"], layout["optional"]
    ends = {dim: slice(int(picked[name])) for name, dim in lengths.items()}
    absent = {name for has, name in optional.items() if not bool(picked[has])}
    gone = {*lengths, *optional, *absent, *chosen, FINISHED, POINT}
    cut = picked.isel(ends)
    given = json.loads(picked.attrs["config"])
    given |= {key: value for key, value in chosen.items() if key not in _SETTINGS}
    given = {key: given[key] for key in layout["config"] if key in given}
    variables = {
        str(variable.attrs.get(OWN_NAME, name)): _own(variable)
        for name, variable in cut.variables.items()
        if str(name) not in gone
    }
    used = {str(dim) for variable in variables.values() for dim in variable.dims}
    attrs = {k: v for k, v in picked.attrs.items() if k != SWEEP_LAYOUT}
    attrs |= {k: dataset.attribute(v) for k, v in given.items() if k not in used}
    attrs |= {key: value for key, value in chosen.items() if key == "seed"}
    coords = {k: given[k] for k in used & set(given) if k not in variables}
    return xr.Dataset(variables, coords, attrs | {"config": json.dumps(given)})


_SETTINGS = ("seed", "precision")


def _own(variable: xr.Variable) -> xr.Variable:
    """A variable with the axes and the type that it has in a run."""
    attrs = {k: v for k, v in variable.attrs.items() if k not in (BEYOND, OWN_NAME)}
    values, dims = variable.values, list(map(str, variable.dims))
    if PADDED_FROM in attrs:
        values = values.astype(attrs.pop(PADDED_FROM))
    own_axes = str(attrs.pop(OWN_AXES, " ".join(dims))).split()
    for axis, dim in enumerate(own_axes):
        if dims[axis : axis + 1] not in ([dim], [f"own_{dim}"]):
            values = np.expand_dims(values, axis)
            dims.insert(axis, dim)
    return xr.Variable(own_axes, values, attrs)
