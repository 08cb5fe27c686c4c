"""What JAX is set to for a run; for a caller in Python it is set back afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradlab.lazy import jax

_SET = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir"),
    *("jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes"),
)

_UNREADABLE = re.compile(r"persistent compilation cache entry for '([^']+)'")


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


@contextlib.contextmanager
def cache_mended() -> Iterator[None]:
    """In the block, an entry of JAX's compilation cache that cannot be read is removed.

    A killed process may leave a part of one, of which every later run would warn.
    """
    shown = warnings.showwarning

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        entry = _UNREADABLE.search(str(message))
        if entry is None:
            shown(message, *where, **more)
        else:
            _remove_damaged(Path(str(jax.config.values["jax_compilation_cache_dir"])), entry[1])

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _remove_damaged(cache: Path, program: str) -> None:
    """Remove the damaged of a program's entries, all if that cannot be known."""
    entries = list(cache.glob(f"{program}-*-cache"))
    for path in [path for path in entries if not _whole(path)] or entries:
        path.unlink(missing_ok=True)


def _whole(path: Path) -> bool:
    try:
        return bool(zlib.decompress(path.read_bytes()))
    except (OSError, zlib.error):
        return False
