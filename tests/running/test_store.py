"""What was finished is found again, whole, or it is missing; nothing is removed unread."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.experiment import dataset
from gradlab.experiment.dataset import Named
from gradlab.running.identity import digest
from gradlab.running.store import Store


class Saved(NamedTuple):
    """A point that is nothing but its number."""

    number: int

    @property
    def key(self) -> str:
        return digest(self.number)

    def plain(self) -> dict[str, Any]:
        return {"key": self.key, "config": {"number": self.number}}


def arrays(number: int) -> dict[str, Named]:
    return {
        "layer": dataset.named(np.array([number, np.inf, np.nan, 5e-324]), "layer"),
        "half": dataset.named(np.asarray(jnp.array([number, 0.1], jnp.bfloat16)), "part"),
        "root": dataset.named(complex(number, -np.inf), long_name="a root", units="1/s"),
        "whole": dataset.named(np.uint64(2**64 - 1 - number)),
        "name": dataset.named(["a", f"b{number}"], "part"),
    }


def saved(folder: Path, *groups: range) -> Store:
    store = Store(folder)
    for group in groups:
        store.save([(Saved(number), arrays(number)) for number in group], {"method": "each"})
    return store


def test_points_come_back_as_they_were_saved_types_and_labels_among_it(tmp_path: Path) -> None:
    found, ways = saved(tmp_path, range(3), range(3, 5)).load(map(Saved, range(1, 9)))

    assert set(found) == {Saved(number).key for number in range(1, 5)}
    assert ways == [{"method": "each"}]
    for number in range(1, 5):
        for name, expected in arrays(number).items():
            got, wanted = found[Saved(number).key][name], dataset.as_variable(expected)
            again = dataset.as_variable(got)
            assert again.identical(wanted)
            assert isinstance(got.values, dataset.Labels) == (name == "name")
            assert (got.long_name, got.units) == (expected.long_name, expected.units)
    assert np.asarray(found[Saved(2).key]["half"].values).dtype == jnp.bfloat16


def test_what_is_finished_is_known_without_the_index_and_with_a_broken_one(tmp_path: Path) -> None:
    store = saved(tmp_path, range(40), range(40, 50))
    finished = {Saved(number).key for number in range(50)}
    assert store.keys() == finished
    index = tmp_path / ".index"
    for content in (b"", b"{}\n\n", b"nonsense", index.read_bytes()[:-40], b"[1]\nab\n", b"\xff\n"):
        index.write_bytes(content)
        assert store.keys() == finished
    index.unlink()
    assert store.keys() == finished


def test_two_writers_of_the_same_points_leave_them_once(tmp_path: Path) -> None:
    for _ in range(2):
        store = saved(tmp_path, range(3))
    assert len(list(tmp_path.glob("*.nc"))) == 1
    assert store.has([*map(Saved, range(3))])
    assert not store.has([*map(Saved, range(2))])


def test_one_flipped_bit_is_seen_set_aside_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = saved(tmp_path, range(3), range(3, 5))
    victim = next(tmp_path.glob("*.nc"))
    held = victim.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(held), 20):
        flipped = bytearray(held)
        flipped[place] ^= 1 << int(place % 8)
        victim.write_bytes(flipped)
        (tmp_path / ".index").unlink(missing_ok=True)
        assert len(store.keys()) < 5
        assert f"'{victim}' is damaged; moved to" in capsys.readouterr().err
        assert (tmp_path / "damaged" / victim.name).read_bytes() == flipped
    victim.write_bytes(held)
    assert len(store.keys()) == 5


def test_a_flipped_bit_is_seen_in_a_file_that_the_index_knows(tmp_path: Path) -> None:
    store = saved(tmp_path, range(40), range(40, 45))
    assert len(store.keys()) == 45
    assert (tmp_path / ".index").is_file()
    victim = max(tmp_path.glob("*.nc"), key=lambda path: path.stat().st_size)
    held = bytearray(victim.read_bytes())
    held[len(held) // 2] ^= 1
    victim.write_bytes(held)
    assert store.keys() == {Saved(number).key for number in range(40, 45)}


def test_a_file_with_anothers_content_is_set_aside(tmp_path: Path) -> None:
    store = saved(tmp_path, range(3), range(3, 5))
    one, other = sorted(tmp_path.glob("*.nc"))
    one.write_bytes(other.read_bytes())
    found, _ = store.load(map(Saved, range(5)))
    assert len(found) in (2, 3)
    renamed = tmp_path / f"{'0' * 32}-{other.stem.partition('-')[2]}.nc"
    renamed.write_bytes(other.read_bytes())
    assert len(store.load(map(Saved, range(5)))[0]) == len(found)
    assert (tmp_path / "damaged" / renamed.name).is_file()


def test_a_folder_or_a_dead_link_in_the_place_of_a_file_is_no_finished_point(
    tmp_path: Path,
) -> None:
    store = saved(tmp_path, range(2), range(2, 4))
    linked, replaced = sorted(tmp_path.glob("*.nc"))
    for path in (linked, replaced):
        path.unlink()
    linked.symlink_to(tmp_path / "nowhere")
    replaced.mkdir()
    assert store.keys() == set()
    assert not any(store.has([*map(Saved, group)]) for group in (range(2), range(2, 4)))
    again = saved(tmp_path, range(2), range(2, 4))
    assert again.keys() == {Saved(number).key for number in range(4)}


def test_foreign_files_stay_untouched(tmp_path: Path) -> None:
    store = saved(tmp_path, range(2))
    (tmp_path / "mine.nc").write_bytes(b"mine")
    (tmp_path / f"{'a' * 32}.failed.json").write_text("[]")
    (tmp_path / f"{'b' * 32}-{'c' * 16}.nc.bak").write_bytes(b"")
    (tmp_path / "folder.nc").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert len(store.keys()) == 2
    store.forget(Saved(number).key for number in range(9))
    assert store.keys() == set()
    assert {path.name for path in before} - {path.name for path in tmp_path.rglob("*")} == {
        path.name for path in before if len(path.name) == 52
    }


def test_a_file_that_cannot_be_read_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = saved(tmp_path, range(2))
    (path,) = tmp_path.glob("*.nc")

    def refused(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        assert store.keys() == set()
    assert f"'{path}' cannot be read (Permission denied)" in capsys.readouterr().err
    assert len(store.keys()) == 2


def test_no_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path, range(2))

    def full(*_args: Any, **_kwargs: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("xarray.load_dataset", full)
        with pytest.raises(MemoryError):
            store.load(map(Saved, range(2)))
    assert len(store.load(map(Saved, range(2)))[0]) == 2


def test_forgetting_some_points_of_a_file_keeps_the_others(tmp_path: Path) -> None:
    store = saved(tmp_path, range(5))
    before, _ = store.load(map(Saved, range(5)))
    store.forget(Saved(number).key for number in (1, 3))
    after, _ = store.load(map(Saved, range(5)))

    assert set(after) == {Saved(number).key for number in (0, 2, 4)}
    for key, kept in after.items():
        for name, array in kept.items():
            assert dataset.as_variable(array).identical(dataset.as_variable(before[key][name]))


def test_failures_are_noted_and_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    assert store.failures([Saved(1)]) == {}
    store.save_failure(Saved(1), "it raised", "where")
    assert store.failures(map(Saved, range(3))) == {
        Saved(1).key: {"error": "it raised", "traceback": "where"}
    }
    note = tmp_path / "new" / f"{Saved(1).key}.failed.json"
    assert json.loads(note.read_text())["error"] == "it raised"
    store.forget_failures(map(Saved, range(3)))
    assert store.failures([Saved(1)]) == {}
