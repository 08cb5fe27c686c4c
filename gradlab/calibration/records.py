"""Records of studies in the folder of results: each experiment's is replaced on its own.

So a study may end at any moment and go on later: what it had found stays, with the date, seed and
scale that it was found at, and whoever it did not come to is first the next time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from gradlab.errors import BadInput
from gradlab.experiment import files


@dataclass(frozen=True)
class Made:
    """How a record was made.

    Attributes:
        date: when (UTC).
        seed: the entropy of its study.
        scale: of the config.
        jax: the version.
        seconds: that it took; 0 in records that do not say it.
    """

    date: str
    seed: int
    scale: str
    jax: str
    seconds: float = 0.0


class Entry(NamedTuple):
    """What was found of one experiment, and how."""

    made: Made
    found: Any


def now() -> str:
    """The time (UTC), to the second; later ones sort behind earlier ones."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


def made_now(seed: int, scale: str, seconds: float) -> Made:
    """What a record made at this moment says of itself."""
    return Made(now(), seed, scale, version("jax"), round(seconds, 1))


def path_of(results: Path, study: str, scale: str) -> Path:
    """The file of a study: the page shows that of the small scale, others stand beside it."""
    return results / (f"{study}.json" if scale == "smoke" else f"{study}_{scale}.json")


def read(path: Path, restored: Callable[[Mapping[str, Any]], Any]) -> dict[str, Entry]:
    """The entry of each experiment in a file, by name; none where there is no file.

    Raises:
        BadInput: the file is no such record.
    """
    if not path.is_file():
        return {}
    try:
        experiments = json.loads(path.read_text(encoding="utf-8"))["experiments"]
        return {
            name: Entry(Made(**one["made"]), restored(one)) for name, one in experiments.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"record '{path}' is damaged ({type(error).__name__}); allowed: one that "
            f"`make {path.stem.partition('_')[0]}` wrote, or none"
        ) from error


def in_turn(names: Iterable[str], known: Mapping[str, Entry]) -> list[str]:
    """The names, those that the latest study did not come to first, then who took least time.

    So a study that was ended goes on where it was, and what short ones leave of their share of the
    time goes to the long ones.
    """
    latest = max((entry.made for entry in known.values()), key=lambda m: m.date, default=None)

    def turn(name: str) -> tuple[bool, float]:
        if name not in known or latest is None:
            return False, 0.0
        made = known[name].made
        return made.seed == latest.seed, made.seconds

    return sorted(names, key=turn)


def write(
    path: Path, entries: Mapping[str, Entry], record: Mapping[str, Any], page: str, study: str
) -> None:
    """Put the record of all entries into its file, as JSON, and to read beside it."""
    experiments = {
        name: {"made": asdict(entries[name].made)} | one
        for name, one in record["experiments"].items()
    }
    folder = files.folder_for(path.parent)
    files.write_json(folder / path.name, dict(record) | {"experiments": experiments})
    lines = [f"# make {study}", "", page, "", "| experiment | recorded (UTC) | again by |"]
    lines += ["|---|---|---|"]
    lines += [
        f"| {name} | {made.date} | `python -m gradlab.calibration {study} {name} "
        f"--scale {made.scale} --seed {made.seed}` |"
        for name, (made, _) in entries.items()
    ]
    files.write_bytes(folder / path.with_suffix(".md").name, ("\n".join(lines) + "\n").encode())
