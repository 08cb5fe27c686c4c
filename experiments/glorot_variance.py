"""Why do signal and gradient fade in a tanh network drawn the old way, and what does Xavier keep?

Glorot and Bengio 2010 (AISTATS, PMLR 9:249; no arXiv number), equations 1 and 16: five hidden tanh
layers of 1000 units, weights uniform in ±1/√n, so that n Var W = 1/3, or normalised, n Var W = 1.
Their histograms of activations and of back-propagated gradients by layer are drawn again here (the
figures' numbers, 6 and 7, were not read; from a second source), and with them the law: n Var W a
layer is the estimate of a linear network; the layer's real factor is n Var W E tanh'(h)².

Answers: xavier init tanh gradients still vanish; activations shrink layer by layer std 0.5;
uniform -1/sqrt(n) default init gain 1/3; histogram of activations per layer; tanh gain 5/3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
GLOROT = "Glorot and Bengio 2010, equations 5 to 12: n Var W, in the linear regime"
LENGTHS = "Poole et al. 2016, equation 3; for the width gradlab.theory.finite_width"
GRADIENT = "Schoenholz et al. 2017, section 4, along the real lengths; gradlab.theory.finite_width"
COUNT = "direct computation"
EXCESS = -6 / 5  # the excess kurtosis of a uniform number
REACH = 3.0  # the histograms of gradients reach so many rms of the last layer's


@gl.config
class Config:
    """The two ways to draw, by their n Var W."""

    activation: str = gl.key("odd, slope 1 at 0 and less beyond", choices=("tanh", "softsign"))
    variance: gl.Floats = gl.key("n Var W, 1/3 of the standard way", above=0, at_most=100)
    depth: int = gl.key("number of hidden layers", at_least=2, at_most=1000)
    width: int
    num_draws: int = gl.key(
        "draws of weights, of an input and of a loss", at_least=8, at_most=10**5
    )
    num_bins: int = gl.key("bins of each histogram", at_least=8, at_most=1000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """What a layer's neurons and their gradients are, and the laws of both sizes."""
    sigma_w = jnp.sqrt(cfg.variance)

    def one(key: jax.Array) -> tuple[jax.Array, ...]:  # the same unit weights for both
        return jax.lax.map(lambda sigma_w: network(key, cfg, sigma_w), sigma_w)

    square, log_gradient, log_row, drawn, *counts = gl.grid.over_draws(one, key, cfg.num_draws)
    densities = [jnp.sum(count, 0) / (cfg.num_draws * cfg.width) for count in counts]
    length, added, growth, beyond = jax.lax.map(lambda sigma_w: laws(cfg, sigma_w), sigma_w)
    by_draw, by_layer, binned = "draw variance layer", "variance layer", "variance layer bin"
    relative = "log |dL/dh_l| / |dL/dh_L|"
    middles = (jnp.arange(cfg.num_bins) + 0.5) / cfg.num_bins * 2 - 1
    linear = jnp.log(cfg.variance)[:, None] / 2 * jnp.arange(cfg.depth)[::-1]
    return {
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="hidden layer"),
        "bin": gl.named(middles, "bin", long_name="of the histogram's reach"),
        "entries": gl.named(drawn, "draw variance moment", long_name="moments of W √n"),
        "activations": gl.named(densities[0], binned, long_name="share of the neurons"),
        "gradients": gl.named(densities[1], binned, long_name="share of the gradient's entries"),
        "square": gl.named(square, by_draw, long_name="mean square of a layer's neurons"),
        "square_law": gl.named((length + added)[:, 1:] / cfg.variance[:, None], by_layer),
        "square_added": gl.named(added[:, 1:] / cfg.variance[:, None], by_layer),
        "log_gradient": gl.named(log_gradient, by_draw, long_name=relative, units="nats"),
        "log_row": gl.named(log_row, by_draw, long_name="the same, of the rows drawn"),
        "log_gradient_law": gl.named(growth, by_layer, units="nats"),
        "log_gradient_beyond": gl.named(beyond, by_layer, long_name="what the law leaves out"),
        "log_gradient_linear": gl.named(linear, by_layer, long_name="by n Var W alone"),
    }


