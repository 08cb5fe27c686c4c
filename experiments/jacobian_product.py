"""Is the gradient that training uses the product of Jacobians that the argument is about?

The argument for vanishing and exploding gradients writes the gradient of layer k's weights as
dL/dz_L · J_L ... J_{k+1} · dz_k/dtheta_k, with J_k = dz_k/dz_{k-1} (Pascanu, Mikolov and Bengio
2013, equations 3 to 5; Glorot and Bengio 2010, section 4.2). That is an identity, whatever the
weights: here it is held against jax.grad, to rounding, on handwritten digits, in networks whose
width varies.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "the textbook"
PASCANU = "Pascanu, Mikolov and Bengio 2013, equations 3 to 5"
GLOROT = "Glorot and Bengio 2010, section 4.2"
NUM_PIXELS, NUM_CLASSES = 64, 10


@gl.config
class Config:
    """The networks: what they are made of, and the scales of their weights."""

    activation: gl.Strings
    dtype: gl.Strings
    depth: int = gl.key("layers, the linear read-out among them", at_least=2, at_most=1000)
    width: gl.Ints = gl.key(
        "widths of the hidden layers, in equal shares", at_least=1, at_most=1024
    )
    sigma_w: gl.Floats
    sigma_b: float
    batch_size: int = gl.key("digits in the batch", at_least=1, at_most=1438)
    num_draws: int


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The gradient of every layer's weights in two ways, and their difference beside its bounds."""
    key_draws, key_batch = jax.random.split(key)
    digits, _ = gl.training.digits(float)
    chosen = jax.random.permutation(key_batch, digits.y.size)[: cfg.batch_size]
    batch = gl.training.Data(digits.x[chosen], digits.y[chosen])
    formats = gl.grid.formats(cfg.dtype)
    one = partial(measure, cfg, key_draws, batch)
    found = [[one(phi, dtype) for phi in cfg.activation] for dtype in formats]
    by_jax, by_product, difference, cancelled, unit = jnp.moveaxis(jnp.array(found), -2, 0)
    axes, ends = "format activation draw sigma_w layer", gl.theory.scalar.FORMATS
    off, cancels = "|product - jax.grad| / |jax.grad|", "mean of examples' norms over their mean's"
    whole = jnp.array([ends[name].log10_smallest_whole for name in formats])
    entries = gl.grid.over_draws(partial(moments, cfg), key_draws, cfg.num_draws)
    variance = jnp.stack([cfg.sigma_w, jnp.full_like(cfg.sigma_w, cfg.sigma_b)]) ** 2
    return {
        "activation": gl.named(list(cfg.activation), "activation"),
        "format": gl.named(formats, "format"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="layer k"),
        "log10_by_jax": gl.named(by_jax, axes, long_name="log10 |dL/dθ_k| by jax.grad"),
        "log10_by_product": gl.named(by_product, axes, long_name="log10 |dL/dθ_k| by the product"),
        "difference": gl.named(difference, axes, long_name=off, units="eps"),
        "cancelled": gl.named(cancelled, axes, long_name=cancels),
        "log10_smallest": gl.named(whole, "format", long_name="smallest held in full"),
        "eps": gl.named(jnp.array([2 * ends[name].unit for name in formats]), "format"),
        "unit": gl.named(unit, axes, long_name="square of the gradient over its norm"),
        "parameter": gl.named(["W √fan_in", "b"], "parameter"),
        "entries": gl.named(entries, "draw sigma_w part parameter moment"),
        "variance": gl.named(variance, "parameter sigma_w"),
        "num_entries": gl.named(float(max((a + 1) * b for a, b in pairwise(sizes(cfg))))),
        "worst_case": gl.named(num_roundings(cfg), "layer", long_name="all one way", units="eps"),
    }


