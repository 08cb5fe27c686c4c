"""From Hydra's multirun to a sweep: the points that a command line names, each composed once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Override,
    OverrideType,
    Quote,
    QuotedString,
    Transformer,
)
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from gradlab.errors import BadInput
from gradlab.experiment import loading, schema
from gradlab.running import composition, machine, naming
from gradlab.running.command_line import Task
from gradlab.running.identity import Namer
from gradlab.running.settings import NODES, NOT_NAMED, Settings
from gradlab.sweeping import points
from gradlab.sweeping.points import Point, Sweep

if TYPE_CHECKING:
    from hydra.types import HydraContext

    from gradlab.sweeping.sweep import Todo

OUR_LAUNCHER = "hydra_plugins.gradlab_launcher.GradlabLauncher"


@dataclass(frozen=True)
class Unchecked:
    """A point before it is checked.

    Attributes:
        index: where it is along each axis of the sweep.
        choices: swept key to what was chosen, as text.
        overrides: the same as it would be typed, a `+` before a key among it.
        values: all its composed values.
    """

    index: tuple[int, ...]
    choices: Mapping[str, str]
    overrides: tuple[str, ...]
    values: Mapping[str, Any]


def sweep(context: HydraContext, task: Task, config: DictConfig, arguments: Sequence[str]) -> bool:
    """Whether every point of the multirun was computed and every claim holds."""
    params = config.hydra.sweeper.get("params") or {}
    arguments = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = _parsed(context, arguments)
    swept = {key: over for key, over in parsed.items() if over.is_sweep_override()}
    if not swept:
        return task.single(config, arguments)
    fixed = [str(over.input_line) for key, over in parsed.items() if key not in swept]
    axes = {key: _elements(over, context) for key, over in swept.items()}
    grid = list(_grid(context, config, fixed, swept, axes))
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
    lines = [{_key(line): line for line in job} for job in jobs]
    written = [{key: line.partition("=")[2] for key, line in job.items()} for job in lines]
    keys = [key for key in written[0] if len({job.get(key) for job in written}) > 1]
    texts = {key: list(dict.fromkeys(job.get(key, "") for job in written)) for key in keys}
    grid = sorted(
        (
            Unchecked(
                tuple(texts[key].index(job.get(key, "")) for key in keys),
                {key: job.get(key, "") for key in keys},
                tuple(typed[key] for key in keys if key in typed),
                composition.plain_values(
                    context.config_loader.load_sweep_config(config, list(line))
                ),
            )
            for job, typed, line in zip(written, lines, jobs, strict=True)
        ),
        key=lambda point: point.index,
    )
    fixed = [line for line in jobs[0] if _key(line) not in keys]
    arguments = list(OmegaConf.to_container(config.hydra.overrides.task) or [])
    verdict = _run(context, task, config, [str(a) for a in arguments], fixed, grid)
    returns = [JobReturn(overrides=list(job), status=JobStatus.COMPLETED) for job in jobs]
    for job in returns:
        job.return_value = verdict
    return returns


def _key(line: str) -> str:
    return line.partition("=")[0].lstrip("+")


def _run(
    context: HydraContext,
    task: Task,
    config: DictConfig,
    arguments: Sequence[str],
    fixed: Sequence[str],
    grid: Sequence[Unchecked],
) -> bool:
    exp = task.experiment
    read = [composition.read(exp, point.values) for point in grid]
    settings = read[0][0]
    folder, asked = task.asked_for(settings, config, arguments, several=True)
    foreign = config.hydra.launcher["_target_"] != OUR_LAUNCHER

    # The values are checked; from here on the heavy imports are worth their time.
    from gradlab.running import single
    from gradlab.running.store import Store
    from gradlab.sweeping import sweep as sweeps

    store = Store(naming.store_folder(exp, settings))
    name = Namer(exp, points.computed_by(settings), single.recalling(store, task.reads))
    found = [
        Point(
            *(cfg, own.seed, own.precision, name(cfg, own.seed, own.precision)),
            point.index,
            _coordinates(point, cfg, own),
            point.overrides,
        )
        for point, (own, cfg) in zip(grid, read, strict=True)
    ]
    axes: dict[str, list[Any]] = {
        key: _along(found, number, key) for number, key in enumerate(grid[0].choices)
    }

    whole = Sweep(axes, found, tuple(fixed), asked)
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


def _along(found: Sequence[Point], axis: int, key: str) -> list[Any]:
    """The values along one axis, in order."""
    values = {point.index[axis]: point.values[key] for point in found}
    return [values[at] for at in sorted(values)]


def _coordinates(point: Unchecked, cfg: Any, own: Settings) -> dict[str, Any]:
    values = {**vars(own), **schema.values(cfg)}
    return {key: values.get(key, text) for key, text in point.choices.items()}


# ---- Hydra's grammar


def _parsed(context: HydraContext, arguments: Sequence[str]) -> dict[str, Override]:
    """Key to its override, the last one of each."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    parsed = {_key(over.get_key_element()): over for over in parser.parse_overrides([*arguments])}
    for key, over in parsed.items():
        if over.is_sweep_override() and not over.is_discrete_sweep():
            raise BadInput(f"{_typed(over)} has no points of its own; allowed: a list or a range")
        if over.is_sweep_override() and key.partition(".")[0] in (*NODES, *NOT_NAMED):
            raise BadInput(f"{_typed(over)} is no sweep of values; allowed: one value for '{key}'")
    return parsed


