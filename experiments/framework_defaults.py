"""What do the default weights of Flax, Haiku, Equinox and PyTorch do to a deep network's gradient?

A dense layer that nobody initialises is drawn from its library's default, and no two agree: n Var W
is 1 in Flax (linen and nnx: lecun_normal), 0.774 in Haiku (the same, its cut at two deviations not
corrected), 1/3 in Equinox and in PyTorch (kaiming_uniform with a = √5 is uniform in ±1/√n; so are
the biases). A layer multiplies the mean squared gradient by n Var W E phi'(h)², taken here along
the real lengths of h, biases included (Schoenholz et al. 2017, arXiv:1611.01232, section 4); the
verdict is theirs, figure 5: six depth scales, so that a norm may change e^3 times. A default that
the tests do not hold against its library is marked as a model of its source.

Answers: pytorch linear default init kaiming_uniform a=sqrt(5) why (pytorch/pytorch issue 15314);
flax Dense default init relu gain; haiku truncated normal not corrected; equinox Linear init.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
DRAWN = "the libraries' sources, by version in gradlab.models.initialisers"
GRADIENT = "Schoenholz et al. 2017, section 4, along the real lengths; gradlab.theory.finite_width"
SPREAD = "Hanin and Nica 2020; gradlab.theory.products"
RULE = "Schoenholz et al. 2017, figure 5: six depth scales"


@gl.config
class Config:
    """The libraries, the activations, and the layers that a gradient goes back through."""

    library: gl.Strings = gl.key("whose defaults", choices=("Flax", "Haiku", "Equinox", "PyTorch"))
    activation: gl.Strings
    depth: gl.Ints = gl.key("number of layers gone back through", at_least=1, at_most=1000)
    width: int = gl.key("number of neurons in a layer", at_least=16, at_most=2**12)
    num_draws: int = gl.key("draws of weights, input and loss", at_least=8, at_most=10**5)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The realised variances, and what is left of the gradient with its laws, by library."""
    key_draws, key_few = jax.random.split(key)
    entries, left = gl.grid.over_draws(lambda key: one(cfg, key), key_draws, cfg.num_draws)
    sizes = cfg.width, max(cfg.depth)
    drawn = [partial(network, cfg, gl.activations.PHI[name]) for name in cfg.activation]
    few = [gl.certificate.of_few_layers(key_few, each, *sizes) for each in drawn]
    ways = jax.tree.map(lambda *rows: jnp.stack(rows), *few)._asdict()
    laws = [law(cfg, gl.activations.PHI[name]) for name in cfg.activation]
    by_library = "library activation depth"
    gain, expected, beyond = (jnp.stack(part, 1) for part in zip(*laws, strict=True))
    defaults = [gl.initialisers.DEFAULTS[name] for name in cfg.library]
    spread = gl.theory.products.relu_log_variance(cfg.width) * jnp.array(cfg.depth)
    variance = jnp.array([(each.variance, each.bias_variance) for each in defaults])
    excess = jnp.array([(each.excess, gl.initialisers.UNIFORM_EXCESS) for each in defaults])
    return {
        "library": gl.named(list(cfg.library), "library"),
        "known": gl.named(["held" if each.held else "model" for each in defaults], "library"),
        "parameter": gl.named(["weights", "biases"], "parameter"),
        "entries": gl.named(entries, "draw library parameter moment", long_name="of √n W, √n b"),
        "variance": gl.named(variance, "library parameter", long_name="n Var by the source"),
        "excess": gl.named(excess, "library parameter", long_name="their excess kurtosis"),
        "log_left": gl.named(left, f"draw {by_library}", long_name="log of |dL/dz_0| / |dL/dz_k|"),
        "log_left_law": gl.named(expected, by_library, units="nats"),
        "log_left_beyond": gl.named(beyond, by_library, long_name="what the law leaves out"),
        **{way: gl.named(logs, "activation of layer", units="nats") for way, logs in ways.items()},
        "gain": gl.named(gain, by_library, long_name="factor of the mean squared gradient there"),
        "most": gl.named(jnp.asarray(gl.theory.meanfield.DEPTH_SCALES / 2), "", units="nats"),
        "spread_law": gl.named(jnp.sqrt(spread / 4), "depth", long_name="its deviation, of relu"),
    }


