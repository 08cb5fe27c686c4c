"""Runs and sweeps from Python: composed, named, stored and judged as on the command line.

No global setting of JAX is changed, no process ends, and an experiment that was edited is the
edited one at the next call.
"""

from __future__ import annotations

import contextlib
import functools
import html
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import fileset, loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.running import command_line, composition, machine, naming, refusals
from gradlab.running.command_line import Task
from gradlab.running.provenance import Asked

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from omegaconf import DictConfig

    from gradlab.experiment.claim import Claim
    from gradlab.experiment.figures import Figure
    from gradlab.running.identity import Namer
    from gradlab.running.settings import Settings

# A text that needs no quotes in Hydra's grammar, and words that are no text there.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NO_TEXT = ("null", "true", "false", "inf", "nan")

_CHECKOUT = Path(__file__).parent.parent.parent


class Claims(tuple["Claim", ...]):
    """The claims of a run; a table where it is shown, in a terminal and in a notebook."""

    @property
    def hold(self) -> bool:
        """Whether all of them do."""
        return all(claim.holds for claim in self)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                "holds" if claim.holds else "FAILS",
                claim.sentence,
                f"{claim.measured:.6g} {claim.relation} {claim.expected:.6g}",
                f"± {sum(claim.tolerance.values()):.2g}",
                claim.at,
            )
            for claim in self
        ]

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        cells = ("".join(f"<td>{html.escape(text)}</td>" for text in row) for row in self._rows())
        head = "".join(f"<th>{name}</th>" for name in ("", "claim", "measured", "allowed", "at"))
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


@dataclass(frozen=True, repr=False)
class Run:
    """One run of an experiment, as its files hold it.

    Attributes:
        name: the experiment.
        folder: where its files are.
        data: its dataset.
        claims: its claims, judged.
        caption: what its figure shows, in a sentence or two.
    """

    name: str
    folder: Path
    data: xr.Dataset
    claims: Claims
    caption: str
    _experiment: Experiment

    @functools.cached_property
    def figure(self) -> Figure:
        """The figure, drawn from the dataset."""
        drawn: Figure = self._experiment.module.figure(self.data)
        return drawn

    @property
    def record(self) -> dict[str, Any]:
        """What it was made with: `run.json`."""
        return fileset.manifest(self.folder)

    def __repr__(self) -> str:
        held = sum(claim.holds for claim in self.claims)
        return f"{self.name}: {held} of {len(self.claims)} claims hold; files in {self.folder}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.claims._repr_html_()}"


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
        single.run_one(exp, cfg, settings, folder, asked)
        return _read(exp, folder)


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
    The files are those of `--multirun`, its store is that of every run.

    Raises:
        BadInput: as of `run`, or a point failed; the sentence names the first.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext, RunMode

    from gradlab.experiment import dataset
    from gradlab.sweeping import multirun

    exp = _found(experiment)
    swept = {key: value for key, value in values.items() if _is_axis(value)}
    lines = _typed(overrides, {key: values[key] for key in values.keys() - swept.keys()})
    lines += [f"{key}={','.join(map(_text, value))}" for key, value in swept.items()]
    with _quiet(), machine.set_back(), _hydra(exp, lines):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(exp.name, [], RunMode.MULTIRUN)
        task = Task(exp, _command(exp, ["--multirun", *lines]), None)
        multirun.sweep(HydraContext(loader, Callbacks()), task, config, lines)
        if task.errors:
            raise task.errors[0]
        settings, _ = composition.read(exp, composition.plain_values(config))
        folder = naming.folder(exp, settings, config.hydra, lines, bool(swept))
    failures = fileset.manifest(folder).get("failures", [])
    if failures:
        raise BadInput(
            f"{len(failures)} points of the sweep failed, the first at {failures[0]['point']}: "
            f"{failures[0]['error']}; allowed: values that compute, one by one with "
            f"{failures[0]['command']}"
        )
    return dataset.read(folder / "data.nc")


