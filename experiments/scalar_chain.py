"""What does a product of equal numbers do, and a real network's gradient after it?

A chain of L linear layers of one number each, the same w in all, has the derivative w^L (Pascanu,
Mikolov and Bengio 2013, section 2): a straight line on a log axis, which falls, stays or rises as
|w| is below, at or above 1. In a deep network that reads digits the root of chi_1 takes the place
of |w| (Schoenholz et al. 2017); a residual branch (He et al. 2016) keeps it near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

# The numbers of the source text, which stay whatever the configuration: 0.9^50 and 1.1^50, and the
# limits, carried so far that float64 itself cannot follow.
TEXTBOOK_W, TEXTBOOK_DEPTH = (0.9, 1.0, 1.1, -1.0), (50, 9_999, 10_000)
TEXTBOOK = "Pascanu, Mikolov and Bengio 2013, section 2"
MEAN_FIELD = "Schoenholz et al. 2017, section 4; Hanin and Nica 2020"
NETWORKS = ("vanishing", "critical", "exploding", "residual")


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
    batch_size: int
    num_draws: int = gl.key("independent draws of weights and digits", at_least=2, at_most=10**4)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The products of Jacobians and w^L; the gradient in each layer of the networks and its law."""
    layers, textbook = gl.grid.depths(cfg.depth, 200, every=100), jnp.array(TEXTBOOK_W)
    log10_product, sign = jax.vmap(lambda w: product(w, layers))(cfg.w)
    log10_textbook, sign_textbook = jax.vmap(lambda w: product(w, TEXTBOOK_DEPTH))(textbook)
    log10_gradient, off_jax, off_fast = gl.grid.over_draws(
        lambda key: gradients(cfg, key), key, cfg.num_draws
    )
    log10_law, next_order = law(cfg)
    scalar, size = gl.theory.scalar, "log10 |J_L ... J_1|"
    predicted = scalar.log10_product(cfg.w[:, None], jnp.array(layers))
    axes, relative = "network network_layer", "log10 |dL/dz_l|/|dL/dz_L|"
    return {
        "layer": gl.named(jnp.array(layers), "layer", long_name="depth L"),
        "w_textbook": gl.named(textbook, "w_textbook"),
        "depth_textbook": gl.named(jnp.array(TEXTBOOK_DEPTH), "depth_textbook"),
        "log10_product": gl.named(log10_product, "w layer", long_name=size),
        "sign": gl.named(sign, "w layer", long_name="sign of J_L ... J_1"),
        "log10_predicted": gl.named(predicted, "w layer", long_name="L log10|w|"),
        "log10_textbook": gl.named(log10_textbook, "w_textbook depth_textbook", long_name=size),
        "sign_textbook": gl.named(sign_textbook, "w_textbook depth_textbook"),
        "derivative": gl.named(jax.vmap(shared_derivative)(cfg.w), "w", long_name="dz_50/dw"),
        "derivative_predicted": gl.named(scalar.derivative(cfg.w, 50, 1.0), "w"),
        "network": gl.named(list(NETWORKS), "network"),
        "sigma_w": gl.named(deviations(cfg), "network"),
        "network_layer": gl.named(jnp.arange(1, cfg.network_depth + 1), "network_layer"),
        "log10_gradient": gl.named(log10_gradient, "draw", axes, long_name=relative),
        "log10_law": gl.named(log10_law, axes, long_name=relative + " in mean field theory"),
        "next_order": gl.named(next_order, axes, long_name="in 1/width", units="decades"),
        "off_jax": gl.named(jnp.max(off_jax, 0), axes, long_name="jax.grad off the product"),
        "off_fast": gl.named(jnp.max(off_fast, 0), axes, long_name="fast path off it, nats"),
    }


