"""A sweep on a cluster: a real Slurm of two nodes, started and stopped by these tests."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from tests.toys import Outcome, Toy

SCRIPT = Path(__file__).parent / "slurm" / "slurm.sh"
SMALL = ("cluster.memory=0.5", "cluster.elements=2", "cluster.minutes=5", "sweep.chunk=1")
SWEEP = ("sigma_w=range(1.0,4.0,0.5)", "seed=0,1")
SLOW = "fail='sleep 0.4'"
HERE = f"cluster.gpus={int(jax.default_backend() == 'gpu')}"  # what this process computes on

needs_slurm = pytest.mark.skipif(
    shutil.which("slurmctld", path=f"{os.environ.get('PATH')}:/usr/sbin") is None
    or shutil.which("munged", path=f"{os.environ.get('PATH')}:/usr/sbin") is None,
    reason="needs Debian's slurm-wlm and munge, which .ci/run installs",
)

submitit_leaves_its_logs_open = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a running Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True)
    yield folder / "slurm.conf"
    subprocess.run([SCRIPT, "stop", folder], check=True)


def on_slurm(toy: Toy, slurm: Path, *arguments: str) -> subprocess.Popen[str]:
    return toy.start(
        "--multirun", "cluster=slurm", *SMALL, *SWEEP, *arguments, SLURM_CONF=str(slurm)
    )


def end(process: subprocess.Popen[str]) -> Outcome:
    stdout, stderr = process.communicate(timeout=150)
    return Outcome(process.returncode, stdout, stderr)


def ask(slurm: Path, *command: str) -> list[str]:
    """The lines that one of Slurm's own commands prints."""
    done = subprocess.run(
        command,
        env=os.environ | {"SLURM_CONF": str(slurm)},
        capture_output=True,
        text=True,
        check=False,  # a job may have ended since it was listed
    )
    return done.stdout.splitlines()


