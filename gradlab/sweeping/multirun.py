"""From Hydra's multirun to a sweep: the axes that were typed, and points made when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from gradlab.experiment import loading
from gradlab.running import composition, machine, naming
from gradlab.running.command_line import Task
from gradlab.running.identity import Namer
from gradlab.sweeping import lines, points
from gradlab.sweeping.grid import Grid
from gradlab.sweeping.points import Point, Sweep

if TYPE_CHECKING:
    from hydra.types import HydraContext

    from gradlab.sweeping.sweep import Todo

OUR_LAUNCHER = "hydra_plugins.gradlab_launcher.GradlabLauncher"


def sweep(context: HydraContext, task: Task, config: DictConfig, arguments: Sequence[str]) -> bool:
    """Whether every point of the multirun was computed and every claim holds."""
    params = config.hydra.sweeper.get("params") or {}
    arguments = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = lines.overrides_of(context, arguments)
    swept = {key: over for key, over in parsed.items() if over.is_sweep_override()}
    axes = lines.of_overrides(task.experiment, config, swept)
    if not axes:
        return task.single(config, arguments)
    named = {name for line in axes for name in line.names}
    fixed = [str(over.input_line) for key, over in parsed.items() if key not in named]
    grid = Grid(task.experiment, context, config, fixed, axes)
    return _run(context, task, config, arguments, fixed, grid)


def name_folder(task: Task, config: DictConfig) -> None:
    """Tell another sweeper the sweep's folder, for the files that it has of its own."""
    settings, _ = composition.read(task.experiment, composition.plain_values(config))
    overrides = list(map(str, OmegaConf.to_container(config.hydra.overrides.task) or []))
    task.sweep_folder = task.asked_for(settings, config, overrides, several=True)[0]
    config.hydra.sweep.dir = str(task.sweep_folder)


def launch(
    context: HydraContext, task: Task, config: DictConfig, jobs: Sequence[Sequence[str]]
) -> list[JobReturn]:
    """The jobs of another sweeper, evaluated and joined as a sweep over what differs in them."""
    written = [{lines.key_of(line): line for line in job} for job in jobs]
    keys = [key for key in written[0] if len({job.get(key) for job in written}) > 1]
    fixed = [line for key, line in written[0].items() if key not in keys]
    arguments = [str(a) for a in OmegaConf.to_container(config.hydra.overrides.task) or []]
    axes = lines.of_jobs(context, [[job[key] for key in keys] for job in written])
    grid = Grid(task.experiment, context, config, fixed, axes)
    verdict = _run(context, task, config, arguments, fixed, grid)
    returns = [JobReturn(overrides=list(job), status=JobStatus.COMPLETED) for job in jobs]
    for job in returns:
        job.return_value = verdict
    return returns


def _run(
    context: HydraContext,
    task: Task,
    config: DictConfig,
    arguments: Sequence[str],
    fixed: Sequence[str],
    grid: Grid,
) -> bool:
    exp = task.experiment
    axes = grid.checked()
    settings = grid.settings()
    folder, asked = task.asked_for(settings, config, arguments, several=True)
    foreign = config.hydra.launcher["_target_"] != OUR_LAUNCHER

    # The values are checked; from here on the heavy imports are worth their time.
    from gradlab.running import single
    from gradlab.running.store import Store
    from gradlab.sweeping import sweep as sweeps

    store = Store(naming.store_folder(exp, settings))
    name = Namer(exp, points.computed_by(settings), single.recalling(store, task.reads))
    whole = Sweep(axes, grid.points(axes, name), tuple(fixed), asked)
    if foreign:
        work: Any = OtherLauncher(context, config, folder, whole)
    elif settings.cluster.kind != "none":
        from gradlab.sweeping.cluster import Cluster

        work = Cluster(folder, str(config.hydra.job.name))
    else:
        work = sweeps.here
    verdict = sweeps.run_sweep(exp, whole, settings, folder, work)
    task.verdicts.append(verdict)
    return verdict


# ---- other launchers


@dataclass(frozen=True)
class OtherLauncher:
    """Any launcher of Hydra's, one point a job; the jobs leave the same files as this process."""

    context: HydraContext
    config: DictConfig
    folder: Path
    sweep: Sweep

    def __call__(self, todo: Todo) -> bool:
        """True: the jobs are finished when the launcher returns."""
        from gradlab.running.console import say
        from gradlab.sweeping.sweep import FailFast

        store, left = todo.store, [point for chunk in todo.left() for point in chunk]
        if not left:
            return True
        jobs = self.folder / "jobs"
        quoted = QuotedString(str(jobs), Quote.single).with_quotes()
        self.config.hydra.sweep.dir = str(jobs)
        self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted}")
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context,
            task_function=Job(str(todo.exp.file), str(store.folder)),
            config=self.config,
        )
        overrides = [[*self.sweep.fixed, *point.overrides] for point in left]
        try:
            for point, job in zip(left, launcher.launch(overrides, 0), strict=True):
                if job.status == JobStatus.FAILED and not store.failures([point]):
                    store.save_failure(point, repr(job._return_value), "")
        except Exception as error:  # a worker that was killed, say: the other points are finished
            say(f"{type(launcher).__name__} stopped: {type(error).__name__}: {error}")
        if not any(jobs.iterdir()):
            jobs.rmdir()
        todo.steps.step(len(left))
        if todo.settings.sweep.fail_fast and store.failures(left):
            raise FailFast
        return True


@dataclass(frozen=True)
class Job:
    """What another launcher runs for each point, perhaps in another process: plain data only."""

    file: str
    store: str

    def __call__(self, config: DictConfig) -> None:
        """Compute the point to its file, or note its failure."""
        from gradlab.running.store import Store
        from gradlab.sweeping import programs, sweep

        exp = loading.load(self.file)
        settings, cfg = composition.read(exp, composition.plain_values(config))
        given = (cfg, settings.seed, settings.precision)
        point = Point(*given, Namer(exp, points.computed_by(settings))(*given))
        machine.prepare(settings.precision)
        method = programs.choose(settings.sweep.method, settings.sweep.batch)
        sweep.compute(exp, [[point]], Store(Path(self.store)), method, settings.sweep.fail_fast)
