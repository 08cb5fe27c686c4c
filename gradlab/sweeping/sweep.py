"""One sweep from its points to its files: compute what is missing, join, draw, judge, tell."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput, NotWritten
from gradlab.experiment import dataset, figures, files, loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.running import console, machine, naming, provenance, single
from gradlab.running.console import Steps, say
from gradlab.running.interrupts import Interrupts
from gradlab.running.recall import noted
from gradlab.running.store import Store
from gradlab.sweeping import overview, points, programs
from gradlab.sweeping.gathered import Gathered, Unfinished
from gradlab.sweeping.points import Point, Sweep, in_words
from gradlab.sweeping.programs import Failure, Method
from gradlab.sweeping.summary import Summary, Verdict

if TYPE_CHECKING:
    from gradlab.experiment.claim import Claim
    from gradlab.experiment.dataset import Named
    from gradlab.running.settings import Settings

# Seconds after which points that are finished go to disk though their chunk is not.
PATIENCE = 60.0

# So many points that failed are named on stderr.
MOST_TOLD = 20


class Stopped(KeyboardInterrupt):
    """A sweep that was interrupted, with the one line to say."""


def compute(
    exp: Experiment,
    todo: Iterable[Sequence[Point]],
    store: Store,
    method: Method,
    fail_fast: bool,
    steps: Steps | None = None,
) -> None:
    """Compute chunks of points, each to its file; failures are noted beside them.

    A chunk that another process has finished meanwhile is left out. What is finished of a chunk
    goes to disk when the sweep is interrupted, and every minute.
    """
    program = programs.Program(exp.module.compute, method)
    for chunk in todo:
        if store.has(chunk):
            _step(steps, len(chunk))
        else:
            machine.prepare(chunk[0].precision)
            with noted(store.folder):
                _compute_chunk(program, chunk, store, fail_fast, steps)


def _step(steps: Steps | None, count: int) -> None:
    if steps is not None:
        steps.step(count)


def _compute_chunk(
    program: programs.Program,
    chunk: Sequence[Point],
    store: Store,
    fail_fast: bool,
    steps: Steps | None,
) -> None:
    done: list[tuple[Point, Mapping[str, Named]]] = []

    def save() -> None:
        if done:
            store.save(done, program.method.record())
            done.clear()

    saved = time.monotonic()
    with Interrupts() as interrupts, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(save)
        for point, outcome in program.evaluate(chunk):
            interrupts.check()
            if isinstance(outcome, Failure):
                store.save_failure(point, outcome.error, outcome.traceback)
                if fail_fast:
                    raise FailFast
            else:
                done.append((point, outcome))
            _step(steps, 1)
            if time.monotonic() - saved > PATIENCE:
                save()
                saved = time.monotonic()


class FailFast(Exception):
    """A point raised and `fail_fast` is set."""


def left(chunks: Iterable[Sequence[Point]], store: Store) -> Iterator[list[Point]]:
    """What is not finished of the chunks, one after the other."""
    finished = store.keys()
    for chunk in chunks:
        unfinished = [point for point in chunk if point.key not in finished]
        if unfinished:
            yield unfinished


def collect(
    exp: Experiment, sweep: Sweep, settings: Settings, store: Store, folder: Path, begun: float
) -> bool:
    """Join, draw, judge and tell what is finished; whether all is and every claim holds."""
    with (
        contextlib.ExitStack() as at_the_end,
        contextlib.closing(Gathered(exp, sweep)) as gathered,
    ):
        gathered.read(store, settings.sweep.chunk)
        holds = True
        if gathered.num_finished:
            holds = _finish(exp, gathered, folder, at_the_end)
        noted = _noted(gathered.without_result, store)
        known = {point.key for point, _ in noted}
        lost = Failure("it was not finished", "")
        rest = [(one, lost) for one in gathered.without_result if one.key not in known]
        failed = [*noted, *rest, *gathered.unjudged]
        _record(exp, sweep, settings, folder, begun, failed, gathered.ways)
    return holds and not failed


def _noted(unfinished: Iterable[Point], store: Store) -> list[Unfinished]:
    """The points whose failure was noted, and why."""
    unfinished = list(unfinished)
    notes = store.failures(unfinished)
    return [(point, Failure(**notes[point.key])) for point in unfinished if point.key in notes]


def _record(
    exp: Experiment,
    sweep: Sweep,
    settings: Settings,
    folder: Path,
    begun: float,
    failed: Sequence[Unfinished],
    ways: Sequence[Any] = (),
) -> None:
    """Write the manifest, and list the failures on stderr."""
    failures = [
        {
            "point": dict(point.values),
            "error": failure.error,
            "command": sweep.alone(point),
            "traceback": failure.traceback,
        }
        for point, failure in failed
    ]
    manifest = {
        "command": sweep.asked.command,
        "config": sweep.shared(),
        "sweep": {key: list(values) for key, values in sweep.columns.items()},
        "num_points": len(sweep.points),
        "num_failures": len(failures),
        "evaluation": list(ways),
        "failures": failures,
        **provenance.made_with(exp.project, settings),
        "wall_time_seconds": round(time.perf_counter() - begun, 3),
    }
    single.write_record(folder, manifest, sweep.asked)
    if failures:
        say(f"{len(failures)} of {len(sweep.points)} points failed; to repeat each alone:")
    for point, failure in failed[:MOST_TOLD]:
        say(f"  {in_words(point)}: {failure.error}\n    {sweep.alone(point)}")
    if len(failed) > MOST_TOLD:
        say(f"  and {len(failed) - MOST_TOLD} more, in {folder / 'run.json'}")


def _finish(
    exp: Experiment, gathered: Gathered, folder: Path, at_the_end: contextlib.ExitStack
) -> bool:
    """Write, tell and draw; whether every claim holds.

    What cannot be judged or drawn is told and loses nothing else.
    """
    seen = gathered.seen
    dataset.write(folder / "data.nc", gathered.joined.data())
    saved = dataset.read(folder / "data.nc")
    whole: list[Claim] = []
    holds = not seen.failing.any()
    with single.later(at_the_end):
        whole = loading.judge(exp, saved, "sweep_claims")
        holds = holds and all(claim.holds for claim in whole)
    _show(exp, seen, whole, folder)
    drawn: dict[str, bytes] = {}
    with console.busy(f"{exp.name}: drawing"), single.later(at_the_end):
        own = getattr(exp.module, "sweep_figure", None)
        drawn = figures.draw(own or (lambda _: overview.figure(exp.question, seen)), saved)
    made = bool(whole or seen.verdicts or seen.numbers)
    single.write_judged(folder, drawn, gathered.judged(whole) if made else None)
    return holds


def _show(exp: Experiment, seen: Summary, whole: Sequence[Claim], folder: Path) -> None:
    """Print the verdicts: about the sweep as a whole, or each claim's over all points."""
    if whole:
        console.judged(exp.question, whole, folder)
        return
    columns = [
        *(console.VERDICT, console.CLAIM),
        ("holds at", {"justify": "right", "no_wrap": True}),
        ("farthest off", {"no_wrap": True}),
    ]
    held, made = seen.num_claims
    num_points = len(seen.sweep.points)
    end = f"{held} of {made} claims at {num_points} points hold; files in {folder}"
    rows = (_row(seen, verdict) for verdict in seen.verdicts.values())
    console.print_table(exp.question, columns, rows, end, width=140)