def one(cfg: Config, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moments, `(library, 2, 6)`, and logs, `(library, activation, depth)`, of one draw."""
    key_input, key_loss, *keys = jax.random.split(key, 2 + len(cfg.library))
    deepest, n = max(cfg.depth), cfg.width
    x = gl.ensembles.inputs(key_input, n, 1.0)
    v = jax.random.normal(key_loss, (n,))
    drawn = [
        gl.initialisers.affines(key, deepest, n, n, library)
        for key, library in zip(keys, cfg.library, strict=True)
    ]
    params = jax.tree.map(lambda *parts: jnp.stack(parts), *drawn)
    both = params.W, n**0.5 * params.b[..., None]
    entries = [jax.vmap(gl.ensembles.realised)(part) for part in both]

    def left(name: str) -> jax.Array:
        layer = gl.ensembles.plain_layer(gl.activations.PHI[name])

        def logs(params: gl.ensembles.Affine) -> jax.Array:
            model = gl.chain.Chain(layer, params)
            norms = gl.jacobians.log_gradient_norms(model, x, lambda z: v @ z)
            return norms[0] - norms[jnp.array(cfg.depth)]

        return jax.lax.map(logs, params)

    return jnp.stack(entries, 1), jnp.stack([left(name) for name in cfg.activation], 1)


def network(cfg: Config, phi: Any, key: jax.Array, depth: int) -> gl.chain.Chain:
    """A chain with the weights of the first library."""
    return gl.initialisers.chain(key, depth, cfg.width, phi, cfg.library[0])


def law(cfg: Config, phi: gl.activations.Activation) -> tuple[jax.Array, ...]:
    """Gains, logs of what is left and what they leave out, `(library, depth)` each."""
    scales = jnp.array([gl.initialisers.deviations(name, cfg.width) for name in cfg.library])
    excess = jnp.array([gl.initialisers.DEFAULTS[name].excess for name in cfg.library])
    left, sizes = gl.theory.finite_width.left_of_gradient, (cfg.width, max(cfg.depth))
    laws = jax.lax.map(lambda given: left(phi, *given, *sizes), (*scales.T, excess))
    return tuple(law[:, jnp.array(cfg.depth) - 1] for law in laws)


def verdict(log_left: xr.DataArray, most: xr.DataArray) -> xr.DataArray:
    """-1 where a gradient vanishes, 1 where it explodes, 0 where it is kept."""
    sign: xr.DataArray = xr.apply_ufunc(np.sign, log_left)
    return sign * (np.abs(log_left) > most)


def figure(data: xr.Dataset) -> gl.Figure:
    """What is left of the gradient, as a table for each of two depths, and a layer's factor."""
    depths = data.depth.values[[0, -1]] if data.sizes["depth"] > 1 else data.depth.values
    wide = [1.3] * len(depths) + [1.0]
    fig, (*tables, factor) = gl.figures.panels(1, len(wide), height=3.3, width_ratios=wide)
    for axes, depth in zip(tables, depths, strict=True):
        table(axes, data.sel(depth=depth))
        gl.figures.title(axes, f"decades left behind {depth:g} layers")
        axes.set(xlabel="library", ylabel="activation" if axes is tables[0] else " ")
    factors(factor, data.isel(depth=-1))
    gl.figures.title(factor, "a layer's factor")
    names = data.activation.values
    for axes in fig.axes:
        told = names if axes in tables else [""] * names.size
        axes.set(ylim=(names.size - 0.5, -0.5), yticks=range(names.size), yticklabels=told)
        axes.tick_params("y", length=0)
    return fig


def table(axes: gl.Axes, row: xr.Dataset) -> None:
    """The mean and the deviation over draws in decades, in the colour of the verdict."""
    colours = {-1: gl.figures.VANISHING, 0: "1.0", 1: gl.figures.EXPLODING}
    judged = verdict(row.log_left.mean("draw"), row.most)
    seen, spread = row.log_left.mean("draw") / gl.LN10, row.log_left.std("draw", ddof=1) / gl.LN10
    for (i, j), decades in np.ndenumerate(seen.values):
        told = int(judged[i, j])
        strength = 0.15 + 0.55 * min(1.0, abs(decades) / 30) if told else 0.0
        look: dict[str, Any] = {"color": colours[told], "alpha": strength, "linewidth": 0}
        axes.fill_between([i - 0.5, i + 0.5], j - 0.5, j + 0.5, **look)
        look = {"fontweight": "normal" if told else "bold", "fontsize": 5.6}
        text = f"{decades:+z.1f} ± {float(spread[i, j]):.1f}"
        axes.text(i, j, text, ha="center", va="center", **look)
    model = np.where(row.known == "model", "\n(model)", "").tolist()
    names = [f"{name}{mark}" for name, mark in zip(row.library.values, model, strict=True)]
    axes.set(xlim=(-0.5, len(names) - 0.5), xticks=range(len(names)), xticklabels=names)
    axes.tick_params("x", length=0)


def factors(axes: gl.Axes, row: xr.Dataset) -> None:
    """The geometric mean of a layer's factor of the norm, by activation, with its law."""
    steps = np.linspace(-0.27, 0.27, row.sizes["library"])
    looks = gl.figures.series(row.sizes["library"])
    for look, name, step in zip(looks, row.library.values, steps, strict=True):
        one, at = row.sel(library=name), np.arange(row.sizes["activation"]) + step
        seen, law = np.exp(one.log_left / row.depth), np.exp(one.log_left_law / row.depth)
        axes.hlines(at, seen.min("draw"), seen.max("draw"), color=look["color"], alpha=0.4)
        axes.plot(seen.median("draw"), at, **look | {"linestyle": "none"}, label=name)
        axes.plot(law, at, "|", color="0.1", markersize=6, zorder=3)
    gl.figures.rule(axes, x=1.0)
    axes.set(xlabel="factor of |dL/dz|; black: law", ylabel=" ")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def caption(data: xr.Dataset) -> str:
    """What is left behind the deepest, with the verdicts counted."""
    row = data.isel(depth=-1)
    told = verdict(row.log_left.mean("draw"), row.most)
    flat = told.stack(at=("library", "activation"))
    kept = ", ".join(f"{phi} in {library}" for library, phi in flat.at.values[flat.values == 0])
    return f"""Decades of the gradient's norm that are left behind random layers of
        {data.attrs["width"]} units with each library's default weights, mean ± deviation of
        {data.sizes["draw"]} draws; tinted where the norm changes more than
        e^{float(data.most):g} times. Through {int(row.depth)} layers {int((told == -1).sum())} of
        {told.size} vanish; kept: {kept or "none"}. Black ticks: the law."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What is left behind the fewest layers of the first activation, by library."""
    first = data.isel(activation=0, depth=0)
    phi, depth = str(first.activation.values), int(first.depth)
    for name in data.library.values[: gl.headline.MOST]:
        row = first.sel(library=name)
        seen, law = row.log_left / gl.LN10, float(row.log_left_law) / gl.LN10
        yield gl.headline.mean(f"left, {name}, {phi}, {depth} layers", seen, "decades", law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The variances, what is left, its spread for relu, and the verdicts."""
    # Once in 2^width times a relu layer is off and there is no log: the law is of the others.
    data = data.isel(draw=np.isfinite(data.log_left).all(("library", "activation", "depth")).values)
    eps = float(np.finfo(data.log_left.dtype).eps)
    yield gl.claim.weights(data.entries, DRAWN, variance=data.variance, excess=data.excess)
    yield gl.claim.mean(
        "a layer multiplies the gradient by the root of n Var W E phi'(h)², in log, everywhere",
        *(data.log_left, data.log_left_law, GRADIENT),
        beyond_the_law=data.log_left_beyond,
        rounding=data.attrs["width"] * eps * data.depth,
    )
    if "relu" in data.activation:
        # One depth: the others are on the way to it.
        row = data.sel(activation="relu").isel(depth=-1)
        scores = (row.log_left - row.log_left_law) / row.spread_law
        spread = "relu's log gradient spreads over draws as 5/(4n) a layer"
        yield gl.claim.chi_squared(spread, scores, SPREAD)
    sentence = "a gradient and two norms, at each of a few layers, are those of J_k multiplied out"
    ways = data.fast, data.literal, GRADIENT
    yield gl.claim.everywhere(sentence, *ways, rounding=data.rounding)
    seen, num = data.log_left.mean("draw"), data.sizes["draw"]
    error = gl.estimate.Sampling(data.log_left.std("draw", ddof=1) / num**0.5, num)
    unsure = error.amount(seen.size) + data.log_left_beyond
    sure = np.abs(np.abs(data.log_left_law) - data.most) > unsure
    if sure.any():
        yield gl.claim.everywhere(
            "wherever the law says that a gradient vanishes, is kept or explodes, it does",
            *(verdict(seen, data.most), verdict(data.log_left_law, data.most), RULE),
            where=sure,
            chance=error.chance,
        )


FAULTS = {
    "all from Flax's": gl.fault.argument("initialisers.affines", library=lambda _: "Flax"),
    "biases dropped": gl.fault.result("initialisers.affines", lambda a: a._replace(b=0 * a.b)),
    "3 % too large": gl.fault.result("initialisers.affines", lambda a: a._replace(W=1.03 * a.W)),
    "logs 1 % too large": gl.fault.scale("jacobians.log_gradient_norms", 1.01),
    "read backwards": gl.fault.result("jacobians.log_gradient_norms", lambda logs: logs[::-1]),
}
HARMLESS = {
    "a Jacobian transposed": "independent weights are as likely as their transpose",
    "the loss halved": "what is left is a ratio of gradients",
    "computed in another format": "a rounding is far below the error of the sampling",
}


if __name__ == "__main__":
    gl.run(__file__)
