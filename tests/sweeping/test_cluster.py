"""A sweep on a cluster: a real Slurm of two nodes, started and stopped by these tests."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradlab.experiment import files
from tests.toys import Outcome, Toy

SCRIPT = Path(__file__).parent / "slurm" / "slurm.sh"
SMALL = ("hydra.launcher.timeout_min=5", "sweep.chunk=1")
ON_SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.array_parallelism=2")
LOCAL = ("hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SWEEP = ("sigma_w=range(1.0,4.0,0.5)", "seed=0,1")
SLOW = "fail='sleep 0.4'"

needs_slurm = pytest.mark.skipif(
    shutil.which("slurmctld", path=f"{os.environ.get('PATH')}:/usr/sbin") is None
    or shutil.which("munged", path=f"{os.environ.get('PATH')}:/usr/sbin") is None,
    reason="needs Debian's slurm-wlm and munge, which .ci/run installs",
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a running Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True)
    yield folder / "slurm.conf"
    subprocess.run([SCRIPT, "stop", folder], check=True)


def on_slurm(toy: Toy, slurm: Path, *arguments: str) -> subprocess.Popen[str]:
    return toy.start("--multirun", *ON_SLURM, *SMALL, *SWEEP, *arguments, SLURM_CONF=str(slurm))


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


def parents() -> dict[int, int]:
    """Each process of this machine, and its parent."""
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            told = Path("/proc", pid, "stat").read_text(errors="replace").rpartition(")")[2]
            found[int(pid)] = int(told.split()[1])
    return found


def below(pid: int) -> list[int]:
    """The processes below one that have none below themselves, but for helpers: the workers."""
    of, found = parents(), {pid}
    while new := {child for child, parent in of.items() if parent in found} - found:
        found |= new
    leaves = found - {of[child] for child in found if child in of} - {pid}
    return [leaf for leaf in leaves if "tracker" not in command(leaf)]


def command(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers(toy: Toy) -> list[int]:
    """The processes that compute elements of this project's sweeps."""
    found = [(int(pid), command(int(pid))) for pid in os.listdir("/proc") if pid.isdecimal()]
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
    whole = toy.files(folder.name)
    shutil.rmtree(folder)
    shutil.rmtree(toy.store)
    return whole


@needs_slurm
@pytest.mark.slow
def test_a_killed_array_element_is_requeued_and_nothing_is_lost(toy: Toy, slurm: Path) -> None:
    whole = expected(toy)
    process = on_slurm(toy, slurm, SLOW)
    wait_for(lambda: len(list(toy.store.glob("*.nc"))) >= 2, process)
    (folder,) = toy.results.iterdir()
    before = toy.chunks()
    os.kill(workers(toy)[0], signal.SIGKILL)
    status, _, told = end_without_delay(process, slurm)
    assert status == 0, told
    assert "were lost" not in told
    assert toy.files(folder.name) == whole
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
    return list(json.loads((folder / ".submitit" / "submitted.json").read_text()))


@needs_slurm
@pytest.mark.slow
def test_an_array_is_submitted_left_and_collected_by_the_same_command(
    toy: Toy, slurm: Path
) -> None:
    leave = ("sweep.wait=false", SLOW)
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
    ended = toy.sweep("seed=0,1", *ON_SLURM, "hydra.launcher.partition=large")
    assert ended.status == 1
    assert ended.stderr.startswith("error: the job was refused: ")
    assert "invalid partition" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_machine_without_slurm_is_told_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ended = toy.sweep("seed=0,1", "hydra/launcher=submitit_slurm")
    assert ended.status == 1
    assert "there is no sbatch; allowed: joblib, submitit_local, or no launcher" in ended.stderr


@pytest.fixture(params=[LOCAL, JOBLIB], ids=["local", "joblib"])
def computing(request: pytest.FixtureRequest, toy: Toy) -> Iterator[subprocess.Popen[str]]:
    """A sweep of twelve points by processes of this machine, the first of which is finished."""
    arguments = ("--multirun", *request.param, "sweep.chunk=1", *SWEEP, "fail='sleep 1'")
    with toy.start(*arguments) as process:
        wait_for(lambda: list(toy.store.glob("*.nc")), process)
        yield process


@pytest.mark.slow
def test_a_killed_process_of_this_machine_is_started_again(
    toy: Toy, computing: subprocess.Popen[str]
) -> None:
    for worker in below(computing.pid):
        os.kill(worker, signal.SIGKILL)
    status, _, told = end(computing)
    assert status == 0, told
    assert "points were lost with" in told
    again = toy.sweep("sweep.chunk=1", *SWEEP, "fail='sleep 1'")
    assert "12 of 12 points were finished before" in again.stderr


@pytest.mark.slow
def test_nothing_computes_after_its_parent_was_killed(
    toy: Toy, computing: subprocess.Popen[str]
) -> None:
    left = below(computing.pid)
    assert left
    computing.kill()
    computing.wait()
    deadline = time.monotonic() + 20
    while any(files.alive(pid) for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(list(toy.store.glob("*.nc"))) < 12


@pytest.mark.slow
def test_processes_are_left_and_go_on_where_that_was_asked_for(toy: Toy) -> None:
    leave = (*LOCAL, "seed=0,1", "sweep.wait=false")
    left = end(toy.start("--multirun", *leave))
    assert left.status == 0, left
    assert "is running; collect with the same command" in left.stderr
    (folder,) = toy.results.iterdir()
    deadline = time.monotonic() + 100
    while any(files.alive(int(job)) for job in submitted(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "2 of 2 points were finished before" in toy.sweep(*leave).stderr


def test_a_launcher_of_ones_own_extends_one_of_hydras(toy: Toy) -> None:
    own = toy.project / "my" / "hydra" / "launcher"
    own.mkdir(parents=True)
    (own / "ourlab.yaml").write_text("defaults: [submitit_slurm]\ntasks_per_node: 2\n")
    ended = toy.sweep("--config-dir", str(own.parents[1]), "seed=0,1", "hydra/launcher=ourlab")
    assert "hydra.launcher.tasks_per_node is 2; allowed: 1" in ended.stderr
    assert ended.status == 1
    assert not toy.results.exists()
