"""One sweep from its points to its files: compute what is missing, join, draw, judge, tell."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput, NotWritten
from gradlab.experiment import dataset, figures, files, loading
from gradlab.experiment.loading import Experiment
from gradlab.running import console, machine, naming, provenance, single
from gradlab.running.console import Steps, say
from gradlab.running.interrupts import Interrupts
from gradlab.running.store import Store
from gradlab.sweeping import overview, points, programs
from gradlab.sweeping.join import join
from gradlab.sweeping.overview import Judged
from gradlab.sweeping.points import Point, Sweep
from gradlab.sweeping.programs import Failure, Method

if TYPE_CHECKING:
    import xarray as xr

    from gradlab.experiment.dataset import Named
    from gradlab.running.settings import Settings

# A point that has no result or no verdict, and why.
Unfinished = tuple[Point, Failure]

# Seconds after which points that are finished go to disk though their chunk is not.
PATIENCE = 60.0


class Stopped(KeyboardInterrupt):
    """A sweep that was interrupted, with the one line to say."""


def compute(
    exp: Experiment,
    todo: Sequence[Sequence[Point]],
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
        if not store.has(chunk):
            machine.prepare(chunk[0].precision)
            _compute_chunk(program, chunk, store, fail_fast)
        if steps is not None:
            steps.step(len(chunk))


def _compute_chunk(
    program: programs.Program, chunk: Sequence[Point], store: Store, fail_fast: bool
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
            if time.monotonic() - saved > PATIENCE:
                save()
                saved = time.monotonic()


class FailFast(Exception):
    """A point raised and `fail_fast` is set."""


def missing(sweep: Sweep, store: Store, size: int | None) -> list[list[Point]]:
    """The points that are not finished, in the chunks of the whole sweep."""
    return left(points.chunks(sweep.points, size), store)


def left(chunks: Sequence[Sequence[Point]], store: Store) -> list[list[Point]]:
    """What is not finished of the chunks."""
    finished = store.keys()
    unfinished = ([point for point in chunk if point.key not in finished] for chunk in chunks)
    return [chunk for chunk in unfinished if chunk]


def collect(
    exp: Experiment, sweep: Sweep, settings: Settings, store: Store, folder: Path, begun: float
) -> bool:
    """Join, draw, judge and tell what is finished; whether all is and every claim holds."""
    found, ways = store.load(sweep.points)
    done = dataclasses.replace(
        sweep, points=[point for point in sweep.points if point.key in found]
    )
    judged: list[Judged] = []
    unjudged: list[Unfinished] = []
    with contextlib.ExitStack() as at_the_end:
        if done.points:
            judged, unjudged = _finish(exp, done, found, folder, at_the_end)
        failed = [*_without_result(sweep, store, found), *unjudged]
        _record(exp, sweep, settings, folder, begun, failed, ways)
    return not failed and all(claim.holds for _, claims in judged for claim in claims)


def _without_result(sweep: Sweep, store: Store, found: Collection[str]) -> list[Unfinished]:
    """The points that failed, and those that nobody finished."""
    noted = _noted(sweep, store)
    known = {point.key for point, _ in noted} | set(found)
    lost = Failure("it was not finished", "")
    left_out = [(point, lost) for point in sweep.points if point.key not in known]
    return [*noted, *left_out]


def _noted(sweep: Sweep, store: Store) -> list[Unfinished]:
    notes = store.failures(sweep.points)
    return [(point, Failure(**notes[point.key])) for point in sweep.points if point.key in notes]


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
        "sweep": dict(sweep.axes),
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
    for point, failure in failed:
        say(f"  {in_words(point)}: {failure.error}\n    {sweep.alone(point)}")


def _finish(
    exp: Experiment,
    done: Sweep,
    found: Mapping[str, Mapping[str, Named]],
    folder: Path,
    at_the_end: contextlib.ExitStack,
) -> tuple[list[Judged], list[Unfinished]]:
    """Join, judge, tell and draw; what cannot be judged or drawn is told and loses nothing else."""
    runs = [
        loading.label(exp, point.cfg, point.seed, dict(found[point.key])) for point in done.points
    ]
    joined = join(done, runs)
    dataset.write(folder / "data.nc", joined.data)
    saved = dataset.read(folder / "data.nc")
    judged, failed = _judged(exp, done, runs, saved if joined.as_one_run else None, at_the_end)
    if judged:
        _show(exp, judged, folder)
    drawn: dict[str, bytes] = {}
    with console.busy(f"{exp.name}: drawing"), single.later(at_the_end):
        if joined.as_one_run:
            drawn = figures.draw(exp.module.figure, saved)
        elif judged:
            drawn = figures.draw(lambda _: overview.figure(exp.question, done.axes, judged), saved)
    records = [
        ({"point": dict(point.values)} if point else {}) | claim.record()
        for point, claims in judged
        for claim in claims
    ]
    single.write_judged(folder, drawn, records or None)
    return judged, failed


def _judged(
    exp: Experiment,
    done: Sweep,
    runs: Sequence[xr.Dataset],
    whole: xr.Dataset | None,
    at_the_end: contextlib.ExitStack,
) -> tuple[list[Judged], list[Unfinished]]:
    """The verdicts about the sweep as `whole`, or else about each run, and what has none."""
    if whole is not None:
        with single.later(at_the_end):
            return [(None, loading.judge(exp, whole))], []
        return [], []
    judged: list[Judged] = []
    failed: list[Unfinished] = []
    for point, run in zip(done.points, runs, strict=True):
        try:
            judged.append((point, loading.judge(exp, run)))
        except Exception as error:
            why = programs.failure(error)
            failed.append((point, dataclasses.replace(why, error=f"judging it: {why.error}")))
    return judged, failed


def _show(exp: Experiment, judged: Sequence[Judged], folder: Path) -> None:
    """Print the verdicts: as for a single run, or for each claim over all points."""
    if judged[0][0] is None:
        console.judged(exp.question, judged[0][1], folder)
        return
    columns = [
        *(console.VERDICT, console.CLAIM),
        ("holds at", {"justify": "right", "no_wrap": True}),
        ("farthest off", {"no_wrap": True}),
    ]
    claims = [claim for _, claims in judged for claim in claims]
    end = (
        f"{sum(claim.holds for claim in claims)} of {len(claims)} claims at {len(judged)} points "
        f"hold; files in {folder}"
    )
    console.print_table(exp.question, columns, map(_row, overview.rows(judged)), end, width=140)


def _row(row: overview.Row) -> tuple[str, ...]:
    held = sum(claim.holds for _, claim in row.claims)
    point, claim = max(row.claims, key=lambda pair: overview.off(pair[1]))
    return (
        console.verdict(held == len(row.claims)),
        row.sentence,
        f"{held} of {len(row.claims)}",
        f"{overview.off(claim):.2g} tolerances at {in_words(point)}",
    )


def in_words(point: Point) -> str:
    """The point in words: `key=value` for each swept key."""
    return " ".join(point.overrides)


@contextlib.contextmanager
def telling(sweep: Sweep, store: Store) -> Iterator[None]:
    """An interruption or a full disk inside the block ends with what is kept and how to go on."""

    def kept() -> str:
        finished = store.keys()
        done = sum(point.key in finished for point in sweep.points)
        return f"{done} of {len(sweep.points)} done; resume with: {sweep.asked.command}"

    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(kept()) from None
    except NotWritten as error:
        raise BadInput(f"{error}; {kept()}") from error


@dataclass(frozen=True)
class Todo:
    """The chunks of a sweep that are still to be computed, and where their points go.

    Attributes:
        exp: the experiment.
        chunks: the points that are not finished.
        store: takes what is finished, and notes what failed.
        settings: how, and where.
        steps: is told of each point that is finished.
    """

    exp: Experiment
    chunks: Sequence[Sequence[Point]]
    store: Store
    settings: Settings
    steps: Steps


# What computes chunks: this process, other processes, a cluster. Whether the results are to be
# collected now, and not later by the same command.
Work = Callable[[Todo], bool]


def here(todo: Todo) -> bool:
    """Compute the chunks in this process."""
    asked = todo.settings.sweep
    method = programs.choose(asked.method, asked.batch)
    compute(todo.exp, todo.chunks, todo.store, method, asked.fail_fast, todo.steps)
    return True


def run_sweep(
    exp: Experiment, sweep: Sweep, settings: Settings, folder: Path, work: Work = here
) -> bool:
    """Make the sweep's files in `folder`, computing what is missing; whether every claim holds."""
    begun = time.perf_counter()
    machine.prepare(settings.precision)
    if not settings.redraw:
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
            _record(exp, sweep, settings, folder, begun, _noted(sweep, store))
            return False
        return collect(exp, sweep, settings, store, folder, begun) if now else True


def _computed(exp: Experiment, sweep: Sweep, store: Store, settings: Settings, work: Work) -> bool:
    files.folder_for(store.folder)
    files.tidy(store.folder)
    if not settings.sweep.resume:
        store.forget(point.key for point in sweep.points)
    todo = missing(sweep, store, settings.sweep.chunk)
    store.forget_failures(point for chunk in todo for point in chunk)
    total = len(sweep.points)
    skipped = total - sum(map(len, todo))
    if skipped:
        before = f"{skipped} of {total} points were finished before"
        say(f"{before}; sweep.resume=false computes them again")
    with Steps(exp.name, skipped, total) as steps:
        return work(Todo(exp, todo, store, settings, steps))
