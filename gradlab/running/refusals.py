"""Hydra's errors as one sentence: what was typed, what is wrong with it, what is allowed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradlab.errors import BadInput
from gradlab.experiment import loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.running import composition, settings
from gradlab.running.settings import LAUNCHER, LAUNCHERS

_AS_TYPED = (
    "allowed: key=value, with a list as [1,2] and a text that has signs of its own in quotes"
)


def sentence(
    error: Exception, experiment: Experiment, overrides: Sequence[str], folders: Sequence[Path]
) -> Exception:
    """The error as bad input where it is that; a defect is returned as it is.

    `overrides` are those that were typed, `folders` those in which config files are looked for.
    """
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    for cause in _causes(error):
        if isinstance(cause, BadInput):
            return cause
        if isinstance(cause, MissingConfigException) and cause.options is not None:
            group, _, name = str(cause.missing_cfg_file).rpartition("/")
            if group == LAUNCHER and name in LAUNCHERS:
                return BadInput(
                    f"{group} '{name}' is not installed; allowed: {', '.join(cause.options)}, "
                    "or all of them after pip install 'gradlab[cluster]'"
                )
            return BadInput(schema.unknown(group or "config", name, cause.options))
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            known = _about_key(cause, experiment, overrides, folders)
            if known:
                return BadInput(known)
    wrong = "" if isinstance(error, BadInput) else _unreadable(overrides, experiment)
    if wrong:
        return BadInput(wrong)
    if isinstance(error, HydraException | OmegaConfBaseException):
        hydras = [cause for cause in _causes(error) if isinstance(cause, HydraException)]
        said = str(hydras[-1] if hydras else error)
        lines = said.partition("See https")[0].partition("Config search path")[0]
        merged = lines.partition("Error merging override ")[2].strip()
        if merged:
            return BadInput(f"'{merged}' cannot be set; {_AS_TYPED}")
        parts = [line.strip().rstrip(".") for line in lines.splitlines() if line.strip()]
        return BadInput("; ".join(parts))
    if isinstance(error, ValueError) and _raised_in(error).startswith(("hydra.", "omegaconf.")):
        return BadInput(f"{error}; {_AS_TYPED}")
    return error


def _raised_in(error: Exception) -> str:
    """The name of the module in which an error was raised."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"])


def _unreadable(overrides: Sequence[str], experiment: Experiment) -> str:
    """The sentence for the first word that Hydra cannot read as key=value, or empty."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, choices = OverridesParser.create(), composition.groups(experiment)
    for word in overrides:
        try:
            (over,) = parser.parse_overrides([word])
            value = next(over.sweep_iterator()) if over.is_sweep_override() else over.value()
        except Exception:  # the parser of a text raises what it likes
            return f"'{word}' cannot be read; {_AS_TYPED}"
        if not over.key_or_group:
            return f"'{word}' has no key; {_AS_TYPED}"
        names = choices.get(over.key_or_group)
        if names and not over.is_delete() and not isinstance(value, str | list):
            return schema.unknown(over.key_or_group, word.partition("=")[2], names)
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, said so or not: Hydra drops OmegaConf's as a cause."""
    here: BaseException | None = error
    while here is not None:
        yield here
        here = here.__cause__ or here.__context__


def _about_key(
    cause: Any, experiment: Experiment, overrides: Sequence[str], folders: Sequence[Path]
) -> str:
    from omegaconf.errors import (
        InterpolationKeyError,
        InterpolationResolutionError,
        ValidationError,
    )

    name = str(cause.full_key)
    known = composition.entries(experiment)
    if name.startswith("hydra."):
        return ""
    if isinstance(cause, InterpolationResolutionError) and name in known:
        missing = isinstance(cause, InterpolationKeyError)
        what = "refers to a key that there is not" if missing else "cannot be looked up"
        allowed = known[name].allowed()
        return f"{name} is {_given(name, overrides)}, which {what}; allowed: {allowed}"
    chosen = list(_chosen(overrides, folders))
    for typed, values in chosen:
        meant = values.get(composition.FOR, experiment.name)
        if meant != experiment.name:
            return (
                f"'{typed}' is for '{meant}', not for '{experiment.name}'; "
                f"allowed: {' '.join(loading.command(experiment.project, str(meant)))} {typed}"
            )
    if isinstance(cause, ValidationError):
        given = _given(name, overrides)
        below = ", ".join(key for key in known if key.startswith(f"{name}."))
        allowed = known[name].allowed() if name in known else below
        return f"{name} is {given}; allowed: {allowed}"
    if name in known:
        return ""
    for typed, values in chosen:
        if name in values:
            own = ", ".join(key for key in values if key != composition.FOR)
            return (
                f"'{typed}' sets the key '{name}', which '{experiment.name}' does not have; "
                f"allowed: an experiment with the keys {own}"
            )
    keys = (word.lstrip("+").partition("=")[0] for word in overrides)
    older = [key for key in keys if key.startswith(f"{name}.") and key in settings.RENAMED]
    return unknown_key(older[0] if older else name, experiment)


def unknown_key(name: str, experiment: Experiment) -> str:
    """The sentence for a key that is not known: its new name, or the nearest that is known."""
    known = [*composition.entries(experiment), "scale"]
    new = settings.RENAMED.get(name)
    if new == LAUNCHER:
        return f"key '{name}' is now called '{new}'; allowed: {new}={' or '.join(LAUNCHERS)}"
    if new is not None and (new in known or new.startswith("hydra.")):
        return f"key '{name}' is now called '{new}'; allowed: {new}=..."
    node = name.partition(".")[0]
    if node in settings.NODES:
        return schema.unknown("key", name, [key for key in known if key.startswith(f"{node}.")])
    return schema.unknown("key", name, {key.partition(".")[0] for key in known})


def _given(name: str, overrides: Sequence[str]) -> str:
    typed = [word.partition("=")[2] for word in overrides if word.partition("=")[0] == name]
    return f"'{typed[-1]}'" if typed else "of another type in a config file"


def _chosen(
    overrides: Sequence[str], folders: Sequence[Path]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was chosen of config groups, as typed, and the values that its file sets."""
    for typed in overrides:
        group, _, name = typed.lstrip("+").partition("=")
        for folder in folders:
            path = folder / group / f"{name}.yaml"
            if path.is_file():
                yield typed, composition.content(path)
                break
