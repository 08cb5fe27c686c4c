"""What Hydra finds by its place: the sweeper, the launcher, and where shared configs are.

`gradlab.sweeping.multirun` and `gradlab.running.composition` do the work.

Hydra 1.3 takes plugins from the namespace `hydra_plugins` alone, and scans it at every start, so
nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, env_override
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GradlabSweeper(Sweeper):
    """All points of a multirun as one object; each is composed once."""

    def __init__(self, **given: Any) -> None:
        self.given_keys = given  # read, like all else, from the config

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands over before the sweep."""
        self.given = (hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Whether every point was computed and every claim holds."""
        from gradlab.sweeping import multirun

        with env_override(self.given[2].hydra.job.env_set):
            return multirun.sweep(*self.given, arguments)


class GradlabSearchPath(SearchPathPlugin):
    """What all experiments share, for a project that has only experiments of its own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the published configs behind those of a project without a `base.yaml`."""
        from gradlab.running import composition

        mains = [entry for entry in search_path.get_path() if entry.provider == "main"]
        for main in mains:
            for folder in composition.folders(Path(main.path.removeprefix("file://")))[1:]:
                search_path.append("gradlab", f"file://{folder}")


class GradlabLauncher(Launcher):
    """The jobs of any sweeper in one compiled program for each structure of their configs."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands over before the sweep."""
        from gradlab.sweeping import multirun

        self.given = (hydra_context, task_function, config)
        self.jobs: list[Sequence[str]] = []
        multirun.name_folder(task_function, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """One return for each job; their results are joined with those of earlier batches."""
        from gradlab.sweeping import multirun

        del self.jobs[initial_job_idx:]
        self.jobs += job_overrides
        return multirun.launch(*self.given, self.jobs)[initial_job_idx:]


_HERE = "hydra_plugins.gradlab_launcher."

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="gradlab",
    node={"_target_": _HERE + "GradlabSweeper", "params": None, "zip": None, "points": None},
)
ConfigStore.instance().store(
    group="hydra/launcher", name="gradlab", node={"_target_": _HERE + "GradlabLauncher"}
)
