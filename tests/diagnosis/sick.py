"""Models of several kinds, healthy as made, with the faults that are planted into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

Loss = Callable[[Any, Any], Array]


def drawn(key: Array, layer: Any, std: float) -> Any:
    """A linear layer with weights from N(0, std²) and no bias but zeros."""
    weight = std * jax.random.normal(key, layer.weight.shape)
    layer = eqx.tree_at(lambda m: m.weight, layer, weight)
    if layer.bias is None:
        return layer
    return eqx.tree_at(lambda m: m.bias, layer, jnp.zeros_like(layer.bias))


def mlp(
    depth: int, width: int, phi: Callable[[Array], Array] = jax.nn.relu, sigma_w: float = 2**0.5
) -> Any:
    """An MLP whose weights are N(0, sigma_w²/fan_in)."""
    key = jax.random.key(depth * width)
    model = eqx.nn.MLP(width, 10, width, depth, activation=phi, key=key)
    keys = jax.random.split(key, depth + 1)
    layers = [
        drawn(k, layer, (sigma_w if n < depth else 1.0) * float(layer.in_features) ** -0.5)
        for n, (k, layer) in enumerate(zip(keys, model.layers, strict=True))
    ]
    return eqx.tree_at(lambda m: m.layers, model, tuple(layers))


def labelled(num: int, width: int, seed: int = 0) -> Any:
    """A batch of inputs and of labels."""
    key_x, key_y = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key_x, (num, width)), jax.random.randint(key_y, (num,), 0, 10)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean cross entropy of labels, over all axes but the last of logits."""
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, labels[..., None], axis=-1))


def classified(model: Any, batch: Any) -> Array:
    """The loss of a classifier of single examples."""
    return cross_entropy(jax.vmap(model)(batch[0]), batch[1])


class Attention(eqx.Module):
    """Causal self-attention."""

    qkv: eqx.nn.Linear
    proj: eqx.nn.Linear
    heads: int = eqx.field(static=True)
    factor: float = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        length, width = x.shape
        size = width // self.heads
        parts = jax.vmap(self.qkv)(x).reshape(length, 3, self.heads, size)
        q, k, v = (parts[:, n].transpose(1, 0, 2) for n in range(3))
        scores = q @ k.transpose(0, 2, 1) * self.factor
        mask = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        return jax.vmap(self.proj)((weights @ v).transpose(1, 0, 2).reshape(length, width))


class Block(eqx.Module):
    """A transformer's block, its norms before or behind its branches."""

    norm1: eqx.nn.LayerNorm
    attn: Attention
    norm2: eqx.nn.LayerNorm
    fc: eqx.nn.Linear
    proj: eqx.nn.Linear
    post: bool = eqx.field(static=True)

    def branch(self, x: Array) -> Array:
        return jax.vmap(self.proj)(jax.nn.gelu(jax.vmap(self.fc)(x)))

    def __call__(self, x: Array) -> Array:
        if self.post:
            x = jax.vmap(self.norm1)(x + self.attn(x))
            return jax.vmap(self.norm2)(x + self.branch(x))
        x = x + self.attn(jax.vmap(self.norm1)(x))
        return x + self.branch(jax.vmap(self.norm2)(x))


class GPT(eqx.Module):
    """GPT-2 (Radford et al. 2019), its head tied to its embedding."""

    embed: Array
    positions: Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm

    def __call__(self, tokens: Array) -> Array:
        x = self.embed[tokens] + self.positions[: len(tokens)]
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.embed.T


