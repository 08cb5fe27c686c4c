"""What Hydra is told of an experiment, and what it composed read back as typed values."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.experiment.schema import Entry
from gradlab.running import settings
from gradlab.running.settings import Settings

if TYPE_CHECKING:
    from omegaconf import DictConfig

# The key by which a preset in configs/experiment/ says which experiment it is for.
FOR = "experiment"


def register(experiment: Experiment) -> None:
    """Tell Hydra the types of the experiment's keys and of the suite's.

    Raises:
        BadInput: a config file is missing, or has what it must not have.
    """
    from hydra.core.config_store import ConfigStore

    from gradlab.running import grammar

    taken = {
        *schema.RESERVED,
        *settings.entries(),
        *settings.NODES,
        FOR,
        *groups(experiment),
        "hydra",
    }
    collide = {entry.name for entry in schema.entries(experiment.module.Config)} & taken
    if collide:
        raise BadInput(
            f"Config of '{experiment.name}' has the key '{min(collide)}', which every run has; "
            "allowed: any other name"
        )
    _check_defaults(experiment)
    if "scales" in written(experiment):
        raise BadInput(
            f"'{experiment.config_file}' has the key 'scales', which is now a folder; allowed: "
            f"configs/scale/{experiment.name}/smoke.yaml"
        )
    grammar.extend()
    ConfigStore.instance().store(name="schema", node=_schema(experiment))


def _check_defaults(experiment: Experiment) -> None:
    """Raise unless the experiment's file takes in what every run has."""
    whole, nodes = _raw(experiment.config_file), {"hydra", *settings.NODES}
    for name in nodes & {*whole}:
        if not isinstance(whole[name], dict):
            raise BadInput(
                f"{name} is {whole[name]!r} in '{experiment.config_file}'; allowed: keys of its own"
            )
    defaults = whole.get("defaults")
    files = [part for part in defaults if isinstance(part, str)] if defaults else []
    known = [*whole, *(content(_first(experiment, "base.yaml")) if "base" in files else ())]
    lacks = {name.partition(".")[0] for name in settings.entries()} - {*known}
    if lacks and {*files} <= {"schema", "base", "_self_"}:
        raise BadInput(
            f"'{experiment.config_file}' and what its defaults name have no key '{min(lacks)}'; "
            "allowed: defaults with schema, base and _self_, and a base.yaml with all shared keys"
        )


@contextlib.contextmanager
def hydra_told_of(experiment: Experiment) -> Iterator[None]:
    """Hydra, in this process, with the experiment's configs, and as it was before afterwards."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore

    before = ConfigStore.get_state()
    try:
        register(experiment)
        with initialize_config_dir(str(experiment.config_file.parent), version_base="1.3"):
            yield
    finally:
        ConfigStore.set_state(before)


def composed(experiment: Experiment, overrides: Sequence[str]) -> tuple[Settings, Any]:
    """The suite's settings and the experiment's config with these overrides, without a run."""
    from hydra import compose
    from omegaconf import OmegaConf

    with hydra_told_of(experiment):
        values: Any = OmegaConf.to_container(
            compose(experiment.name, overrides=list(overrides)), resolve=True
        )
    return read(experiment, values)


def entries(experiment: Experiment) -> dict[str, Entry]:
    """Each key of a run, as typed on a command line, and what it takes."""
    own = {entry.name: entry for entry in schema.entries(experiment.module.Config)}
    return own | settings.entries()


def groups(experiment: Experiment) -> dict[str, list[str]]:
    """Each config group of the project, and the names of its choices."""
    found: dict[str, set[str]] = {}
    for configs in folders(experiment.config_file.parent):
        for folder in configs.glob("*/"):
            found.setdefault(folder.name, set()).update(path.stem for path in folder.glob("*.yaml"))
    return {group: sorted(found[group]) for group in sorted(found)}


def of_group(experiment: Experiment, group: str, name: str) -> dict[str, Any]:
    """The values that one choice of a config group sets."""
    return content(_first(experiment, f"{group}/{name}.yaml"))


def written(experiment: Experiment) -> dict[str, Any]:
    """The values in base.yaml and in the experiment's own file, before any override."""
    return content(_first(experiment, "base.yaml")) | content(experiment.config_file)


def folders(configs: Path) -> list[Path]:
    """Where Hydra looks for configs: a project's own, and behind them what all experiments share.

    A project that has a `base.yaml` of its own has all it needs.
    """
    own = (configs / "base.yaml").is_file() or not (configs.parent / "experiments").is_dir()
    return [configs] if own else [configs, loading.PUBLISHED / "configs"]


