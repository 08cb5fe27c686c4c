"""What `--help` says: every key with its value, its meaning and what it takes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from gradlab.experiment import schema
from gradlab.experiment.loading import Experiment
from gradlab.running import composition, settings
from gradlab.running.settings import LAUNCHER


def text(experiment: Experiment) -> str:
    """The help of an experiment, from its files alone: Hydra would take over half a second."""
    written = composition.written(experiment)
    own = [entry.name for entry in schema.entries(experiment.module.Config)]
    known = composition.entries(experiment)
    rows = {
        name: _row(name, _value(written, name), f"{entry.key.doc}; {entry.allowed()}")
        for name, entry in known.items()
    }
    return "\n".join(
        [
            experiment.question,
            "",
            f"  {' '.join(experiment.command)} [key=value ...] [--multirun]",
            "",
            f"keys, with their values in configs/{experiment.name}.yaml:",
            *(line for name in own for line in rows[name]),
            "",
            "groups of values, in folders of configs/; a key that is typed besides has the last "
            "word:",
            *_groups(experiment),
            "",
            "keys of every run, with their values in configs/base.yaml:",
            *(line for name in settings.entries() for line in rows[name]),
            "",
            "sweep: --multirun key=1,2,3   show: --cfg job   Hydra's own help: --hydra-help",
            f"on more processors: --multirun {LAUNCHER}={', '.join(settings.LAUNCHERS)}",
        ]
    )


def _row(name: str, value: Any, meaning: str) -> Iterator[str]:
    yield f"  {name}={_typed(value)}"
    yield from (f"      {line}" for line in textwrap.wrap(meaning, 62))


def _groups(experiment: Experiment) -> Iterator[str]:
    """The choices that this experiment can take: all keys that they set are its own."""
    names = {name.partition(".")[0] for name in composition.entries(experiment)}
    for group, choices in composition.groups(experiment).items():
        values = {name: composition.of_group(experiment, group, name) for name in choices}
        if group in settings.NODES or group == "scale":
            fit = choices
        else:
            fit = [name for name in choices if _fits(experiment, values[name], names)]
        plus = "" if group in (*settings.NODES, "scale") else "+"
        if fit:
            yield from textwrap.wrap(
                f"{plus}{group}={', '.join(fit)}",
                78,
                initial_indent="  ",
                subsequent_indent=" " * 6,
            )


def _fits(experiment: Experiment, values: Mapping[str, Any], names: set[str]) -> bool:
    meant = values.get(composition.FOR, experiment.name)
    return bool(meant == experiment.name and set(values) <= {*names, composition.FOR})


def _value(written: Mapping[str, Any], name: str) -> Any:
    node, _, key = name.rpartition(".")
    return (written.get(node) or {}).get(key) if node else written.get(key)


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
