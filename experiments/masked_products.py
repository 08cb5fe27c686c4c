"""Do a ReLU network's singular values grow as if each unit were switched by a coin?

The Jacobian of a ReLU network is a product of masked matrices D W. With gates of coins every
Lyapunov exponent is known exactly, and so is the variance of each step: B rows of W are left, and
the k-th direction grows by a chi variable of B - k + 1 degrees (derived here; Newman 1986 without a
mask). In a real network the gates know the input, and for one vector it is the same (Hanin and Nica
2020, arXiv:1812.05994). It is the same for *all* directions, without biases (derived): J z is the
next state, so that the state itself is the leading direction, and W times what is orthogonal to it
is independent of the gates, which know W z alone. Haas, Gatine, Cosse and Bouraoui 2026
(arXiv:2602.12384) have closed forms for a masked model: abstract read, forms not compared.

Answers: lyapunov exponents relu network; singular values of random relu jacobian exponential
separation; lognormal gradient norm deep relu 5/n; product of masked gaussian matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "width"
LAW = "derived, as Newman 1986; of one vector Hanin and Nica 2020; gradlab.theory.products"
GATES = ("coins", "relu")
FEW = 8  # layers, in which rounding hides no wrong one
NEVER = 1e-6  # a direction that is lost with a smaller probability is kept


@gl.config
class Config:
    """The layers, how many of their units are on, and what is looked at."""

    width: int = gl.key("number of neurons in a layer", at_least=8, at_most=1024)
    depth: int
    variance: float = gl.key("n Var W", above=0, at_most=100)
    kept: float = gl.key("probability that a coin keeps a unit", above=0, at_most=1)
    num_directions: int = gl.key("exponents, the largest first", at_least=1, at_most=64)
    block: int = gl.key("layers of one network in the histogram", at_least=1, at_most=10**5)
    num_draws: int = gl.key("draws of each product", at_least=8, at_most=10**5)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Exponents and variances by direction and gates, the first one's blocks, and their laws."""
    products, num = gl.theory.products, min(cfg.num_directions, cfg.width)
    keys = jax.random.split(key, 2)
    growth = jnp.stack(
        [
            gl.grid.over_draws(partial(grown, cfg, gates), key, cfg.num_draws)
            for gates, key in zip(GATES, keys, strict=True)
        ],
        axis=1,
    )
    entries = gl.grid.over_draws(partial(drawn, cfg), keys[0], cfg.num_draws)
    few = jnp.stack([of_few_layers(cfg, gates, keys[0]) for gates in GATES])
    whole = cfg.depth // cfg.block
    blocks = growth[:, :, : whole * cfg.block, 0].reshape(cfg.num_draws, 2, whole, -1)
    kept = jnp.stack([jnp.asarray(cfg.kept), jnp.asarray(0.5)])
    exponents, variances, losses = (
        jax.lax.map(law, kept)[:, :num]
        for law in (
            lambda p: products.masked_exponents(cfg.width, cfg.variance / cfg.width, p),
            lambda p: products.masked_variances(cfg.width, p),
            lambda p: products.masked_loss(cfg.width, p),
        )
    )
    by, nats = "draw gates direction", {"units": "nats a layer"}
    return {
        "gates": gl.named(list(GATES), "gates"),
        "direction": gl.named(jnp.arange(1, num + 1), "direction", long_name="index k"),
        "exponent": gl.named(jnp.mean(growth, 2), by, long_name="Lyapunov exponent", **nats),
        "variance_of_step": gl.named(jnp.var(growth, axis=2, ddof=1), by, units="nats²"),
        "exponent_law": gl.named(exponents, "gates direction", **nats),
        "variance_law": gl.named(variances, "gates direction", units="nats²"),
        "lost": gl.named(cfg.depth * losses, "gates direction", long_name="at most this likely"),
        "entries": gl.named(entries, "draw moment", long_name="of W's"),
        "few": gl.named(few, "gates way direction", long_name="log of what few layers do"),
        "log_square": gl.named(2 * blocks.sum(-1), "draw gates part", long_name="log |Jv|²"),
    }


