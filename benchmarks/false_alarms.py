"""How often the audit finds something in a healthy model: five kinds of models, fresh seeds.

`python benchmarks/false_alarms.py [seeds] [first]`: weights and batch are drawn anew by each seed,
as their authors say; what is found is held against the rate that the audit states.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from scipy import stats

import gradlab as gl
from gradlab.diagnosis import laws

RECORD = Path(__file__).parent.parent / "results" / "benchmarks" / "false_alarms.md"
NUM_CLASSES = 10


def classified(model: Callable[[Any], jax.Array], batch: Any) -> jax.Array:
    """The mean cross entropy."""
    logs = jax.nn.log_softmax(model(batch[0]))
    return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=-1))


def labelled(key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Inputs, and labels that they say nothing of."""
    key_x, key_y = jax.random.split(key)
    return jax.random.normal(key_x, shape), jax.random.randint(key_y, shape[:1], 0, NUM_CLASSES)


def dense(key: jax.Array, widths: list[int], gain: float) -> list[jax.Array]:
    """Matrices of variance gain²/fan_in."""
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths[:-1], widths[1:], strict=True)
    return [gain * a**-0.5 * jax.random.normal(k, (a, b)) for k, a, b in pairs]


def mlp(phi: Callable[[jax.Array], jax.Array]) -> Callable[[list[jax.Array], jax.Array], jax.Array]:
    """Dense layers with an activation between."""

    def function(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        for W in weights[:-1]:
            x = phi(x @ W)
        return x @ weights[-1]

    return function


RELU, TANH = mlp(jax.nn.relu), mlp(jnp.tanh)


def he_mlp(key: jax.Array) -> Any:
    """24 layers of relu, He et al. 2015."""
    key_w, key_b = jax.random.split(key)
    weights = dense(key_w, [64] * 24 + [NUM_CLASSES], 2**0.5)
    return (weights, RELU), labelled(key_b, (32, 64))


def xavier_mlp(key: jax.Array) -> Any:
    """Eight layers of tanh, Glorot and Bengio 2010."""
    key_w, key_b = jax.random.split(key)
    weights = dense(key_w, [64] * 8 + [NUM_CLASSES], 1.0)
    return (weights, TANH), labelled(key_b, (32, 64))


def conv(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """3 x 3 convolutions with relu, and the mean over places."""
    for W in params["kernels"]:
        x = jax.lax.conv_general_dilated(
            x, W, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ params["head"]


def he_conv(key: jax.Array) -> Any:
    """Six convolutions, He et al. 2015."""
    keys, widths = jax.random.split(key, 8), [3, 16, 16, 16, 16, 16, 16]
    kernels = [
        (2 / (9 * a)) ** 0.5 * jax.random.normal(k, (3, 3, a, b))
        for k, a, b in zip(keys, widths[:-1], widths[1:], strict=False)
    ]
    head = dense(keys[6], [16, NUM_CLASSES], 1.0)[0]
    return ({"kernels": kernels, "head": head}, conv), labelled(keys[7], (8, 12, 12, 3))


def recurrent(params: dict[str, Any], xs: jax.Array) -> jax.Array:
    """An LSTM over time, read out at its end."""

    def step(carry: Any, x: jax.Array) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(h @ params["W"] + x @ params["U"] + params["b"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    start = jnp.zeros((xs.shape[1], len(params["W"])))
    return jax.lax.scan(step, (start, start), xs)[0][0] @ params["head"]


def lstm(key: jax.Array) -> Any:
    """Ten steps; the forget gate's bias is 1 (Jozefowicz et al. 2015)."""
    keys, width = jax.random.split(key, 4), 24
    params = {
        "W": width**-0.5 * jax.random.normal(keys[0], (width, 4 * width)),
        "U": 8**-0.5 * jax.random.normal(keys[1], (8, 4 * width)),
        "b": jnp.zeros(4 * width).at[width : 2 * width].set(1.0),
        "head": dense(keys[2], [width, NUM_CLASSES], 1.0)[0],
    }
    x, y = labelled(keys[3], (16, 10, 8))
    return (params, recurrent), (x.swapaxes(0, 1), y)


def normed(x: jax.Array) -> jax.Array:
    """Each state less its mean, over its deviation."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def transformer(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Pre-norm blocks, causal, the last state read out."""
    x = params["embed"][tokens]
    mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    for block in params["blocks"]:
        q, k, v = (
            part.reshape(*x.shape[:2], 4, -1) for part in jnp.split(normed(x) @ block["qkv"], 3, -1)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        mixed = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", mixed, v).reshape(x.shape) @ block["out"]
        x = x + jax.nn.gelu(normed(x) @ block["up"]) @ block["down"]
    return normed(x)[:, -1] @ params["head"]


def gpt(key: jax.Array) -> Any:
    """Six blocks as GPT-2 initialises them (Radford et al. 2019)."""
    depth, width = 6, 32
    keys = iter(jax.random.split(key, 4 * depth + 4))
    last = 0.02 * (2 * depth) ** -0.5

    def drawn(shape: tuple[int, ...], std: float = 0.02) -> jax.Array:
        return std * jax.random.normal(next(keys), shape)

    params = {
        "embed": drawn((64, width)),
        "blocks": [
            {
                "qkv": drawn((width, 3 * width)),
                "out": drawn((width, width), last),
                "up": drawn((width, 4 * width)),
                "down": drawn((4 * width, width), last),
            }
            for _ in range(depth)
        ],
        "head": drawn((width, NUM_CLASSES)),
    }
    tokens = jax.random.randint(next(keys), (8, 12), 0, 64)
    return (params, transformer), (
        tokens,
        jax.random.randint(next(keys), (8,), 0, NUM_CLASSES),
    )


MODELS: dict[str, Callable[[jax.Array], Any]] = {
    "relu MLP, He, 24 layers": he_mlp,
    "tanh MLP, Xavier, 8 layers": xavier_mlp,
    "convolutions, He, 6 layers": he_conv,
    "LSTM, 10 steps": lstm,
    "GPT-2, 6 blocks": gpt,
}


def main(num_seeds: int, first: int) -> None:
    """Print the counts, and write the record."""
    rows, found = [], Counter[str]()
    alarms = 0
    for name, make in MODELS.items():
        own = 0
        for seed in range(first, first + num_seeds):
            audit = gl.audit(*make(jax.random.key(seed)), classified)
            own += bool(audit.findings)
            found.update(f"{name}, seed {seed}: {f.kind} at {f.layer}" for f in audit.findings)
        rows.append(f"| {name} | {own} of {num_seeds} |")
        alarms += own
        sys.stdout.write(rows[-1] + "\n")
    num = num_seeds * len(MODELS)
    interval = stats.binomtest(alarms, num).proportion_ci(0.95)
    text = (
        f"{alarms} of {num} audits of healthy models have a finding: {alarms / num:.1%} "
        f"[{interval.low:.1%}, {interval.high:.1%}]; stated, at most {laws.FALSE_ALARMS:.0%} "
        f"(seeds {first} to {first + num_seeds - 1}, jax {jax.__version__})."
    )
    sys.stdout.write("\n".join([text, *found, ""]))
    table = "\n".join(["| model | audits with a finding |", "|---|---|", *rows])
    listed = "\n".join(f"- {one}" for one in found)
    RECORD.write_text(
        f"# False alarms of the audit\n\n{text}\n\n{table}\n\n{listed}".rstrip() + "\n"
    )


if __name__ == "__main__":
    told = [int(word) for word in sys.argv[1:]] + [40, 7000][len(sys.argv) - 1 :]
    main(*told)
