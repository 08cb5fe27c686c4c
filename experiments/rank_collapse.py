"""When does attention make all tokens one, and what does that leave of the queries' gradient?

Dong, Cordonnier and Loukas 2021 (arXiv:2103.03404; abstract read): attention alone makes the tokens
one, doubly exponentially in depth. Noci et al. 2022 (arXiv:2206.03126; abstract read): there the
queries' and keys' gradients vanish; branches times 1/√L prevent it. Uniform attention (queries 0)
is exactly soluble: one layer alone makes tokens one at once; a skip keeps what tokens differ by
unchanged for ever, so that their correlation is all in the growth of what they share: 2^l of a
plain skip, below e with 1/√L. Hence the queries' gradient dies where a norm divides by that growth
(Post), not in a plain skip. With queries, one layer cubes small differences: the double exponent.

Answers: attention rank collapse oversmoothing skip connections; token cosine similarity increases
with depth transformer; gradient of query and key weights zero at initialization; zero init W_Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "attention"
DONG = "Dong, Cordonnier and Loukas 2021, abstract; the power derived: a softmax sees differences"
NOCI = "Noci et al. 2022, abstract; gradlab.theory.transformer"
VASWANI = "Vaswani et al. 2017, equation 1; gradlab.measuring.one_block"
MEAN = "derived: V adds the square of the tokens' mean, and no cross term in the mean"
ISOTROPIC = "derived: V and K turn what tokens differ by in every direction alike"
VARIANTS = ("alone", "skip", "1/√L", "Post", "Pre")


@gl.config
class Config:
    """The layers of attention, and the small differences that go into one with queries."""

    variant: gl.Strings = gl.key("how a layer is put together", choices=VARIANTS)
    depth: int = gl.key("layers of attention", at_least=2, at_most=400)
    width: int = gl.key("entries of a token", at_least=8, at_most=2**12)
    num_tokens: int = gl.key("orthogonal tokens", at_least=3, below="width")
    num_draws: int = gl.key("draws of weights, tokens and loss", at_least=8, at_most=10**5)
    difference: gl.Floats = gl.key("rms of small differences", at_least=1e-3, at_most=0.1)
    sigma_q: float = gl.key("deviation of the logits of that layer", above=0, at_most=10)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Squares, differences and gradients by layer, with their laws; and one layer with queries."""
    key_chain, key_one = jax.random.split(key)
    parts = zip(*(design(name, cfg.depth) for name in cfg.variant), strict=True)
    designs = gl.transformer.Design(*map(jnp.array, parts))

    def one(key: jax.Array) -> dict[str, jax.Array]:  # the same weights for all
        key_weights, *keys = jax.random.split(key, 3)
        weights = gl.transformer.weights(key_weights, cfg.depth, cfg.width, 0.0)
        seen = jax.lax.map(lambda design: layers(cfg, weights, keys, design), designs)
        drawn = map(gl.ensembles.realised, (weights.K, weights.V))
        return seen | {"entries": jnp.stack([*drawn])}

    seen = gl.grid.over_draws(one, key_chain, cfg.num_draws)
    made = cfg.depth, cfg.width, cfg.num_tokens
    law = jax.vmap(lambda design: gl.theory.transformer.attention_laws(design, *made))(designs)
    cubed = gl.grid.over_draws(
        lambda key: queried(cfg, key, cfg.difference), key_one, cfg.num_draws
    )
    at, nats = "draw variant layer", {"units": "nats"}
    return {
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="layers of attention"),
        "log_apart": gl.named(seen["apart"], at, long_name="log (1 - correlation)", **nats),
        "log_share": gl.named(seen["share"], at, long_name="log |dL/dQ|²/|dL/dV|²", **nats),
        "key": gl.named(seen["key"], at, long_name="|dL/dK|²"),
        "off": gl.named(seen["off"], f"{at} way", long_name="off the equations, allowed"),
        "added": gl.named(seen["added"], "draw variant", long_name="mean square over its mean"),
        "query": gl.named(seen["query"], "draw variant", long_name="|dL/dQ|² over its mean"),
        "entries": gl.named(seen["entries"], "draw matrix moment", long_name="of K and V"),
        **{name: gl.named(part, "variant layer", **nats) for name, part in law._asdict().items()},
        "log_cubed": gl.named(cubed[:, 0], "draw difference", long_name="log rms behind", **nats),
        "cubed": gl.named(cubed[:, 1], "draw difference", long_name="its square over its mean"),
        "cubed_off": gl.named(cubed[:, 2:], "draw way difference", long_name="off, allowed"),
    }


def design(name: str, depth: int) -> gl.transformer.Design:
    """How attention stands in a layer."""
    plain = gl.transformer.Design()
    others = {"alone": plain._replace(skip=0.0), "1/√L": plain._replace(branch=depth**-0.5)}
    return (gl.transformer.DESIGNS | others).get(name, plain)