def grown(cfg: Config, gates: str, key: jax.Array) -> jax.Array:
    """What each layer does to the log of each direction of the QR, `(depth, num_directions)`."""
    num = min(cfg.num_directions, cfg.width)
    start = gl.spectra.orthogonal_start(jnp.ones(num))[:, 0]  # the state is the first direction
    deep = gl.chain.Chain(layer(cfg, key, gates), jnp.arange(float(cfg.depth)))
    model: list[Any] = [lambda z: jnp.pad(z, (0, cfg.width - num)), deep, lambda z: z[:num]]
    return gl.spectra.log_growth(model, start)[1:-1]


def of_few_layers(cfg: Config, gates: str, key: jax.Array) -> jax.Array:
    """`log R_ii` of few layers, by the QR of each, and of all multiplied out, `(3, directions)`.

    And what rounding may part them by: of a layer it is width^1.5 eps of the whole product (Higham
    2002, sections 3.5 and 19.3), in either way.
    """
    few, num = replace(cfg, depth=min(FEW, cfg.depth)), min(cfg.num_directions, cfg.width)
    Q = gl.spectra.orthogonal_start(jnp.ones(num))
    deep = gl.chain.Chain(layer(few, key, gates), jnp.arange(float(few.depth)))
    every = gl.chain_rule.products(deep, jnp.pad(Q[:, 0], (0, cfg.width - num))).products
    P = gl.scaled.unscale(jax.tree.map(lambda leaf: leaf[-1], every)).value
    R = jnp.abs(jnp.diag(jnp.linalg.qr(P[:, :num] @ Q, mode="r")))
    rounding = 4 * few.depth * cfg.width**1.5 * gl.scaled.eps(P.dtype) * jnp.linalg.norm(P) / R
    return jnp.stack([jnp.sum(grown(few, gates, key), axis=0), jnp.log(R), rounding])


def drawn(cfg: Config, key: jax.Array) -> jax.Array:
    """`realised` of the matrices of some layers, found by what they do with every unit on."""
    open_layer = layer(replace(cfg, kept=1.0), key, "coins")
    columns = jax.vmap(jax.vmap(open_layer, (None, 0)), (0, None))
    matrices = columns(jnp.arange(min(50.0, cfg.depth)), jnp.eye(cfg.width))
    return gl.ensembles.realised(matrices / jnp.sqrt(cfg.variance))


def layer(cfg: Config, key: jax.Array, gates: str) -> Any:
    """The layer that draws its own weights, and coins where it does not look at its input."""

    def masked(index: jax.Array, z: jax.Array) -> jax.Array:
        key_W, key_coins = jax.random.split(jax.random.fold_in(key, index.astype("uint32")))
        W = gl.ensembles.unit_gaussian(key_W, (cfg.width, cfg.width), z.dtype)
        h = jnp.sqrt(cfg.variance).astype(z.dtype) * (W @ z)
        coins = jax.random.uniform(key_coins, h.shape) < cfg.kept
        return jnp.where(h > 0 if gates == "relu" else coins, h, 0.0)

    return masked


def figure(data: xr.Dataset) -> gl.Figure:
    """Exponents with the law; how far each is off, in standard errors; one vector's histogram."""
    fig, (exponents, off, histogram) = gl.figures.panels(1, 3, height=2.8)
    looks = dict(zip(GATES, gl.figures.series(2), strict=True))
    for axes in (exponents, off):
        gl.figures.rule(axes, y=0)
        axes.set(xlabel="index k")
    off.axhspan(-2, 2, color="0.93", zorder=0)
    for name, look in looks.items():
        row = data.sel(gates=name)
        gl.figures.band(exponents, data.direction, row.exponent, look, f"gates: {name}")
        score = scores(row).sum("draw") / data.sizes["draw"] ** 0.5
        gl.figures.measured(off, data.direction, score, look)
    gl.figures.predicted(exponents, data.direction, data.exponent_law[0], "law of the coins")
    exponents.set(ylabel="exponent, nats a layer")
    exponents.legend(loc="lower left")
    off.set(ylabel="distance, standard errors", ylim=(-5, 5))
    gl.figures.words(off, 0.97, 0.23, "grey: two", ha="right")
    block, edges = data.attrs["block"], 20
    for name, look in looks.items():
        seen = data.log_square.sel(gates=name).values.ravel()
        seen = seen[np.isfinite(seen)]
        heights, at = np.histogram(seen, edges, density=True)
        shown = {"drawstyle": "steps-mid", "marker": None, "linestyle": look["linestyle"]}
        histogram.plot((at[1:] + at[:-1]) / 2, heights, **look | shown)
    mean = 2 * block * float(data.exponent_law[1, 0])
    deviation = 2 * np.sqrt(block * float(data.variance_law[1, 0]))
    at = mean + deviation * np.linspace(-3.5, 3.5, 141)
    normal = np.exp(-(((at - mean) / deviation) ** 2) / 2) / deviation / np.sqrt(2 * np.pi)
    gl.figures.predicted(histogram, at, normal)
    gl.figures.rule(histogram, x=0.0)
    histogram.set(xlabel=f"log |Jv|² of {block} layers", ylabel="density")
    gl.figures.titles(fig, "growth of each direction", "distance from the law", "one vector")
    return fig


