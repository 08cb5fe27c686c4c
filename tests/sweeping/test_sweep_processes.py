"""A sweep in processes of its own: interrupted, killed, and run twice at once."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.toys import Outcome, Toy

SWEEP = ("--multirun", "sigma_w=range(1.0,4.0,0.5)", "seed=range(0,5)", "sweep.chunk=2")
SLOW = "fail='sleep 0.05'"


def folder_of(toy: Toy) -> Path:
    (folder,) = toy.results.iterdir()
    return folder


def end(process: subprocess.Popen[str]) -> Outcome:
    """How the process ended, once it has."""
    stdout, stderr = process.communicate()
    return Outcome(process.returncode, stdout, stderr)


def wait_for_chunks(toy: Toy, process: subprocess.Popen[str], count: int) -> None:
    """Until the process has written `count` chunk files."""
    while len(list(toy.store.glob("*.nc"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_an_interrupted_sweep_keeps_what_is_done_and_says_how_to_go_on(toy: Toy) -> None:
    process = toy.start(*SWEEP, SLOW)
    wait_for_chunks(toy, process, 3)
    process.send_signal(signal.SIGINT)
    status, _, told = end(process)
    assert status == 130, told
    last = told.splitlines()[-1]
    done = int(last.removeprefix("interrupted: ").partition(" ")[0])
    assert 6 <= done < 30
    command = f"{SWEEP[0]} '{SWEEP[1]}' '{SWEEP[2]}' {SWEEP[3]}"
    assert f"{done} of 30 done; resume with: python experiments/chaos.py {command}" in last
    assert "Traceback" not in told
    status, _, told = end(toy.start(*SWEEP, SLOW))
    assert status == 0, told
    assert f"{done} of 30 points were finished before" in told


@pytest.mark.slow
def test_a_sweep_killed_at_five_moments_ends_as_an_undisturbed_one(toy: Toy) -> None:
    draws = random.Random(7)
    begun = time.monotonic()
    assert end(toy.start(*SWEEP, SLOW)).status == 0
    whole = time.monotonic() - begun
    folder = folder_of(toy)
    files, chunks = toy.files(folder.name), set(toy.chunks())
    undisturbed = {path.name: path.read_bytes() for path in (toy.store).glob("*.nc")}
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    shutil.rmtree(toy.store)
    killed = 0
    while killed < 5:
        process = toy.start(*SWEEP, SLOW)
        try:
            # Most of the time goes by before the first chunk; moments after it count more.
            if draws.random() < 0.7:
                wait_for_chunks(toy, process, min(len(toy.chunks()) + 1, len(chunks)))
                process.wait(draws.uniform(0.0, 0.3))
            else:
                process.wait(draws.uniform(0.0, whole))
        except subprocess.TimeoutExpired:
            process.kill()
        end(process)
        killed += 1
    status, _, told = end(toy.start(*SWEEP, SLOW))
    assert status == 0, told
    assert toy.files(folder.name) == files
    assert {p.name: p.read_bytes() for p in (toy.store).glob("*.nc")} == undisturbed
    assert not [*folder.rglob("*.tmp"), *toy.store.rglob("*.tmp")]


@pytest.mark.slow
def test_two_processes_make_the_same_sweep_at_once(toy: Toy) -> None:
    both = [toy.start(*SWEEP, SLOW) for _ in range(2)]
    assert [end(process).status for process in both] == [0, 0]
    folder = folder_of(toy)
    together = toy.files(folder.name)
    assert end(toy.start(*SWEEP, SLOW, "sweep.resume=false")).status == 0
    assert toy.files(folder.name) == together
    assert not [*folder.rglob("*.tmp"), *toy.store.rglob("*.tmp")]
