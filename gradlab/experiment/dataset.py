"""Labelled arrays on disk with their provenance: NetCDF-4, which holds what was computed.

What NetCDF has no type for is held exactly by another one, and the variable says so: half
precision by float32, a complex number by its two parts along one more axis.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax import Array

from gradlab.errors import BadInput
from gradlab.experiment import files
from gradlab.experiment.fileset import LAYOUT

# What a variable says of itself where the file has no type for it.
_COMPUTED_AS = "computed_as"
_PARTS = "real_and_imaginary"

# Below this size a variable takes more room compressed, in blocks, than it does in one piece.
_WORTH_PACKING = 1024


@jax.tree_util.register_static
@dataclass(frozen=True)
class Labels:
    """Texts along one axis: no array of jax, and so a part of the program's structure."""

    texts: tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Named:
    """An array whose axes have names; what an experiment's `compute` returns."""

    values: Array | Labels
    dims: tuple[str, ...] = field(metadata={"static": True})
    long_name: str = field(metadata={"static": True})
    units: str = field(metadata={"static": True})


def named(values: Any, *dims: str, long_name: str = "", units: str = "1") -> Named:
    """The array with a name for each axis: `named(x, "w layer")`, or `named(x, "w", "layer")`.

    A list of texts names the places along one axis.

    Raises:
        BadInput: the number of names is not the number of axes, or these are no numbers or texts.
    """
    if not all(isinstance(dim, str) for dim in dims):
        raise BadInput(f'axes are named {dims}; allowed: texts, as in gl.named(x, "w layer")')
    axes = tuple(" ".join(dims).split())
    if len({*axes}) < len(axes):
        raise BadInput(f"two axes are named alike in {axes}; allowed: a name of its own for each")
    if np.ndim(values) != len(axes):
        raise BadInput(
            f"array of shape {np.shape(values)} was given the axis names {axes}; "
            "allowed: one name for each axis"
        )
    if np.ndim(values) == 1 and all(isinstance(value, str) for value in values):
        values = Labels(tuple(values))
    elif not hasattr(values, "dtype"):
        given, values = values, np.asarray(values)  # a list is one array, and no tree of numbers
        if values.dtype.kind not in "biufc":
            raise BadInput(
                f"{given!r} is neither an array nor a list of texts; "
                "allowed: numbers, or texts alone"
            )
    return Named(values, axes, long_name, units)


def assemble(arrays: Mapping[str, Named], given: Mapping[str, Any]) -> xr.Dataset:
    """The dataset of the arrays; `given` are the plain config values.

    A list in `given` that an axis is named after is that axis's coordinate, an axis without one is
    counted from 0, and every other value becomes an attribute.
    """
    check_returned(arrays, given)
    variables = {name: as_variable(array) for name, array in arrays.items()}
    sizes = {
        str(dim): size
        for variable in variables.values()
        for dim, size in zip(variable.dims, variable.shape, strict=True)
    }
    coords = {
        dim: given[dim] if isinstance(given.get(dim), list) else np.arange(size, dtype="int32")
        for dim, size in sizes.items()
        if dim not in variables
    }
    attrs = {name: attribute(value) for name, value in given.items() if name not in coords}
    return xr.Dataset(variables, coords, attrs)


def check_returned(arrays: Any, given: Mapping[str, Any]) -> None:
    """Raise unless a file can hold what `compute` returned, or the shapes and types of it.

    Raises:
        BadInput: it is no dict of named arrays whose axes mean what their names say.
    """
    if not isinstance(arrays, Mapping) or not arrays:
        what = "nothing" if arrays is None or arrays == {} else f"a {type(arrays).__name__}"
        raise BadInput(
            f'compute returns {what}; allowed: {{"name": gl.named(values, "axis axis"), ...}}'
        )
    sizes: dict[str, tuple[str, int]] = {}
    for name, array in arrays.items():
        _check(name, array, given)
        for dim, size in zip(array.dims, _shape(array), strict=True):
            other, known = sizes.setdefault(dim, (name, size))
            if known != size:
                raise BadInput(
                    f"axis '{dim}' has {known} places in '{other}' and {size} in '{name}'; "
                    "allowed: one length, or axes of two names"
                )


