"""What JAX is set to for a run; for a caller in Python it is set back afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gradlab.lazy import jax

_SET = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir"),
    *("jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes"),
)


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


@contextlib.contextmanager
def set_back() -> Iterator[None]:
    """After the block, all that `prepare` sets is what it was before."""
    before = {name: jax.config.values[name] for name in _SET}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
