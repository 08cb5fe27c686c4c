"""`python -m gradlab.calibration seeds|power [experiment ...]`: the record, and its exit status."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from gradlab.calibration import power, seeds, workers
from gradlab.errors import BadInput
from gradlab.experiment import files, loading


class Study(NamedTuple):
    """What is done with each experiment, how it is recorded, and what is bad about the whole."""

    task: workers.Assignment
    record: Callable[[Mapping[str, Any]], dict[str, Any]]
    page: Callable[[Mapping[str, Any]], str]
    wrong: Callable[[Mapping[str, Any]], Sequence[Any]]


STUDIES = {
    "seeds": Study(seeds.on_fresh_seeds, seeds.counts_record, seeds.counts_page, seeds.beyond),
    "power": Study(power.under_mutations, power.outcomes_record, power.outcomes_page, power.wrong),
}


def calibrate(arguments: Sequence[str]) -> int:
    """The exit status: 0 where all ran, no claim fails more often than stated, no law moves."""
    given = parser().parse_args(arguments)
    try:
        files = asked(given.experiment)
        entropy = secrets.randbits(31) if given.seed is None else given.seed
        study = STUDIES[given.study]
        found: dict[str, Any] = {}
        raised = False
        for name, one in workers.each(study.task, files, given.scale, entropy, given.minutes):
            if isinstance(one, BaseException):
                raised = True
                sys.stderr.write(f"error: {name} raises {type(one).__name__}: {one}\n")
                continue
            found[name] = one
            # Written each time: what was found is kept when the rest is stopped.
            in_order = {file.stem: found[file.stem] for file in files if file.stem in found}
            made = vars(given) | {"seed": entropy}
            save(Path(given.results), given.study, study, in_order, made)
            sys.stderr.write(f"{given.study}: {name}, {len(found)} of {len(files)}\n")
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 1 if raised or study.wrong(found) else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m gradlab.calibration", description=__doc__)
    made.add_argument("study", choices=sorted(STUDIES))
    made.add_argument("experiment", nargs="*", help="names of experiments; all where none is named")
    made.add_argument("--scale", default="smoke", help="the scale of their configs (smoke)")
    made.add_argument("--minutes", type=float, default=20.0, help="for all together (20)")
    made.add_argument("--seed", type=int, help="to draw the same seeds again; fresh ones without")
    made.add_argument("--results", default="results", help="the folder of the record (results)")
    return made


def asked(names: Sequence[str]) -> list[Path]:
    """The files of the experiments of those names in this project, of all where there are none.

    Raises:
        BadInput: there is no such experiment.
    """
    known = {file.stem: file for file in loading.discover(Path.cwd())}
    strangers = [name for name in names if name not in known]
    if strangers or not known:
        raise BadInput(
            f"experiment '{', '.join(strangers)}' does not exist; allowed: {', '.join(known)}"
        )
    return [known[name] for name in names or known]


def save(
    results: Path, name: str, study: Study, found: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Put the record into the folder of results, as JSON and to read.

    The page shows that of the small scale; another scale's stands beside it.
    """
    made = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seed": given["seed"],
        "scale": given["scale"],
        "minutes": given["minutes"],
        "jax": version("jax"),
    }
    file = name if made["scale"] == "smoke" else f"{name}_{made['scale']}"
    folder = files.folder_for(results)
    files.write_json(folder / f"{file}.json", made | study.record(found))
    again = f"python -m gradlab.calibration {name} --scale {made['scale']} --seed {made['seed']}"
    head = f"# make {name}, {made['date']}\n\n`{again}`, {made['minutes']:g} minutes.\n\n"
    files.write_bytes(folder / f"{file}.md", f"{head}{study.page(found)}\n".encode())


if __name__ == "__main__":
    sys.exit(calibrate(sys.argv[1:]))
