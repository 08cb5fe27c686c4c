"""From Hydra's multirun to a sweep: the axes that were typed, and points made when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from gradlab.errors import BadInput
from gradlab.running import composition, naming
from gradlab.running.command_line import Task
from gradlab.running.identity import Namer
from gradlab.sweeping import launchers, lines, points
from gradlab.sweeping.grid import Grid
from gradlab.sweeping.points import Sweep

if TYPE_CHECKING:
    from hydra.types import HydraContext


def sweep(context: HydraContext, task: Task, config: DictConfig, arguments: Sequence[str]) -> bool:
    """Whether every point of the multirun was computed and every claim holds."""
    added = _params(config, arguments)
    arguments = [*added, *arguments]
    parsed = lines.overrides_of(context, arguments)
    swept = {key: over for key, over in parsed.items() if over.is_sweep_override()}
    axes = lines.of_overrides(task.experiment, config, swept)
    if not axes:
        return task.single(config, arguments)
    named = {name for line in axes for name in line.names}
    fixed = [str(over.input_line) for key, over in parsed.items() if key not in named]
    if {*added} & {*fixed}:  # Hydra has composed what was typed, and nothing else
        config = context.config_loader.load_sweep_config(config, fixed)
    grid = Grid(task.experiment, context, config, fixed, axes)
    return _run(context, task, config, arguments, fixed, grid)


def _params(config: DictConfig, typed: Sequence[str]) -> list[str]:
    """What `hydra.sweeper.params` adds to the lines that were typed, which have the last word."""
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper)
    params = sweeper.get("params") or {}
    if not isinstance(params, dict):
        raise BadInput(
            f"hydra.sweeper.params is {params!r}; allowed: {{key: 'a,b'}}, the lines of a sweep"
        )
    known = set(map(lines.key_of, typed))
    told = {key: "null" if value is None else value for key, value in params.items()}
    return [f"{key}={value}" for key, value in told.items() if lines.key_of(key) not in known]


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
    launcher = launchers.chosen(config, folder)

    # The values are checked; from here on the heavy imports are worth their time.
    from gradlab.running import single
    from gradlab.running.store import Store
    from gradlab.sweeping import sweep as sweeps

    store = Store(naming.store_folder(exp, settings))
    computed_by = points.computed_by(settings, launcher.platform())
    name = Namer(exp, computed_by, single.recalling(store, task.reads), store.folder)
    whole = Sweep(axes, grid.points(axes, name), tuple(fixed), asked)
    work = launchers.work(launcher, context, config, folder, whole)
    verdict = sweeps.run_sweep(exp, whole, settings, folder, work)
    task.verdicts.append(verdict)
    return verdict
