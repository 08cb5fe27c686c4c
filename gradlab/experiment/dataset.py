"""Labelled arrays on disk with their provenance; the only room that touches result files.

Every file appears by temporary file, fsync and rename: a kill at any moment leaves the old one
or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax import Array

from gradlab.errors import BadInput

# netCDF 3, which every reader knows, has neither half precision nor 64-bit integers.
_STORED = {"float16": "float32", "bfloat16": "float32", "int64": "int32", "uint32": "int32"}


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
        BadInput: the number of names is not the number of axes.
    """
    axes = tuple(" ".join(dims).split())
    if np.ndim(values) != len(axes):
        raise BadInput(
            f"array of shape {np.shape(values)} was given the axis names {axes}; "
            "allowed: one name for each axis"
        )
    if np.ndim(values) == 1 and all(isinstance(value, str) for value in values):
        values = Labels(tuple(values))
    return Named(values, axes, long_name, units)


def assemble(arrays: Mapping[str, Named], given: Mapping[str, Any]) -> xr.Dataset:
    """The dataset of the arrays; `given` are the plain config values.

    A list in `given` that an axis is named after is that axis's coordinate, an axis without one is
    counted from 0, and every other value becomes an attribute.
    """
    for name, array in arrays.items():
        _check(name, array, given)
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
    attrs = {name: _attribute(value) for name, value in given.items() if name not in coords}
    return xr.Dataset(variables, coords, attrs)


def _check(name: str, array: Any, given: Mapping[str, Any]) -> None:
    """Raise unless the file can hold the array as it is, and its axes mean what their names say."""
    if not isinstance(array, Named):
        raise BadInput(
            f"compute returns '{name}' as {type(array).__name__}; "
            'allowed: gl.named(values, "axis axis"), which names the axes'
        )
    if isinstance(array.values, Labels):
        return
    values = np.asarray(array.values)
    if np.iscomplexobj(values):
        raise BadInput(
            f"array '{name}' is complex, which the file cannot hold; "
            "allowed: its real and imaginary parts, or its magnitude and phase, as two arrays"
        )
    whole = np.iinfo(np.int32)
    counts = values.dtype.kind in "iu" and values.size
    if counts and (values.min() < whole.min or values.max() > whole.max):
        raise BadInput(
            f"array '{name}' has whole numbers beyond {whole.max}, which the file cannot hold; "
            "allowed: smaller ones, or floats"
        )
    for dim, size in zip(array.dims, values.shape, strict=True):
        key = given.get(dim, [None] * size)
        if not isinstance(key, list) or len(key) != size:
            raise BadInput(
                f"array '{name}' has {size} places along '{dim}', which is a key with the value "
                f"{key}; allowed: an axis of another name, or of a key that lists as many"
            )


def as_variable(array: Named) -> xr.Variable:
    """The array with its axes and labels, in a format that the file can hold."""
    given = array.values
    values = np.array(given.texts) if isinstance(given, Labels) else np.asarray(given)
    stored = values.astype(_STORED.get(values.dtype.name, values.dtype))
    labels = {"long_name": array.long_name, "units": array.units}
    return xr.Variable(array.dims, stored, {name: text for name, text in labels.items() if text})


def _attribute(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value


def write(path: Path, data: xr.Dataset) -> None:
    """Put the dataset at `path` as netCDF 3."""
    with replacing(path) as temporary:
        data.to_netcdf(temporary, engine="scipy", format="NETCDF3_64BIT")


def read(path: Path) -> xr.Dataset:
    """The dataset at `path`, whole and in memory.

    Raises:
        BadInput: there is no such file, or it is not the whole file that `write` left.
    """
    if not path.exists():
        raise BadInput(f"'{path}' does not exist; allowed: a data.nc that a run has written")
    try:
        return xr.load_dataset(path, engine="scipy")
    except Exception as error:
        raise BadInput(
            f"'{path}' is damaged ({type(error).__name__}); allowed: a data.nc as a run wrote it; "
            "delete it and run the experiment again"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Put the bytes at `path`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Put the content at `path` as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def folder_for(path: Path) -> Path:
    """The folder, made where it is missing and proved to be writable.

    Raises:
        BadInput: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise BadInput(
            f"results folder '{path}' cannot be written ({error.strerror}); "
            "allowed: a folder that this user may write to"
        ) from error


@contextlib.contextmanager
def folder_if_needed(path: Path) -> Iterator[None]:
    """`folder_for(path)` around a block; where the block fails, no new empty folder stays.

    Raises:
        BadInput: it cannot be made or written to.
    """
    new = [place for place in (path, *path.parents) if not place.exists()]
    folder_for(path)
    try:
        yield
    except BaseException:
        for place in new:
            with contextlib.suppress(OSError):  # something stands in it by now
                place.rmdir()
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, whole, when the block ends well."""
    prefix = f".{path.name}.{socket.gethostname()}.{os.getpid()}."
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results are as readable as the user's other files.
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove the temporary files that processes of this machine left when they were killed."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.name.split(".")[-3]
        if pid.isdecimal() and not alive(int(pid)):
            path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
