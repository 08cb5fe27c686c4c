"""How many plain gradients an audit costs: 100 layers of width 1024, after compilation.

`python benchmarks/audit.py`; ratios within one run, medians.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import gradlab as gl

DEPTH, WIDTH, NUM = 100, 1024, 32


def forward(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    """The last layer."""
    for W in weights:
        x = jax.nn.relu(x @ W)
    return x


def loss(model: Callable[[jax.Array], jax.Array], batch: jax.Array) -> jax.Array:
    """The mean square."""
    return jnp.mean(jnp.square(model(batch)))


def seconds(call: Callable[[], object], times: int = 5) -> float:
    """The median time of a call, after one."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Print the ratio."""
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    weights = [(2 / WIDTH) ** 0.5 * jax.random.normal(k, (WIDTH, WIDTH)) for k in keys[1:]]
    batch = jax.random.normal(keys[0], (NUM, WIDTH))
    gradient = jax.jit(jax.grad(lambda w: loss(lambda x: forward(w, x), batch)))
    plain = seconds(lambda: jax.block_until_ready(gradient(weights)))
    audit = seconds(lambda: gl.audit((weights, forward), batch, loss))
    print(f"jax.grad {plain:.3f} s, gl.audit {audit:.3f} s: {audit / plain:.1f} gradients")


if __name__ == "__main__":
    main()
