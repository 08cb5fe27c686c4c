"""Hydra's launchers as ways to compute a sweep: which was chosen, and what works in its place.

`joblib`, `submitit_local` and `submitit_slurm` are read, and not called: their keys mean what they
mean in Hydra, and the suite deals chunks among the processes and jobs that they ask for. Another
launcher is called as Hydra would, with a job for each point.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, OmegaConf

from gradlab.errors import BadInput
from gradlab.experiment import loading
from gradlab.running import composition, machine
from gradlab.running.identity import Namer
from gradlab.sweeping import points
from gradlab.sweeping.points import Point, Sweep

if TYPE_CHECKING:
    from hydra.types import HydraContext

    from gradlab.sweeping.sweep import Todo, Work

_PLUGINS = "hydra_plugins."
HERE, JOBLIB, LOCAL, SLURM = (
    _PLUGINS + name
    for name in (
        "gradlab_launcher.GradlabLauncher",
        "hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    )
)


@dataclass(frozen=True)
class Launcher:
    """The launcher that was chosen.

    Attributes:
        target: the class that Hydra would call.
        keys: the other values of `hydra.launcher`, each of which is the launcher's own.
    """

    target: str
    keys: dict[str, Any]

    def platform(self) -> str:
        """What the points are computed on: as here, or as was asked of a queue."""
        if self.target in (LOCAL, SLURM):
            return "gpu" if _gpus(self.keys) else "cpu"
        import jax

        return jax.default_backend()


def _gpus(keys: dict[str, Any]) -> bool:
    named = any(value for key, value in keys.items() if "gpu" in key)
    return named or "gpu" in f"{keys.get('gres')} {keys.get('additional_parameters')}"


def chosen(config: DictConfig, folder: Path) -> Launcher:
    """The launcher of a composed config, whose own files are below the sweep's folder.

    Raises:
        BadInput: no job would compute the points, or several would.
    """
    config = copy.deepcopy(config)
    config.hydra.sweep.dir = str(folder)
    keys: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    launcher = Launcher(keys.pop("_target_"), keys)
    for name in ("nodes", "tasks_per_node"):
        if launcher.target in (LOCAL, SLURM) and keys[name] != 1:
            raise BadInput(
                f"hydra.launcher.{name} is {keys[name]}; allowed: 1, a sweep has jobs of its own"
            )
    if launcher.target == JOBLIB and keys["n_jobs"] == 0:
        raise BadInput("hydra.launcher.n_jobs is 0; allowed: 1 or more, or -1 for all processors")
    if launcher.target == SLURM and not keys["array_parallelism"] >= 1:
        raise BadInput(
            f"hydra.launcher.array_parallelism is {keys['array_parallelism']}; allowed: at least 1"
        )
    return launcher


def work(
    launcher: Launcher, context: HydraContext, config: DictConfig, folder: Path, sweep: Sweep
) -> Work:
    """What computes the chunks of the sweep."""
    from gradlab.sweeping import cluster, queues
    from gradlab.sweeping import sweep as sweeps

    if launcher.target == HERE:
        return sweeps.here
    if launcher.target == JOBLIB:
        return cluster.Joblib(launcher.keys, launcher.platform())
    if launcher.target in (LOCAL, SLURM):
        queue = queues.slurm if launcher.target == SLURM else queues.local
        note = folder / ".submitit" / "submitted.json"
        return cluster.Cluster(functools.partial(queue, launcher.keys, note), launcher.platform())
    return Other(context, config, folder, sweep)


@dataclass(frozen=True)
class Other:
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
        computed_by = points.computed_by(settings, programs.platform())
        point = Point(*given, Namer(exp, computed_by, store=Path(self.store))(*given))
        machine.prepare(settings.precision)
        method = programs.choose(settings.sweep.method, settings.sweep.batch)
        sweep.compute(exp, [[point]], Store(Path(self.store)), method, settings.sweep.fail_fast)