def layers(cfg: Config, weights: Any, keys: list[jax.Array], design: Any) -> dict[str, jax.Array]:
    """What tokens differ by behind every layer; gradients of a loss that reads one token there."""
    tokens = jax.random.orthogonal(keys[0], cfg.width)[: cfg.num_tokens] * cfg.width**0.5
    v = jax.random.normal(keys[1], (cfg.width,))
    model = gl.chain.Chain(gl.transformer.attend, gl.transformer.encoder(weights, design).params)
    z = gl.chain.states(model, tokens.ravel())

    def one(at: tuple[Any, jax.Array, jax.Array]) -> dict[str, jax.Array]:
        (weights, design), z, behind = at
        bare = design._replace(after=jnp.zeros(()))

        def loss(weights: Any) -> jax.Array:
            return v @ gl.transformer.attend((weights, bare), z)[: cfg.width]

        slopes = jax.tree.map(lambda leaf: jnp.sum(leaf**2), jax.grad(loss)(weights))
        into = gl.transformer.seen(design, z.reshape(tokens.shape))
        mean = jnp.mean(into, axis=0)
        rest, last = into - mean[None], behind.reshape(tokens.shape)
        expected = design.skip**2 * jnp.mean(z**2) + design.branch**2 * jnp.mean(mean**2)
        gram, scale = jnp.sum((rest @ rest.T) ** 2), (design.branch / cfg.num_tokens) ** 2
        apart = jnp.mean((last - jnp.mean(last, axis=0)[None]) ** 2) / jnp.mean(last**2)
        return {
            "apart": jnp.log(apart * cfg.num_tokens / (cfg.num_tokens - 1)),
            "share": jnp.log(slopes.Q) - jnp.log(slopes.V),
            "key": slopes.K,
            "added": jnp.mean(gl.transformer.attend((weights, bare), z) ** 2) / expected,
            "query": slopes.Q * cfg.width**2 / (scale * gram * jnp.sum(into[0] ** 2) * (v @ v)),
        }

    seen = jax.lax.map(one, (model.params, z[:-1], z[1:]))
    # Behind one layer of attention alone nothing but rounding is left of the differences.
    left = jnp.where(design.skip > 0, 1.0, jnp.arange(cfg.depth) == 0)
    query = jnp.sum(jnp.where(left > 0, seen["query"], 0.0)) / jnp.sum(left)
    off = gl.one_block.attention_errors(weights, design, z)
    return seen | {"added": jnp.mean(seen["added"]), "query": query, "off": off}


def queried(cfg: Config, key: jax.Array, size: jax.Array) -> jax.Array:
    """Log rms that small differences have behind attention alone; square over mean; off by hand."""
    key_weights, key_shared, key_rest = jax.random.split(key, 3)
    drawn = gl.transformer.weights(key_weights, 1, cfg.width, cfg.sigma_q)
    shared = jax.random.normal(key_shared, (cfg.width,))
    rest = jax.random.normal(key_rest, (cfg.num_tokens, cfg.width))

    def one(difference: jax.Array) -> jax.Array:
        x = shared[None] + difference * (rest - jnp.mean(rest, axis=0)[None])
        y = gl.transformer.attention(gl.chain.params_at(drawn, 0), x)
        square = jnp.mean((y - jnp.mean(y, axis=0)[None]) ** 2)
        mean = gl.theory.attention.left_of_differences(x - jnp.mean(x, axis=0)[None], cfg.sigma_q)
        states, alone = jnp.stack([x.ravel(), y.ravel()]), design("alone", 1)
        (off,) = gl.one_block.attention_errors(drawn, alone, states)
        return jnp.stack([jnp.log(square) / 2, square / mean, *off])

    return jax.lax.map(one, size).T


def figure(data: xr.Dataset) -> gl.Figure:
    """Correlations and the queries' share of the gradient by layer; and one layer with queries."""
    fig, (alike, share, cubed) = gl.figures.panels(1, 3, height=2.9)
    last = data.attrs["depth"]
    for name, look in zip(data.variant.values, gl.figures.series(len(VARIANTS)), strict=False):
        row = data.sel(variant=name)
        gl.figures.band(alike, data.layer, -np.expm1(row.log_apart), look)
        gl.figures.predicted(alike, data.layer, -np.expm1(row.log_apart_law))
        if name != "alone":
            gl.figures.band(share, data.layer, np.exp(row.log_share), look, share=0.8)
            gl.figures.predicted(share, data.layer, np.exp(row.log_share_law))
            gl.figures.named(share, last, np.exp(row.log_share_law[-1]), name, look["color"])
    gl.figures.band(cubed, data.difference, np.exp(data.log_cubed), next(gl.figures.series(1)))
    middle = np.exp(data.log_cubed.mean("draw") - 3 * np.log(data.difference)).mean()
    gl.figures.predicted(cubed, data.difference, middle * data.difference**3)
    alike.set(xlim=(0, last), xlabel="layers of attention", ylabel="correlation of two tokens")
    share.set(xlim=(0, last), yscale="log", xlabel="layer", ylabel="|dL/dQ|² / |dL/dV|²")
    cubed.set(xscale="log", yscale="log", xlabel="differences before", ylabel="and behind a layer")
    gl.figures.ends(alike, last, -np.expm1(data.log_apart.median("draw")).isel(layer=-1, drop=True))
    gl.figures.titles(
        fig, "tokens become one", "queries stop learning", "a layer cubes differences"
    )
    return fig


