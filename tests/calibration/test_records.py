"""A record keeps what each experiment's last study found, whatever became of the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gradlab.calibration import records
from gradlab.calibration.records import Entry, Made
from gradlab.errors import BadInput

OLD, NEW = (Made(f"2026-01-0{day} 00:00:00", day, "smoke", "0.1") for day in (1, 2))


def test_what_was_written_is_read_and_says_how_to_do_it_again(tmp_path: Path) -> None:
    path = records.path_of(tmp_path / "results", "seeds", "smoke")
    entries = {"a": Entry(OLD, {"n": 1}), "b": Entry(NEW, {"n": 2})}
    record = {"failed": 0, "experiments": {name: one.found for name, one in entries.items()}}
    records.write(path, entries, record, "| a |", "seeds")

    assert records.read(path, lambda one: {"n": one["n"]}) == entries
    assert json.loads(path.read_text())["failed"] == 0
    text = path.with_suffix(".md").read_text()
    assert "| a |" in text
    assert "`python -m gradlab.calibration seeds b --scale smoke --seed 2`" in text


def test_another_scale_has_a_record_of_its_own(tmp_path: Path) -> None:
    paths = {records.path_of(tmp_path, "power", scale) for scale in ("smoke", "full", "huge")}
    assert {path.name for path in paths} == {"power.json", "power_full.json", "power_huge.json"}


def test_who_the_latest_study_did_not_come_to_is_first_and_then_who_took_least_time() -> None:
    known = {"a": Entry(NEW, None), "b": Entry(OLD, None)}
    assert records.in_turn(["a", "b", "c"], known) == ["b", "c", "a"]
    assert records.in_turn(["a", "b"], {}) == ["a", "b"]

    took = {"a": 3.0, "b": 1.0, "c": 2.0}
    whole = {name: Entry(replace(NEW, seconds=seconds), None) for name, seconds in took.items()}
    assert records.in_turn(whole, whole) == ["b", "c", "a"]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"experiments": {"a": {"made": {}}}}'])
def test_a_damaged_record_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "power.json"
    assert records.read(path, dict) == {}
    path.write_text(content)
    with pytest.raises(BadInput, match=r"power.json' is damaged .*`make power`"):
        records.read(path, dict)
