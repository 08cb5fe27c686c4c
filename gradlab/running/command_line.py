"""The one door to Hydra: from a command line to a run, its files and its exit status."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gradlab.errors import BadInput
from gradlab.experiment import loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.running.interrupts import Interrupts
from gradlab.running.settings import NOT_NAMED, Settings

if TYPE_CHECKING:
    from omegaconf import DictConfig

CLAIM_FAILED = BAD_INPUT = 1
INTERRUPTED = 130


def run(file: str) -> NoReturn:
    """Make the experiment in `file` a program; ends with an exit status and never returns."""
    # Hydra's own reporter prints several lines or a traceback; `_sentence` makes it one sentence.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        experiment = loading.load(file)
        if {"--help", "-h"} & set(sys.argv[1:]):
            # Hydra would look through every config group twice first, for over half a second.
            sys.stdout.write(_help(experiment, written_values(experiment)) + "\n")
            sys.exit(0)
        try:
            verdicts = _through_hydra(experiment)
        except Exception as error:
            raise _translated(error, experiment) from error
    except KeyboardInterrupt as stopped:
        kept = str(stopped) or f"files of finished runs are kept; to go on: {command()}"
        _say(f"interrupted: {kept}")
        sys.stdout.flush()
        # A thread of jax may still compute: tearing down the interpreter under it ends in a crash.
        os._exit(INTERRUPTED)
    except BadInput as error:
        _say(f"error: {error}")
        sys.exit(BAD_INPUT)
    sys.exit(0 if all(verdicts) else CLAIM_FAILED)


def command() -> str:
    """The command line of this program, as typed."""
    return shlex.join(["python", *sys.argv])


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


class Program:
    """What Hydra calls with a composed config, and what its sweeper reports to."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.verdicts: list[bool] = []
        self.errors: list[Exception] = []
        self.__module__ = experiment.name  # the name that Hydra gives the job

    def __call__(self, cfg: DictConfig) -> bool:
        """Whether every claim of a single run holds."""
        from hydra.core.hydra_config import HydraConfig

        return self.single(cfg, list(HydraConfig.get().overrides.task))

    def single(self, cfg: DictConfig, overrides: list[str]) -> bool:
        """Whether every claim of the run with these overrides holds."""
        with Interrupts() as interrupts:
            try:
                self.verdicts.append(_task(self.experiment, cfg, overrides))
            except Exception as error:
                interrupts.check()
                # Hydra would print the overrides again and wrap it.
                self.errors.append(error)
                return False
        return self.verdicts[-1]


def _through_hydra(experiment: Experiment) -> list[bool]:
    import hydra

    program = Program(experiment)
    register(experiment)
    folder = str(experiment.config_file.parent)
    hydra.main(config_path=folder, config_name=experiment.name, version_base="1.3")(program)()
    if program.errors:
        raise program.errors[0]
    return program.verdicts


def register(experiment: Experiment) -> None:
    """Tell Hydra the experiment's types, scales and help.

    Raises:
        BadInput: the config file is missing, or a key of the suite is used as the experiment's own.
    """
    from hydra.core.config_store import ConfigStore

    written = written_values(experiment)
    own = {entry.name for entry in schema.entries(experiment.module.Config)}
    taken = own & {entry.name for entry in schema.entries(Settings)}
    if taken:
        raise BadInput(
            f"Config of '{experiment.name}' has the key '{min(taken)}', which every run has; "
            "allowed: any other name"
        )
    store = ConfigStore.instance()
    store.store(name="schema", node=_schema(experiment))
    scales = {"full": {}} | written.get("scales", {})
    for scale, values in scales.items():
        store.store(group="scale", name=scale, node=values, package="_global_")


def written_values(experiment: Experiment) -> dict[str, Any]:
    """The values in base.yaml and in the experiment's own file, before any override."""
    import yaml

    values: dict[str, Any] = {}
    for path in (experiment.config_file.with_name("base.yaml"), experiment.config_file):
        if not path.is_file():
            raise BadInput(f"'{path}' does not exist; allowed: a YAML file with a value per key")
        values |= yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    return values


def _entries(experiment: Experiment) -> dict[str, schema.Entry]:
    both = schema.entries(experiment.module.Config) + schema.entries(Settings)
    return {entry.name: entry for entry in both}


def _schema(experiment: Experiment) -> Any:
    # OmegaConf cannot say "a number or a list of numbers": a list is checked by `schema.read`.
    fields = [
        (entry.name, Any if entry.is_list or entry.optional else entry.type, dataclasses.field())
        for entry in _entries(experiment).values()
    ]
    missing = [(name, kind, dataclasses.field(default="???")) for name, kind, _ in fields]
    scales = [("scales", Any, dataclasses.field(default=None))]
    return dataclasses.make_dataclass("Schema", [*missing, *scales])


