"""What an audit costs: time beside plain gradients, the time until the first one, and memory.

`python benchmarks/audit.py` runs each part in a process of its own and writes
`results/benchmarks/audit.md`; `python benchmarks/audit.py PART` runs one. Ratios are within one
run, medians.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import watch

import gradlab as gl

DEPTH, WIDTH, NUM = 100, 1024, 32
RECORD = Path(__file__).parent.parent / "results" / "benchmarks" / "audit.md"


def forward(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    """The last layer."""
    for W in weights:
        x = jax.nn.relu(x @ W)
    return x


def loss(model: Callable[[jax.Array], jax.Array], batch: jax.Array) -> jax.Array:
    """The mean square."""
    return jnp.mean(jnp.square(model(batch)))


def drawn() -> tuple[list[jax.Array], jax.Array]:
    """Weights (He et al. 2015) and a batch."""
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    weights = [(2 / WIDTH) ** 0.5 * jax.random.normal(k, (WIDTH, WIDTH)) for k in keys[1:]]
    return weights, jax.random.normal(keys[0], (NUM, WIDTH))


def seconds(call: Callable[[], object], times: int = 5) -> float:
    """The median time of a call, after one."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


GRADIENT = jax.jit(jax.grad(lambda w, batch: loss(lambda x: forward(w, x), batch)))


def speed() -> str:
    """The time of an audit over that of a gradient, both compiled."""
    weights, batch = drawn()
    plain = seconds(lambda: jax.block_until_ready(GRADIENT(weights, batch)))
    audit = seconds(lambda: gl.audit((weights, forward), batch, loss))
    return (
        f"{DEPTH} layers of width {WIDTH}: jax.grad {plain:.3f} s, gl.audit {audit:.3f} s: "
        f"{audit / plain:.1f} gradients"
    )


def cold() -> str:
    """The time of the first audit of a transformer of 12 blocks, processor time beside it."""
    params = watch.weights(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (watch.BATCH, watch.LENGTH), 0, watch.VOCAB)
    start, used = time.perf_counter(), time.process_time()
    found = str(gl.audit(params, tokens, watch.loss)).splitlines()[0]
    return (
        f"{watch.DEPTH} blocks of width {watch.WIDTH}, {watch.LENGTH} tokens, cold: "
        f"{time.perf_counter() - start:.1f} s, {time.process_time() - used:.1f} s of the "
        f"processors ({found})"
    )


def peak(call: Callable[[list[jax.Array], jax.Array], object]) -> str:
    """The largest memory of this process while it calls, in MB, above what the inputs take."""
    weights, batch = jax.block_until_ready(drawn())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call(weights, batch)
    return f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f}"


def memory_of_gradient() -> str:
    """In MB."""
    return peak(lambda w, batch: jax.block_until_ready(GRADIENT(w, batch)))


def memory_of_audit() -> str:
    """In MB."""
    return peak(lambda w, batch: gl.audit((w, forward), batch, loss))


PARTS = {part.__name__: part for part in (speed, cold, memory_of_gradient, memory_of_audit)}


def apart(part: str) -> str:
    """What a part prints, in a process of its own."""
    words = [sys.executable, __file__, part]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Print all parts, and write the record."""
    one, other = apart("memory_of_gradient"), apart("memory_of_audit")
    memory = (
        f"{DEPTH} layers of width {WIDTH}, memory above the inputs' at its peak: jax.grad {one} "
        f"MB, gl.audit {other} MB: {float(other) / float(one):.2f} times"
    )
    lines = [apart("speed"), apart("cold"), memory]
    sys.stdout.write("\n".join([*lines, ""]))
    listed = "\n".join(f"- {line}" for line in lines)
    RECORD.write_text(f"# gl.audit: time and memory\n\njax {jax.__version__}\n\n{listed}\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout.write(PARTS[sys.argv[1]]() + "\n")
    else:
        main()