def gpt(
    depth: int,
    width: int,
    *,
    vocab: int = 64,
    length: int = 16,
    scaled: bool = True,
    post: bool = False,
    std: float = 0.02,
) -> GPT:
    """GPT-2 as it is initialised: N(0, 0.02²), and each branch's last matrix over √(2 depth)."""
    keys = iter(jax.random.split(jax.random.key(depth * width), 8 * depth + 4))
    last = std * (2 * depth) ** -0.5 if scaled else std
    heads = 4

    def linear(fan_in: int, fan_out: int, scale: float) -> Any:
        return drawn(next(keys), eqx.nn.Linear(fan_in, fan_out, key=next(keys)), scale)

    blocks = [
        Block(
            eqx.nn.LayerNorm(width),
            Attention(
                linear(width, 3 * width, std),
                linear(width, width, last),
                heads,
                (width // heads) ** -0.5,
            ),
            eqx.nn.LayerNorm(width),
            linear(width, 4 * width, std),
            linear(4 * width, width, last),
            post,
        )
        for _ in range(depth)
    ]
    embed = std * jax.random.normal(next(keys), (vocab, width))
    positions = 0.01 * jax.random.normal(next(keys), (length, width))
    return GPT(embed, positions, blocks, eqx.nn.LayerNorm(width))


def tokens(num: int = 4, length: int = 16, vocab: int = 64) -> Array:
    """A batch of token ids."""
    return jax.random.randint(jax.random.key(3), (num, length), 0, vocab)


def next_token(model: Any, batch: Array) -> Array:
    """The loss of a language model."""
    return cross_entropy(jax.vmap(model)(batch)[:, :-1], batch[:, 1:])


class ResidualMLP(eqx.Module):
    """Branches W2 phi(W1 x) without norms, each over √depth."""

    blocks: list[tuple[Any, Any]]
    head: Any
    factor: float = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        for one, two in self.blocks:
            x = x + self.factor * two(jax.nn.relu(one(x)))
        return self.head(x)


def residual_mlp(depth: int, width: int) -> ResidualMLP:
    """He in front of the activation, LeCun behind it over √depth."""
    keys = iter(jax.random.split(jax.random.key(7), 4 * depth + 2))

    def linear(fan_out: int, scale: float) -> Any:
        return drawn(next(keys), eqx.nn.Linear(width, fan_out, key=next(keys)), scale * width**-0.5)

    blocks = [(linear(width, 2**0.5), linear(width, depth**-0.5)) for _ in range(depth)]
    return ResidualMLP(blocks, linear(10, 1.0), 1.0)


class PostNorm(eqx.Module):
    """Norms behind each sum: z = N(z + W2 phi(W1 z))."""

    blocks: list[tuple[Any, Any]]
    head: Any

    def __call__(self, x: Array) -> Array:
        for one, two in self.blocks:
            x = x + two(jnp.tanh(one(x)))
            x = (x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-5)
        return self.head(x)


def post_norm(depth: int, width: int) -> PostNorm:
    """LeCun's law for all."""
    plain = residual_mlp(depth, width)
    keys = jax.random.split(jax.random.key(5), 2 * depth)
    blocks = [
        (drawn(keys[2 * k], one, 3 * width**-0.5), drawn(keys[2 * k + 1], two, 2 * width**-0.5))
        for k, (one, two) in enumerate(plain.blocks)
    ]
    return PostNorm(blocks, plain.head)


class Remembering(eqx.Module):
    """An LSTM over time, and a linear readout of its last state."""

    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __call__(self, xs: Array) -> Array:
        cell: Any = self.cell
        start = jnp.zeros(cell.hidden_size)
        (h, _), _ = jax.lax.scan(lambda s, x: (cell(x, s), None), (start, start), xs)
        return self.head(h)


def lstm(forget: Array, width: int = 12, seed: int = 0) -> Any:
    """An LSTM whose forget gate has these biases; Equinox keeps its gates as i, f, g, o."""
    key_cell, key_head = jax.random.split(jax.random.key(seed))
    cell: Any = eqx.nn.LSTMCell(6, width, key=key_cell)
    bias = jnp.zeros(4 * width).at[width : 2 * width].set(forget)
    cell = eqx.tree_at(lambda c: c.bias, cell, bias)
    return Remembering(cell, eqx.nn.Linear(width, 10, key=key_head))


def sequences(num: int = 8, length: int = 8, seed: int = 2) -> Any:
    """A batch of sequences and of labels."""
    return jax.random.normal(jax.random.key(seed), (num, length, 6)), jnp.arange(num) % 10


def unit(x: Array) -> Array:
    """A state of mean square 1."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x)) + 1e-6)


class Branch(eqx.Module):
    """g W2 phi(W1 N(x)), with a gate g of one number: ReZero (Bachlechner et al. 2020)."""

    up: Any
    down: Any
    gate: Array

    def __call__(self, x: Array) -> Array:
        return self.gate * self.down(jax.nn.relu(self.up(unit(x))))


class Gated(eqx.Module):
    """A pre-norm residual network of gated branches."""

    blocks: list[Branch]
    head: Any
    factors: tuple[float, ...] = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        for block, factor in zip(self.blocks, self.factors, strict=True):
            x = x + factor * block(x)
        return self.head(unit(x))


def gated(gate: float, loud: int | None = None) -> Any:
    """All gates at one value; one branch may be 30 times as loud."""
    depth = 10
    plain = residual_mlp(depth, 32)
    blocks = [Branch(up, down, jnp.asarray(gate)) for up, down in plain.blocks]
    return Gated(blocks, plain.head, tuple(30.0 if k == loud else 1.0 for k in range(depth)))


def truncated(key: Array, shape: tuple[int, ...], std: float, at: float) -> Array:
    """A normal distribution cut off at so many standard deviations, of the given one after it."""
    drawn = jax.random.truncated_normal(key, -at, at, shape)
    return std * drawn / jnp.std(drawn)


def changed(model: Any, where: Callable[[Any], Any], function: Callable[[Any], Any]) -> Any:
    """A model with some of its leaves replaced by a function of them."""
    return eqx.tree_at(where, model, replace_fn=function)


Case = tuple[Any, Any, Loss]
Fault = tuple[Callable[[], Case], str, str]


def healthy() -> dict[str, Callable[[], Case]]:
    """Models without a fault, by name."""
    return {
        "relu, He, 30": lambda: (mlp(30, 64), labelled(32, 64), classified),
        "tanh, LeCun, 20": lambda: (mlp(20, 64, jnp.tanh, 1.0), labelled(32, 64), classified),
        "GPT-2, 2": lambda: (gpt(2, 32), tokens(), next_token),
        "GPT-2, 12": lambda: (gpt(12, 64), tokens(), next_token),
        "residual, 12": lambda: (residual_mlp(12, 64), labelled(32, 64), classified),
    }


def faults() -> dict[str, Fault]:
    """Planted faults by name: the case, the kind that finds it, and a pattern of its layer."""
    relu, gpt12 = lambda: mlp(20, 64), lambda: gpt(12, 64)
    x64, lm = lambda: labelled(32, 64), tokens

    def default(depth: int) -> Any:
        return eqx.nn.MLP(64, 10, 64, depth, key=jax.random.key(1))

    def mlp_fault(
        function: Callable[[Any], Any], where: Callable[[Any], Any]
    ) -> Callable[[], Case]:
        return lambda: (changed(relu(), where, function), x64(), classified)

    def gpt_fault(
        function: Callable[[Any], Any], where: Callable[[Any], Any]
    ) -> Callable[[], Case]:
        return lambda: (changed(gpt12(), where, function), lm(), next_token)

    def half(tree: Any) -> Any:
        return jax.tree.map(
            lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, tree
        )

    return {
        "GPT-2 without depth scaling, 8": (
            lambda: (gpt(8, 64, scaled=False), lm(), next_token),
            "depth scaling",
            "*proj*",
        ),
        "GPT-2 without depth scaling, 12": (
            lambda: (gpt(12, 64, scaled=False), lm(), next_token),
            "depth scaling",
            "*proj*",
        ),
        "GPT-2 without depth scaling, 24": (
            lambda: (gpt(24, 32, scaled=False), lm(), next_token),
            "depth scaling",
            "*proj*",
        ),
        "PyTorch default, 30": (
            lambda: (default(30), x64(), classified),
            "gain",
            "layers.*.weight",
        ),
        "PyTorch default, 60": (
            lambda: (default(60), x64(), classified),
            "gain",
            "layers.*.weight",
        ),
        "Xavier with relu, 20": (
            lambda: (mlp(20, 64, jax.nn.relu, 1.0), x64(), classified),
            "gain",
            "layers.*.weight",
        ),
        "He with gelu, 40": (
            lambda: (mlp(40, 64, jax.nn.gelu), x64(), classified),
            "gain",
            "layers.*.weight",
        ),
        "tanh in chaos, 30": (
            # At 2 the growth of 80 is told from the 20 allowed by 4.1 errors only, of width 64.
            lambda: (mlp(30, 64, jnp.tanh, 2.5), x64(), classified),
            "gain",
            "layers.*.weight",
        ),
        "one layer 3 times too large": (
            mlp_fault(lambda w: 3 * w, lambda m: m.layers[7].weight),
            "alike",
            "layers.7.weight",
        ),
        "one layer 3 times too small": (
            gpt_fault(lambda w: w / 3, lambda m: m.blocks[5].fc.weight),
            "alike",
            "blocks.5.fc.weight",
        ),
        "one norm's scale erased": (
            gpt_fault(lambda w: 0 * w, lambda m: m.blocks[3].norm2.weight),
            "alike",
            "blocks.3.norm2.weight",
        ),
        "a dead layer, by its bias": (
            mlp_fault(lambda b: b - 30, lambda m: m.layers[4].bias),
            "alike",
            "layers.4.bias",
        ),
        "a dead layer, by its weights": (
            mlp_fault(lambda w: 0 * w, lambda m: m.layers[4].weight),
            "alike",
            "layers.4.weight",
        ),
        "a nan": (
            gpt_fault(lambda w: w.at[2, 3].set(jnp.nan), lambda m: m.blocks[6].attn.qkv.weight),
            "not finite",
            "blocks.6.attn.qkv.weight",
        ),
        "bfloat16 underflow": (
            lambda: (half(default(120)), half(x64()), classified),
            "gain",
            "layers.*.weight",
        ),
        "copies": (
            gpt_fault(lambda w: jnp.broadcast_to(w[:1], w.shape), lambda m: m.blocks[2].fc.weight),
            "copies",
            "blocks.2.fc.weight",
        ),
        "tied weights not initialised": (
            gpt_fault(lambda w: 50 * w, lambda m: m.embed),
            "output logits",
            "embed",
        ),
        "attention without its factor": (
            lambda: (
                eqx.tree_at(
                    lambda m: [b.attn.qkv.weight for b in m.blocks],
                    gpt12(),
                    replace_fn=lambda w: 20 * w,
                ),
                lm(),
                next_token,
            ),
            "attention logits",
            "blocks.*.attn.qkv.weight",
        ),
        "depth scaling on the wrong matrix": (
            lambda: (
                eqx.tree_at(
                    lambda m: [b.fc.weight for b in m.blocks] + [b.proj.weight for b in m.blocks],
                    gpt12(),
                    [b.fc.weight * 24**-0.5 for b in gpt12().blocks]
                    + [b.proj.weight * 24**0.5 for b in gpt12().blocks],
                ),
                lm(),
                next_token,
            ),
            "scaled matrix",
            "blocks.*.fc.weight",
        ),
        "post-norm, 50": (
            lambda: (post_norm(50, 64), labelled(32, 64), classified),
            "norm place",
            "blocks.*",
        ),
        "a saturated layer": (
            lambda: (
                changed(mlp(4, 64, jnp.tanh, 1.0), lambda m: m.layers[2].weight, lambda w: 300 * w),
                x64(),
                classified,
            ),
            "*",
            "layers.2.weight",
        ),
        "residual, branches not scaled": (
            lambda: (
                eqx.tree_at(
                    lambda m: [two.weight for _, two in m.blocks],
                    residual_mlp(24, 64),
                    replace_fn=lambda w: w * 24**0.5,
                ),
                x64(),
                classified,
            ),
            "depth scaling",
            "blocks.*",
        ),
    }
