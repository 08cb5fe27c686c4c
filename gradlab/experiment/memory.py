"""The memory that a compiled program needs, and what a device has left."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import jax

from gradlab.errors import BadInput


def needed(program: Any) -> int:
    """Bytes that a compiled program takes while it runs, by its own account; 0 if it has none."""
    told = program.memory_analysis()
    return 0 if told is None else told.temp_size_in_bytes + told.output_size_in_bytes


def free(device: jax.Device) -> float:
    """Bytes that a device has left, on a CPU of the memory that this process may take."""
    with contextlib.suppress(Exception):  # not every backend can say
        stats = device.memory_stats()
        return float(stats["bytes_limit"] - stats["bytes_in_use"])
    return float(min(_left_here(), _left_to_the_group()))


def check(name: str, program: Any, device: jax.Device) -> None:
    """Raise where a program cannot run for want of memory.

    Raises:
        BadInput: it needs more than there is.
    """
    asked, there = needed(program), free(device)
    if asked > there:
        raise BadInput(
            f"'{name}' needs {_shown(asked)} of memory with these values, and {_shown(there)} are "
            "free; allowed: smaller values, fewer of them, or more memory"
        )


def _left_here() -> float:
    """What the system says can be had without harm, swap space among it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    kilobytes = {
        name: float(told.split()[0]) for name, _, told in (x.partition(":") for x in lines)
    }
    return 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])


def _left_to_the_group() -> float:
    """What is left of a control group's limit, as a container or a job of Slurm has one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            float((folder / f"memory.{name}").read_text(encoding="utf-8"))
            for name in ("max", "current")
        )
    except (OSError, ValueError):  # no group, or one whose limit is "max"
        return float("inf")
    return limit - used


def _shown(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} PB"
