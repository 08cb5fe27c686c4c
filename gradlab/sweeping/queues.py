"""Queues of jobs by submitit: processes of this machine, or Slurm.

A job is called without arguments. Which of them still run is asked of the queue, so that another
process may ask too: their ids are in a note.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import files
from gradlab.running.console import say

if TYPE_CHECKING:
    import submitit

# Run by the batch shell at its end. A job whose Python was killed (for its memory, by hand) still
# runs then; one that was cancelled or preempted does not, and is Slurm's business.
_REQUEUE = """\
id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
again() {
    [ $? -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt %d ] &&
        [ "$(squeue --noheader --format=%%T --jobs="$id")" = RUNNING ] && scontrol requeue "$id"
}
trap again EXIT"""

# The keys of a launcher that submitit takes for any queue; it takes the others by the queue's name.
_FOR_ANY = frozenset(
    (
        *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes"),
        *("name", "stderr_to_stdout"),
    )
)


def local(keys: Mapping[str, Any], note: Path, _tries: int) -> Processes:
    """As many processes at a time as this machine has processors for, by the launcher's keys."""
    width = (os.cpu_count() or 1) // (keys["cpus_per_task"] or 1)
    return Processes(_executor("local", keys), max(1, width), note)


def slurm(keys: Mapping[str, Any], note: Path, tries: int) -> Slurm:
    """A job array by the launcher's keys, whose tasks are started again so often.

    Raises:
        BadInput: there is no Slurm here.
    """
    if shutil.which("sbatch") is None:
        raise BadInput(
            "hydra/launcher is 'submitit_slurm', but there is no sbatch; "
            "allowed: joblib, submitit_local, or no launcher"
        )
    requeued = {
        "slurm_setup": [*(keys["setup"] or ()), _REQUEUE % tries],
        "slurm_additional_parameters": {"requeue": True} | keys["additional_parameters"],
    }
    start = {"slurm_max_num_timeout": max(keys["max_num_timeout"], tries)}
    return Slurm(_executor("slurm", keys, start, requeued), keys["array_parallelism"], note)


def _executor(
    queue: str,
    keys: Mapping[str, Any],
    start: Mapping[str, Any] = MappingProxyType({}),
    besides: Mapping[str, Any] = MappingProxyType({}),
) -> submitit.Executor:
    """What submitit offers for a queue, told of the keys as Hydra's plugin does.

    Raises:
        BadInput: it does not take one of them.
    """
    import submitit

    named = {
        key if key in _FOR_ANY else f"{queue}_{key}": value
        for key, value in keys.items()
        if key not in ("submitit_folder", "max_num_timeout")
    }
    try:
        executor = submitit.AutoExecutor(keys["submitit_folder"], cluster=queue, **start)
        executor.update_parameters(**named | dict(besides))
    except (NameError, OSError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise BadInput(f"hydra.launcher: {words}; allowed: what submitit takes") from None
    return executor


class Queue(ABC):
    """Where jobs run; knows which of those it was given before still do.

    Attributes:
        width: the jobs that run at the same time.
        ends_with_parent: whether a job can see the process that waits for it.
    """

    ends_with_parent = False

    def __init__(self, executor: submitit.Executor, width: int, note: Path) -> None:
        self.executor = executor
        self.width = width
        self.note = note
        self.jobs: list[submitit.Job[None]] = []
        files.folder_for(note.parent)

    def submit(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Hand the jobs over.

        Raises:
            BadInput: they are refused.
        """
        from submitit.core.utils import FailedJobError

        try:
            # What sbatch prints is in the error too.
            with contextlib.redirect_stderr(io.StringIO()):
                self.jobs = self.executor.submit_array(jobs)
        except (FailedJobError, OSError) as error:
            words = " ".join(str(error).split())
            raise BadInput(
                f"the job was refused: {words}; allowed: what the cluster takes"
            ) from None
        files.write_json(self.note, [job.job_id for job in self.jobs])

    def ids(self) -> list[str]:
        """The ids of the jobs that were submitted last, by this process or another."""
        return (
            list(json.loads(self.note.read_text(encoding="utf-8"))) if self.note.is_file() else []
        )

    def name(self) -> str:
        """The array in words."""
        return "job " + ", ".join(sorted({job.partition("_")[0] for job in self.ids()}))

    @abstractmethod
    def active(self) -> bool:
        """Whether any job waits or runs."""

    def cancel(self) -> None:
        """Stop every job."""
        for job in self.jobs:
            job.cancel(check=False)

    def leave(self) -> None:
        """What is to be done when the watcher is interrupted."""
        self.cancel()

    @abstractmethod
    def close(self) -> None:
        """What is to be done when all is computed."""


class Processes(Queue):
    """Each job a process of this machine, on processors of its own."""

    ends_with_parent = True

    def active(self) -> bool:
        """Whether any process lives."""
        if self.jobs:
            return not all(job.done() for job in self.jobs)
        return any(files.alive(int(job)) for job in self.ids())

    def close(self) -> None:
        """Each process lives a moment longer than it takes for its results to be there."""
        while self.jobs and self.active():
            time.sleep(0.02)


class Slurm(Queue):
    """Each job a task of a Slurm job array, started again by Slurm when it is killed."""

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
        """Whether Slurm knows of a job that is not at its end."""
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

    def close(self) -> None:
        """Nothing: Slurm knows by itself when a task ends."""

    def leave(self) -> None:
        """The array goes on."""
        say(f"{self.name()} goes on; scancel stops it")
