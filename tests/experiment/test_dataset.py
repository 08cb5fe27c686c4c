"""What is written is what is read, under its names; a write is whole or did not happen."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from gradlab.errors import BadInput
from gradlab.experiment import dataset, files


def example() -> dict[str, dataset.Named]:
    return {
        "loss": dataset.named(
            jnp.array([[1.0, jnp.inf], [0.0, -jnp.inf], [jnp.nan, 5e-324]]), "sigma_w", "layer"
        ),
        "count": dataset.named(jnp.arange(3), "sigma_w", long_name="how many", units="steps"),
        "name": dataset.named(["a", "bc"], "name"),
        "half": dataset.named(jnp.array([0.1, 65504.0], jnp.float16), "name"),
    }


GIVEN = {"sigma_w": [0.5, 1.0, 1.5], "depth": 2, "activation": "tanh", "exact": True, "gain": None}


def test_infinities_zero_nan_and_the_smallest_number_survive_the_disk(tmp_path: Path) -> None:
    data = dataset.assemble(example(), GIVEN)
    dataset.write(tmp_path / "data.nc", data)
    read = dataset.read(tmp_path / "data.nc")
    assert read.identical(data)
    np.testing.assert_array_equal(
        read.loss.values, [[1.0, np.inf], [0.0, -np.inf], [np.nan, 5e-324]]
    )
    assert read["count"].attrs == {"long_name": "how many", "units": "steps"}


def test_axes_take_their_places_from_the_config_and_else_count() -> None:
    data = dataset.assemble(example(), GIVEN)
    assert list(data.sigma_w.values) == GIVEN["sigma_w"]
    assert list(data.layer.values) == [0, 1]
    assert list(data.name.values) == ["a", "bc"]
    assert data.attrs == {"depth": 2, "activation": "tanh", "exact": "true", "gain": "null"}


def test_short_floats_are_stored_without_loss() -> None:
    half = dataset.assemble(example(), GIVEN).half
    assert half.dtype == np.float32
    assert half.values[0] == np.float32(np.float16(0.1))


def test_named_arrays_pass_through_a_compiled_program() -> None:
    inside = jax.jit(example)()
    assert dataset.assemble(inside, GIVEN).identical(dataset.assemble(example(), GIVEN))


def test_a_name_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="one name for each axis"):
        dataset.named(jnp.zeros((2, 3)), "layer")


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.nc", "two.nc"):
        dataset.write(tmp_path / name, dataset.assemble(example(), GIVEN))
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "two.nc").read_bytes()


@pytest.mark.parametrize("keep", [0, 3, 100])
def test_a_damaged_file_is_named_and_not_read(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "data.nc"
    dataset.write(path, dataset.assemble(example(), GIVEN))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"data\.nc' is damaged .*allowed: a data\.nc"):
        dataset.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        dataset.read(tmp_path / "data.nc")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")

    def fail_halfway() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    program = (
        "import os, signal; from pathlib import Path; from gradlab.experiment import files\n"
        f"with files.replacing(Path({str(path)!r})) as temporary:\n"
        "    temporary.write_bytes(b'half of the new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_files_are_as_readable_as_the_user_s_other_files(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        files.write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="results folder .* cannot be written .*allowed:"):
        files.folder_for(tmp_path / "file" / "results")


def test_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "file.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_leaves_no_new_folder_and_takes_no_old_one(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with files.folder_if_needed(path):
            assert path.is_dir()
            raise RuntimeError

    (tmp_path / "old").mkdir()
    for path in (tmp_path / "new" / "newer", tmp_path / "old"):
        with pytest.raises(RuntimeError):
            fail(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]


SUBJECTS = {
    "int64": np.array([-(2**63), 0, 2**63 - 1]),
    "uint32": np.array([0, 2**31, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 2**63, 2**64 - 1], np.uint64),
    "uint8": np.array([0, 1, 255], np.uint8),
    "bool": np.array([True, False, True]),
    "float32": np.array([np.inf, -0.0, 1e-45], np.float32),
    "complex128": np.array([complex(np.inf, -1.0), complex(np.nan, 5e-324), complex(0.0, -np.inf)]),
    "complex64": np.array([1e38 + 1e-38j, 0, -1j], np.complex64),
}
SHORT = {
    name: np.asarray(jnp.array([1.5, jnp.inf, jnp.nan], jnp.dtype(name)))
    for name in ("float16", "bfloat16", "float8_e5m2")
} | {"int4": np.asarray(jnp.array([-8, 0, 7], jnp.int4))}


def through_disk(path: Path, values: np.ndarray) -> xr.DataArray:
    dataset.write(path, dataset.assemble({"it": dataset.named(values, "case")}, {}))
    return dataset.read(path).it


@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_stored_is_what_was_computed(name: str, tmp_path: Path) -> None:
    given = SUBJECTS[name]
    read = through_disk(tmp_path / "data.nc", given)

    assert read.dims == ("case",)
    assert read.dtype == given.dtype
    assert read.values.tobytes() == given.tobytes()


@pytest.mark.parametrize("name", SHORT)
def test_short_types_are_widened_exactly_and_say_what_they_were(name: str, tmp_path: Path) -> None:
    read = through_disk(tmp_path / "data.nc", SHORT[name])

    assert read.attrs["computed_as"] == name
    np.testing.assert_array_equal(read.values, SHORT[name].astype(read.dtype))
    assert read.values.astype(SHORT[name].dtype).tobytes() == SHORT[name].tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (40, 50)])
def test_every_shape_comes_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    given = np.arange(np.prod(shape), dtype=float).reshape(shape) + 1j
    dims = ["one", "two"][: len(shape)]
    data = dataset.assemble({"it": dataset.named(given, *dims)}, {})
    dataset.write(tmp_path / "data.nc", data)

    assert dataset.read(tmp_path / "data.nc").identical(data)


def test_any_key_and_any_whole_number_may_be_an_attribute(tmp_path: Path) -> None:
    given = {"mode": 1, "dimensions": "x", "variables": 2.5, "flush": True, "big": 2**62}
    data = dataset.assemble({"it": dataset.named(1.0)}, given | {"bigger": 2**64, "no_list": []})
    dataset.write(tmp_path / "data.nc", data)
    read = dataset.read(tmp_path / "data.nc").attrs

    assert {name: read[name] for name in ("mode", "dimensions", "variables", "big")} == {
        name: given[name] for name in ("mode", "dimensions", "variables", "big")
    }
    assert (read["flush"], read["bigger"]) == ("true", str(2**64))


def test_another_library_reads_the_same(tmp_path: Path) -> None:
    netcdf = pytest.importorskip("netCDF4", reason="the C library's own reader is not installed")
    arrays = {
        **{name: dataset.named(values, "case") for name, values in (SUBJECTS | SHORT).items()},
        "name": dataset.named(["a", "ß", "σ_w"], "case"),
    }
    dataset.write(tmp_path / "data.nc", dataset.assemble(arrays, {"note": "σ"}))

    with netcdf.Dataset(tmp_path / "data.nc") as read:
        assert read.note == "σ"
        assert list(read["name"][:]) == ["a", "ß", "σ_w"]
        for name in ("int64", "uint32", "uint64", "uint8", "float32", "bool"):
            np.testing.assert_array_equal(read[name][:].data, SUBJECTS[name])
        for name, values in SHORT.items():
            np.testing.assert_array_equal(read[name][:].data, values.astype(read[name].dtype))
            assert read[name].computed_as == name
        parts = read["complex128"][:].data
        np.testing.assert_array_equal(parts[:, 0], SUBJECTS["complex128"].real)
        np.testing.assert_array_equal(parts[:, 1], SUBJECTS["complex128"].imag)


def test_a_file_of_another_layout_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.nc"
    path.write_bytes(b"CDF\x02" + bytes(100))
    with pytest.raises(BadInput, match="older gradlab; .*run the experiment again"):
        dataset.read(path)
    monkeypatch.setattr(dataset, "LAYOUT", 3)
    dataset.write(path, dataset.assemble(example(), GIVEN))
    monkeypatch.undo()
    with pytest.raises(BadInput, match="layout 3, of another gradlab; allowed: layout 2"):
        dataset.read(path)


def test_text_within_an_array_is_refused_by_its_name() -> None:
    values = np.array([["a", "b"]], dtype=object)
    with pytest.raises(BadInput, match="array 'it' is of type object"):
        dataset.assemble({"it": dataset.named(values, "one two")}, {})


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (None, "compute returns nothing; allowed: "),
        ([1.0], "compute returns a list; allowed: "),
        ({}, "compute returns nothing; allowed: "),
        ({"x": 1.0}, "compute returns 'x' without names for its axes"),
        ({"": dataset.named(1.0)}, "an array named ''; allowed: a text without /"),
        ({"a/b": dataset.named(1.0)}, "an array named 'a/b'; allowed: a text without /"),
        ({"key": dataset.named(jax.random.key(0))}, "is of type key<fry>, which the file cannot"),
        (
            {"x": dataset.named(np.ones(3), "q"), "y": dataset.named(np.ones(4), "q")},
            "axis 'q' has 3 places in 'x' and 4 in 'y'; allowed: one length",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused_by_its_shapes_alone(returned: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        dataset.check_returned(returned, {})


@pytest.mark.parametrize(
    ("values", "dims", "sentence"),
    [
        (np.ones((2, 2)), ("q q",), "two axes are named alike in ('q', 'q')"),
        (np.ones(2), (3,), "axes are named (3,); allowed: texts"),
        (["a", 1.0], ("q",), "neither an array nor a list of texts"),
        (None, (), "neither an array nor a list of texts"),
    ],
)
def test_names_that_are_none_are_refused(values: Any, dims: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        dataset.named(values, *dims)


def test_a_list_of_numbers_is_an_array_inside_a_program_too() -> None:
    program = jax.jit(lambda: {"x": dataset.named([1.0, 2.0], "place"), "y": dataset.named(3, "")})

    dataset.check_returned(jax.eval_shape(program), {})

    assert dataset.assemble(program(), {}).x.values.tolist() == [1.0, 2.0]