def _typed(over: Override) -> str:
    return f"'{over.input_line}'"


def _elements(over: Override, context: HydraContext) -> list[tuple[str, Any]]:
    """Each element of a sweep: as it would be typed alone, and as a value."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    elements = []
    for element in over.sweep_iterator():
        text = Transformer.str(element)
        plain = not isinstance(element, QuotedString | list | dict)
        value = element if plain else parser.parse_override(f"k={text}").value()
        elements.append((text, value))
    if not elements:
        raise BadInput(f"{_typed(over)} names nothing; allowed: a sweep of at least one value")
    return elements


def _grid(
    context: HydraContext,
    config: DictConfig,
    fixed: Sequence[str],
    swept: Mapping[str, Override],
    axes: Mapping[str, Sequence[tuple[str, Any]]],
) -> Iterator[Unchecked]:
    """The points of a full grid, each with all its values.

    Values are put into a config that is composed once; only what changes the composition itself,
    such as a config group, is composed for each of its choices.
    """
    composing = [key for key, over in swept.items() if not _is_value(over, config)]
    composed: dict[tuple[str, ...], Composed] = {}
    for index in itertools.product(*(range(len(elements)) for elements in axes.values())):
        chosen = {
            key: elements[at] for at, (key, elements) in zip(index, axes.items(), strict=True)
        }
        texts = {key: text for key, (text, _) in chosen.items()}
        typed = {key: f"{swept[key].get_key_element()}={text}" for key, text in texts.items()}
        choice = tuple(typed[key] for key in composing)
        if choice not in composed:
            loader = context.config_loader
            once = loader.load_sweep_config(config, [*fixed, *choice]) if choice else config
            composed[choice] = Composed(once)
        values = {key: value for key, (_, value) in chosen.items() if key not in composing}
        yield Unchecked(index, texts, tuple(typed.values()), composed[choice].with_values(values))


def _is_value(over: Override, config: DictConfig) -> bool:
    return over.type == OverrideType.CHANGE and not over.package and over.key_or_group in config


class Composed:
    """A composed config in which values are replaced with the checks that Hydra makes."""

    def __init__(self, config: DictConfig) -> None:
        self._config = composition.without_hydra(config)
        self._whole = composition.plain_values(self._config, resolve=False)
        self._constant = "${" not in str(self._whole)
        self._converted: dict[tuple[str, str], Any] = {}

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All values, with these instead of the composed ones."""
        if self._constant:
            return self._whole | {key: self._as_typed(key, value) for key, value in values.items()}
        for key, value in values.items():
            OmegaConf.update(self._config, key, value)
        return composition.plain_values(self._config)

    def _as_typed(self, key: str, value: Any) -> Any:
        known = (key, repr(value))
        if known not in self._converted:
            OmegaConf.update(self._config, key, value)
            self._converted[known] = composition.plain_values(self._config)[key]
        return self._converted[known]


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

        store, left = todo.store, [point for chunk in todo.chunks for point in chunk]
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