def network(key: jax.Array, cfg: Config, sigma_w: jax.Array) -> tuple[jax.Array, ...]:
    """Mean squares, log gradients twice, the weights, and two histograms by layer: one network."""
    key_input, key_first, key_later, key_loss = jax.random.split(key, 4)
    phi, linear = gl.activations.PHI[cfg.activation], gl.activations.PHI["linear"]
    x, v = (jax.random.normal(key, (cfg.width,)) for key in (key_input, key_loss))
    drawn = cfg.width, *(linear, sigma_w, 0.0)
    first = gl.ensembles.random(key_first, 1, *drawn, draw="uniform", layer="plain")
    h_1 = first(x / jnp.sqrt(jnp.mean(x * x)))
    sizes = cfg.depth - 1, cfg.width, phi, sigma_w, 0.0
    later = gl.ensembles.random(key_later, *sizes, draw="uniform", layer="preactivation")
    h, norms = (
        gl.chain.states(later, h_1),
        gl.jacobians.log_gradient_norms(later, h_1, lambda h: v @ phi(h)),
    )
    rows = backwards(later, h, jax.grad(lambda h: v @ phi(h))(h[-1]))
    logs = jnp.log(jnp.mean(rows * rows, axis=1)) / 2
    scaled = rows / jnp.exp(logs[-1])
    histograms = counted(phi(h), 1.0, cfg.num_bins), counted(scaled, REACH, cfg.num_bins)
    W = jnp.concatenate([first.params.W, later.params.W])
    squares = jnp.mean(phi(h) ** 2, axis=1)
    return squares, norms - norms[-1], logs - logs[-1], gl.ensembles.realised(W), *histograms


