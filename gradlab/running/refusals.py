"""Hydra's errors as one sentence: what was typed, what is wrong with it, what is allowed."""

from __future__ import annotations

import errno
import re
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

# What Hydra says of an override, and what is said in its place.
_SAID = (
    (r"An item is already at '(.+?)'", "'{0}' is there already; allowed: {0}=VALUE, without +"),
    (
        r"The value of '(.+)' is (.+) and not (.+)",
        "'~{0}={2}' is another value than {1}; allowed: ~{0}",
    ),
    (
        r"Could not delete '(.+?)'\. No match",
        "'~{0}' takes back a choice that was not made; allowed: one that --info defaults lists",
    ),
    (
        r"Could not override '(.+?)'\. No match[^+]*use (\+\S+)",
        "'{0}' has no choice to be changed; allowed: {1}",
    ),
    (
        r"Could not override '(.+?)'\.\s+Did you mean to override (.+?)\?",
        "'{0}' is not known; did you mean '{1}'? allowed: one that --info defaults lists",
    ),
    (r"Multiple values for (.+?)\. ", "'{0}' is chosen twice; allowed: {0}=NAME, without +"),
    (r"(\S+) appears more than once", "'{0}' is chosen more than once; allowed: once"),
    (
        r"force-add of config groups is not supported: '\+(.+)'",
        "'+{0}' has one + too many for a group; allowed: {0}",
    ),
    (
        r"Override (.+) looks like a config group override, but config group '(.+)' does",
        "'{0}' names the group '{1}', which there is not; allowed: a folder of configs/",
    ),
    (
        r"Sweeping over Hydra's configuration is not supported : '(.+)'",
        "'{0}' is no sweep of values; allowed: one value",
    ),
    (
        r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'",
        "'{0}' has several values; allowed: one, a list as [1,2], or a sweep with --multirun",
    ),
    (
        r"In '(.+)': Could not load '(.+?)'",
        "the defaults of '{0}' name '{1}', which there is not; allowed: a file in configs/",
    ),
)
_WHAT_THERE_IS = "allowed: what --help, --hydra-help and --cfg all show"


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
        if isinstance(cause, MissingConfigException):
            names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
            return BadInput(schema.unknown("config", str(cause.missing_cfg_file), names - {"base"}))
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            known = _about_key(cause, experiment, overrides, folders)
            if known:
                return BadInput(known)
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            if damage := composition.damage(path):
                return BadInput(damage)
    wrong = "" if isinstance(error, BadInput) else _unreadable(overrides, experiment)
    if wrong:
        return BadInput(wrong)
    if isinstance(error, HydraException | OmegaConfBaseException):
        hydras = [cause for cause in _causes(error) if isinstance(cause, HydraException)]
        said = str(hydras[-1] if hydras else error)
        lines = said.partition("See https")[0].partition("Config search path")[0]
        return BadInput(_in_words(lines, experiment))
    if isinstance(error, OSError) and _is_hydras(error):
        return BadInput(
            f"'{error.filename}' cannot be written ({error.strerror}); "
            "allowed: a folder that this user may write to"
        )
    if isinstance(error, RecursionError):
        return BadInput(
            f"the configs of '{experiment.name}' take in each other without an end; "
            "allowed: defaults that do not lead back"
        )
    if _is_hydras(error) and not isinstance(error, ImportError):
        plain = str(error) and not isinstance(error, AssertionError)
        said = str(error) if plain else "a key of Hydra has a value of another type"
        return BadInput(f"{said}; {_WHAT_THERE_IS}")
    return error


def _in_words(said: str, experiment: Experiment) -> str:
    """What Hydra or OmegaConf said, as one sentence."""
    if merged := said.partition("Error merging override ")[2].strip():
        return f"'{merged}' cannot be set; {_AS_TYPED}"
    if missing := re.search(r"Could not delete from config\. '(.+)' does not exist", said):
        return unknown_key(missing[1], experiment)
    for pattern, words in _SAID:
        if found := re.search(pattern, said):
            return words.format(*found.groups())
    parts = [line.strip().rstrip(".") for line in said.splitlines() if line.strip()]
    return "; ".join([*parts, _WHAT_THERE_IS])


