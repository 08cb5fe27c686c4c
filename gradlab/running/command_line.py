"""The one door to Hydra: from a command line to a run, its files and its exit status."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gradlab.errors import BadInput
from gradlab.experiment import loading
from gradlab.experiment.loading import Experiment
from gradlab.running import composition, interrupts, machine, naming, refusals, usage
from gradlab.running.console import say
from gradlab.running.interrupts import Interrupts
from gradlab.running.provenance import Asked
from gradlab.running.recall import Reads, watched
from gradlab.running.settings import Settings

if TYPE_CHECKING:
    from omegaconf import DictConfig

CLAIM_FAILED = BAD_INPUT = 1
_KEPT = "files of finished runs are kept; to go on"


def run(file: str, command: Sequence[str] = ("python",)) -> NoReturn:
    """Make the experiment in `file` a program; ends with an exit status and never returns.

    Args:
        file: the experiment's.
        command: the words that were typed before its own.
    """
    # Hydra's own reporter prints several lines or a traceback; `refusals` makes it one sentence.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever windows somebody asked for
    typed = shlex.join([*command, *sys.argv])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding without σ must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        with interrupts.ending(f"{_KEPT}: {typed}"):
            verdicts = _verdicts(file, typed)
    except KeyboardInterrupt as stopped:
        say(f"interrupted: {str(stopped) or f'{_KEPT}: {typed}'}")
        sys.stdout.flush()
        # A thread of jax may still compute: tearing down the interpreter under it ends in a crash.
        os._exit(interrupts.status())
    except BadInput as error:
        say(f"error: {' '.join(line.strip() for line in str(error).splitlines())}")
        sys.exit(BAD_INPUT)
    except (OSError, ValueError) as error:
        told = refusals.of_surroundings(error)
        if told is None:
            raise
        say(f"error: {told}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be printed would fail again
        sys.exit(BAD_INPUT)
    sys.exit(0 if all(verdicts) else CLAIM_FAILED)


def _verdicts(file: str, typed: str) -> list[bool]:
    """Whether the claims hold of each run that was asked for."""
    reads = Reads()
    with watched(reads):
        experiment = loading.load_anew(file)
    if {"--help", "-h"} & set(sys.argv[1:]):
        # Hydra would look through every config group twice first, for over half a second.
        sys.stdout.write(usage.text(experiment) + "\n")
        sys.exit(0)
    with machine.cache_mended():
        return _through_hydra(experiment, typed, reads)


class Task:
    """What Hydra calls with a composed config, and what its sweeper reports to."""

    def __init__(self, experiment: Experiment, command: str, reads: Reads | None) -> None:
        self.experiment = experiment
        self.command = command
        self.verdicts: list[bool] = []
        self.errors: list[Exception] = []
        self.reads = reads
        self.sweep_folder: Path | None = None  # what another sweeper was told
        self.__module__ = experiment.name  # the name that Hydra gives the job

    def __call__(self, cfg: DictConfig) -> bool:
        """Whether every claim of a single run holds."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf, open_dict

        hydra: Any = HydraConfig.instance().cfg
        with open_dict(cfg):
            cfg.hydra = hydra.hydra
        for_sweeps = tuple(
            f"hydra{mark}{what}" for mark in "./" for what in ("sweeper", "launcher")
        )
        for word in hydra.hydra.overrides.hydra:
            if word.lstrip("+").startswith(for_sweeps):
                self.errors.append(BadInput(f"'{word}' is for sweeps; allowed: --multirun with it"))
                return False
        # As typed: to read them one by one would look up what `${...}` in them stands for.
        typed: Any = OmegaConf.to_container(hydra.hydra.overrides.task, resolve=False)
        holds = self.single(cfg, typed)
        if self.errors and hydra.hydra.run.dir != naming.NOT_GIVEN:
            # Hydra makes the folder that it was told of before anything is checked.
            with contextlib.suppress(OSError):  # something stands in it
                Path(hydra.hydra.runtime.output_dir).rmdir()
        return holds

    def single(self, config: DictConfig, overrides: Sequence[str]) -> bool:
        """Whether every claim of the run with these overrides holds."""
        try:
            self.verdicts.append(_single(self, config, overrides))
        except Exception as error:
            # Hydra would print the overrides again and wrap it.
            self.errors.append(error)
            return False
        return self.verdicts[-1]

    def asked_for(
        self, settings: Settings, config: DictConfig, overrides: Sequence[str], several: bool
    ) -> tuple[Path, Asked]:
        """The folder of a run, or of several, and what is to be recorded of how it was asked for.

        Raises:
            BadInput: one of Hydra's own keys asks for what there is not.
        """
        folder = naming.folder(self.experiment, settings, config.hydra, overrides, several)
        if config.hydra.verbose:  # Hydra has set the levels, and no handler
            logging.basicConfig(format="[%(asctime)s][%(name)s][%(levelname)s] %(message)s")
        return folder, Asked(self.command, composition.snapshot(config, overrides, folder))