def caption(data: xr.Dataset) -> str:
    """The correlations at the end and the queries' share there."""
    end = data[["log_apart", "log_share"]].median("draw").isel(layer=-1)
    both = zip(end.variant.values, end.log_apart.values, end.log_share.values, strict=True)
    rows = "; ".join(f"{name}: {-np.expm1(a):.3g} and {np.exp(g):.1g}" for name, a, g in both)
    return f"""Correlation of {data.attrs["num_tokens"]} tokens behind {data.attrs["depth"]} layers
        of uniform attention, and the queries' squared gradient over the values': {rows}. Bands:
        draws (b: 80 %); black: laws. With queries one layer cubes small differences."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What is left between tokens at the end."""
    for name in data.variant.values[-gl.headline.MOST :]:
        row = data.sel(variant=name).isel(layer=-1)
        yield gl.headline.mean(f"log(1 - c), {name}", row.log_apart, "nats", row.log_apart_law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """What attention adds, how tokens become one, and what the queries get of the gradient."""
    eps, num_tokens = float(np.finfo(data.log_apart.dtype).eps), data.attrs["num_tokens"]
    yield gl.claim.weights(data.entries, MEAN)
    for what, states in (("every token", data.off), ("with queries, too,", data.cubed_off)):
        off, rounding = states.transpose("way", ...)
        sentence = f"{what} behind a layer is that of the equations, to rounding"
        yield gl.claim.everywhere(sentence, off, 0.0, VASWANI, rounding=rounding)
    sentence = "attention adds the square of the tokens' mean to the mean square, exactly"
    yield gl.claim.mean(sentence, data.added, 1.0, MEAN)
    sentence = "the queries' gradient is made of what tokens differ by, twice, exactly"
    yield gl.claim.mean(sentence, data["query"], 1.0, ISOTROPIC)
    yield gl.claim.equal("while Q is 0 the keys get no gradient", data.key, 0.0, NOCI)
    if "alone" in data.variant:  # a mean of T numbers is off T eps of √T times its size
        row, rounding = data.log_apart.sel(variant="alone"), 2 * np.log(num_tokens**1.5 * eps)
        sentence = "one layer of uniform attention alone makes all tokens one, up to rounding"
        yield gl.claim.at_most(sentence, row, rounding, DONG)
    kept = data.variant != "alone"
    if kept.any():
        sentence = "a skip keeps differences: tokens become alike as what they share grows, by law"
        apart, width = (data.log_apart, data.log_apart_law, NOCI), data.log_beyond
        yield gl.claim.mean(sentence, *apart, where=kept, finite_width=width)
        sentence = "the queries' share falls as q² (1 - c)²: to 0 with norms, not in a plain skip"
        share = data.log_share, data.log_share_law, NOCI
        yield gl.claim.mean(sentence, *share, where=kept, finite_width=2 * width)
    if "1/√L" in data.variant:
        one, most = data.sel(variant="1/√L"), np.log(num_tokens / (num_tokens + np.e - 1))
        sentence = "branches times 1/√L: correlation stays below (e - 1)/(T + e - 1) at any depth"
        yield gl.claim.mean(
            sentence, one.log_apart, most, NOCI, relation=">=", width=one.log_beyond
        )
    if data.sizes["difference"] > 1:
        small, large = map(float, (data.difference.min(), data.difference.max()))
        span = np.log(large / small)
        yield gl.claim.mean(
            "with queries attention alone takes small differences to their third power",
            *(gl.estimate.log_slopes(data.log_cubed, "difference"), 3.0, DONG),
            # The softmax's next order is smaller by the largest logit; both ends may be off.
            next_order=data.attrs["sigma_q"] * large / span,
            rounding=num_tokens**0.5 * eps / (data.attrs["sigma_q"] * small**3) / span,
        )
    sizes = data.attrs["sigma_q"] * data.difference
    yield gl.claim.mean(
        "and what is left of them has the size that queries, keys, values and √d give",
        *(data.cubed, 1.0, DONG),
        # Logits of the size sigma_q difference change the softmax's first order by themselves.
        next_order=4 * sizes,
        rounding=2 * num_tokens**0.5 * eps / (sizes * data.difference**2),
    )


HARMLESS = {"computed in another format": "rounding is far below the draws"}
FAULTS = {
    "weights 10 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.1),
    "queries not 0": gl.fault.argument("transformer.weights", sigma_q=lambda s: s + 3.0),
    "half of the attention": gl.fault.scale("transformer.attention_matrix", 0.5),
    "branches not scaled": gl.fault.argument("design", depth=lambda _: 1),
    "differences too large": gl.fault.argument("queried", size=lambda size: 30 * size),
}


if __name__ == "__main__":
    gl.run(__file__)