def end_without_delay(process: subprocess.Popen[str], slurm: Path) -> Outcome:
    """How the process ends, Slurm's two minutes between the runs of a requeued job left out."""
    while process.poll() is None:
        for line in ask(slurm, "squeue", "--noheader", "--format=%i %r"):
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                ask(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
        time.sleep(0.5)
    return end(process)


def workers(toy: Toy) -> list[int]:
    """The processes that compute elements of this project's sweeps."""

    def command(pid: str) -> str:
        try:
            return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            return ""

    found = [(int(pid), command(pid)) for pid in os.listdir("/proc") if pid.isdecimal()]
    ours = [(pid, text) for pid, text in found if str(toy.results) in text]
    return [
        pid for pid, text in ours if "submitit" in text and not text.startswith(("srun", "/bin"))
    ]


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def expected(toy: Toy) -> dict[str, bytes]:
    """The files of the same sweep in one process, which are then removed."""
    assert end(toy.start("--multirun", "sweep.chunk=1", *SWEEP, SLOW)).status == 0
    (folder,) = toy.results.iterdir()
    files = toy.files(folder.name)
    shutil.rmtree(folder)
    shutil.rmtree(toy.store)
    return files


@needs_slurm
@pytest.mark.slow
def test_a_killed_array_element_is_requeued_and_nothing_is_lost(toy: Toy, slurm: Path) -> None:
    files = expected(toy)
    process = on_slurm(toy, slurm, SLOW)
    wait_for(lambda: len(list(toy.store.glob("*.nc"))) >= 2, process)
    (folder,) = toy.results.iterdir()
    before = toy.chunks()
    os.kill(workers(toy)[0], signal.SIGKILL)
    status, _, told = end_without_delay(process, slurm)
    assert status == 0, told
    assert "were lost" not in told
    assert toy.files(folder.name) == files
    after = toy.chunks()
    assert len(after) == 12
    assert {name: after[name] for name in before} == before
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["num_failures"] == 0


@needs_slurm
@pytest.mark.slow
def test_a_cancelled_and_a_preempted_element_are_made_good(toy: Toy, slurm: Path) -> None:
    slow = "fail='sleep 1.5'"  # longer in all than the grace that Slurm gives
    process = on_slurm(toy, slurm, slow)
    wait_for(lambda: len(list(toy.store.glob("*.nc"))) >= 1, process)
    (folder,) = toy.results.iterdir()
    (job,) = {name.partition("_")[0] for name in submitted(folder)}
    ask(slurm, "scancel", f"{job}_0")
    ask(slurm, "scontrol", "requeue", f"{job}_1")
    status, _, told = end_without_delay(process, slurm)
    assert status == 0, told
    assert "points were lost with job" in told
    assert toy.data(folder.name).first.dims == ("sigma_w", "seed", "layer")


def submitted(folder: Path) -> list[str]:
    return list(json.loads((folder / "jobs" / "submitted.json").read_text()))


@needs_slurm
@pytest.mark.slow
def test_an_array_is_submitted_left_and_collected_by_the_same_command(
    toy: Toy, slurm: Path
) -> None:
    leave = ("cluster.wait=false", SLOW)
    left = end(on_slurm(toy, slurm, *leave))
    assert left.status == 0, left
    assert "is running; collect with the same command" in left.stderr
    (folder,) = toy.results.iterdir()
    assert not (folder / "data.nc").exists()
    jobs = submitted(folder)
    again = end(on_slurm(toy, slurm, *leave))
    assert again.status == 0, again
    assert submitted(folder) == jobs
    while ask(slurm, "squeue", "--noheader", f"--jobs={jobs[0].partition('_')[0]}"):
        time.sleep(0.2)
    collected = end(on_slurm(toy, slurm, *leave))
    assert collected.status == 0, collected
    assert "12 of 12 points were finished before" in collected.stderr
    assert toy.data(folder.name).first.dims == ("sigma_w", "seed", "layer")


@needs_slurm
def test_a_job_that_slurm_refuses_is_one_sentence(
    toy: Toy, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    ended = toy.sweep("seed=0,1", "cluster=slurm", "cluster.partition=large")
    assert ended.status == 1
    assert ended.stderr.startswith("error: the job was refused: ")
    assert "invalid partition" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_machine_without_slurm_is_told_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ended = toy.sweep("seed=0,1", "cluster=slurm")
    assert ended.status == 1
    assert "there is no sbatch; allowed: none, local, debug" in ended.stderr


@submitit_leaves_its_logs_open
def test_elements_in_this_process_leave_the_same_files(toy: Toy) -> None:
    toy.sweep(*SWEEP)
    (folder,) = toy.results.iterdir()
    files = toy.files(folder.name)
    shutil.rmtree(folder)
    shutil.rmtree(toy.store)
    assert toy.sweep(*SWEEP, "cluster=debug", HERE, *SMALL).status == 0
    assert toy.files(folder.name) == files


@submitit_leaves_its_logs_open
def test_a_failing_point_fails_alone_on_a_cluster_too(toy: Toy) -> None:
    ended = toy.sweep("sigma_w=1.0,2.0,3.0", "fail='value 2'", "cluster=debug", HERE)
    assert ended.status == 1
    assert "sigma_w=2.0: ValueError: this value raises" in ended.stderr
    assert toy.data(next(toy.results.iterdir()).name).finished.values.tolist() == [1, 0, 1]


@pytest.mark.slow
def test_a_killed_process_of_this_machine_is_started_again(toy: Toy) -> None:
    files = expected(toy)
    process = toy.start("--multirun", "cluster=local", *SMALL, *SWEEP, SLOW)
    wait_for(lambda: len(list(toy.store.glob("*.nc"))) >= 2, process)
    for worker in workers(toy):
        os.kill(worker, signal.SIGKILL)
    status, _, told = end(process)
    assert status == 0, told
    assert "points were lost with job" in told
    assert toy.files(next(toy.results.iterdir()).name) == files
