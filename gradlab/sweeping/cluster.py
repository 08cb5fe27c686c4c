"""A sweep on more than one process: its chunks dealt among workers of this machine, or a job array.

The elements leave the same chunk files as a sweep in this process, and so it does not matter who
computed what, or how often an element was stopped: the files alone say what is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import loading, schema
from gradlab.running import interrupts, machine
from gradlab.running.console import say
from gradlab.running.identity import Namer, sources
from gradlab.running.store import Store
from gradlab.sweeping import programs, sweep
from gradlab.sweeping.points import Point, computed_by
from gradlab.sweeping.queues import Queue
from gradlab.sweeping.sweep import Todo

if TYPE_CHECKING:
    import submitit

    from gradlab.experiment.loading import Experiment

POLL = 1.0


@dataclass
class Element:
    """What one array element computes, as plain data.

    Attributes:
        parent: the process of this machine that it ends with, if it was killed; None goes on.
        points: its chunks, each point as its store tells of it.
    """

    parent: int | None
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
        if self.parent is not None:
            interrupts.end_with(self.parent)
        programs.ask_for(self.platform)
        machine.prepare("float64")
        if programs.platform() != self.platform:
            raise RuntimeError(f"this node offers {programs.platform()}, not {self.platform}")
        exp = loading.load(self.file)
        store = Store(Path(self.store))
        name = Namer(exp, self.computed_by, store=store.folder)
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
        except BadInput as error:  # the same again would end in the same
            for point in (point for chunk in sweep.left(chunks, store) for point in chunk):
                store.save_failure(point, str(error), "")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again, for Slurm to requeue when it preempts or the time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _point(exp: Experiment, plain: dict[str, Any], name: Namer) -> Point:
    """A point by the name that this process gives it, of the code that it has loaded."""
    cfg = schema.read(exp.module.Config, plain["config"])
    given = (cfg, plain["seed"], plain["precision"])
    return Point(*given, name(*given))


def _elements(
    todo: Todo, chunks: Sequence[Sequence[Point]], width: int, platform: str, parent: int | None
) -> list[Element]:
    """The chunks dealt among so many elements, or fewer where there are fewer chunks."""
    asked = todo.settings
    width = min(width, len(chunks))
    return [
        Element(
            parent,
            str(todo.exp.file),
            str(todo.store.folder),
            asked.sweep.method,
            asked.sweep.batch,
            asked.sweep.fail_fast,
            platform,
            computed_by(asked, platform),
            sources(todo.exp),
            [[point.plain() for point in chunk] for chunk in chunks[number::width]],
        )
        for number in range(width)
    ]


def _until_none_is_lost(
    todo: Todo, chunks: Sequence[Sequence[Point]], what: str, again: Callable[[Any], None]
) -> None:
    """Have what was lost of the chunks computed `again`, as often as is allowed."""
    for _ in range(todo.settings.sweep.tries):
        lost = _open(chunks, todo.store)
        if not lost:
            return
        say(f"{sum(map(len, lost))} points were lost with {what}; once more")
        again(lost)


# ---- workers of this machine


@dataclass
class Joblib:
    """Processes of this machine by joblib, whose keys are those of `hydra/launcher=joblib`."""

    keys: dict[str, Any]
    platform: str

    def __call__(self, todo: Todo) -> bool:
        """True: the points are finished, failed or lost when it returns."""
        chunks = list(todo.left())
        if not chunks:
            return True
        self._compute(todo, chunks)
        _until_none_is_lost(todo, chunks, "a worker", lambda lost: self._compute(todo, lost))
        return True

    def _compute(self, todo: Todo, chunks: Sequence[Sequence[Point]]) -> None:
        import multiprocessing

        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        points = [point for chunk in chunks for point in chunk]
        before = todo.steps.done
        keys = {name: _number(value) for name, value in self.keys.items()}
        # As Hydra's launcher has it: one process a worker, whatever is asked for.
        keys |= {"backend": "loky", "return_as": "generator_unordered"}
        elements = _elements(todo, chunks, len(chunks), self.platform, os.getpid())
        try:
            finished = Parallel(**keys)(delayed(element)() for element in elements)
        except ValueError as error:
            raise BadInput(f"hydra.launcher: {error}; allowed: what joblib takes") from None
        try:
            for _ in finished:
                left = _open(chunks, todo.store)
                todo.steps.reach(before + len(points) - sum(map(len, left)))
                if todo.settings.sweep.fail_fast and todo.store.failures(points):
                    raise sweep.FailFast
        except multiprocessing.TimeoutError as error:
            raise BadInput(
                f"hydra.launcher.timeout is {keys['timeout']}, and a worker took longer; "
                "allowed: more seconds than some points take, or null"
            ) from error
        except TerminatedWorkerError:
            return  # what is missing on disk says what was lost with it


def _number(value: Any) -> Any:
    """A whole number that a launcher's key holds as text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


# ---- jobs


@dataclass
class Cluster:
    """Jobs by submitit; what `sweep.run_sweep` calls to have chunks computed elsewhere.

    Attributes:
        queue: makes what they run in, told how often a job is started again.
        platform: what they compute on.
    """

    queue: Callable[[int], Queue]
    platform: str

    def __call__(self, todo: Todo) -> bool:
        """Whether the results can be collected now: false for jobs that are left to run."""
        chunks = list(todo.left())
        if not chunks:
            return True
        asked = todo.settings.sweep
        queue = self.queue(asked.tries)
        if not queue.active():
            self._submit(todo, chunks, queue)
        if not asked.wait:
            say(f"{todo.exp.name}: {queue.name()} is running; collect with the same command")
            return False

        def again(lost: Sequence[Sequence[Point]]) -> None:
            self._submit(todo, lost, queue)
            _watch(todo, chunks, queue)

        _watch(todo, chunks, queue)
        _until_none_is_lost(todo, chunks, queue.name(), again)
        queue.close()
        return True

    def _submit(self, todo: Todo, chunks: Sequence[Sequence[Point]], queue: Queue) -> None:
        parent = os.getpid() if queue.ends_with_parent and todo.settings.sweep.wait else None
        elements = _elements(todo, chunks, queue.width, self.platform, parent)
        queue.submit(elements)
        many = f"{len(elements)} elements, {len(chunks)} chunks"
        say(f"{todo.exp.name}: submitted {queue.name()}: {many}")


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