def _first(experiment: Experiment, name: str) -> Path:
    """The config file of that name that Hydra takes."""
    configs = experiment.config_file.parent
    held = (folder / name for folder in folders(configs) if (folder / name).is_file())
    return next(held, configs / name)


def content(path: Path) -> dict[str, Any]:
    """The values in one config file, without what composes them.

    Raises:
        BadInput: there is no such file, or it is no YAML with a value per key.
    """
    return {key: value for key, value in _raw(path).items() if key not in ("defaults", "hydra")}


def _raw(path: Path) -> dict[str, Any]:
    """All that one config file holds."""
    import yaml

    allowed = "allowed: a YAML file in UTF-8 with a value per key"
    if not path.is_file():
        raise BadInput(f"'{path}' does not exist; {allowed}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), loader) or {}
        json.dumps(values, skipkeys=True, default=str)  # raises where it contains itself
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"'{path}' cannot be read ({_why(error)}); {allowed}") from error
    if not isinstance(values, dict):
        raise BadInput(f"'{path}' is a {type(values).__name__}; {allowed}")
    return values


def _why(error: Exception) -> str:
    """What is wrong with a file, in a few words, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    if isinstance(error, RecursionError) or "Circular reference" in str(error):
        return "it contains itself"
    if type(error).__name__ == "GrammarParseError":  # whose words are its parser's
        return "a '${' in it is no reference to a value"
    return " ".join((getattr(error, "strerror", None) or str(error) or "it is no YAML").split())


def damage(path: Path) -> str:
    """The sentence for a config file that OmegaConf cannot read; empty for one that it can."""
    from omegaconf import OmegaConf

    try:
        _raw(path)
        OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except BadInput as error:
        return str(error)
    except Exception as error:  # a parser raises what it likes
        return (
            f"'{path}' cannot be read ({_why(error)}); "
            "allowed: a YAML file in UTF-8 with a value per key"
        )
    return ""


def _schema(experiment: Experiment) -> Any:
    """The dataclass of all keys, those of the experiment first."""
    own = _fields(schema.entries(experiment.module.Config))
    run = _fields(schema.entries(settings.RunKeys))
    nodes = [
        (name, node, dataclasses.field(default_factory=node))
        for name, keys in settings.NODES.items()
        for node in [dataclasses.make_dataclass(name, _fields(schema.entries(keys)))]
    ]
    meant = (FOR, str, dataclasses.field(default=experiment.name))
    return dataclasses.make_dataclass("Schema", [*own, *run, meant, *nodes])


def _fields(known: Sequence[Entry]) -> list[tuple[str, Any, Any]]:
    def kind(one: Entry) -> Any:
        # OmegaConf cannot say "a number or a list", and takes 2 for true: `schema.read` checks.
        return Any if one.is_list or one.optional or one.type is bool else one.type

    return [(one.name, kind(one), dataclasses.field(default="???")) for one in known]


def read(experiment: Experiment, values: Mapping[str, Any]) -> tuple[Settings, Any]:
    """The suite's settings and the experiment's config in one composed set of values.

    Raises:
        BadInput: a value is not allowed, or a preset is another experiment's.
    """
    meant = values.get(FOR, experiment.name)
    if meant != experiment.name:
        raise BadInput(
            f"this preset is for '{meant}', not for '{experiment.name}'; "
            f"allowed: {' '.join(loading.command(experiment.project, str(meant)))} with it"
        )
    names = {name.partition(".")[0] for name in settings.entries()}
    shared = {name: value for name, value in values.items() if name in names}
    own = {name: value for name, value in values.items() if name not in {*names, FOR}}
    return settings.read(shared), schema.read(experiment.module.Config, own)


def without_hydra(config: DictConfig) -> DictConfig:
    """A composed config but for Hydra's own part."""
    from omegaconf import OmegaConf

    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain_values(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The values of a composed config but for Hydra's own part."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(without_hydra(config), resolve=resolve)
    return dict(values)


def snapshot(config: DictConfig, overrides: Sequence[str], folder: Path) -> dict[str, str]:
    """The files of `.hydra/`, as Hydra writes them: what was composed, and from what."""
    from omegaconf import OmegaConf, read_write

    hydra = copy.deepcopy(OmegaConf.masked_copy(config, ["hydra"]))
    with read_write(hydra.hydra):
        hydra.hydra.runtime.output_dir = str(folder)
    return {
        "config.yaml": OmegaConf.to_yaml(without_hydra(config)),
        "hydra.yaml": OmegaConf.to_yaml(hydra),
        "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(list(overrides))),
    }