def _is_hydras(error: Exception) -> bool:
    """Whether it was raised by Hydra or OmegaConf, or by what they called of Python itself."""
    frames = [
        str(frame.f_globals["__name__"]) for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    own = [name.partition(".")[0] for name in frames if not name.startswith(("pathlib", "os."))]
    return own[-1] in ("hydra", "omegaconf")


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
    from omegaconf import OmegaConf
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        InterpolationKeyError,
        InterpolationResolutionError,
        ValidationError,
    )

    name = str(cause.full_key)
    known = composition.entries(experiment)
    if name.startswith("hydra."):
        parent = cause.parent_node
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and OmegaConf.is_dict(parent):
            node = name.rpartition(".")[0]
            keys = (f"{node}.{key}" for key in parent if not str(key).startswith("_"))
            return schema.unknown("key", name, keys)
        if isinstance(cause, ValidationError) and not setting(name, overrides):
            return f"{name} is {cause.value} in a config file; {_WHAT_THERE_IS}"
        return ""
    if isinstance(cause, InterpolationResolutionError) and name in known:
        missing = isinstance(cause, InterpolationKeyError)
        what = "refers to a key that there is not" if missing else "cannot be looked up"
        given = _given(name, overrides, composition.written(experiment).get(name))
        return f"{name} is {given}, which {what}; allowed: {known[name].allowed()}"
    chosen = list(_chosen(overrides, folders))
    for typed, values in chosen:
        meant = values.get(composition.FOR, experiment.name)
        if meant != experiment.name:
            return (
                f"'{typed}' is for '{meant}', not for '{experiment.name}'; "
                f"allowed: {' '.join(loading.command(experiment.project, str(meant)))} {typed}"
            )
    if isinstance(cause, ValidationError):
        given = _given(name, overrides, cause.value)
        below = ", ".join(key for key in known if key.startswith(f"{name}."))
        allowed = known[name].allowed() if name in known else below
        if name == composition.FOR:
            return f"{name} is {given}; allowed: a preset with '# @package _global_' above its keys"
        return f"{name} is {given}; allowed: {allowed}" if allowed else ""
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
    if name in known:  # a group is no value, and takes none of a mapping
        return f"'{name}' cannot be set to what is no name; allowed: {name}=NAME, as --help shows"
    return schema.unknown("key", name, {key.partition(".")[0] for key in known})


def _given(name: str, overrides: Sequence[str], value: Any) -> str:
    """What a key was given: as it was typed, or the value that a config file has."""
    typed = setting(name, overrides)
    if typed:
        whole = typed[-1].partition("=")
        return f"'{whole[2]}'" if whole[0].lstrip("+") == name else f"set by '{typed[-1]}'"
    return f"{'null' if value is None else repr(value)} in a config file"


def of_surroundings(error: OSError | ValueError) -> BadInput | None:
    """The refusal of what a process was started with; None where that is not the error's cause."""
    if (
        isinstance(error, OSError)
        and error.errno in (errno.ENOSPC, errno.EIO)
        and not error.filename
    ):
        return BadInput(f"what is printed cannot be written ({error.strerror}); allowed: a place")
    found = re.search(r"value '?(.*?)'? for environment '(.*)'", str(error))
    return found and BadInput(f"{found[2]} is set to '{found[1]}'; allowed: true or false")


def setting(name: str, overrides: Sequence[str]) -> list[str]:
    """The words that set a key, or a part of it."""
    keys = ((word, word.partition("=")[0].lstrip("+")) for word in overrides)
    return [word for word, key in keys if key == name or key.startswith((f"{name}.", f"{name}["))]


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
