"""What does a product of equal numbers do, and a real network's gradient after it?

A chain of L linear layers of one number each, the same w in all, has the derivative w^L (Pascanu,
Mikolov and Bengio 2013, section 2): a straight line on a log axis, which falls, stays or rises as
|w| is below, at or above 1. In a deep network that reads digits the root of chi_1 takes the place
of |w| (Schoenholz et al. 2017); a residual branch (He et al. 2016) keeps it near 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "the textbook"
# Of the source text: its numbers, and its limits carried so far that float64 cannot follow.
TEXTBOOK_W, TEXTBOOK_DEPTH = (0.9, 1.0, 1.1, -1.0), (50, 9_999, 10_000)
TEXTBOOK = "Pascanu, Mikolov and Bengio 2013, section 2"
MEAN_FIELD = "Schoenholz et al. 2017, section 4; for the width gradlab.theory.finite_width"
NETWORKS = ("vanishing", "critical", "exploding", "residual")
WIDTH = 64  # neurons in a layer: a digit has as many pixels


@gl.config
class Config:
    """The weights of the lines, and four networks as wide as a digit has pixels."""

    w: gl.Floats
    depth: int
    activation: str = gl.key("odd nonlinearity of the networks", choices=("tanh", "erf"))
    network_depth: int = gl.key("layers of the networks", at_least=2, at_most=1000)
    vanishing: float = gl.key("sigma_w of the network that vanishes", above=0, at_most=4)
    exploding: float = gl.key("sigma_w of the network that explodes", above=0, at_most=4)
    sigma_b: float
    factor: float = gl.key("factor of the branch in z + factor phi(W z + b)", above=0, at_most=1)
    num_draws: int = gl.key("draws of weights and a digit", at_least=2, at_most=10**5)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The products of Jacobians and w^L; the gradient in each layer of the networks and its law."""
    layers, textbook = gl.grid.depths(cfg.depth, 200, every=100), jnp.array(TEXTBOOK_W)
    log10_product, sign = jax.vmap(lambda w: product(w, layers))(cfg.w)
    log10_textbook, sign_textbook = jax.vmap(lambda w: product(w, TEXTBOOK_DEPTH))(textbook)
    back = gl.jacobians.log_gradient_norms, gl.chain_rule.log_norms_back
    log10 = gl.grid.over_draws(lambda k: networks(cfg, k, back[0]), key, cfg.num_draws) / gl.LN10
    literal = networks(cfg, jax.random.split(key, cfg.num_draws)[0], back[1])
    rounding = gl.chain_rule.rounding_back(log10[0] * gl.LN10, WIDTH, log10.dtype)
    log10_law, beyond = law(cfg)
    size, predicted = "log10 |J_L ... J_1|", gl.theory.scalar.log10_product(cfg.w[:, None], layers)
    at, relative = "network network_layer", "log10 |dL/dz_l|/|dL/dz_L|"
    return {
        "layer": gl.named(jnp.array(layers), "layer", long_name="depth L"),
        "w_textbook": gl.named(textbook, "w_textbook"),
        "depth_textbook": gl.named(jnp.array(TEXTBOOK_DEPTH), "depth_textbook"),
        "log10_product": gl.named(log10_product, "w layer", long_name=size),
        "sign": gl.named(sign, "w layer", long_name="sign of J_L ... J_1"),
        "log10_predicted": gl.named(predicted, "w layer", long_name="L log10|w|"),
        "log10_textbook": gl.named(log10_textbook, "w_textbook depth_textbook", long_name=size),
        "sign_textbook": gl.named(sign_textbook, "w_textbook depth_textbook"),
        "network": gl.named(list(NETWORKS), "network"),
        "sigma_w": gl.named(deviations(cfg), "network"),
        "network_layer": gl.named(jnp.arange(1, cfg.network_depth + 1), "network_layer"),
        "log10_gradient": gl.named(
            (log10 - log10[..., -1:])[..., 1:], "draw", at, long_name=relative
        ),
        "log10_first": gl.named(log10[0], "network state", long_name="log10 |dL/dz_l|, one draw"),
        "log10_literal": gl.named(literal.logs / gl.LN10, "network state", long_name="by all J_k"),
        "rounding": gl.named(rounding / gl.LN10, "network state", long_name="between the two"),
        "log10_law": gl.named(log10_law, at, long_name=relative + ", its mean by theory"),
        "log10_beyond": gl.named(beyond, at, long_name="the size of what that leaves out"),
    }


