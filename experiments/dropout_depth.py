"""Does dropout leave a critical point, where correlations travel through any number of layers?

Schoenholz et al. 2017 (arXiv:1611.01232; section 5 not read, from a second source): no. Two passes
of one input have masks of their own, so that their correlation falls below 1 at once, and settles
at c* below 1 within xi_c layers, which is finite everywhere, on the edge of chaos too. How it grows
as the rate 1 - keep goes to 0 depends on the activation: as (1 - keep)^(-1/2) if it is smooth, as
(1 - keep)^(-1/3) if it has a kink (derived here; Fernandez Sarmiento 2026, arXiv:2605.21648,
abstract read, has two classes). A rate of 1 % leaves a critical tanh network some fourteen layers.

Answers: dropout depth scale mean field; does dropout destroy edge of chaos; dropout in very deep
networks vanishing correlation; critical initialization with dropout tanh relu.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
MASKS = "Schoenholz et al. 2017, section 5; derived: gradlab.theory.dropout"
EXPONENTS = {"tanh": -1 / 2, "relu": -1 / 3}  # of a smooth activation, and of one with a kink


@gl.config
class Config:
    """Critical networks with dropout, and scales beside the edge."""

    activation: gl.Strings = gl.key("phi of the networks", choices=tuple(EXPONENTS))
    keep: gl.Floats = gl.key("probabilities that a unit stays", at_least=0.1, at_most=0.9999)
    rate: gl.Floats = gl.key("1 - keep, of the power law", above=0, at_most=0.5)
    sigma_w: gl.Floats = gl.key("of tanh networks beside the edge", above=0, at_most=10)
    sigma_b: float
    depth: int = gl.key("layers of the networks", at_least=2, at_most=10**4)
    width: int = gl.key("number of neurons in a layer", at_least=8, at_most=2**12)
    num_draws: int = gl.key("networks with two passes each", at_least=8, at_most=10**5)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Correlations of two passes by layer, what each layer made of them, and depth scales."""
    theory, tanh = gl.theory.meanfield, gl.activations.PHI["tanh"]
    edges = {name: critical(cfg, name) for name in ("tanh", *cfg.activation)}
    runs = partial(networks, cfg, [edges[name] for name in cfg.activation])
    seen = gl.grid.over_draws(runs, key, cfg.num_draws)
    correlation, square, product, entries = seen
    laws = [jax.lax.map(partial(recursion, cfg, edges[name]), cfg.keep) for name in cfg.activation]
    kept = jnp.concatenate([cfg.keep, jnp.ones(1)])[:, None]
    q = theory.q_star(tanh, cfg.sigma_w[None] / jnp.sqrt(kept), cfg.sigma_b)
    beside = jnp.broadcast_arrays(q, cfg.sigma_w[None], kept)
    parts = zip(beside, on_the_edge(cfg, edges["tanh"]), strict=True)
    both = [jnp.concatenate([one.ravel(), other]) for one, other in parts]  # one program for both
    xi, xi_tanh = jnp.split(depth_scale(tanh, *both), [q.size])
    power = [
        xi_tanh if name == "tanh" else depth_scale(edge.phi, *on_the_edge(cfg, edge))
        for name, edge in ((name, edges[name]) for name in cfg.activation)
    ]
    scales = xi.reshape(q.shape)
    by = "draw activation keep"
    return {
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="layers"),
        "correlation": gl.named(correlation, f"{by} layer", long_name="of two passes"),
        "correlation_law": gl.named(jnp.stack(laws), "activation keep layer"),
        "square": gl.named(square, by, long_name="mean square over its mean"),
        "product": gl.named(product, by, long_name="mean product less its mean"),
        "entries": gl.named(entries[:, 0, 0], "draw moment", long_name="of W's, standardised"),
        "xi_critical": gl.named(jnp.stack(power), "activation rate", units="layers"),
        "xi_law": gl.named(scales[:-1], "keep sigma_w", units="layers"),
        "xi_without": gl.named(scales[-1], "sigma_w", units="layers"),
    }


class Edge(NamedTuple):
    """A phi, and its critical networks: sigma_b, sigma_w √(1/keep) and q*."""

    phi: gl.activations.Phi
    sigma_b: jax.Array
    sigma_w: jax.Array
    q: jax.Array


def critical(cfg: Config, name: str) -> Edge:
    """The edge of chaos; of relu with no biases, and q* = 1."""
    phi, theory = gl.activations.PHI[name], gl.theory.meanfield
    if gl.theory.gauss.homogeneous(phi) is None:
        q = theory.q_critical(phi, jnp.asarray(cfg.sigma_b, float))
        return Edge(phi, jnp.asarray(cfg.sigma_b, float), theory.chi(phi, q, 1.0) ** -0.5, q)
    return Edge(phi, jnp.zeros(()), theory.sigma_w_critical(phi, 0.0), jnp.ones(()))


