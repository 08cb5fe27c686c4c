"""How many cores a benchmark takes: to be asked before libraries count their threads."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

# Where JAX looks for what drives an accelerator.
_ACCELERATORS = ("jax_plugins", "libtpu")


def one(which: Callable[..., int]) -> None:
    """One core, `which` of those allowed, and one thread a library, where no accelerator is used.

    Beside an accelerator, cores hand over its work and compile: one would be what is timed.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    is_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    if hasattr(os, "sched_setaffinity") and (is_cpu or not any(map(_is_there, _ACCELERATORS))):
        os.sched_setaffinity(0, {which(os.sched_getaffinity(0))})


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
