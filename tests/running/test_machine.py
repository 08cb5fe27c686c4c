"""What a run does to JAX's compilation cache."""

import os
import subprocess
import sys
from pathlib import Path

TWICE = """
import sys, zlib
from pathlib import Path
import jax
from gradlab.running import machine

def one(x):
    return x + 1.0

def other(x):
    return x + 2.0

cache = Path(sys.argv[1])
with machine.cache_mended():
    one_jitted, other_jitted = jax.jit(one), jax.jit(other)
    one_jitted(1.0), other_jitted(1.0)
    (path,) = cache.glob("jit_one-*-cache")
    held = path.read_bytes()
    path.write_bytes(held[: len(held) // 2])
    jax.clear_caches()
    print(one_jitted(1.0), other_jitted(1.0), len(zlib.decompress(path.read_bytes())) > 0)
"""


def test_a_damaged_entry_is_replaced_without_a_word(tmp_path: Path) -> None:
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    ended = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    one, other, whole = ended.stdout.split()
    assert (float(one), float(other), whole) == (2.0, 3.0, "True")