def backwards(later: gl.chain.Chain, h: jax.Array, row: jax.Array) -> jax.Array:
    """The gradient of every layer's h, by backpropagation as it is written, `(depth, width)`."""

    def step(row: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        params, z = at
        before = jax.vjp(lambda z: later.layer(params, z), z)[1](row)[0]
        return before, before

    rows = jax.lax.scan(step, row, (later.params, h[:-1]), reverse=True)[1]
    return jnp.concatenate([rows, row[None]])


def counted(values: jax.Array, reach: float, num_bins: int) -> jax.Array:
    """How many entries of each row fall into each of the bins from -reach to reach."""
    at = jnp.floor((values / reach + 1) / 2 * num_bins).astype(int)
    return jax.vmap(lambda at: jnp.zeros(num_bins).at[at].add(1.0, mode="drop"))(
        jnp.where(at < 0, num_bins, at)
    )


def laws(cfg: Config, sigma_w: jax.Array) -> tuple[jax.Array, ...]:
    """The lengths q and what the width adds; the log gradient and what is left out."""
    theory, phi, q_1 = gl.theory.finite_width, gl.activations.PHI[cfg.activation], sigma_w**2
    at, depth = (phi, q_1, sigma_w, 0.0, cfg.width), cfg.depth
    q, added = theory.mean_lengths(*at, depth + 1, EXCESS)
    growth = theory.plain(*at, depth)

    def back(layers: jax.Array) -> jax.Array:  # dL/dh_l has come through the slopes of l to L - 1
        return jnp.cumsum(layers[::-1])[::-1] - layers[-1]

    # Uniform weights move q by less than `added`; and dL/dh_L knows the slopes of its own layer,
    # which is of the order of what one layer's width does.
    chi = [gl.theory.meanfield.chi(phi, q + moved, sigma_w)[:depth] for moved in (0.0, added)]
    end = jnp.abs(growth.first[-1]) * (jnp.arange(depth) < depth - 1)
    beyond = back(growth.second + jnp.abs(jnp.log(chi[1] / chi[0])) / 2) + end
    return q, added, back(growth.infinite + growth.first), beyond


def figure(data: xr.Dataset) -> gl.Figure:
    """Activations and gradients by layer, as histograms, and both sizes with their laws."""
    fig, (neurons, gradients, sizes) = gl.figures.panels(1, 3, height=3.1)
    looks = list(gl.figures.series(data.sizes["variance"]))
    for axes, name, reach in ((neurons, "activations", 1.0), (gradients, "gradients", REACH)):
        ridges(axes, data[name], reach * data.bin, looks)
    for look, value in zip(looks, data.variance.values, strict=True):
        row, colour = data.sel(variance=value), look["color"]
        filled, hollow = look | {"marker": "o"}, look | {"marker": "s", "fillstyle": "none"}
        gl.figures.band(sizes, data.layer, np.sqrt(row.square), filled)
        gl.figures.band(sizes, data.layer, np.exp(row.log_gradient), hollow)
        gl.figures.predicted(sizes, data.layer, np.sqrt(row.square_law))
        gl.figures.predicted(sizes, data.layer, np.exp(row.log_gradient_law))
        gl.figures.bound(sizes, data.layer, np.exp(row.log_gradient_linear), color=colour)
        at = len(looks) - list(data.variance.values).index(value)
        gl.figures.words(sizes, 0.3, 0.02 + 0.07 * at, f"n Var W = {value:.3g}", color=colour)
    grey = {"color": "0.4", "linestyle": "none"}
    marks = {
        "activations, rms": grey | {"marker": "o"},
        "gradient over the last": grey | {"marker": "s", "fillstyle": "none"},
        "laws": gl.figures.THEORY,
        "gradient by n Var W": gl.figures.LIMIT,
    }
    gl.figures.key(sizes, marks, loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=2)
    neurons.set(xlabel="activation", ylabel="hidden layer")
    gradients.set(xlabel="gradient, over the last layer's rms", ylabel=" ")
    sizes.set(yscale="log", xlabel="hidden layer", ylabel="size")
    gl.figures.titles(fig, "what goes forward", "what comes back", "both, with their laws")
    return fig


def ridges(axes: gl.Axes, shares: xr.DataArray, at: xr.DataArray, looks: list[Any]) -> None:
    """A histogram for each layer, the first on top, each as high as the layers are apart."""
    for look, rows in zip(looks, shares, strict=True):
        for layer, row in zip(shares.layer.values, rows, strict=True):
            height = layer - 0.85 * row / row.max()
            axes.fill_between(at, layer, height, color=look["color"], alpha=0.25, linewidth=0)
            axes.plot(at, height, color=look["color"], linestyle=look["linestyle"], linewidth=0.9)
    axes.set(ylim=(float(shares.layer[-1]) + 0.15, 0), yticks=shares.layer.values)


def caption(data: xr.Dataset) -> str:
    """What is left at layer 1, measured, by the law and by the usual estimate."""
    first = data.isel(layer=0)
    rows = [
        f"n Var W = {value:.3g}: {float(np.exp(row.log_gradient.mean())):.3f} of the gradient is "
        f"left (n Var W alone says {float(np.exp(row.log_gradient_linear)):.3f})"
        for value, row in ((value, first.sel(variance=value)) for value in data.variance.values)
    ]
    return f"""Through {data.attrs["depth"]} hidden {data.attrs["activation"]} layers of
        {data.attrs["width"]} units, {"; ".join(rows)}. Black lines: laws; bands: all
        {data.sizes["draw"]} draws; each histogram is scaled to its own height."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What is left of the gradient at layer 1, log10, for every n Var W."""
    for value in data.variance.values[: gl.headline.MOST]:
        row = data.sel(variance=value).isel(layer=0) / gl.LN10
        law = row.log_gradient_law
        yield gl.headline.mean(f"left, n Var W = {value:.3g}", row.log_gradient, "decades", law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The weights, the two laws, where the usual estimate ends, and the histograms' gradients."""
    yield gl.claim.weights(data.entries, GLOROT, variance=data.variance, excess=EXCESS)
    yield gl.claim.mean(
        "the mean square of a layer's activations follows its recursion, for every n Var W",
        *(data.square, data.square_law, LENGTHS),
        beyond_the_law=data.square_added**2 / data.square_law,
    )
    back = data.isel(layer=slice(0, -1))
    yield gl.claim.mean(
        "a layer multiplies the gradient by the root of n Var W E phi'(h)², in log",
        *(back.log_gradient, back.log_gradient_law, GRADIENT),
        finite_width=back.log_gradient_beyond,
    )
    yield gl.claim.mean(
        "n Var W alone promises more of the gradient than arrives: it holds of linear layers",
        *(back.log_gradient, back.log_gradient_linear, GLOROT),
        relation="<=",
    )
    eps = float(np.finfo(data.log_row.dtype).eps)
    yield gl.claim.everywhere(
        "the gradients in the histograms have those norms",
        *(data.log_row, data.log_gradient, "Rumelhart, Hinton and Williams 1986"),
        # n eps a product of a matrix and a row, relative to |W| |row| (Higham 2002, section 3.5).
        rounding=data.attrs["width"] ** 1.5 * eps * (data.attrs["depth"] - data.layer + 1),
    )
    squares = {"activations": data.square, "gradients": np.exp(2 * data.log_row) / REACH**2}
    for name, square in squares.items():
        share, x, half = data[name], np.abs(data.bin), 1 / data.attrs["num_bins"]
        rounding, told = data.sizes["draw"] * data.attrs["width"] * eps, f"histogram of {name}"
        sentence, total = f"{told}: it holds no more than all of a layer", share.sum("bin")
        yield gl.claim.at_most(sentence, total, 1.0, COUNT, rounding=rounding)
        # What it leaves out is beyond its edge, 1; the rest is within half a bin of its bin's x.
        least = (share * x**2).sum("bin") + 1 - total
        causes = {"half_a_bin": half * (2 * (share * x).sum("bin") + half), "rounding": rounding}
        sentence = f"{told}: its squares and those beyond its edge are no more than all"
        yield gl.claim.at_most(sentence, least, square.mean("draw"), COUNT, **causes)


FAULTS = {
    "normal for uniform weights of twice the variance": gl.fault.argument(
        "ensembles.random", draw=lambda _: "gaussian", sigma_w=lambda s: 2**0.5 * s
    ),
    "weights 3 % too large": gl.fault.argument("ensembles.random", sigma_w=lambda s: 1.03 * s),
    "read backwards": gl.fault.result("jacobians.log_gradient_norms", lambda logs: logs[::-1]),
    "histograms 10 % too large": gl.fault.scale("counted", 1.1),
    "histograms a layer too late": gl.fault.result("counted", lambda n: jnp.roll(n, 1, 0)),
    "a gradient a layer too early": gl.fault.result("backwards", lambda rows: jnp.roll(rows, 1, 0)),
}
HARMLESS = {"the loss halved": "what is left of a gradient is a ratio"}

if __name__ == "__main__":
    gl.run(__file__)