def product(w: jax.Array, layers: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`log10 |J_L ... J_1|` and its sign for each depth in `layers`, `(len(layers),)` each."""
    P = gl.chain_rule.products(gl.ensembles.scalar(w, max(layers)), jnp.ones(1)).products
    at = jnp.array(layers) - 1
    return gl.scaled.log_magnitude(P)[at, 0, 0] / gl.LN10, gl.scaled.sign(P)[at, 0, 0]


def shared_derivative(w: jax.Array) -> jax.Array:
    """`dz_50/dw` for one shared weight: the sum of what every layer's own weight contributes."""
    return jnp.sum(gl.jacobians.weight_gradients(gl.ensembles.scalar(w, 50), jnp.ones(1), jnp.sum))


def deviations(cfg: Config) -> jax.Array:
    """sigma_w of each of `NETWORKS`, `(4,)`: the residual one has the weights of the vanishing."""
    phi = gl.activations.PHI[cfg.activation]
    critical = gl.theory.meanfield.sigma_w_critical(phi, cfg.sigma_b)
    return jnp.stack([cfg.vanishing, critical, cfg.exploding, cfg.vanishing])


def gradients(cfg: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """For one draw `compare` of every network, the mean (log) or the worst over a batch."""
    phi, linear = gl.activations.PHI[cfg.activation], gl.activations.PHI["linear"]
    key_weights, key_readout, key_batch = jax.random.split(key, 3)
    train, _ = gl.training.digits(float)
    steps = gl.training.schedule(key_batch, len(train.y), cfg.batch_size, 1)
    x, y = gl.training.batch(train, steps.indices[0], steps.gain[0])
    x = x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True))
    width = x.shape[1]
    (readout,) = gl.ensembles.network(key_readout, (width, 10), linear, 1.0, 0.0)

    def batch(model: Any) -> tuple[jax.Array, ...]:
        def one(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
            return compare(model, x, lambda z: gl.training.cross_entropy(readout(z)[None], y[None]))

        logs, *off = jax.vmap(one)(x, y)
        return jnp.mean(logs, axis=0), *(jnp.max(each, axis=0) for each in off)

    sizes = cfg.network_depth, width, phi
    plain = jax.vmap(lambda s: batch(gl.ensembles.gaussian(key_weights, *sizes, s, cfg.sigma_b)))(
        deviations(cfg)[:3]
    )
    skip = batch(gl.ensembles.residual(key_weights, *sizes, cfg.vanishing, cfg.sigma_b, cfg.factor))
    return jax.tree.map(lambda three, one: jnp.concatenate([three, one[None]]), plain, skip)


def compare(model: Any, x: jax.Array, loss: Callable[..., Any]) -> tuple[jax.Array, ...]:
    """The gradient's log10 in each layer, and how far two paths are off the product, `(depth,)`."""
    found = gl.chain_rule.gradients_by_jax(model, x, loss)
    written = gl.chain_rule.gradients(model, x, loss)
    fast = gl.jacobians.log_gradient_norms(model, x, loss)[1:]
    sizes = jnp.linalg.norm(written, axis=1)
    log10 = jnp.log10(jnp.linalg.norm(found, axis=1))
    off = jnp.linalg.norm(found - written, axis=1) / sizes
    return log10 - log10[-1], off, jnp.abs(fast - jnp.log(sizes))


def law(cfg: Config) -> tuple[jax.Array, jax.Array]:
    """The mean of `gradients` by theory and its next order, `(4, network_depth)` each."""
    phi, width = gl.activations.PHI[cfg.activation], gl.training.digits(float)[0].x.shape[1]
    theory, sizes = gl.theory.finite_width, (width, cfg.network_depth)
    growths = [
        theory.plain(phi, s**2 + cfg.sigma_b**2, s, cfg.sigma_b, *sizes)
        for s in deviations(cfg)[:3]
    ]
    skip = theory.residual_branch(phi, 1.0, cfg.vanishing, cfg.sigma_b, cfg.factor, *sizes)
    # Of a branch that is not linear the first order is known in size alone.
    growths.append(skip._replace(second=skip.second + jnp.abs(skip.first)))
    growth = jax.tree.map(lambda *parts: jnp.stack(parts) / gl.LN10, *growths)
    return after(growth.infinite + growth.first), after(growth.second)


def after(layers: jax.Array) -> jax.Array:
    """The sum over the layers after each one."""
    return jnp.flip(jnp.cumsum(jnp.flip(layers, -1), -1), -1) - layers


def figure(data: xr.Dataset) -> gl.Figure:
    """The textbook's lines beside a network's gradient, on one axis and in the same colours."""
    fig, (lines, networks) = gl.figures.panels(1, 2, height=3.1, sharey=True)
    for axes in (lines, networks):
        gl.figures.regions(axes, 1e-6, 1e6)
    draw_lines(lines, data)
    draw_networks(networks, data)
    return fig


def draw_lines(axes: gl.Axes, data: xr.Dataset) -> None:
    """|w|^L as lines, products as marks on them, and the two printed numbers."""
    near = data.sel(layer=data.layer <= 100)
    marked = near.sel(layer=near.layer % 5 == 0)
    for w in near.w.values[near.w.values > 0]:  # the others have the same magnitude
        colour = (
            gl.figures.EDGE if w == 1 else gl.figures.EXPLODING if w > 1 else gl.figures.VANISHING
        )
        look: dict[str, Any] = {"color": colour, "alpha": 1.0 if w in TEXTBOOK_W else 0.35}
        gl.figures.predicted(axes, near.layer, 10.0 ** near.log10_predicted.sel(w=w), **look)
        marks = 10.0 ** marked.log10_product.sel(w=w)
        gl.figures.measured(axes, marked.layer, marks, look | {"marker": "o", "clip_on": True})
        end = min(100.0, 5.7 / max(abs(math.log10(w)), 1e-9))
        if w in TEXTBOOK_W or end < 100:
            gl.figures.named(axes, end, w**end, f"w = {w:g}", colour)
    for w, height in ((0.9, -14), (1.1, 12)):
        value = textbook(data, w)
        axes.plot(50, value, "o", color="0.1", markersize=7, fillstyle="none", zorder=4)
        text = f"${w:g}^{{50}}$ = {value:.{1 if value < 1 else 3}g}"
        place = {"xytext": (-6, height), "ha": "right", "fontsize": 9}
        gl.figures.named(axes, 50, value, text, "0.1", **place)
    gl.figures.words(axes, 0.62, 0.555, "the knife edge", fontsize=9, style="italic", ha="center")
    axes.set(xlim=(0, 100), xlabel="depth L", ylabel=r"size of the product $|J_L \cdots J_1|$")
    gl.figures.title(axes, "equal factors: products of Jacobians on $|w|^L$")


def draw_networks(axes: gl.Axes, data: xr.Dataset) -> None:
    """The gradient on its way back through each network, its spread over draws, and its law."""
    look, layer = gl.figures, data.network_layer
    colours = (look.VANISHING, look.EDGE, look.EXPLODING, look.COLOURS[3])
    heights = ("center", "top", "center", "bottom")
    for name, colour, mark, va in zip(NETWORKS, colours, "osD^", heights, strict=True):
        row = data.sel(network=name)
        look.predicted(axes, layer, 10.0**row.log10_law, color=colour)
        look.band(axes, layer, 10.0**row.log10_gradient, {"color": colour, "marker": mark})
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
    first = 10.0 ** data.log10_gradient.isel(network_layer=0).median("draw")
    small, edge, large, skip = (f"{float(first.sel(network=name)):.1g}" for name in NETWORKS)
    return (
        f"Fifty factors of 0.9 leave {textbook(data, 0.9):.3f} of a gradient and fifty of 1.1 make "
        f"it {textbook(data, 1.1):.0f} times as large; only at 1, the knife edge, does it stay. "
        f"In {data.network_layer.size} layers that read digits the first one's gradient is {small} "
        f"of the last one's with small weights, {large} with large ones, {edge} at the critical "
        f"scale, and {skip} where a residual branch is put around the small ones "
        f"(medians in bands of all {data.draw.size} draws; lines: mean field theory)."
    )


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The statements of the source, the line at every depth, and then the networks."""
    yield from textbook_claims(data)
    yield from line_claims(data)
    yield from network_claims(data)


def textbook_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The printed numbers, and the three limits and the one that does not exist."""
    eps, double = (
        float(np.finfo(data.log10_textbook.dtype).eps),
        gl.theory.scalar.FORMATS["float64"],
    )
    for w, printed, digit in ((0.9, 0.00515378, 5e-9), (1.1, 117.391, 5e-4)):
        value = textbook(data, w)
        # 50 products, and the log and its inverse, which have some ulps of ln value each.
        allowed = {"digits printed": digit, "rounding": 100 * eps * value}
        yield gl.Claim(f"{w:g}^50 is {printed:g}", value, printed, allowed, TEXTBOOK)
    below, one, above, _ = data.log10_textbook.isel(depth_textbook=-1)
    yield gl.claim.at_most(
        "0.9^L tends to 0: at L = 10^4 log10 of it is below anything float64 can hold",
        *(below, double.log2_smallest * math.log10(2), TEXTBOOK),
    )
    yield gl.claim.equal("1^L tends to 1: at L = 10^4 log10 of it is 0", one, 0.0, TEXTBOOK)
    yield gl.claim.at_least(
        "1.1^L tends to infinity: at L = 10^4 log10 of it is above anything float64 can hold",
        *(above, double.log2_overflow * math.log10(2), TEXTBOOK),
    )
    odd, even = data.sign_textbook[3, 1:]
    sentence = "(-1)^L has no limit: from L = 9999 to L = 10^4 it goes from -1 to 1"
    yield gl.claim.equal(sentence, even - odd, 2.0, TEXTBOOK)


def line_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Every recorded depth by both paths, the sign, the slope and the derivative."""
    eps, depth = float(np.finfo(data.log10_product.dtype).eps), data.layer

    def rounding(log10: Any) -> Any:
        # Half an eps of each of L products; the log and the law have a few of their own size, or
        # of 1 where the log of the mantissa cancels that of the exponent.
        return eps * (depth / (2 * gl.LN10) + 4 * (1 + abs(log10)))

    signs = np.sign(data.w) ** depth
    yield gl.claim.equal("the sign of the product is sign(w)^L", data.sign, signs, TEXTBOOK)
    moves = data.w != 0  # at 0 the line is minus infinity from the first layer on
    law, w = data.log10_predicted.where(moves, 0), abs(data.w).where(moves, 1)
    slack = rounding(law)
    yield gl.claim.everywhere(
        "log10 of the product of Jacobians is L log10|w| at every depth and w",
        *(data.log10_product, data.log10_predicted, TEXTBOOK),
        rounding=slack,
    )
    if depth.size > 1:
        off = depth - depth.mean()
        yield gl.claim.slope(
            "the slope of the line is log10|w|",
            *(depth, data.log10_product.where(moves, 0), np.log10(w), TEXTBOOK),
            rounding=slack.max("layer") * float(abs(off).sum() / (off**2).sum()),
        )
    yield gl.claim.everywhere(
        "the derivative for the shared weight at L = 50 is 50 w^49",
        *(data.derivative, data.derivative_predicted, TEXTBOOK + ".3"),
        # 49 products and 50 sums round by half an eps; the power goes through 49 log w.
        rounding=eps * (50 + 49 * abs(np.log(w))) * abs(data.derivative_predicted),
    )


def network_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The chain rule and the law, in every layer whose gradient this precision holds."""
    info, width, layer = np.finfo(data.log10_gradient.dtype), 64, data.network_layer
    # A norm squares its entries, so half of the decades are there.
    held = (abs(data.log10_law) < -math.log10(info.tiny) / 2) & (layer < layer.size)
    # Each state's sums round by up to width eps / 2; from there the error grows as the gradient
    # does, which is multiplied by the same Jacobians.
    grown = 10.0 ** data.log10_gradient.max(["draw", "network_layer"]).clip(min=0)
    for sentence, off in (
        ("jax.grad is the loss's gradient times the product of Jacobians", data.off_jax),
        ("the fast path has the log of that", data.off_fast),
    ):
        yield gl.claim.everywhere(
            f"{sentence}, in every layer of every network",
            *(off, 0.0, "the chain rule"),
            where=held,
            rounding=layer.size * width * info.eps / 2 * grown,
        )
    for name in NETWORKS:
        row = data.sel(network=name)
        yield gl.claim.mean(
            f"{name}: the log gradient of every layer is what mean field theory predicts",
            *(row.log10_gradient, row.log10_law, MEAN_FIELD),
            where=held.sel(network=name),
            next_order_in_width=row.next_order,
        )


def shifted(factors: Any) -> Any:
    """Depths counted from 0: P_k stands where P_{k+1} should."""
    return factors._replace(products=jax.tree.map(lambda P: jnp.roll(P, 1, 0), factors.products))


FAULTS = {
    "weights 1 % too large": gl.fault.argument("ensembles.scalar", w=lambda w: 1.01 * w),
    "weights inverted": gl.fault.argument("ensembles.scalar", w=lambda w: 1 / w),
    "weights negated": gl.fault.argument("ensembles.scalar", w=lambda w: -w),
    "depths counted from 0": gl.fault.result("chain_rule.products", shifted),
    "sign lost": gl.fault.result("scaled.sign", abs),
    "product not rescaled": gl.fault.replace(
        "scaled.log_magnitude", lambda s: jnp.log(jnp.abs(gl.scaled.unscale(s).value))
    ),
    "first layer's share forgotten": gl.fault.result(
        "jacobians.weight_gradients", lambda shares: shares.at[0].set(0)
    ),
    "networks' weights 10 % too large": gl.fault.argument(
        "ensembles.gaussian", sigma_w=lambda sigma_w: 1.1 * sigma_w
    ),
    "residual branch dropped": gl.fault.argument("ensembles.residual", factor=lambda f: 0.0 * f),
    "Jacobians transposed": gl.fault.result("chain.jacobians", lambda J: jnp.swapaxes(J, -1, -2)),
    "fast path read backwards": gl.fault.result(
        "jacobians.log_gradient_norms", lambda logs: logs[::-1]
    ),
}


def power(w: float) -> gl.lesson.At:
    """Where w^50 stands."""
    return gl.lesson.at("log10_textbook", scale="log10", w_textbook=w, depth_textbook=50)


LESSON = gl.lesson.Offer(
    numbers={
        "textbook depth": gl.lesson.at("depth_textbook", depth_textbook=50),
        "weight below one": gl.lesson.at("w_textbook", w_textbook=0.9),
        "weight above one": gl.lesson.at("w_textbook", w_textbook=1.1),
        "left below one": power(0.9),
        "grown above one": power(1.1),
    },
    claims={
        "left below one": "0.9^50",
        "grown above one": "1.1^50",
        "limit below one": "0.9^L tends",
        "limit at one": "1^L tends to 1",
        "limit above one": "1.1^L tends",
        "no limit at minus one": "(-1)^L",
        "slope below one": "the slope of the line",
        "slope above one": "the slope of the line",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
