"""Where an experiment stands in the gallery, and the files beside its results, with addresses."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

OWN = "your own"
GROUPS = ("the textbook", "formats", "clipping", "depth", "width", "attention", "recurrence")


# ---- groups


def group_of(file: Path) -> str:
    """The group that an experiment file names, `GROUP = "depth"`; the file is not executed."""
    match assigned(file, "GROUP"):
        case ast.Constant(value=str(name)) if name.strip():
            return " ".join(name.split())
    return OWN


def rank(group: str) -> tuple[int, str]:
    """The place of a group: those of `GROUPS` as they stand, other names, and the rest last."""
    if group in GROUPS:
        return GROUPS.index(group), ""
    return len(GROUPS) + (group == OWN), group


def assigned(file: Path, name: str) -> ast.expr | None:
    """What the top level of a file assigns to a name, unexecuted; None where it does not."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return None  # the card says so
    for node in body:
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=value):
                targets = [target]
            case _:
                continue
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return value
    return None


# ---- files beside the results


def written(file: Path) -> tuple[Path, ...]:
    """What an experiment is written in: its question and its values."""
    both = file, file.parent.parent / "configs" / f"{file.stem}.yaml"
    return tuple(path for path in both if path.is_file())


def addresses(file: Path, results: Path) -> tuple[tuple[str, str], ...]:
    """The names of these files, each with its address from the folder of results."""
    project = file.parent.parent
    return tuple((path.name, _address(path, project, results)) for path in written(file))


def reports(project: Path) -> list[Path]:
    """The tables of benchmarks that are kept with their programs."""
    return sorted((project / "benchmarks").glob("*.md"))


def studies(project: Path, results: Path) -> tuple[tuple[str, str], ...]:
    """Benchmarks, audits and studies of claims: the title and the address of each that there is."""
    of_results = (
        path
        for pattern in ("*.md", "benchmarks/*.md", "audits/*.html")
        for path in sorted(results.glob(pattern))
    )
    found = {_address(path, results, results): path for path in of_results}
    found |= {_address(path, project, results): path for path in reports(project)}
    return tuple((_title(path), address) for address, path in found.items())


def _address(path: Path, project: Path, results: Path) -> str:
    """From the folder of results, where a published site has a copy of its own."""
    copy = results / path.relative_to(project)
    return Path(os.path.relpath(copy if copy.is_file() else path, results)).as_posix()


def _title(path: Path) -> str:
    return next(_headings(path), path.stem) if path.suffix == ".md" else path.stem


def _headings(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    yield from (line[2:].strip() for line in lines if line.startswith("# "))