def _row(seen: Summary, verdict: Verdict) -> tuple[str, ...]:
    return (
        console.verdict(verdict.num_held == verdict.num_made),
        verdict.sentence,
        f"{verdict.num_held} of {verdict.num_made}",
        f"{verdict.off:.2g} tolerances at {in_words(seen.point(verdict.farthest))}",
    )


@contextlib.contextmanager
def telling(sweep: Sweep, store: Store) -> Iterator[None]:
    """An interruption or a full disk inside the block ends with what is kept and how to go on."""

    def kept() -> str:
        finished = store.keys()
        done = sum(point.key in finished for point in sweep.points) if finished else 0
        return f"{done} of {len(sweep.points)} done; resume with: {sweep.asked.command}"

    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(kept()) from None
    except NotWritten as error:
        raise BadInput(f"{error}; {kept()}") from error


@dataclass(frozen=True)
class Todo:
    """The chunks of a sweep, and where their points go.

    Attributes:
        exp: the experiment.
        chunks: all points of the sweep, finished or not.
        store: takes what is finished, and notes what failed.
        settings: how, and where.
        steps: is told of each point that is finished.
    """

    exp: Experiment
    chunks: Sequence[Sequence[Point]]
    store: Store
    settings: Settings
    steps: Steps

    def left(self) -> Iterator[list[Point]]:
        """What is not finished of the chunks, one after the other."""
        return left(self.chunks, self.store)


# What computes chunks: this process, other processes, a cluster. Whether the results are to be
# collected now, and not later by the same command.
Work = Callable[[Todo], bool]


def here(todo: Todo) -> bool:
    """Compute the chunks in this process."""
    asked = todo.settings.sweep
    method = programs.choose(asked.method, asked.batch)
    compute(todo.exp, todo.left(), todo.store, method, asked.fail_fast, todo.steps)
    return True


def run_sweep(
    exp: Experiment, sweep: Sweep, settings: Settings, folder: Path, work: Work = here
) -> bool:
    """Make the sweep's files in `folder`, computing what is missing; whether every claim holds."""
    begun = time.perf_counter()
    machine.prepare(settings.precision)
    if not settings.redraw:
        _check_lists(exp, sweep)
        files.folder_for(folder)
    files.tidy(folder)
    store = Store(naming.store_folder(exp, settings))
    if settings.redraw:
        sweep = dataclasses.replace(sweep, points=store.as_saved(sweep.points))
        if not store.load(sweep.points)[0]:
            raise BadInput(
                f"'{store.folder}' holds no finished point of these; "
                "allowed: a sweep that was computed"
            )
    with telling(sweep, store):
        try:
            now = settings.redraw or _computed(exp, sweep, store, settings, work)
        except FailFast:
            _record(exp, sweep, settings, folder, begun, _noted(sweep.points, store))
            return False
        return collect(exp, sweep, settings, store, folder, begun) if now else True


def _check_lists(exp: Experiment, sweep: Sweep) -> None:
    """Raise unless lists with one entry twice are no axes, before any point is computed."""
    swept = any(isinstance(value, list) for rows in sweep.columns.values() for value in rows)
    for point in sweep.corners() if swept else sweep.points[:1]:
        lists = [value for value in schema.values(point.cfg).values() if isinstance(value, list)]
        if any(len({*map(repr, one)}) < len(one) for one in lists):
            programs.check(exp.module.compute, point)


def _computed(exp: Experiment, sweep: Sweep, store: Store, settings: Settings, work: Work) -> bool:
    files.folder_for(store.folder)
    files.tidy(store.folder)
    if not settings.sweep.resume:
        store.forget(point.key for point in sweep.points)
    chunks = points.chunks(sweep.points, settings.sweep.chunk)
    store.forget_failures(sweep.points)
    total, finished = len(sweep.points), store.keys()
    skipped = sum(point.key in finished for point in sweep.points) if finished else 0
    if skipped:
        before = f"{skipped} of {total} points were finished before"
        say(f"{before}; sweep.resume=false computes them again")
    with Steps(exp.name, skipped, total) as steps:
        return work(Todo(exp, chunks, store, settings, steps))
