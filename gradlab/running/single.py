"""From one evaluated run to its files: data, figure, claims, provenance and Hydra's snapshot."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.experiment import dataset, figures, files, fileset, loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.running import console, machine, naming, provenance
from gradlab.running.identity import Case, Namer
from gradlab.running.provenance import Asked
from gradlab.running.recall import Reads, Recall, noted
from gradlab.running.store import Store

if TYPE_CHECKING:
    import xarray as xr

    from gradlab.experiment.claim import Claim
    from gradlab.experiment.headline import Headline
    from gradlab.running.settings import Settings

# A single run is evaluated in its own program.
METHOD = "each"


@dataclass(frozen=True)
class Finished:
    """A run whose files are on disk.

    Attributes:
        data: its dataset, as it was read back.
        caption: what its figure shows.
        claims: its claims, judged.
        numbers: its headline numbers.
    """

    data: xr.Dataset
    caption: str
    claims: Sequence[Claim]
    numbers: Sequence[Headline]

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)


def run_one(
    exp: Experiment,
    cfg: Any,
    settings: Settings,
    folder: Path,
    asked: Asked,
    reads: Reads | None = None,
) -> Finished:
    """The run in `folder`: computed, saved, judged and drawn.

    `reads` is what was read since the process began, if nothing else ran in it.
    """
    machine.prepare(settings.precision)
    if settings.redraw:
        return _finish(exp, folder, fileset.manifest(folder), Asked(asked.command))
    start = time.perf_counter()
    # What only `compute` can tell of bad input is told after the folder was proved writable.
    with files.folder_if_needed(folder), console.busy(f"{exp.name}: computing"):
        case, data = dataset_of(exp, cfg, settings, reads)
        files.tidy(folder)
        dataset.write(folder / "data.nc", data)
    made = {
        "command": asked.command,
        "config": schema.values(cfg),
        "point": case.key,
        **provenance.made_with(exp.project, settings),
        "wall_time_seconds": round(time.perf_counter() - start, 3),
    }
    return _finish(exp, folder, made, asked)


def dataset_of(
    exp: Experiment, cfg: Any, settings: Settings, reads: Reads | None = None
) -> tuple[Case, xr.Dataset]:
    """The dataset of one run, from the store where it was finished before, and its name."""
    store = Store(naming.store_folder(exp, settings))
    namer = Namer(exp, METHOD, recalling(store, reads), store.folder)
    given = (cfg, settings.seed, settings.precision)
    case = Case(*given, namer(*given))
    if not settings.sweep.resume:
        store.forget([case.key])
    found, _ = store.load([case])
    if case.key in found:
        return case, loading.label(exp, cfg, settings.seed, found[case.key])
    with noted(store.folder):
        arrays = loading.results(exp, cfg, settings.seed)
    data = loading.label(exp, cfg, settings.seed, arrays)
    store.save([(case, arrays)], {"method": METHOD})
    return case, data


def recalling(store: Store, reads: Reads | None) -> Recall | None:
    """The memory of an experiment's programs, for a process that may use it."""
    return None if reads is None else Recall(store.folder / "programs.json", reads)


def _finish(exp: Experiment, folder: Path, made: Mapping[str, Any], asked: Asked) -> Finished:
    """The run with its files, judged and drawn from what was saved.

    What the claims or the figure raise is raised after all else is on disk.
    """
    saved = dataset.read(folder / "data.nc")
    with contextlib.ExitStack() as at_the_end:
        claims, numbers = verdicts(exp, folder, saved, at_the_end)
        with console.busy(f"{exp.name}: drawing"):
            caption, drawn = "", {}
            with later(at_the_end):
                caption = loading.caption(exp, saved)
            with later(at_the_end):
                drawn = figures.draw(exp.module.figure, saved, caption)
        told = None if claims is None else fileset.as_judged(_as_json(claims), _as_json(numbers))
        write_judged(folder, drawn, told, caption)
        write_record(folder, made, asked)
    return Finished(saved, caption, claims or [], numbers)


def _as_json(told: Iterable[Claim | Headline]) -> list[str]:
    return [json.dumps(one.record(), indent=2, ensure_ascii=False, allow_nan=False) for one in told]


def verdicts(
    exp: Experiment, folder: Path, saved: xr.Dataset, at_the_end: contextlib.ExitStack
) -> tuple[list[Claim] | None, list[Headline]]:
    """The verdicts and the headline numbers, printed; what raises is told at the end.

    There are no verdicts (None), or no numbers, where they raise.
    """
    numbers: list[Headline] = []
    with later(at_the_end):
        numbers = loading.headline(exp, saved)
    with later(at_the_end):
        claims = loading.judge(exp, saved)
        console.judged(exp.question, claims, folder, numbers)
        return claims, numbers
    return None, numbers


@contextlib.contextmanager
def later(at_the_end: contextlib.ExitStack) -> Iterator[None]:
    """What the block raises is raised when the stack is closed, and not before."""

    def again(error: Exception) -> None:
        raise error

    try:
        yield
    except Exception as error:
        at_the_end.callback(again, error)


def write_judged(
    folder: Path,
    drawn: Mapping[str, bytes],
    judged: bytes | None,
    caption: str = "",
) -> None:
    """Put what was judged, a figure in each of its formats and its caption there.

    What there is none of is removed: it would be an older run's.
    """
    made = {f"figure.{ending}": drawn.get(ending) for ending in ("png", "pdf", "svg")}
    made["caption.md"] = f"{caption}\n".encode() if caption else None
    for name, content in made.items():
        _put(folder / name, content)
    _put(folder / "claims.json", judged)


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        files.remove(path)
    else:
        files.write_bytes(path, content)


def write_record(folder: Path, made: Mapping[str, Any], asked: Asked) -> None:
    """Put Hydra's snapshot into `.hydra/`, and at last what the run was made with."""
    for name, text in asked.snapshot.items():
        files.folder_for(folder / ".hydra")
        files.write_bytes(folder / ".hydra" / name, text.encode())
    fileset.close(folder, made)
