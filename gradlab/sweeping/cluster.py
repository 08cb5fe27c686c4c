"""A sweep on more than one process: its chunks dealt among the elements of a job array.

The elements leave the same chunk files as a sweep in this process, and so it does not matter who
computed what, or how often an element was stopped: the files alone say what is missing.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import files, loading, schema
from gradlab.running import machine
from gradlab.running.console import say
from gradlab.running.identity import Namer, sources
from gradlab.running.store import Store
from gradlab.sweeping import programs, sweep
from gradlab.sweeping.points import Point, computed_by
from gradlab.sweeping.sweep import Todo

if TYPE_CHECKING:
    import submitit

    from gradlab.experiment.loading import Experiment
    from gradlab.running.settings import ClusterKeys

POLL = 1.0

# Run by the batch shell at its end. A job whose Python was killed (for its memory, by hand) still
# runs then; one that was cancelled or preempted does not, and is Slurm's business.
_REQUEUE = """\
id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
again() {
    [ $? -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt %d ] &&
        [ "$(squeue --noheader --format=%%T --jobs="$id")" = RUNNING ] && scontrol requeue "$id"
}
trap again EXIT"""


@dataclass
class Element:
    """What one array element computes, as plain data."""

    file: str
    store: str
    method: str
    batch: int
    fail_fast: bool
    platform: str
    computed_by: str
    sources: str
    points: list[list[dict[str, Any]]]

    def __call__(self) -> None:
        """Compute those of its points that are not finished, to their files."""
        programs.ask_for(self.platform)
        machine.prepare("float64")
        if programs.platform() != self.platform:
            raise RuntimeError(f"this node offers {programs.platform()}, not {self.platform}")
        exp = loading.load(self.file)
        store = Store(Path(self.store))
        name = Namer(exp, self.computed_by)
        chunks = [[_point(exp, plain, name) for plain in chunk] for chunk in self.points]
        if sources(exp) == self.sources:
            # Another device's names: whoever asked for these points finds them by their own.
            asked = [plain["key"] for chunk in self.points for plain in chunk]
            given = [point.key for chunk in chunks for point in chunk]
            store.also_called(dict(zip(asked, given, strict=True)))
        method = programs.choose(self.method, self.batch)
        try:
            sweep.compute(exp, sweep.left(chunks, store), store, method, self.fail_fast)
        except sweep.FailFast:
            return

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again, for Slurm to requeue when it preempts or the time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _point(exp: Experiment, plain: dict[str, Any], name: Namer) -> Point:
    """A point by the name that this process gives it, of the code that it has loaded."""
    cfg = schema.read(exp.module.Config, plain["config"])
    given = (cfg, plain["seed"], plain["precision"])
    return Point(*given, name(*given))


@dataclass
class Cluster:
    """A job array by submitit; what `sweep.run_sweep` calls to have chunks computed elsewhere."""

    folder: Path
    job_name: str

    def __call__(self, todo: Todo) -> bool:
        """Whether the results can be collected now: false for an array that is left to run."""
        chunks = list(todo.left())
        if not chunks:
            return True
        asked = todo.settings.cluster
        queue = _queue(asked, self.folder, self.job_name)
        running = queue.active()
        if not running:
            _submit(todo, chunks, queue)
        if not asked.wait:
            say(f"{todo.exp.name}: {queue.name()} is running; collect with the same command")
            return False
        for turn in range(asked.tries + 1):
            _watch(todo, chunks, queue)
            lost = _open(chunks, todo.store)
            if not lost:
                break
            if turn < asked.tries:
                say(f"{sum(map(len, lost))} points were lost with {queue.name()}; once more")
                _submit(todo, lost, queue)
        return True


def _submit(todo: Todo, chunks: Sequence[Sequence[Point]], queue: Queue) -> None:
    """Deal the chunks, all of them or what was lost, among the elements of an array."""
    asked = todo.settings
    width = min(asked.cluster.elements, len(chunks))
    elements = [
        Element(
            str(todo.exp.file),
            str(todo.store.folder),
            asked.sweep.method,
            asked.sweep.batch,
            asked.sweep.fail_fast,
            "gpu" if asked.cluster.gpus else "cpu",
            computed_by(asked),
            sources(todo.exp),
            [[point.plain() for point in chunk] for chunk in chunks[number::width]],
        )
        for number in range(width)
    ]
    queue.submit(elements)
    say(f"{todo.exp.name}: submitted {queue.name()}: {width} elements, {len(chunks)} chunks")


def _watch(todo: Todo, chunks: Sequence[Sequence[Point]], queue: Queue) -> None:
    """Return when every point is finished or noted as failed, or nothing runs any more."""
    points = [point for chunk in chunks for point in chunk]
    before = todo.steps.done
    try:
        while True:
            running = queue.active()  # asked first: what it has finished is on disk
            left = _open(chunks, todo.store)
            todo.steps.reach(before + len(points) - sum(map(len, left)))
            if todo.settings.sweep.fail_fast and todo.store.failures(points):
                queue.cancel()
                raise sweep.FailFast
            if not left or not running:
                return
            time.sleep(POLL)
    except KeyboardInterrupt:
        queue.leave()
        raise


def _open(chunks: Sequence[Sequence[Point]], store: Store) -> list[list[Point]]:
    """The points that have neither a result nor a noted failure."""
    maybe = [list(chunk) for chunk in chunks if not store.has(chunk)]
    if not maybe:
        return []
    closed = store.keys() | set(store.failures(point for chunk in maybe for point in chunk))
    left = ([point for point in chunk if point.key not in closed] for chunk in maybe)
    return [chunk for chunk in left if chunk]


class Queue(ABC):
    """Where elements run; knows which of those it was given before still do."""

    def __init__(self, executor: submitit.Executor, folder: Path) -> None:
        self.executor = executor
        self.note = folder / "submitted.json"
        self.jobs: list[submitit.Job[None]] = []

    def submit(self, elements: Sequence[Element]) -> None:
        """Hand the elements over.

        Raises:
            BadInput: they are refused.
        """
        from submitit.core.utils import FailedJobError

        try:
            # What sbatch prints is in the error too.
            with contextlib.redirect_stderr(io.StringIO()):
                self.jobs = self.executor.submit_array(elements)
        except FailedJobError as error:
            words = " ".join(str(error).split())
            raise BadInput(
                f"the job was refused: {words}; allowed: what the cluster takes"
            ) from None
        files.write_json(self.note, [job.job_id for job in self.jobs])

    def ids(self) -> list[str]:
        """The ids of the elements that were submitted last, by this process or another."""
        return (
            list(json.loads(self.note.read_text(encoding="utf-8"))) if self.note.is_file() else []
        )

    def name(self) -> str:
        """The array in words."""
        return "job " + ", ".join(sorted({job.partition("_")[0] for job in self.ids()}))

    @abstractmethod
    def active(self) -> bool:
        """Whether any element waits or runs."""

    def cancel(self) -> None:
        """Stop every element."""
        for job in self.jobs:
            job.cancel(check=False)

    def leave(self) -> None:
        """What is to be done when the watcher is interrupted."""
        self.cancel()


class InThisProcess(Queue):
    """The elements one after the other, here: to see what they do."""

    def active(self) -> bool:
        """False: they are finished when asked."""
        for job in self.jobs:
            job.wait()
        return False


class Processes(Queue):
    """Each element a process of this machine."""

    def active(self) -> bool:
        """Whether any process lives."""
        if self.jobs:
            return not all(job.done() for job in self.jobs)
        return any(files.alive(int(job)) for job in self.ids())


class Slurm(Queue):
    """Each element a task of a Slurm job array."""

    FINAL = frozenset(
        (
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "DEADLINE",
            "FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "PREEMPTED",
            "TIMEOUT",
        )
    )

    def active(self) -> bool:
        """Whether Slurm knows of an element that is not at its end."""
        jobs = sorted({job.partition("_")[0] for job in self.ids()})
        if not jobs:
            return False
        done = subprocess.run(
            ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={','.join(jobs)}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and "Invalid job id" not in done.stderr:
            return True  # the controller does not answer: ask again
        return bool(set(done.stdout.split()) - self.FINAL)

    def leave(self) -> None:
        """The array goes on."""
        say(f"{self.name()} goes on; scancel stops it")


def _queue(asked: ClusterKeys, folder: Path, job_name: str) -> Queue:
    try:
        import submitit
    except ImportError:
        raise BadInput(
            f"cluster.kind is '{asked.kind}', for which submitit is not installed; "
            "allowed: none, or pip install 'gradlab[cluster]'"
        ) from None
    where = folder / "jobs"
    log = where / "%j"
    files.folder_for(where)
    limits: dict[str, Any] = {"timeout_min": asked.minutes}
    if asked.kind == "debug":
        return InThisProcess(submitit.DebugExecutor(log), where)
    if asked.kind == "local":
        executor: submitit.Executor = submitit.LocalExecutor(log)
        executor.update_parameters(**limits)
        return Processes(executor, where)
    if shutil.which("sbatch") is None:
        raise BadInput(
            "cluster.kind is 'slurm', but there is no sbatch; allowed: none, local, debug"
        )
    executor = submitit.SlurmExecutor(log, max_num_timeout=asked.tries)
    executor.update_parameters(
        time=asked.minutes,
        mem=f"{round(asked.memory * 1024)}M",
        cpus_per_task=asked.cpus,
        array_parallelism=asked.elements,
        job_name=job_name,
        setup=[_REQUEUE % asked.tries],
        additional_parameters={"requeue": True},
        **({"partition": asked.partition} if asked.partition else {}),
        **({"gpus_per_node": asked.gpus} if asked.gpus else {}),
    )
    return Slurm(executor, where)
