"""From one evaluated run to its files: data, figure, claims and provenance."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.table import Table

from gradlab.experiment import dataset, figures, loading, schema
from gradlab.experiment.loading import Experiment

if TYPE_CHECKING:
    import xarray as xr

    from gradlab.experiment.claim import Claim
    from gradlab.running.settings import Settings

_PACKAGES = ("gradlab", "jax", "jaxlib", "numpy", "optax", "scipy", "xarray", "matplotlib")


def run_one(exp: Experiment, cfg: Any, settings: Settings, folder: Path, command: str) -> bool:
    """Compute, save, draw and judge one run in `folder`; whether every claim holds."""
    prepare(settings.precision)
    if settings.redraw:
        data = dataset.read(folder / "data.nc")
        record = None
    else:
        start = time.perf_counter()
        # What only `compute` can tell of bad input is told after the folder was proved writable.
        with dataset.folder_if_needed(folder), busy(f"{exp.name}: computing"):
            data = loading.measure(exp, cfg, settings.seed)
        record = {
            "command": command,
            "config": schema.values(cfg),
            **provenance(exp.project, settings),
            "wall_time_seconds": round(time.perf_counter() - start, 3),
        }
    return finish(exp, data, folder, record)


def finish(exp: Experiment, data: xr.Dataset, folder: Path, record: dict[str, Any] | None) -> bool:
    """Save a dataset, draw and judge what was saved; whether every claim holds.

    `record` is the provenance to save, None to leave the one that is there.
    """
    if record is not None:
        dataset.write(folder / "data.nc", data)
    saved = dataset.read(folder / "data.nc")
    with busy(f"{exp.name}: drawing and judging"):
        for ending, content in figures.draw(exp.module.figure, saved).items():
            dataset.write_bytes(folder / f"figure.{ending}", content)
        claims = loading.judge(exp, saved)
    dataset.write_json(folder / "claims.json", [claim.record() for claim in claims])
    if record is not None:
        dataset.write_json(folder / "run.json", record)
    show(exp, claims, folder)
    return all(claim.holds for claim in claims)


def prepare(precision: str) -> None:
    """Set jax up for a run: its precision, and compiled programs kept from run to run."""
    jax.config.update("jax_enable_x64", precision == "float64")
    # Recent GPUs multiply float32 matrices with 2e-4 error unless told not to.
    jax.config.update("jax_default_matmul_precision", "highest")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "gradlab" / "jax"))
        # By default jax keeps nothing that compiled in less than a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def provenance(project: Path, settings: Settings) -> dict[str, Any]:
    """What a run was made with, as plain values."""
    return {
        "seed": settings.seed,
        "precision": settings.precision,
        "versions": {"python": platform.python_version()} | dict(_versions()),
        "commit": _commit(project),
        "device": jax.devices()[0].device_kind,
        "platform": platform.platform(),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield package, version(package)


def _commit(project: Path) -> str | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(project), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":(exclude)results")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """A moving mark on stderr while the block runs, where stderr is a terminal."""
    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else contextlib.nullcontext():
        yield


def stdout(width: int) -> Console:
    """Standard output, `width` columns wide where it is no terminal with a width of its own."""
    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=width)


def show(exp: Experiment, claims: Sequence[Claim], folder: Path) -> None:
    """Print the claims as a table, and where the files are."""
    table = Table(title=exp.question, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("claim", ratio=1)
    for column in ("measured", "", "expected", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    for claim in claims:
        table.add_row(
            "[green]holds" if claim.holds else "[red]FAILS",
            claim.sentence,
            f"{claim.measured:.6g}",
            claim.relation,
            f"{claim.expected:.6g}",
            f"{sum(claim.tolerance.values()):.2g}",
        )
    console = stdout(120)
    console.print(table)
    held = sum(claim.holds for claim in claims)
    console.print(f"{held} of {len(claims)} claims hold; files in {folder}", soft_wrap=True)
