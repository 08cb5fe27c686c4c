"""Runs and sweeps from Python: composed, named, stored and judged as on the command line.

No global setting of JAX is changed, no process ends, and an experiment that was edited is the
edited one at the next call.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import fileset, loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.running import command_line, composition, machine, naming, refusals
from gradlab.running.command_line import Task
from gradlab.running.provenance import Asked
from gradlab.sweeping.outcomes import Claims, Run

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from omegaconf import DictConfig

    from gradlab.running.identity import Namer
    from gradlab.running.settings import Settings


def run(experiment: str | Path, *overrides: str, **values: Any) -> Run:
    """One run: `run("scalar_chain", w=[0.9, 1.1])`; what was finished before is not computed again.

    The program's own file makes it a command line instead, which ends with an exit status: the
    last line of an experiment is `gl.run(__file__)`.

    Args:
        experiment: its name, or its file.
        overrides: as they are typed, for what is no keyword: "+experiment=he2015".
        values: key to value; what an experiment lists may be a number, a list or an array.

    Raises:
        BadInput: the experiment, a key or a value is not known.
    """
    if not overrides and not values and _is_the_program(experiment):
        command_line.run(str(experiment))
    from gradlab.running import single

    exp = _found(experiment)
    typed = _typed(overrides, values)
    with _quiet(), machine.set_back(), _composed(exp, typed) as (settings, cfg, folder, asked):
        done = single.run_one(exp, cfg, settings, folder, asked)
    told = Claims(done.claims), done.caption, tuple(done.numbers)
    return Run(exp.name, folder, done.data, *told, exp)


def load(experiment: str | Path, *overrides: str, **values: Any) -> Run:
    """The run as it is on disk.

    Raises:
        BadInput: there is none, or its files are not of one run; the sentence says the command.
    """
    exp = _found(experiment)
    with _quiet(), _composed(exp, _typed(overrides, values)) as (_, _, folder, asked):
        strangers = fileset.strangers(folder) if folder.is_dir() else ["data.nc"]
        if strangers:
            what = "holds no run" if "data.nc" in strangers else f"has another {strangers[0]}"
            raise BadInput(f"'{folder}' {what}; allowed: what was made by {asked.command}")
        return _read(exp, folder)


def sweep(experiment: str | Path, *overrides: str, **values: Any) -> xr.Dataset:
    """The dataset of a sweep: `sweep("residual", depth=[10, 100], seed=range(20))`.

    A list, a range or an array is an axis; of a key that lists values, each element is one value.
    `"zip(depth,width)"` lets two keys go along together, `points=[{"depth": 4, "width": 8}, ...]`
    lists the points; `gl.alone(data, depth=10, seed=3)` is one of them as a run leaves it.
    The files are those of `--multirun`, its store is that of every run.

    Raises:
        BadInput: as of `run`, or a point failed; the sentence names the first.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext, RunMode

    from gradlab.experiment import dataset
    from gradlab.running import grammar
    from gradlab.sweeping import join, multirun

    exp = _found(experiment)
    lines = grammar.for_hydra(_swept(overrides, values), list(composition.entries(exp)))
    with _quiet(), machine.set_back(), _hydra(exp, lines):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(exp.name, lines, RunMode.MULTIRUN)
        lines = [line for line in lines if not line.startswith(("hydra.", "hydra/"))]
        task = Task(exp, _command(exp, ["--multirun", *_swept(overrides, values)]), None)
        multirun.sweep(HydraContext(loader, Callbacks()), task, config, lines)
        if task.errors:
            raise task.errors[0]
        settings, _ = composition.read(exp, composition.plain_values(config))
        folder = naming.folder(exp, settings, config.hydra, lines, several=bool(task.verdicts))
    failures = fileset.manifest(folder).get("failures", [])
    if failures:
        raise BadInput(
            f"{len(failures)} points of the sweep failed, the first at {failures[0]['point']}: "
            f"{failures[0]['error']}; allowed: values that compute, one by one with "
            f"{failures[0]['command']}"
        )
    return join.selectable(dataset.read(folder / "data.nc"))


