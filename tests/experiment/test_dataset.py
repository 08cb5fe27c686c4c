"""What is written is what is read, under its names; a write is whole or did not happen."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.experiment import dataset


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
    dataset.write_bytes(path, b"old")

    def fail_halfway() -> None:
        with dataset.replacing(path) as temporary:
            temporary.write_bytes(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    dataset.write_bytes(path, b"old")
    program = (
        "import os, signal; from pathlib import Path; from gradlab import dataset\n"
        f"with dataset.replacing(Path({str(path)!r})) as temporary:\n"
        "    temporary.write_bytes(b'half of the new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_files_are_as_readable_as_the_user_s_other_files(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        dataset.write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="results folder .* cannot be written .*allowed:"):
        dataset.folder_for(tmp_path / "file" / "results")


def test_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dataset.write_json(tmp_path / "file.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_leaves_no_new_folder_and_takes_no_old_one(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with dataset.folder_if_needed(path):
            assert path.is_dir()
            raise RuntimeError

    (tmp_path / "old").mkdir()
    for path in (tmp_path / "new" / "newer", tmp_path / "old"):
        with pytest.raises(RuntimeError):
            fail(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]