def _help(experiment: Experiment, written: Mapping[str, Any]) -> str:
    def row(name: str, value: Any, meaning: str) -> Iterator[str]:
        text = textwrap.wrap(meaning, 62)
        yield f"  {name}={_typed(value)}"
        yield from (f"      {line}" for line in text)

    keys = [
        line
        for name, entry in _entries(experiment).items()
        for line in row(name, written.get(name), f"{entry.key.doc}; {entry.allowed()}")
    ]
    scales = ", ".join(["full", *written.get("scales", {})])
    return "\n".join(
        [
            experiment.question,
            "",
            f"  python experiments/{experiment.name}.py [key=value ...] [--multirun]",
            "",
            "keys, with their values in " + f"configs/{experiment.name}.yaml:",
            *keys,
            f"  scale=full\n      a set of values to start from; one of {scales}",
            "",
            "sweep: --multirun key=1,2,3   show: --cfg job   Hydra's own help: --hydra-help",
        ]
    )


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _task(experiment: Experiment, cfg: DictConfig, overrides: list[str]) -> bool:
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    settings, own = read(experiment, {str(name): value for name, value in values.items()})

    # A last look at the values comes before the heavy imports, so that bad input is told at once.
    from gradlab.running import single

    return single.run_one(
        experiment, own, settings, folder(experiment, settings, overrides), command()
    )


def folder(experiment: Experiment, settings: Settings, overrides: list[str]) -> Path:
    """Where the files of a run or a sweep with these overrides are."""
    results = experiment.project / settings.results / experiment.name
    return results / folder_name(written_values(experiment), overrides)


def read(experiment: Experiment, values: Mapping[str, Any]) -> tuple[Settings, Any]:
    """The suite's settings and the experiment's config in one composed set of values.

    Raises:
        BadInput: a value is not allowed.
    """
    names = {entry.name for entry in schema.entries(Settings)}
    shared = {name: value for name, value in values.items() if name in names}
    own = {name: value for name, value in values.items() if name not in {*names, "scales"}}
    return schema.read(Settings, shared), schema.read(experiment.module.Config, own)


def folder_name(written: Mapping[str, Any], overrides: list[str]) -> str:
    """The readable name of a run: the overrides that change a value, sorted; empty for none."""
    import hashlib

    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides)
    scales = [over.value() for over in parsed if over.key_or_group == "scale"]
    # A sweep has no value, and so never the written one.
    scale = next((value for value in scales if isinstance(value, str)), None)
    default = {**written, **(written.get("scales", {}).get(scale) or {}), "scale": "full"}
    parts = sorted(
        f"{over.key_or_group}={str(over.input_line).partition('=')[2]}"
        for over in parsed
        if over.key_or_group not in NOT_NAMED and not _as_written(over.value(), default, over)
    )
    name = ",".join(parts).replace("/", "_").replace(" ", "")
    if len(name.encode()) <= 200:  # file systems allow 255
        return name
    return f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _as_written(value: Any, default: Mapping[str, Any], override: Any) -> bool:
    written = default.get(override.key_or_group)
    return value == (
        written[0] if isinstance(written, list) and len(written) == 1 else written
    ) or (value == written)


def _translated(error: Exception, experiment: Experiment) -> Exception:
    """The error as one sentence where it is bad input; a defect keeps its own traceback."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException, ValidationError

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    entries = _entries(experiment)
    for cause in causes:
        if isinstance(cause, MissingConfigException) and cause.options is not None:
            group, _, name = str(cause.missing_cfg_file).rpartition("/")
            return BadInput(schema.unknown(group or "config", name, cause.options))
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            name = str(cause.full_key)
            if isinstance(cause, ValidationError) and name in entries:
                return BadInput(f"{name} is {_given(name)}; allowed: {entries[name].allowed()}")
            if name not in entries:
                return BadInput(schema.unknown("key", name, [*entries, "scale"]))
    if isinstance(error, HydraException | OmegaConfBaseException | ConfigCompositionException):
        return BadInput(str(causes[-1]).partition("See https")[0].strip().replace("\n", "; "))
    return error


def _given(name: str) -> str:
    typed = [word.partition("=")[2] for word in sys.argv[1:] if word.partition("=")[0] == name]
    return f"'{typed[-1]}'" if typed else "of another type in the config file"