def product(w: jax.Array, layers: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`log10 |J_L ... J_1|` and its sign for each depth in `layers`, `(len(layers),)` each."""
    P = gl.chain_rule.products(gl.ensembles.scalar(w, max(layers)), jnp.ones(1)).products
    at = jnp.array(layers) - 1
    return gl.scaled.log_magnitude(P)[at, 0, 0] / gl.LN10, gl.scaled.sign(P)[at, 0, 0]


def deviations(cfg: Config) -> jax.Array:
    """sigma_w of each of `NETWORKS`, `(4,)`: the residual one has the weights of the vanishing."""
    edge = gl.theory.meanfield.sigma_w_critical(gl.activations.PHI[cfg.activation], cfg.sigma_b)
    return jnp.stack([cfg.vanishing, edge, cfg.exploding, cfg.vanishing])


def networks(cfg: Config, key: jax.Array, measure: Any) -> Any:
    """What `measure` gives of the four networks, of the same unit weights, stacked."""
    key_weights, key_read = jax.random.split(key)
    weights = key_weights, cfg.network_depth, WIDTH, gl.activations.PHI[cfg.activation]
    plain, bias, read = deviations(cfg)[:3], cfg.sigma_b, gl.training.one_read(key_read)
    found = jax.vmap(lambda s: measure(gl.ensembles.gaussian(*weights, s, bias), *read))(plain)
    skip = measure(gl.ensembles.residual(*weights, cfg.vanishing, bias, cfg.factor), *read)
    return jax.tree.map(lambda each, last: jnp.concatenate([each, last[None]]), found, skip)


def law(cfg: Config) -> tuple[jax.Array, jax.Array]:
    """The mean of the networks' log10 by theory, and what that leaves out, `(4, layers)` each."""
    theory, phi = gl.theory.finite_width, gl.activations.PHI[cfg.activation]
    (*plain, branch), bias, sizes = deviations(cfg), cfg.sigma_b, (WIDTH, cfg.network_depth)
    growths = [theory.plain(phi, s**2 + bias**2, s, bias, *sizes) for s in plain]
    skip = theory.residual_branch(phi, 1.0, branch, bias, cfg.factor, *sizes)
    # Of a branch that is not linear the first order in 1/width is known in size alone.
    growths.append(skip._replace(second=skip.second + jnp.abs(skip.first)))
    stack = jax.tree.map(lambda *each: jnp.stack(each) / gl.LN10, *map(theory.arriving, growths))
    return stack.infinite + stack.first, stack.second


def figure(data: xr.Dataset) -> gl.Figure:
    """The textbook's lines beside a network's gradient, on one axis and in the same colours."""
    fig, (lines, networks) = gl.figures.panels(1, 2, height=3.1, sharey=True)
    draw_lines(lines, data)
    draw_networks(networks, data)
    return fig


def draw_lines(axes: gl.Axes, data: xr.Dataset) -> None:
    """|w|^L as lines, products as marks on them, and the two printed numbers."""
    near = data.sel(layer=data.layer <= 100)
    marked = near.sel(layer=near.layer % 5 == 0)
    for w in near.w.values[near.w.values > 0]:  # the others have the same magnitude
        colour, marks = gl.figures.regime(w), 10.0 ** marked.log10_product.sel(w=w)
        look: dict[str, Any] = {"color": colour, "alpha": 1.0 if w in TEXTBOOK_W else 0.35}
        gl.figures.predicted(axes, near.layer, 10.0 ** near.log10_predicted.sel(w=w), **look)
        gl.figures.measured(axes, marked.layer, marks, look | {"marker": "o", "clip_on": True})
        end = min(100.0, 5.7 / max(abs(math.log10(w)), 1e-9))
        gl.figures.named(axes, end, w**end, f"w = {w:g}", colour, fontsize=6)
    for w, height in ((0.9, -14), (1.1, 12)):
        value = textbook(data, w)
        axes.plot(50, value, "o", color="0.1", markersize=7, fillstyle="none", zorder=4)
        text = f"${w:g}^{{50}}$ = {value:.{1 if value < 1 else 3}g}"
        gl.figures.named(axes, 50, value, text, "0.1", xytext=(-6, height), ha="right", fontsize=9)
    gl.figures.words(axes, 0.62, 0.555, "the knife edge", fontsize=9, style="italic", ha="center")
    gl.figures.regions(axes, 1e-6, 1e6)
    axes.set(xlim=(0, 100), xlabel="depth L", ylabel=r"size of the product $|J_L \cdots J_1|$")
    gl.figures.title(axes, "equal factors: products of Jacobians on $|w|^L$")


def draw_networks(axes: gl.Axes, data: xr.Dataset) -> None:
    """The gradient on its way back through each network, its spread over draws, and its law."""
    look, layer = gl.figures, data.network_layer
    colours = (*map(look.regime, (0, 1, 2)), look.COLOURS[3])
    look.regions(axes, 1e-6, 1e6)
    heights = ("center", "top", "center", "bottom")
    for name, colour, mark, va in zip(NETWORKS, colours, "osD^", heights, strict=True):
        row, seen = data.sel(network=name), {"color": colour, "marker": mark}
        look.predicted(axes, layer, 10.0**row.log10_law, color=colour)
        look.band(axes, layer, 10.0**row.log10_gradient, seen, share=0.5)
        text = f"{name}\n$\\sigma_w$ = {float(row.sigma_w):.2g}"
        look.named(axes, 1, float(10.0 ** row.log10_law[0]), text, colour, va=va)
    axes.set(xlim=(layer.size, 1), xlabel="layer l, from the last one back to the first")
    axes.set_xticks([*range(layer.size, 1, -max(1, layer.size // 5)), 1])
    axes.set_ylabel(r"gradient $|\partial L/\partial z_l|$ over the last layer's")
    look.title(axes, f"a {layer.size}-layer {data.attrs['activation']} network reads digits")


def textbook(data: xr.Dataset, w: float) -> float:
    """The measured w^50 of the source text."""
    return float(10.0 ** data.log10_textbook[TEXTBOOK_W.index(w), TEXTBOOK_DEPTH.index(50)])


def caption(data: xr.Dataset) -> str:
    """The message, with what was measured."""
    low, edge, high, skip = (f"{10.0**x:.1g}" for x in data.log10_gradient[:, :, 0].median("draw"))
    return f"""Fifty factors of 0.9 leave {textbook(data, 0.9):.3f} of a gradient and fifty of 1.1
        make it {textbook(data, 1.1):.0f} times as large; only at 1, the knife edge, does it stay.
        In {data.network_layer.size} layers that read digits the first one's gradient is {low} of
        the last one's with small weights, {high} with large ones, {edge} at the critical scale,
        and {skip} with a residual branch around the small ones (marks and bands: median and half
        of {data.draw.size} draws; lines: theory)."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The product of the first w at the full depth."""
    end = data.isel(w=0, layer=-1)
    yield gl.Headline("product, first w", end.log10_product, "decades", end.log10_predicted)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The source's numbers and limits, the line at every depth, and then the networks."""
    eps, depth, moves = float(np.finfo(data.log10_product.dtype).eps), data.layer, data.w != 0
    for w, printed, digit in ((0.9, 0.00515378, 5e-9), (1.1, 117.391, 5e-4)):
        value = textbook(data, w)
        # 50 products, and the log and its inverse, which have some ulps of ln value each.
        allowed = {"digits printed": digit, "rounding": 100 * eps * value}
        yield gl.Claim(f"{w:g}^50 is {printed:g}", value, printed, allowed, TEXTBOOK)
    (below, one, above, _), held = data.log10_textbook[:, -1], "anything float64 can hold, in log10"
    sentence = f"0.9^L tends to 0: at L = 10^4 it is below {held}"
    yield gl.claim.at_most(sentence, below, math.log10(math.ulp(0.0)), TEXTBOOK)
    yield gl.claim.equal("1^L tends to 1: at L = 10^4 log10 of it is 0", one, 0.0, TEXTBOOK)
    sentence = f"1.1^L tends to infinity: at L = 10^4 it is above {held}"
    yield gl.claim.at_least(sentence, above, math.log10(np.finfo(float).max), TEXTBOOK)
    odd, even = data.sign_textbook[3, 1:]
    sentence = "(-1)^L has no limit: from L = 9999 to L = 10^4 it goes from -1 to 1"
    yield gl.claim.equal(sentence, even - odd, 2.0, TEXTBOOK)
    yield gl.claim.equal("its sign is sign(w)^L", data.sign, np.sign(data.w) ** depth, TEXTBOOK)
    yield gl.claim.everywhere(
        "log10 of the product of Jacobians is L log10|w| at every depth and w",
        *(data.log10_product, data.log10_predicted, TEXTBOOK),
        # Half an eps of each of L products; the log and the law have a few of their own size, or
        # of 1 where the log of the mantissa cancels that of the exponent. (At 0 it is exact.)
        rounding_of_products=eps * depth / (2 * gl.LN10),
        rounding_of_logs=4 * eps * (1 + abs(data.log10_predicted.where(moves, 0))),
    )
    yield gl.claim.mean(
        "the log gradient of every layer of every network is what theory predicts",
        *(data.log10_gradient, data.log10_law, MEAN_FIELD),
        beyond_the_law=data.log10_beyond,
    )
    sentence = "in each network the gradient in every state is the product of all J_k behind it"
    ways = data.log10_first, data.log10_literal
    yield gl.claim.everywhere(sentence, *ways, TEXTBOOK, rounding=data.rounding)


FAULTS = {
    "weights 1 % too large": gl.fault.argument("ensembles.scalar", w=lambda w: 1.01 * w),
    "weights inverted": gl.fault.argument("ensembles.scalar", w=lambda w: 1 / w),
    "weights negated": gl.fault.argument("ensembles.scalar", w=lambda w: -w),
    "networks 3 % off": gl.fault.argument("ensembles.gaussian", sigma_w=lambda s: 1.03 * s),
    "residual branch dropped": gl.fault.argument("ensembles.residual", factor=lambda f: 0.0 * f),
    "a gradient a layer too early": gl.fault.result(
        "jacobians.log_gradient_norms", lambda logs: jnp.roll(logs, 1)
    ),
    "read backwards": gl.fault.result("jacobians.log_gradient_norms", lambda logs: logs[::-1]),
}
LESSON = gl.lesson.Offer(
    numbers={
        "textbook depth": gl.lesson.at("depth_textbook", depth_textbook=50),
        "weight below one": gl.lesson.at("w_textbook", w_textbook=0.9),
        "weight above one": gl.lesson.at("w_textbook", w_textbook=1.1),
        "left below one": gl.lesson.at("log10_textbook", w_textbook=0.9, depth_textbook=50),
        "grown above one": gl.lesson.at("log10_textbook", w_textbook=1.1, depth_textbook=50),
    },
    claims={
        "left below one": "0.9^50",
        "grown above one": "1.1^50",
        "limit below one": "0.9^L tends",
        "limit at one": "1^L tends to 1",
        "limit above one": "1.1^L tends",
        "no limit at minus one": "(-1)^L",
        **dict.fromkeys(("slope below one", "slope above one"), "is L log10|w|"),
    },
)


if __name__ == "__main__":
    gl.run(__file__)
