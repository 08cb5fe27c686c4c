"""What a run was made with."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.experiment import loading

if TYPE_CHECKING:
    from gradlab.running.settings import Settings

# A change in one of these is a change of the code that computes.
COMPUTING = ("gradlab", "jax", "jaxlib", "numpy", "optax", "scipy", "xarray", "scikit-learn")


@dataclass(frozen=True)
class Asked:
    """What a run was asked for.

    Attributes:
        command: the command line.
        snapshot: the files of `.hydra/`: what Hydra composed from it.
    """

    command: str
    snapshot: Mapping[str, str] = field(default_factory=dict)


def made_with(project: Path, settings: Settings) -> dict[str, Any]:
    """What a run was made with, as plain values."""
    import jax

    return {
        "seed": settings.seed,
        "precision": settings.precision,
        "versions": {"python": platform.python_version()} | versions((*COMPUTING, "matplotlib")),
        "commit": _commit(project),
        "device": jax.devices()[0].device_kind,
        "platform": platform.platform(),
    }


def versions(packages: Sequence[str] = COMPUTING) -> dict[str, str]:
    """The versions of those packages that are installed."""
    return dict(_versions(packages))


def _versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            yield package, version(package)


def _commit(project: Path) -> str | None:
    if project == loading.PACKED:  # whatever repository the installed package happens to lie in
        return None

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
