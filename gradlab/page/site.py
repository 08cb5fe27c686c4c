"""The pages and all that they link to as a folder that any host serves."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from gradlab.experiment import files
from gradlab.page import build, gallery, shelves

# What a page shows or links to; the rest of a run stays at home.
LINKED = (
    *("data.nc", "figure.png", "figure.pdf", "figure.svg", "caption.md", "claims.json"),
    "run.json",
)


def publish(project: Path, results: Path, site: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Both pages in a folder with the files that they link to, and what to say of offers."""
    files.folder_for(site)
    for run in sorted({path.parent for path in results.glob("**/run.json")}):
        if any(part.startswith(".") for part in run.relative_to(results).parts):
            continue
        target = site / run.relative_to(results)
        target.mkdir(parents=True, exist_ok=True)
        for name in LINKED:
            if (run / name).is_file():
                shutil.copyfile(run / name, target / name)
    for pattern in ("*.json", "*.md", "benchmarks/*", "audits/*.html"):
        _copy(results.glob(pattern), results, site)
    for file in gallery.experiments(project, results).values():
        _copy(shelves.written(file), file.parent.parent, site)
    _copy(shelves.reports(project), project, site)
    return build.pages(project, site)


def _copy(paths: Iterable[Path], folder: Path, site: Path) -> None:
    """Files below a folder, to the same places below the site."""
    for path in paths:
        target = site / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
