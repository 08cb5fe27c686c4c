"""Every experiment has its turn in a process of its own, and its share of the time that is left."""

import os
import time
from pathlib import Path

import pytest

from gradlab.calibration import workers
from gradlab.calibration.workers import Deadline


def told(
    file: Path, scale: str, entropy: int, seconds: float, before: str
) -> tuple[str, int, float, int]:
    return f"{file} {scale} {before}", entropy, seconds, os.getpid()


@pytest.mark.slow
def test_each_file_has_a_process_and_a_share_and_all_shares_fit_into_the_time() -> None:
    names = ["a", "b", "c", "d"]
    assigned = [(Path(name), name.upper()) for name in names]
    ended = list(workers.each(told, assigned, "smoke", 7, 1.0))
    found = {name: one for name, one, _ in ended}
    count = min(len(names), os.cpu_count() or 1)

    assert sorted(found) == names
    assert [found[name][:2] for name in names] == [
        (f"{name} smoke {name.upper()}", 7) for name in names
    ]
    assert len({found[name][3] for name in names}) == len(names)
    shares = [found[name][2] for name in names]
    assert 0 < shares[0] <= 60 * count / len(names)
    assert all(0 < seconds < 60 for _, _, seconds in ended)
    assert max(shares) <= 60  # of what is left, the last of them has all


def test_a_deadline_is_over_when_its_time_is() -> None:
    assert not Deadline(60.0).is_over
    assert Deadline(0.0).is_over
    soon = Deadline(0.01)
    time.sleep(0.02)
    assert soon.is_over
