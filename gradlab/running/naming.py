"""Where the files of a run or a sweep stand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment.loading import Experiment
from gradlab.running.settings import NOT_NAMED, Settings

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

# What configs/base.yaml writes where Hydra has a folder of its own: the suite's is taken.
NOT_GIVEN = "."


def folder(
    experiment: Experiment,
    settings: Settings,
    hydra: DictConfig,
    overrides: Sequence[str],
    several: bool = False,
) -> Path:
    """Where the files of a run, or of a sweep of several, with these overrides are.

    Raises:
        BadInput: one of Hydra's keys asks for what there is not.
    """
    if hydra.job.chdir:
        raise BadInput("hydra.job.chdir is true; allowed: false, a run stays where it was started")
    if hydra.sweep.subdir != NOT_GIVEN:
        raise BadInput(
            f"hydra.sweep.subdir is '{hydra.sweep.subdir}'; allowed: '{NOT_GIVEN}', "
            "the points of a sweep are one dataset in one folder"
        )
    typed = str(hydra.sweep.dir if several else hydra.run.dir)
    if typed != NOT_GIVEN:
        return Path(typed).absolute()
    results = experiment.home / settings.results / experiment.name
    config_name = str(hydra.job.config_name)
    return results / name(
        experiment.name, config_name, overrides, _together(hydra) if several else []
    )


def store_folder(experiment: Experiment, settings: Settings) -> Path:
    """Where the finished points of an experiment are, of all its runs and sweeps."""
    return experiment.home / settings.results / ".store" / experiment.name


def _together(hydra: DictConfig) -> list[str]:
    """What is swept besides single keys, in words: `zip(depth,width)`, and lists of points."""
    from hydra.core.override_parser.types import Override
    from omegaconf import OmegaConf

    zips = [f"zip({','.join(group)})" for group in hydra.sweeper.get("zip") or ()]
    listed = hydra.sweeper.get("points")
    plain: Any = OmegaConf.to_container(listed) if listed else None
    return [*zips, *([f"points={Override._get_value_element_as_str(plain)}"] if plain else [])]


def name(
    experiment: str, config_name: str, overrides: Sequence[str], together: Sequence[str] = ()
) -> str:
    """The readable name of a run: the overrides that change a value, sorted; empty for none.

    What is a change is asked of the config that the chosen groups alone compose.
    """
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    parsed = [over for over in _parsed(loader, overrides) if over.key_or_group not in NOT_NAMED]
    chosen = [over for over in parsed if _is_group(loader, over) and not _as_published(over)]
    values = [over for over in parsed if not _is_group(loader, over)]
    # Where a group is swept, each of its choices has values of its own.
    if values and not any(over.is_sweep_override() for over in chosen):
        start = _composed(loader, config_name, chosen)
        values = [over for over in values if not _as_composed(over, start)]
    parts = sorted(f"{over.key_or_group}={_text(over)}" for over in [*chosen, *values])
    parts += together
    parts = [f"config_name={config_name}"] * (config_name != experiment) + parts
    text = ",".join(map(_as_file_name, parts))
    if len(text.encode()) <= 200:  # file systems allow 255
        return text
    return f"{text[:180]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _text(over: Override) -> str:
    """What an override sets, as it was typed but for blanks and quotes that mean nothing."""
    typed = str(over.input_line).partition("=")[2]
    if not over.is_sweep_override() and isinstance(over.value(), str):
        text = str(over.value())
        return f"'{text}'" if text != typed and not _is_text(text) else text
    return typed if {"'", '"'} & set(typed) else typed.replace(" ", "")


def _is_text(bare: str) -> bool:
    """Whether a text means the same without quotes: null, true and 1e3 do not."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return isinstance(OverridesParser.create().parse_override(f"key={bare}").value(), str)
    except HydraException:  # it cannot be read without them, and so is no other value
        return True


def _as_file_name(text: str) -> str:
    """A text without what ends or splits a file's name, and other texts stay other ones.

    Not by %, which means something to Slurm in the name of a log.
    """
    return "".join(f"~{ord(sign):02X}" if sign in "/% ~\\\0" else sign for sign in text)


def _parsed(loader: ConfigLoader, overrides: Sequence[str]) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def _is_group(loader: ConfigLoader, over: Override) -> bool:
    group, _, below = over.key_or_group.rpartition("/")
    return below in loader.list_groups(group)


def _as_published(over: Override) -> bool:
    return bool(over.key_or_group == "scale" and over.value() == "full")


def _composed(loader: ConfigLoader, config_name: str, chosen: Sequence[Override]) -> DictConfig:
    """The config of these groups; a sweep over a group has no one choice, and is left out."""
    from hydra.types import RunMode

    lines = [str(over.input_line) for over in chosen if not over.is_sweep_override()]
    return loader.load_configuration(config_name, lines, RunMode.RUN)


def _as_composed(over: Override, start: DictConfig) -> bool:
    if over.is_sweep_override():
        return False
    composed, value = _value_of(over, start), over.value()
    return bool(value == composed or [value] == composed)


def _value_of(over: Override, start: DictConfig) -> Any:
    from omegaconf import OmegaConf

    composed: Any = OmegaConf.select(start, over.key_or_group)
    return OmegaConf.to_container(composed) if OmegaConf.is_config(composed) else composed