def runs(experiment: str | Path | None = None, results: str | Path | None = None) -> pd.DataFrame:
    """A row for every run and sweep on disk: its headline numbers, values, verdicts and versions.

    Each headline number is a column; of a sweep it holds a list, point by point.
    """
    import pandas as pd

    for what, given in (("experiment", experiment), ("results", results)):
        if not isinstance(given, str | Path | None):
            raise BadInput(f"{what} is {given!r}; allowed: a name, a path, or None")
    place = Path(results) if results is not None else _results(experiment)
    names = [Path(experiment).stem] if experiment is not None else ["*"]
    folders = sorted(
        path.parent
        for name in names
        for pattern in (f"{name}/run.json", f"{name}/*/run.json")
        for path in place.glob(pattern)
    )
    return pd.DataFrame([_row(folder, place) for folder in folders])


def _row(folder: Path, results: Path) -> dict[str, Any]:
    told = fileset.manifest(folder)
    numbers: dict[str, Any] = {}
    try:
        claims, headline = fileset.read_judged(
            json.loads((folder / "claims.json").read_text(encoding="utf-8"))
        )
        failed = [claim["sentence"] for claim in claims if claim["verdict"] != "holds"]
        numbers = _columns(headline)
    except (OSError, ValueError, TypeError, KeyError, BadInput):
        claims, failed = [], ["claims.json cannot be read"]
    import pandas as pd

    parts = folder.relative_to(results).parts
    return {
        "experiment": parts[0],
        "overrides": "/".join(parts[1:]),
        **numbers,
        "claims": len(claims),
        "failed": failed,
        "whole": not fileset.strangers(folder),
        "made": pd.Timestamp((folder / "run.json").stat().st_mtime, unit="s").floor("s"),
        "seconds": told.get("wall_time_seconds"),
        "seed": told.get("seed"),
        "precision": told.get("precision"),
        "sweep": told.get("sweep", {}),
        "config": told.get("config", {}),
        "versions": told.get("versions", {}),
        "folder": str(folder),
    }


