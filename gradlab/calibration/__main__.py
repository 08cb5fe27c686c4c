"""`python -m gradlab.calibration seeds|power [experiment ...]`: the record, and its exit status."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradlab.calibration import outcomes, power, records, seeds, workers
from gradlab.errors import BadInput
from gradlab.experiment import loading


class Study(NamedTuple):
    """What is done with each experiment, how it is recorded, and what is bad about the whole."""

    task: workers.Assignment
    restored: Callable[[Mapping[str, Any]], Any]
    record: Callable[[Mapping[str, Any]], dict[str, Any]]
    page: Callable[[Mapping[str, Any]], str]
    wrong: Callable[[Mapping[str, Any]], Sequence[Any]]


STUDIES = {
    "seeds": Study(
        seeds.on_fresh_seeds,
        seeds.restored,
        seeds.counts_record,
        seeds.counts_page,
        seeds.beyond,
    ),
    "power": Study(
        power.under_mutations,
        outcomes.restored,
        outcomes.as_record,
        outcomes.as_page,
        outcomes.wrong,
    ),
}


def calibrate(arguments: Sequence[str]) -> int:
    """The exit status: 0 where all ran, no claim fails more often than stated, no law moves."""
    given = parser().parse_args(arguments)
    try:
        known = {file.stem: file for file in loading.discover(Path.cwd())}
        names = asked(given.experiment, known)
        study = STUDIES[given.study]
        path = records.path_of(Path(given.results), given.study, given.scale)
        entries = records.read(path, study.restored)
        raised, now = study_each(given, study, path, known, names, entries)
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 1 if raised or study.wrong(now) else 0


def study_each(
    given: argparse.Namespace,
    study: Study,
    path: Path,
    known: Mapping[str, Path],
    names: Sequence[str],
    entries: dict[str, records.Entry],
) -> tuple[bool, dict[str, Any]]:
    """Whether any experiment raised, and what was found now; each is recorded when it ends."""
    entropy = secrets.randbits(31) if given.seed is None else given.seed
    raised, now = False, dict[str, Any]()
    assigned = [
        (known[name], entries[name].found if name in entries else None)
        for name in records.in_turn(names, entries)
    ]
    for name, one, seconds in workers.each(
        study.task, assigned, given.scale, entropy, given.minutes
    ):
        if isinstance(one, BaseException):
            raised = True
            sys.stderr.write(f"error: {name} raises {type(one).__name__}: {one}\n")
            continue
        now[name] = one
        # Read again: another process may have recorded another experiment meanwhile.
        entries = records.read(path, study.restored)
        entries[name] = records.Entry(records.made_now(entropy, given.scale, seconds), one)
        entries = {each: entries[each] for each in known if each in entries}
        found = {each: entry.found for each, entry in entries.items()}
        records.write(path, entries, study.record(found), study.page(found), given.study)
        sys.stderr.write(f"{given.study}: {name}, {len(now)} of {len(names)}\n")
    return raised, now


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m gradlab.calibration", description=__doc__)
    made.add_argument("study", choices=sorted(STUDIES))
    made.add_argument("experiment", nargs="*", help="names of experiments; all where none is named")
    made.add_argument("--scale", default="smoke", help="the scale of their configs (smoke)")
    made.add_argument("--minutes", type=float, default=20.0, help="for all together (20), or inf")
    made.add_argument("--seed", type=int, help="to draw the same seeds again; fresh ones without")
    made.add_argument("--results", default="results", help="the folder of the record (results)")
    return made


def asked(names: Sequence[str], known: Mapping[str, Path]) -> list[str]:
    """The names of the experiments that were asked for, of all where none was.

    Raises:
        BadInput: there is no such experiment.
    """
    strangers = [name for name in names if name not in known]
    if strangers or not known:
        raise BadInput(
            f"experiment '{', '.join(strangers)}' does not exist; allowed: {', '.join(known)}"
        )
    return list(names or known)


if __name__ == "__main__":
    sys.exit(calibrate(sys.argv[1:]))