def sizes(cfg: Config) -> tuple[int, ...]:
    """The number of pixels, the widths of the hidden layers, the number of classes."""
    num_hidden = cfg.depth - 1
    hidden = (cfg.width[layer * len(cfg.width) // num_hidden] for layer in range(num_hidden))
    return (NUM_PIXELS, *hidden, NUM_CLASSES)


def num_roundings(cfg: Config) -> jax.Array:
    """`n (L - k + 1)` for every layer k, `(depth,)`; n is the longest sum from there on.

    A row times a factor is right for a factor whose entries are moved by at most n roundings of
    eps/2 (Higham 2002, section 3.5), n eps in two ways. To first order the moves of the factors add
    up (section 3.7), and so does that of the batch's mean: a layer stretches what has been added
    like the gradient itself. All of it is relative to the gradient of an example.
    """
    longest = [max(*sizes(cfg)[layer:], cfg.batch_size) for layer in range(cfg.depth)]
    return jnp.array(longest) * jnp.arange(float(cfg.depth), 0, -1)


def moments(cfg: Config, key: jax.Array) -> jax.Array:
    """`networks.realised_in_pairs` of a draw's networks, `(sigma_w, part, 2, 6)`."""
    drawn = partial(gl.networks.perceptron, key, sizes(cfg), gl.activations.PHI["linear"])
    return jax.lax.map(lambda s: gl.networks.realised_in_pairs(drawn(s, cfg.sigma_b)), cfg.sigma_w)


def measure(
    cfg: Config, key: jax.Array, batch: gl.training.Data, activation: str, dtype: str
) -> jax.Array:
    """log10 of both gradients, how they differ, what cancels; `(draw, sigma_w, 5, layer)`."""
    phi = gl.activations.PHI[activation]
    data = batch._replace(x=batch.x.astype(dtype))

    def one(key: jax.Array, sigma_w: jax.Array) -> jax.Array:
        drawn = gl.networks.perceptron(key, sizes(cfg), phi, sigma_w, cfg.sigma_b)
        model = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)
        by_jax = jax.grad(partial(gl.training.loss, gl.training.apply_model))(model, data)
        examples = jax.vmap(partial(chain_rule, model))(data.x, data.y)
        by_product = mean_over_batch(examples)
        off = jax.tree.map(jnp.subtract, by_product, by_jax)
        size, of_product, of_off = map(gl.training.norms_by_layer, (by_jax, by_product, off))
        of_examples = jnp.mean(jax.vmap(gl.training.norms_by_layer)(examples), axis=0)
        logs, off_by = map(jnp.log10, (size, of_product)), of_off / size / gl.scaled.eps(dtype)
        return jnp.stack([*logs, off_by, of_examples / size, lengths(by_jax, size)]).astype(float)

    return gl.grid.over_draws(
        lambda key: jax.lax.map(partial(one, key), cfg.sigma_w), key, cfg.num_draws
    )


def lengths(grads: list[Any], size: jax.Array) -> jax.Array:
    """The square of each layer's gradient over its size, `(depth,)`: 1 if that is its norm."""

    def one(grad: Any, size: jax.Array) -> jax.Array:
        return jnp.sum(jnp.stack([jnp.sum((leaf / size) ** 2) for leaf in jax.tree.leaves(grad)]))

    ends = np.cumsum([len(part.params.W) for part in grads])
    sizes = zip(grads, jnp.split(size, ends[:-1]), strict=True)
    return jnp.concatenate([jax.vmap(one)(part.params, size) for part, size in sizes])


def chain_rule(model: list[Any], x: jax.Array, y: jax.Array) -> list[Any]:
    """The gradient for one example by the product of Jacobians, shaped as the model."""
    cross_entropy = gl.training.cross_entropy
    return gl.chain_rule.weight_gradients(model, x, lambda z: cross_entropy(z[None], y[None]))


def mean_over_batch(examples: list[Any]) -> list[Any]:
    """The mean of gradients over their leading axis."""
    return jax.tree.map(partial(jnp.mean, axis=0), examples)


def figure(data: xr.Dataset) -> gl.Figure:
    """Both gradients by layer, and the largest difference by the number of factors."""
    fig, (gradients, differences) = gl.figures.panels(1, 2, height=2.6)
    draw_gradients(gradients, data.isel(activation=0, format=-1).median("draw"))
    draw_differences(differences, data)
    ways = f"one gradient, two ways ({data.activation.values[0]}, medians)"
    gl.figures.titles(fig, ways, "they differ by rounding")
    return fig


def draw_gradients(axes: gl.Axes, data: xr.Dataset) -> None:
    """The gradient of each layer's weights by jax.grad (line) and by the product (marks)."""
    looks, num_layers = gl.figures.shades(data.sizes["sigma_w"]), data.sizes["layer"]
    for sigma_w, look in zip(data.sigma_w.values, looks, strict=True):
        row = data.sel(sigma_w=sigma_w)
        gl.figures.predicted(axes, data.layer, row.log10_by_jax)
        gl.figures.measured(axes, data.layer, row.log10_by_product, look)
        first, place = float(row.log10_by_jax[0]), {"xytext": (-6, 0), "ha": "right"}
        gl.figures.named(axes, 1, first, f"$\\sigma_w$ = {sigma_w:g}", "0.15", **place)
    axes.set(xlim=(1 - 0.3 * num_layers, None), xticks=[1, num_layers // 2, num_layers])
    axes.set(xlabel="layer k", ylabel=r"$\log_{10}\,|dL/d\theta_k|$")
    gl.figures.words(axes, 0.97, 0.03, "line: jax.grad\nmarks: product of Jacobians", ha="right")


def draw_differences(axes: gl.Axes, data: xr.Dataset) -> None:
    """The largest difference over networks by the number of factors, and both laws of rounding."""
    factors = data.sizes["layer"] - data.layer
    largest = data.difference.where(held(data)).max(("activation", "draw", "sigma_w"))
    looks = gl.figures.series(data.sizes["format"])
    for name, look in zip(data.format.values, looks, strict=True):
        gl.figures.measured(axes, factors, largest.sel(format=name), look, f"largest, {name}")
    laws = {"independent roundings": data.worst_case**0.5, "bound: all one way": data.worst_case}
    place = {"xytext": (0, 7), "ha": "right", "fontsize": 6.5}
    for text, law in laws.items():
        gl.figures.bound(axes, factors, law)
        gl.figures.named(axes, float(factors[0]), float(law[0]), text, "0.15", **place)
    axes.set(yscale="log", ylim=(0.1, None), ylabel="relative difference (eps)")
    axes.set_xlabel("Jacobians in the product, L - k")
    axes.legend(loc="lower right")


def caption(data: xr.Dataset) -> str:
    """What the figure shows, in numbers."""
    most, bound = float(data.difference.where(held(data)).max()), float(data.worst_case[0])
    return f"""In {data.sizes["layer"]}-layer networks on handwritten digits the product of
        Jacobians is jax.grad's gradient of every layer's weights: with every activation, in every
        format, they differ by at most {most:.0f} eps, where roundings that all point one way could
        make {bound:.0f}."""


def held(data: xr.Dataset) -> xr.DataArray:
    """Whether the format holds the gradient to its last digit, and so does not underflow."""
    return data.log10_by_jax > data.log10_smallest


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The largest difference, and what is left of a gradient in layer 1, in the last format."""
    largest, logs = data.difference.where(held(data)).max(), data.log10_by_product.isel(format=-1)
    yield gl.Headline("largest difference", largest, "eps")
    left = logs.isel(layer=0) - logs.isel(layer=-1)
    yield gl.headline.mean("gradient of layer 1 over the last", left, "decades")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The identity for the first layer, and for all; and the weights that it is about."""
    judged = held(data) | np.isnan(data.log10_by_jax)  # what is no number fails
    first = "the product of Jacobians is jax.grad's gradient of the first layer's weights"
    every = "with every activation, in every format, it is the gradient of every layer's weights"
    worst_case = {"rounding_of_every_sum_in_one_direction": data.worst_case * data.cancelled}
    cases = (first, judged & (data.layer == 1), PASCANU), (every, judged, GLOROT)
    for sentence, where, source in cases:
        if bool(where.any()):  # a gradient that underflows in every network cannot be judged
            held_to_0 = f"{sentence}, in eps", data.difference, 0.0, source
            yield gl.claim.everywhere(*held_to_0, where=where, **worst_case)
    if bool(judged.any()):
        sentence = "the square of each layer's gradient, entry by entry over its norm, is 1"
        rounding = 2 * (data.num_entries + 8) * data.eps  # of two sums: Higham 2002, section 3.1
        by_norm = sentence, data.unit, 1.0, "the norm's definition"
        yield gl.claim.everywhere(*by_norm, where=judged, rounding=rounding)
    drawn = data.entries.stack(sample=("draw", "part"))
    yield gl.claim.weights(drawn, "the normal law", variance=data.variance, over="sample")


FAULTS = {
    "one Jacobian left out": gl.fault.argument(
        "chain_rule.rows_through", J=lambda J: J.at[-1].set(jnp.eye(*J.shape[1:]).astype(J.dtype))
    ),
    "square Jacobians transposed": gl.fault.argument(
        "chain_rule.rows_through", J=lambda J: J.swapaxes(1, 2) if J.shape[1] == J.shape[2] else J
    ),
    "Jacobians 1 % off": gl.fault.argument("chain_rule.rows_through", J=lambda J: 1.01 * J),
    "weights 2 % too large": gl.fault.argument("networks.perceptron", sigma_w=lambda s: 1.02 * s),
    "layers taken at the wrong states": gl.fault.scale("chain.layer_inputs", 0.9),
    "uniform weights": gl.fault.argument("ensembles._affines", draw=lambda _: "uniform"),
    "norms of other layers": gl.fault.result("training.norms_by_layer", lambda n: jnp.roll(n, 1)),
    "one example taken for the batch": gl.fault.argument(
        "mean_over_batch", examples=lambda chains: jax.tree.map(lambda leaf: leaf[:1], chains)
    ),
}
GRADIENT = {"product is the gradient": "it is the gradient of every layer's weights"}
LESSON = gl.lesson.Offer(claims=GRADIENT)

if __name__ == "__main__":
    gl.run(__file__)