def _columns(headline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each headline number by its name: a number of a run, of a sweep one a point."""
    from gradlab.experiment.headline import recorded  # which needs numpy

    found: dict[str, Any] = {}
    for told in headline:
        number = recorded(told)
        if "point" in told:
            found.setdefault(number.name, []).append(number.value)
        else:
            found[number.name] = number.value
    return found


def prune(experiment: str | Path, *, dry_run: bool = True) -> list[dict[str, Any]]:
    """What the store holds that today's code would not give, removed unless it is a `dry_run`.

    Each is told by its config, seed and precision. What runs and sweeps wrote stays.
    """
    from gradlab.running.identity import Namer
    from gradlab.running.store import Store
    from gradlab.sweeping.points import method_in_words

    exp = _found(experiment)
    with machine.set_back(), _composed(exp, []) as (settings, _, _, _):
        store = Store(naming.store_folder(exp, settings))
        name = functools.cache(functools.partial(Namer, exp, store=store.folder))
        told = [(plain, name(method_in_words(**how))) for plain, how in store.told()]
        old = [plain for plain, namer in told if plain["key"] != _name_now(exp, plain, namer)]
        if not dry_run:
            store.forget(plain["key"] for plain in old)
    return old


def _name_now(exp: Experiment, plain: Mapping[str, Any], name: Namer) -> str:
    try:
        cfg = schema.read(exp.module.Config, plain["config"])
    except BadInput:
        return ""  # a config of before
    return name(cfg, plain["seed"], plain["precision"])


# ---- from names and values to what a command line gives


def _is_the_program(experiment: str | Path) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return (
        main is not None
        and isinstance(experiment, str | Path)
        and Path(experiment).resolve() == Path(main).resolve()
    )


def _found(experiment: str | Path) -> Experiment:
    """The experiment of a name, in the nearest project that has it, or in a file."""
    return loading.load_anew(loading.find(experiment, Path.cwd()))


def _results(experiment: str | Path | None) -> Path:
    """The folder of the results of an experiment, or of the nearest project."""
    nearest = loading.projects(Path.cwd())[0]
    with contextlib.suppress(BadInput):  # of an experiment that is gone the results may be there
        nearest = loading.find(experiment, Path.cwd()).parent.parent if experiment else nearest
    return loading.home(nearest) / "results"


def _typed(overrides: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    return [*overrides, *(f"{key}={_text(value)}" for key, value in values.items())]


def _swept(overrides: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The lines of a sweep: what lists values is an axis, or the points themselves."""
    axes = {key: value for key, value in values.items() if _is_axis(value)}
    single = {key: value for key, value in values.items() if key not in axes}
    return [*_typed(overrides, single), *(f"{key}={_axis(axis)}" for key, axis in axes.items())]


def _axis(values: Any) -> str:
    """Several values in Hydra's grammar: by the function that spaces them, or one by one."""
    from gradlab.running import grammar

    held = values if isinstance(values, range) else list(values)
    points = [value for value in held if isinstance(value, Mapping)]
    if points:
        rows = (",".join(f"{key}:{_text(value)}" for key, value in row.items()) for row in points)
        return "[" + ",".join(f"{{{row}}}" for row in rows) + "]"
    spelled = grammar.spelled(held)
    if not spelled and not held:
        raise BadInput("an axis of a sweep has no values; allowed: at least one")
    return spelled or ",".join(map(_text, held))


def _is_axis(value: Any) -> bool:
    is_one = isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", 1) == 0
    return isinstance(value, Iterable) and not is_one


def _text(value: Any) -> str:
    """A value in Hydra's grammar, floats to their last bit.

    Raises:
        BadInput: it has none.
    """
    from gradlab.running import grammar

    if _is_axis(value):
        return "[" + ",".join(map(_text, value)) + "]"
    plain = value.item() if hasattr(value, "item") else value
    plain = str(plain) if isinstance(plain, Path) else plain
    if isinstance(plain, str) and grammar.element(plain) is plain:
        return plain
    if isinstance(plain, str):
        escaped = plain.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    try:
        return json.dumps(plain)
    except (TypeError, ValueError):
        raise BadInput(
            f"{value!r} is no value of a key; "
            "allowed: a number, a text, true, false, null, or a list of such"
        ) from None


def _command(exp: Experiment, lines: Sequence[str]) -> str:
    return shlex.join([*exp.command, *lines])


@contextlib.contextmanager
def _hydra(exp: Experiment, lines: Sequence[str]) -> Iterator[None]:
    """Hydra told of the experiment, and afterwards as it was; its errors are sentences."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore

    folder = exp.config_file.parent
    before = ConfigStore.get_state()
    try:
        composition.register(exp)
        with initialize_config_dir(str(folder), job_name=exp.name, version_base="1.3"):
            yield
    except Exception as error:
        told = refusals.sentence(error, exp, lines, composition.folders(folder))
        if told is error:
            raise
        raise told from error
    finally:
        ConfigStore.set_state(before)


@contextlib.contextmanager
def _composed(exp: Experiment, lines: Sequence[str]) -> Iterator[tuple[Settings, Any, Path, Asked]]:
    """What a command line with these overrides asks for."""
    from hydra import compose

    with _hydra(exp, lines):
        config: DictConfig = compose(exp.name, overrides=list(lines), return_hydra_config=True)
        settings, cfg = composition.read(exp, composition.plain_values(config))
        folder = naming.folder(exp, settings, config.hydra, lines)
        snapshot = composition.snapshot(config, lines, folder)
        yield settings, cfg, folder, Asked(_command(exp, lines), snapshot)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a command line prints is shown by the objects that are returned."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _read(exp: Experiment, folder: Path) -> Run:
    from gradlab.experiment import dataset

    data = dataset.read(folder / "data.nc")
    claims = Claims(loading.judge(exp, data))
    caption, numbers = loading.caption(exp, data), tuple(loading.headline(exp, data))
    return Run(exp.name, folder, data, claims, caption, numbers, exp)