def _shape(array: Named) -> tuple[int, ...]:
    held = array.values
    return (len(held.texts),) if isinstance(held, Labels) else tuple(np.shape(held))


def _check(name: str, array: Any, given: Mapping[str, Any]) -> None:
    """Raise unless the file can hold the array as it is, and its axes mean what their names say."""
    if not isinstance(name, str) or not name or "/" in name:
        raise BadInput(f"compute returns an array named {name!r}; allowed: a text without /")
    if not isinstance(array, Named):
        raise BadInput(
            f"compute returns '{name}' without names for its axes; "
            'allowed: gl.named(values, "axis axis")'
        )
    check_labels(array, given)
    if isinstance(array.values, Labels):
        return
    dtype = array.values.dtype if hasattr(array.values, "dtype") else np.asarray(array.values).dtype
    # A random key of jax has a type that numpy does not know.
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufcV" or dtype.names:
        raise BadInput(
            f"array '{name}' is of type {dtype}, which the file cannot hold; "
            "allowed: numbers, or a list of texts along one axis"
        )
    for dim, size in zip(array.dims, _shape(array), strict=True):
        key = given.get(dim, [None] * size)
        if not isinstance(key, list) or len(key) != size:
            raise BadInput(
                f"array '{name}' has {size} places along '{dim}', which is a key with the value "
                f"{key}; allowed: an axis of another name, or of a key that lists as many"
            )


def check_labels(array: Named, given: Mapping[str, Any]) -> None:
    """Raise unless every place along an axis that is a key of `given` has a label of its own.

    Raises:
        BadInput: a value is listed twice.
    """
    for dim in array.dims:
        values = given.get(dim)
        labels = values if isinstance(values, list) else []
        twice = [label for place, label in enumerate(labels) if label in labels[:place]]
        if twice:
            raise BadInput(
                f"{dim} is {labels}, with {twice[0]!r} twice; allowed: each value once, "
                "since it is an axis of the data"
            )


def as_variable(array: Named) -> xr.Variable:
    """The array with its axes and labels."""
    given = array.values
    values = np.array(given.texts) if isinstance(given, Labels) else np.asarray(given)
    held = _widened(values)
    short = "" if held is values else values.dtype.name
    labels = {"long_name": array.long_name, "units": array.units, _COMPUTED_AS: short}
    return xr.Variable(array.dims, held, {name: text for name, text in labels.items() if text})


def from_variable(variable: xr.Variable) -> Named:
    """The array that `as_variable` was given, of the type in which it was computed."""
    attrs = dict(variable.attrs)
    short = attrs.get(_COMPUTED_AS)
    values: Any = variable.values.astype(jax.numpy.dtype(short)) if short else variable.values
    if values.dtype.kind in "OU":
        values = Labels(tuple(map(str, values)))
    dims = tuple(map(str, variable.dims))
    return Named(values, dims, attrs.get("long_name", ""), attrs.get("units", ""))


def _widened(values: Any) -> Any:
    """The same numbers in a type that every reader knows; most are of one already."""
    if values.dtype.isbuiltin != 1 and values.dtype.kind != "U":  # bfloat16, and what is shorter
        return values.astype("int8" if "int" in values.dtype.name else "float32")
    return values.astype("float32") if values.dtype == np.float16 else values