def scores(row: xr.Dataset) -> xr.DataArray:
    """The exponents' distances from the law of the coins, in standard errors of one draw."""
    error = np.sqrt(row.variance_law / row.attrs["depth"])
    return (row.exponent - row.exponent_law) / error


def caption(data: xr.Dataset) -> str:
    """The first exponent of both, and how far the others of the real network are off."""
    coins, relu = (scores(data.sel(gates=name)).mean("draw") for name in GATES)
    first, top = data.isel(direction=0).exponent.mean("draw"), float(data.exponent_law[1, 0])
    off = max(float(np.abs(part).max()) for part in (coins, relu)) * data.sizes["draw"] ** 0.5
    return f"""Width {data.attrs["width"]}: one vector grows by {float(first[0]):.4f} nats a layer
        with coins for gates and by {float(first[1]):.4f} in a ReLU network (law {top:.4f}), so that
        a typical gradient vanishes while its mean square is kept. With either all
        {data.sizes["direction"]} directions are within {off:.1f} standard errors of the law. Black:
        laws; bands: all draws."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The first and the last exponent of both kinds of gates."""
    for name in GATES:
        for place in sorted({0, data.sizes["direction"] - 1}):
            row = data.sel(gates=name).isel(direction=place)
            law = float(row.exponent_law)
            yield gl.headline.mean(f"k = {int(row.direction)}, {name}", row.exponent, "nats", law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Every direction that is not lost, with both kinds of gates, in the mean and the variance."""
    yield gl.claim.weights(data.entries, LAW)
    kept = data.isel(direction=(data.lost.max("gates") < NEVER).values)
    if not kept.sizes["direction"]:
        return
    grown, multiplied, rounding = kept.few.transpose("way", ...)
    if (known := rounding < 0.1).any():  # else nothing is left of any direction but rounding
        sentence = "in few layers directions grow as by the matrices multiplied out"
        ways = grown, multiplied, "the chain rule"
        yield gl.claim.everywhere(sentence, *ways, where=known, rounding=rounding)
    for name, noun in (("coins", "gates of coins"), ("relu", "gates of a ReLU network")):
        row = kept.sel(gates=name)
        yield gl.claim.chi_squared(
            f"{noun}: every exponent follows its law, all directions and draws at once",
            *(scores(row), LAW),
        )
        yield gl.claim.mean(
            f"{noun}: and so does the variance of a step of each direction",
            *(row.variance_of_step, row.variance_law, LAW),
        )


FAULTS = {
    "weights 1 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.01),
    "uniform weights that are 20 % too large": gl.fault.change(
        "ensembles.unit_gaussian",
        lambda _: lambda *drawn: 1.2 * gl.ensembles.unit_uniform(*drawn),
    ),
    "orthogonal instead of Gaussian": gl.fault.replace(
        "ensembles.unit_gaussian", gl.ensembles.unit_orthogonal
    ),
    "a layer of each direction twice": gl.fault.result(
        "spectra.log_growth", lambda growth: growth.at[1].add(growth[1])
    ),
    "no gates": gl.fault.change(
        "layer",
        lambda f: lambda cfg, key, _: f(replace(cfg, kept=jnp.ones(())), key, "coins"),
    ),
}


if __name__ == "__main__":
    gl.run(__file__)