def _single(task: Task, config: DictConfig, overrides: Sequence[str]) -> bool:
    exp = task.experiment
    settings, cfg = composition.read(exp, composition.plain_values(config))
    folder, asked = task.asked_for(settings, config, overrides, several=False)

    # The values are checked; from here on the heavy imports are worth their time.
    from gradlab.running import single

    with Interrupts() as told:
        try:
            return single.run_one(exp, cfg, settings, folder, asked, task.reads).holds
        except Exception:
            told.check()
            raise


def _through_hydra(experiment: Experiment, command: str, reads: Reads) -> list[bool]:
    import hydra

    task = Task(experiment, command, reads)
    words = _words(experiment)
    composition.register(experiment)
    folder = experiment.config_file.parent
    main = hydra.main(config_path=str(folder), config_name=experiment.name, version_base="1.3")
    try:
        # Several have finished points to tell of, and processes of their own to end.
        with Interrupts() if words.multirun else contextlib.nullcontext():
            main(task)()
        if task.errors:
            raise task.errors[0]
    except Exception as error:
        if task.sweep_folder is not None:
            _forget(task.sweep_folder)
        folders = [Path(place) for place in (words.config_dir, words.config_path) if place]
        folders += composition.folders(folder)
        told = refusals.sentence(error, experiment, words.overrides, folders)
        if told is error:
            raise
        raise told from error
    return task.verdicts


def _forget(folder: Path) -> None:
    """Remove the file that Hydra's sweeper writes before anything is checked, if it is alone."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
        (folder / "multirun.yaml").unlink()
        with contextlib.suppress(OSError):  # another sweep of this experiment stands beside it
            folder.rmdir()
            folder.parent.rmdir()


def _words(experiment: Experiment) -> argparse.Namespace:
    """The command line as Hydra reads it, which `sys.argv` is put in order for.

    Raises:
        BadInput: an option is not known, or asks for what there is not.
    """
    from hydra._internal.utils import get_args_parser

    from gradlab.running import grammar

    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]
    words = parser.parse_intermixed_args()
    actions = ("run", "multirun", "cfg", "info", "shell_completion")
    if sum(getattr(words, action) not in (None, False) for action in actions) > 1:
        _refuse(
            "only one of --run, --multirun, --cfg, --info and --shell-completion is possible; "
            "allowed: the others without it"
        )
    if words.resolve and not words.cfg:
        _refuse("--resolve is for --cfg alone; allowed: --cfg job --resolve")
    if words.experimental_rerun:
        _refuse("--experimental-rerun is not offered; allowed: the command in a run's run.json")
    for word in words.overrides:
        if word.startswith("-"):  # after `--`; Hydra would read it as an option
            _refuse_option(f"unrecognized arguments: {word}")
    if any(word.lstrip("+~").startswith("hydra.output_subdir") for word in words.overrides):
        _refuse("hydra.output_subdir is not free; allowed: .hydra, in the folder of each run")
    typed = dict(word.lstrip("+").split("=", 1) for word in words.overrides if "=" in word)
    sweeper, launcher = (typed.get(f"hydra/{kind}", "gradlab") for kind in ("sweeper", "launcher"))
    if "gradlab" not in (sweeper, launcher):  # nobody would know that the runs are one sweep
        _refuse(
            f"hydra/sweeper is '{sweeper}' and hydra/launcher is '{launcher}'; "
            "allowed: one of the two beside the suite's own"
        )
    # Hydra takes overrides only in one piece: before its options, or after them.
    options = sys.argv[1:]
    for word in words.overrides:
        options.remove(word)
    words.overrides = grammar.for_hydra(words.overrides, list(composition.entries(experiment)))
    if words.config_path is not None:  # Hydra looks for it beside a file of its own choice
        words.config_path = str((experiment.project / "experiments" / words.config_path).resolve())
        options += ["--config-path", words.config_path]
    sys.argv[1:] = [*words.overrides, *options]
    return words


def _refuse_option(message: str) -> NoReturn:
    raise BadInput(f"{message}; allowed: what --help and --hydra-help show")


def _refuse(message: str) -> NoReturn:
    raise BadInput(message)