def attribute(value: Any) -> Any:
    """A plain value as an attribute of the dataset holds it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value


def write(path: Path, data: xr.Dataset) -> None:
    """Put the dataset at `path`."""
    files.write_bytes(path, as_bytes(data))


def as_bytes(data: xr.Dataset) -> bytes:
    """The dataset as the bytes of a NetCDF-4 file: the same bytes for the same dataset."""
    split = _each(_in_parts, data).assign_attrs(layout=LAYOUT)
    kept_as_is = {"_FillValue": None}  # nan and 0 are numbers here, and none of them is "missing"
    packed = {"zlib": True, "complevel": 4, "shuffle": True}
    encoding = {
        str(name): kept_as_is | (packed if _worth_packing(variable) else {})
        for name, variable in split.variables.items()
        if variable.dtype.kind not in "OUT"
    }
    held = io.BytesIO()
    split.to_netcdf(held, engine="h5netcdf", format="NETCDF4", encoding=encoding)
    return held.getvalue()


def _each(change: Callable[[xr.DataArray], xr.DataArray], data: xr.Dataset) -> xr.Dataset:
    """The dataset with each of its arrays changed, attributes and all."""
    # `Dataset.map` puts the old attributes back.
    return data.assign({name: change(array) for name, array in data.data_vars.items()})


def _worth_packing(variable: xr.Variable) -> bool:
    return bool(variable.ndim and variable.nbytes >= _WORTH_PACKING)


def _in_parts(array: xr.DataArray) -> xr.DataArray:
    """A complex array as its real and imaginary parts along a last axis; any other as it is."""
    if array.dtype.kind != "c":
        return array
    parts = np.stack([array.values.real, array.values.imag], axis=-1)
    attrs = array.attrs | {_COMPUTED_AS: array.dtype.name}
    return xr.DataArray(parts, array.coords, (*array.dims, _PARTS), attrs=attrs)


def _whole(array: xr.DataArray) -> xr.DataArray:
    """A complex array from its parts; any other as it is."""
    if _PARTS not in array.dims:
        return array
    first, second = (array.isel({_PARTS: part}).values for part in (0, 1))
    values = np.empty(first.shape, array.attrs[_COMPUTED_AS])
    # Not first + 1j * second, which makes nan of an infinite part.
    values.real, values.imag = first, second
    attrs = {name: text for name, text in array.attrs.items() if name != _COMPUTED_AS}
    dims = [dim for dim in array.dims if dim != _PARTS]
    return xr.DataArray(values, array.coords, dims, attrs=attrs)


def read(path: Path) -> xr.Dataset:
    """The dataset at `path`, whole and in memory.

    Raises:
        BadInput: there is no such file, this user may not read it, or it is not what `write` left.
    """
    if not path.exists():
        raise BadInput(f"'{path}' does not exist; allowed: a data.nc that a run has written")
    try:
        held = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"'{path}' cannot be read ({error.strerror}); allowed: a file that this user may read"
        ) from error
    return parsed(held, path)


def parsed(held: bytes, path: Path) -> xr.Dataset:
    """The dataset in the bytes of the file at `path`.

    Raises:
        BadInput: they are not what `as_bytes` made.
    """
    import h5py  # here, since `recall` distrusts a process that has loaded it

    if held.startswith(b"CDF"):
        raise BadInput(
            f"'{path}' was written by an older gradlab; allowed: a data.nc of this one; "
            "run the experiment again"
        )
    try:
        with h5py.File(io.BytesIO(held), "r"):  # h5netcdf complains on stderr of what is no file
            pass
        data = xr.load_dataset(io.BytesIO(held), engine="h5netcdf")
        layout = data.attrs.pop("layout")
        data = _each(_whole, data)
    except MemoryError:
        raise
    except Exception as error:
        raise BadInput(
            f"'{path}' is damaged ({type(error).__name__}); allowed: a data.nc as a run wrote it; "
            "delete it and run the experiment again"
        ) from error
    if layout != LAYOUT:
        raise BadInput(
            f"'{path}' has the layout {layout}, of another gradlab; allowed: layout {LAYOUT}; "
            "run the experiment again"
        )
    return data
