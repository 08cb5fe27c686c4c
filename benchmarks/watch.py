"""What `gl.watch` costs beside a bare step of training: a transformer of 12 blocks under Adam.

`python benchmarks/watch.py`; bare and watched steps by turns in one run, medians, and the ratio of
each pair with its median. `results/benchmarks/watch.md` is written.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradlab as gl

DEPTH, WIDTH, LENGTH, BATCH, VOCAB, HEADS = 12, 256, 128, 8, 512, 4
TURNS = 15
RECORD = Path(__file__).parent.parent / "results" / "benchmarks" / "watch.md"


def weights(key: jax.Array) -> dict[str, Any]:
    """GPT-2 as it is initialised (Radford et al. 2019)."""
    shapes = {
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
    }
    keys = iter(jax.random.split(key, DEPTH * len(shapes) + 1))
    last = {"out": (2 * DEPTH) ** -0.5, "down": (2 * DEPTH) ** -0.5}
    blocks = [
        {
            name: 0.02 * last.get(name, 1.0) * jax.random.normal(next(keys), shape)
            for name, shape in shapes.items()
        }
        for _ in range(DEPTH)
    ]
    return {"embed": 0.02 * jax.random.normal(next(keys), (VOCAB, WIDTH)), "blocks": blocks}


def normed(x: jax.Array) -> jax.Array:
    """Each state over its own length."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)


def attended(block: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Causal self-attention."""
    size = WIDTH // HEADS
    q, k, v = jnp.split((x @ block["qkv"]).reshape(*x.shape[:2], HEADS, 3 * size), 3, -1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * size**-0.5
    mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    mixed = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", mixed, v).reshape(x.shape) @ block["out"]


def loss(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """The cross entropy of each next token."""
    x = params["embed"][tokens]
    for block in params["blocks"]:
        x = x + attended(block, normed(x))
        x = x + jax.nn.gelu(normed(x) @ block["up"]) @ block["down"]
    logits = normed(x) @ params["embed"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


def stepper(optimizer: Any, params: Any, tokens: jax.Array) -> Callable[[], float]:
    """A function that takes one step of training and says how long it took."""

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        gradient = jax.grad(loss)(params, tokens)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state

    run = jax.jit(step, donate_argnums=(0, 1))
    held = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def once() -> float:
        start = time.perf_counter()
        held[:] = jax.block_until_ready(run(*held, tokens))
        return time.perf_counter() - start

    once()
    return once


def main() -> None:
    """Print the ratio, and write the record."""
    params = weights(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, VOCAB)
    bare = stepper(optax.adam(1e-3), params, tokens)
    watched = stepper(gl.watch(optax.adam(1e-3)), params, tokens)
    pairs = [(bare(), watched()) for _ in range(TURNS)]
    ratio = statistics.median(after / before for before, after in pairs)
    medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    text = (
        f"A bare step {medians[0]:.3f} s, a watched one {medians[1]:.3f} s: {ratio - 1:+.1%} "
        f"(median of {TURNS} pairs; {DEPTH} blocks, width {WIDTH}, {BATCH} x {LENGTH} tokens, "
        f"{size:.1f} million weights, Adam; jax {jax.__version__} on {platform.machine()}).\n"
    )
    sys.stdout.write(text)
    RECORD.write_text(f"# gl.watch beside a bare step of training\n\n{text}")


if __name__ == "__main__":
    main()
