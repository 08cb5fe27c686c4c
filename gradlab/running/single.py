"""From one evaluated run to its files: data, figure, claims, provenance and Hydra's snapshot."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from gradlab.experiment import dataset, figures, loading, schema
from gradlab.experiment.loading import Experiment
from gradlab.running import console, provenance
from gradlab.running.provenance import Asked

if TYPE_CHECKING:
    from gradlab.running.settings import Settings


def run_one(exp: Experiment, cfg: Any, settings: Settings, folder: Path, asked: Asked) -> bool:
    """Compute, save, draw and judge one run in `folder`; whether every claim holds."""
    prepare(settings.precision)
    if settings.redraw:
        return _finish(exp, folder)
    start = time.perf_counter()
    # What only `compute` can tell of bad input is told after the folder was proved writable.
    with dataset.folder_if_needed(folder), console.busy(f"{exp.name}: computing"):
        data = loading.evaluate(exp, cfg, settings.seed)
    made = {
        "command": asked.command,
        "config": schema.values(cfg),
        **provenance.made_with(exp.project, settings),
        "wall_time_seconds": round(time.perf_counter() - start, 3),
    }
    dataset.write(folder / "data.nc", data)
    holds = _finish(exp, folder)
    write_record(folder, made, asked)
    return holds


def _finish(exp: Experiment, folder: Path) -> bool:
    """Draw and judge what was saved; whether every claim holds."""
    saved = dataset.read(folder / "data.nc")
    with console.busy(f"{exp.name}: drawing and judging"):
        caption = loading.caption(exp, saved)
        drawn = figures.draw(exp.module.figure, saved, caption)
        claims = loading.judge(exp, saved)
    write_judged(folder, drawn, [claim.record() for claim in claims], caption)
    console.judged(exp.question, claims, folder)
    return all(claim.holds for claim in claims)


def write_judged(
    folder: Path, drawn: Mapping[str, bytes], claims: list[dict[str, Any]], caption: str = ""
) -> None:
    """Put a figure, in each of its formats, its caption if it has one, and the claims there."""
    for ending, content in drawn.items():
        dataset.write_bytes(folder / f"figure.{ending}", content)
    if caption:
        dataset.write_bytes(folder / "caption.md", f"{caption}\n".encode())
    else:
        (folder / "caption.md").unlink(missing_ok=True)  # of a run that had one
    dataset.write_json(folder / "claims.json", claims)


def write_record(folder: Path, made: dict[str, Any], asked: Asked) -> None:
    """Put what the run was made with into the folder, and Hydra's snapshot into its `.hydra/`."""
    dataset.write_json(folder / "run.json", made)
    for name, text in asked.snapshot.items():
        (folder / ".hydra").mkdir(exist_ok=True)
        dataset.write_bytes(folder / ".hydra" / name, text.encode())


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