def on_the_edge(cfg: Config, edge: Edge) -> list[jax.Array]:
    """q, sigma_w and keep at each rate of dropout, `(rate,)`."""
    keep = 1 - cfg.rate
    return jnp.broadcast_arrays(edge.q, edge.sigma_w * jnp.sqrt(keep), keep)


def depth_scale(
    phi: gl.activations.Phi, q: jax.Array, sigma_w: jax.Array, keep: jax.Array
) -> jax.Array:
    """`theory.dropout.depth_scale` at the fixed point."""
    apart = gl.theory.dropout.apart_star(phi, q, sigma_w, keep)
    return gl.theory.dropout.depth_scale(phi, q, apart, sigma_w)


def networks(cfg: Config, edges: list[Edge], key: jax.Array) -> tuple[jax.Array, ...]:
    """`passes` of each activation at every probability to keep a unit, of the same weights."""
    phis = [edge.phi for edge in edges]

    def of_kind(made: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        edge = Edge(lambda h: jax.lax.switch(made[0], phis, h), *made[1:])
        return jax.lax.map(lambda keep: passes(cfg, key, keep, edge), cfg.keep)

    scales = (jnp.stack(part) for part in zip(*(edge[1:] for edge in edges), strict=True))
    return jax.lax.map(of_kind, (jnp.arange(len(edges)), *scales))


def recursion(cfg: Config, edge: Edge, keep: jax.Array) -> jax.Array:
    """The correlation of two passes behind each layer at infinite width, `(depth,)`."""
    apart, sigma_w = gl.theory.dropout.apart, edge.sigma_w * jnp.sqrt(keep)

    def step(epsilon: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        later = apart(edge.phi, edge.q, epsilon, sigma_w, keep)
        return later, 1 - later

    return jax.lax.scan(step, jnp.zeros(()), None, cfg.depth)[1]


def passes(cfg: Config, key: jax.Array, keep: jax.Array, edge: Edge) -> tuple[jax.Array, ...]:
    """Correlation by layer of two passes of one input; squares and products over their means."""
    key_input, key_layers = jax.random.split(key)
    phi, sigma_b, edge_w, q = edge
    sigma_w, shape = edge_w * jnp.sqrt(keep), (2, cfg.width)

    def layer(h: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        key_W, key_b, key_masks = jax.random.split(key, 3)
        W = gl.ensembles.unit_gaussian(key_W, (cfg.width, cfg.width), float)
        b = sigma_b * jax.random.normal(key_b, (cfg.width,))
        x, masks = phi(h), jax.random.bernoulli(key_masks, keep, shape)
        after = dropped(x, masks, keep) @ (sigma_w * W).T + b[None]
        square = sigma_w**2 / keep * jnp.mean(x**2) + sigma_b**2
        product = sigma_w**2 * jnp.mean(x[0] * x[1]) + sigma_b**2
        squares, made = jnp.mean(after**2, axis=1), jnp.mean(after[0] * after[1])
        ratios = jnp.mean(squares) / square, (made - product) / square
        seen = made / jnp.sqrt(squares[0] * squares[1]), *ratios, gl.ensembles.realised(W)
        return after, seen

    start = jnp.broadcast_to(jnp.sqrt(q) * jax.random.normal(key_input, shape[1:]), shape)
    seen = jax.lax.scan(layer, start, jax.random.split(key_layers, cfg.depth))[1]
    return seen[0], *(jnp.mean(part, axis=0) for part in seen[1:])


def dropped(x: jax.Array, masks: jax.Array, keep: jax.Array) -> jax.Array:
    """What dropout hands on: Srivastava et al. 2014, scaled in training."""
    return jnp.where(masks, x, 0.0) / keep


def figure(data: xr.Dataset) -> gl.Figure:
    """Two passes drift apart; the depth scale over sigma_w; and over the rate, on the edge."""
    fig, (falls, scales, power) = gl.figures.panels(1, 3, height=2.8)
    looks = list(gl.figures.shades(data.sizes["keep"]))
    row = data.isel(activation=0)
    for keep, look in zip(data.keep.values, looks, strict=True):
        one = row.sel(keep=keep)
        gl.figures.band(falls, data.layer, one.correlation, look)
        gl.figures.predicted(falls, data.layer, one.correlation_law)
        gl.figures.named(falls, data.layer[-1], one.correlation_law[-1], f"{keep:g}", look["color"])
        line = {"color": look["color"], "label": f"keep {keep:g}"}
        gl.figures.predicted(scales, data.sigma_w**2, data.xi_law.sel(keep=keep), **line)
    falls.set(
        xlabel="layer", ylabel="correlation of two passes", xlim=(0, data.sizes["layer"] * 1.2)
    )
    gl.figures.words(falls, 0.97, 0.9, "keep", ha="right")
    gl.figures.predicted(scales, data.sigma_w**2, data.xi_without, "no dropout")
    scales.set(yscale="log", xlabel="σ_w²", ylabel="ξ_c, layers")
    scales.legend(loc="upper right")
    for name, look in zip(data.activation.values, gl.figures.series(2), strict=False):
        xi = data.xi_critical.sel(activation=name)
        word = {"tanh": "tanh, line: power -1/2", "relu": "relu, line: power -1/3"}[str(name)]
        gl.figures.measured(power, data.rate, xi, look, word)
        slope = (data.rate / data.rate[0]) ** EXPONENTS[str(name)]
        gl.figures.predicted(power, data.rate, float(xi[0]) * slope)
    power.set(xscale="log", yscale="log", xlabel="1 - keep", ylabel="ξ_c on the edge, layers")
    power.legend(loc="lower left")
    gl.figures.titles(fig, "one input, two passes", "no edge is left", "smooth or kinked")
    return fig


def caption(data: xr.Dataset) -> str:
    """Where two passes end, and how many layers a small rate leaves."""
    last = data.correlation.mean("draw").isel(layer=-1)[0]
    ends = ", ".join(f"{float(one):.2f} ({one.keep.item():g})" for one in last)
    near = data.xi_critical.isel(rate=int(np.abs(data.rate - 0.01).argmin("rate")))
    left = ", ".join(f"{float(one):.0f} ({one.activation.item()})" for one in near)
    return f"""On the edge of chaos two passes of one input through a {data.activation.values[0]}
        network with dropout end at the correlations {ends}, by probability to keep a unit. The
        depth scale is finite at every σ_w: on the edge and at a rate of {near.rate.item():g} it is
        {left} layers. Black: laws; bands: all draws; lines of the last panel: powers -1/2, -1/3."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """Where two passes end at the weakest dropout, and the scale there."""
    last = data.isel(activation=0, layer=-1).sel(keep=data.keep.max())
    yield gl.headline.mean("correlation of two passes", last.correlation)
    yield gl.Headline("longest ξ_c on the edge", float(data.xi_critical[0].max()), "layers")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """What one layer does, in the mean; where passes end; the scale's power of the rate."""
    yield gl.claim.weights(data.entries, MASKS)
    sentence = "dropout divides what a layer adds to the mean square by keep, exactly"
    yield gl.claim.mean(sentence, data.square, 1.0, MASKS)
    sentence = "and leaves the mean product of two passes as it is, exactly"
    yield gl.claim.mean(sentence, data["product"], 0.0, MASKS)
    ends, law = data.correlation.isel(layer=-1), data.correlation_law.isel(layer=-1)
    sentence = "two passes of one input end at least half as far apart as the law says"
    yield gl.claim.mean(sentence, ends, (1 + law) / 2, MASKS, relation="<=")
    # Lengths are longer, so that phi' and, at c >= 0, phi(u1) phi(u2)/q are smaller: so are c*, C'.
    sentence = "dropout shortens the depth scale at every sigma_w, and leaves it finite"
    yield gl.claim.always(sentence, data.xi_law < data.xi_without, MASKS)
    if data.sizes["rate"] > 1:
        logs = np.log(data.xi_critical.sortby("rate")).isel(rate=slice(0, 2))
        slope = logs.diff("rate").isel(rate=0) / np.log(logs.rate).diff("rate").isel(rate=0)
        law = xr.DataArray([EXPONENTS[str(name)] for name in data.activation.values], slope.coords)
        yield gl.claim.everywhere(
            "on the edge it goes as the power -1/2 of the rate, -1/3 at a kink",
            *(slope, law, MASKS),
            next_order=4 * float(logs.rate[1]) ** -law,  # corrections are powers of 1 - c*
        )


HARMLESS = {"each draw used twice": "of two pairs of networks each has the law of its own"}
FAULTS = {
    "weights 3 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.03),
    "one mask for both passes": gl.fault.argument(
        "dropped", masks=lambda masks: jnp.broadcast_to(masks[:1], masks.shape)
    ),
    "not divided by keep": gl.fault.argument("dropped", keep=lambda keep: keep**0),
    "one percent beside the edge": gl.fault.result(
        "critical", lambda edge: edge._replace(sigma_w=0.99 * edge.sigma_w)
    ),
    "no unit dropped": gl.fault.argument("compute", cfg=lambda c: replace(c, keep=c.keep**0)),
}


if __name__ == "__main__":
    gl.run(__file__)