def runs(experiment: str | Path | None = None, results: str | Path | None = None) -> pd.DataFrame:
    """A row for every run and sweep on disk: its values, verdicts, time, versions and folder."""
    import pandas as pd

    place = Path(results) if results is not None else _project(experiment) / "results"
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
    try:
        claims = json.loads((folder / "claims.json").read_text())
        failed = [claim["sentence"] for claim in claims if claim["verdict"] != "holds"]
    except (OSError, ValueError, TypeError, KeyError):
        claims, failed = [], ["claims.json cannot be read"]
    import pandas as pd

    parts = folder.relative_to(results).parts
    return {
        "experiment": parts[0],
        "overrides": "/".join(parts[1:]),
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


def compare(one: Run, other: Run) -> pd.DataFrame:
    """A row for all that differs between two runs: values, versions, arrays and claims.

    Of an array the largest difference is told, nan where one of both has none.
    """
    import pandas as pd

    rows = [
        *_differing("value", one.record.get("config", {}), other.record.get("config", {})),
        *_differing("version", one.record.get("versions", {}), other.record.get("versions", {})),
        *_differing("array", _sizes(one.data), _sizes(other.data)),
        *_changed(one.data, other.data),
        *_differing("claim", _verdicts(one.claims), _verdicts(other.claims)),
    ]
    return pd.DataFrame(rows, columns=["kind", "name", "one", "other"])


def _differing(kind: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[list[Any]]:
    names = dict.fromkeys([*one, *other])
    pairs = [(name, one.get(name), other.get(name)) for name in names]
    return [[kind, name, before, after] for name, before, after in pairs if before != after]


def _sizes(data: xr.Dataset) -> dict[str, dict[str, int]]:
    return {str(name): {str(d): n for d, n in array.sizes.items()} for name, array in data.items()}


def _changed(one: xr.Dataset, other: xr.Dataset) -> Iterator[list[Any]]:
    """The largest difference of every array that both have in the same shape."""
    for name, array in one.data_vars.items():
        if name in other and array.shape == other[name].shape and not array.equals(other[name]):
            numbers = array.dtype.kind in "biufc"
            off = abs(array.values - other[name].values).max() if numbers else None
            yield ["largest difference", str(name), None, off]


def _verdicts(claims: Iterable[Claim]) -> dict[str, str]:
    return {claim.sentence: "holds" if claim.holds else "FAILS" for claim in claims}


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
        name = functools.cache(functools.partial(Namer, exp))
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
    return main is not None and Path(experiment).resolve() == Path(main).resolve()


def _found(experiment: str | Path) -> Experiment:
    """The experiment of a name, in the nearest project, or in a file."""
    path = Path(experiment)
    if path.suffix == ".py":
        return loading.load_anew(path)
    file = _project(experiment) / "experiments" / f"{experiment}.py"
    if not file.is_file():
        known = [path.stem for path in loading.discover(file.parent.parent)]
        raise BadInput(schema.unknown("experiment", str(experiment), known))
    return loading.load_anew(file)


def _project(experiment: str | Path | None) -> Path:
    """The project: the nearest folder upwards with experiments, or the one that gradlab is of."""
    if experiment is not None and Path(experiment).suffix == ".py":
        return Path(experiment).resolve().parent.parent
    here = Path.cwd()
    near = [folder for folder in (here, *here.parents) if (folder / "experiments").is_dir()]
    whole = [*near, _CHECKOUT]
    holding = [folder for folder in whole if (folder / f"experiments/{experiment}.py").is_file()]
    return (holding or whole)[0]


def _typed(overrides: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    return [*overrides, *(f"{key}={_text(value)}" for key, value in values.items())]


def _is_axis(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _text(value: Any) -> str:
    """A value in Hydra's grammar, floats to their last bit."""
    if _is_axis(value):
        return "[" + ",".join(map(_text, value)) + "]"
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, str) and _WORD.fullmatch(plain) and plain not in _NO_TEXT:
        return plain
    if isinstance(plain, str):
        escaped = plain.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return json.dumps(plain)


def _command(exp: Experiment, lines: Sequence[str]) -> str:
    import shlex

    return shlex.join(["python", f"experiments/{exp.name}.py", *lines])


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
        told = refusals.sentence(error, exp, lines, [folder])
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
    return Run(exp.name, folder, data, claims, loading.caption(exp, data), exp)
