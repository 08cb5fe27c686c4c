"""Where does a transformer's layer norm keep the gradient, and where does it only bound the signal?

Xiong et al. 2020 (arXiv:2002.04745), lemma 2 and theorem 1: behind the sum (Post-LN) the last
feed-forward weight has a gradient O(d √ln d) at any depth L; in front of the branches (Pre-LN) it
is O(d √(ln d / L)). √ln d is of their bound: the law measured here is d times a constant. Beside
them the norms that models of today have: Peri-LN (Kim et al. 2025, arXiv:2502.02732), a norm on
either side of the branch, and the reordered one, x + norm(f(x)), whose rms grows by √(1 + 1/m) at
the m-th sublayer from 1, not by √2; these two have the same laws. All is about initialisation: what
it means for warm-up is not proved by it. Attention is uniform (queries 0), where all is known;
`sigma_q=1` is one head with queries as wide as keys.

Answers: pre-norm or post-norm transformer gradient vanishing; why post-LN needs warmup; peri-LN
sandwich norm variance growth; OLMo 2 reordered norm x + norm(f(x)); residual stream norm sqrt(L).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
LEMMA = "Xiong et al. 2020, lemma 2"
THEOREM = "Xiong et al. 2020, theorem 1; gradlab.theory.transformer"
VASWANI = "Vaswani et al. 2017, equations 1 and 2; gradlab.measuring.one_block"
NORM = "Ba, Kiros and Hinton 2016, section 3"
SIGN = "derived: W_2 and V are as often negative, so that a branch adds its own square in the mean"
SUMMED = ("Post", "Pre")  # the branch ends without a norm


@gl.config
class Config:
    """The blocks, and the tokens that go in."""

    position: gl.Strings = gl.key("where norms stand", choices=("Post", "Pre", "Peri", "reordered"))
    depth: int = gl.key("number of blocks", at_least=2, at_most=1000)
    width: int = gl.key("d: entries of a token", at_least=16, at_most=2**12)
    num_tokens: int = gl.key("tokens", at_least=2, at_most=2**12)
    num_draws: int = gl.key("draws of weights, tokens and loss", at_least=8, at_most=10**5)
    start: float = gl.key("rms of the tokens that go in", above=0, at_most=1e3)
    sigma_q: float = gl.key("deviation of the logits; 0: uniform", at_least=0, at_most=100)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Squares forward, gradients back, by block, for each position, with the laws of both."""
    designs = [gl.transformer.DESIGNS[name] for name in cfg.position]
    stacked = gl.transformer.Design(*map(jnp.array, zip(*designs, strict=True)))

    def one(key: jax.Array) -> dict[str, jax.Array]:  # the same weights at every position
        key_weights, *keys = jax.random.split(key, 3)
        weights = gl.transformer.weights(key_weights, cfg.depth, cfg.width, cfg.sigma_q)
        seen = jax.lax.map(lambda design: network(cfg, weights, design, keys), stacked)
        return seen | {"entries": jnp.stack([*map(gl.ensembles.realised, weights[1:])])}

    seen = gl.grid.over_draws(one, key, cfg.num_draws)
    made = cfg.depth, cfg.width, cfg.start, cfg.num_tokens
    law = jax.vmap(lambda design: gl.theory.transformer.block_laws(design, *made))(stacked)
    at, nats = "draw position block", {"units": "nats"}
    return {
        "block": gl.named(jnp.arange(1, cfg.depth + 1), "block", long_name="blocks"),
        "square": gl.named(seen["square"], at, long_name="mean square of the sum, by block"),
        "fed": gl.named(seen["fed"], "draw position", long_name="what W_2 relu(W_1 x) adds"),
        "last": gl.named(seen["last"], at, long_name="log |dL/dW_2|²/d², last block", **nats),
        "ratio": gl.named(seen["ratio"], "draw position", long_name="over what is exact"),
        "norm": gl.named(seen["norm"], "draw position", long_name="a norm's mean or square, off"),
        "off": gl.named(seen["off"], f"{at} way", long_name="off the equations, allowed"),
        "entries": gl.named(seen["entries"], "draw matrix moment", long_name="of K, V, W_1, W_2"),
        "by_block": gl.named(seen["by_block"], at, long_name="log |dL/dW_2|²/d²", **nats),
        **{name: gl.named(part, "position block") for name, part in law._asdict().items()},
    }


def network(cfg: Config, weights: Any, design: Any, keys: list[jax.Array]) -> dict[str, jax.Array]:
    """Squares, and squared gradients of W_2 over d²: as the last block's, and in the deepest."""
    tokens = jax.random.normal(keys[0], (cfg.num_tokens, cfg.width))
    v = jax.random.normal(keys[1], (cfg.width,))
    rms = jnp.sqrt(jnp.mean(tokens * tokens, axis=1, keepdims=True))
    model, parts = gl.transformer.encoder(weights, design), gl.transformer
    z = gl.chain.states(model, (cfg.start * tokens / rms).ravel())

    def loss(z: jax.Array) -> jax.Array:  # reads one token, normalised
        return v @ parts.layer_norm(z.reshape(tokens.shape)[0])

    def block(at: tuple[Any, jax.Array]) -> tuple[jax.Array, ...]:
        (weights, design), z = at
        slope = jax.grad(lambda W: loss(parts.block((weights._replace(W_2=W), design), z)))
        middle = parts.attend((weights, design), z)
        total = parts.feed((weights, design._replace(after=jnp.zeros(()))), middle)
        into = parts.seen(design, middle.reshape(tokens.shape))[0]
        spread = jnp.var(total.reshape(tokens.shape)[0])
        exact = (cfg.width - 2) * jnp.sum(parts.hidden(weights, into) ** 2) / spread
        added = jnp.mean((total - middle) ** 2)
        return jnp.mean(total * total), added, jnp.sum(slope(weights.W_2) ** 2), exact

    square, fed, last, exact = jax.lax.map(block, (model.params, z[:-1]))
    slopes = gl.jacobians.weight_gradients(model, z[0], loss)[0].W_2
    scale = 2 * np.log(cfg.width)
    return {
        "square": square,
        "fed": jnp.mean(fed),
        "last": jnp.log(last) - scale,
        "ratio": jnp.mean(last / exact),
        "norm": gl.one_layer.norm_error(parts.layer_norm(z.reshape(-1, cfg.width))),
        "off": gl.one_block.block_errors(weights, design, z),
        "by_block": jnp.log(jnp.sum(slopes**2, axis=(1, 2))) - scale,
    }


def figure(data: xr.Dataset) -> gl.Figure:
    """The last block's gradient by depth, all blocks' in the deepest, and the squares forward."""
    fig, (last, blocks, squares) = gl.figures.panels(1, 3, height=2.9)
    deepest = data.sizes["block"]
    looks = [*gl.figures.series(data.sizes["position"])]
    looks[3:] = [look | {"fillstyle": "none", "markersize": 5} for look in looks[3:]]
    for name, look in zip(data.position.values, looks, strict=True):
        row = data.sel(position=name)
        for axes, part in ((last, "last"), (blocks, "by_block")):
            gl.figures.band(axes, data.block, np.exp(row[part] / 2), look, share=0.8)
            gl.figures.predicted(axes, data.block, np.exp(row[f"{part}_law"] / 2))
        gl.figures.band(squares, data.block, row.square, look)
        gl.figures.predicted(squares, data.block, row.square_law)
    if "Pre" in data.position:
        for most in (0.5, 1.5):
            gl.figures.bound(squares, data.block, data.attrs["start"] ** 2 + most * data.block)
        gl.figures.words(squares, 0.45, 0.1, "dashed: bounds of Pre")
    last.set(xscale="log", xlabel="blocks in all", ylabel="|dL/dW| / d of the last block")
    blocks.set(xlim=(1, deepest), xlabel="block", ylabel=f"|dL/dW| / d, {deepest} blocks in all")
    squares.set(xlim=(1, deepest), xlabel="block", ylabel="mean square of the sum")
    for axes in (last, blocks):
        axes.set(yscale="log", yticks=(ticks := [0.1, 0.2, 0.5, 1]), yticklabels=ticks)
        axes.minorticks_off()
    gl.figures.ends(squares, deepest, data.square.median("draw").isel(block=-1, drop=True))
    marks = [look | {"linestyle": "none"} for look in looks]
    gl.figures.key(last, dict(zip(data.position.values, marks, strict=True)), loc="lower left")
    gl.figures.titles(fig, "the last block's gradient", "every block's gradient", "the signal")
    return fig


def caption(data: xr.Dataset) -> str:
    """The last gradient's fall with depth, and the squares at the end."""
    end, depth = data.median("draw").isel(block=-1), data.attrs["depth"]
    slopes = dict(zip(data.position.values, np.exp(end["last"].values / 2), strict=True))
    rows = ", ".join(f"{slope:.2f} d ({name})" for name, slope in slopes.items())
    return f"""In {depth} blocks of width d = {data.attrs["width"]} the last feed-forward matrix has
        a gradient of {rows}: d times the root of the share that its branch has in the sum. Bands:
        80 % of {data.sizes["draw"]} draws (c: all); black: laws."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The last block's gradient in the deepest network, by position."""
    for name in data.position.values[: gl.headline.MOST]:
        row = data.sel(position=name).isel(block=-1)
        yield gl.headline.mean(f"log |dL/dW|²/d², {name}", row["last"], "nats", row.last_law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The squares forward, exact where a norm fixes them; the last gradient; every block's."""
    start, uniform = data.attrs["start"] ** 2, data.attrs["sigma_q"] == 0
    summed, fixed = data.position.isin(SUMMED), data.position != "Pre"
    eps = float(np.finfo(data.last.dtype).eps)
    yield gl.claim.weights(data.entries, THEOREM)
    off, rounding = data.off.transpose("way", ...)
    sentence = "every token behind a block is that of the equations, to rounding"
    yield gl.claim.everywhere(sentence, off, 0.0, VASWANI, rounding=rounding)
    sentence, sums = "every norm leaves the mean 0 and the mean square 1", 4 * data.attrs["width"]
    yield gl.claim.everywhere(sentence, data.norm, 0.0, NORM, rounding_of_sums=sums * eps)
    yield gl.claim.mean(
        "a feed-forward branch adds 1/2 to the mean square, or 1 with a norm at its end, exactly",
        *(data.fed, 1.0 - 0.5 * summed, SIGN),
        rounding=8 * eps * (start + 2 * data.attrs["depth"]),  # of the sum that it is taken from
    )
    if fixed.any():
        yield gl.claim.mean(
            "Post has the mean square 3/2, and a norm at each branch's end that of the input and 1 "
            "for each sublayer: a factor √(1 + 1/m) of the rms, not √2",
            *(data.square, (start + 2 * data.block).where(~summed, 1.5), LEMMA),
            where=fixed,
        )
    if "Pre" in data.position:
        row = data.square.sel(position="Pre")
        sides: tuple[tuple[gl.claim.Relation, float], ...] = (">=", 0.5), ("<=", 1.5)
        for relation, most in sides:
            bound = start + most * data.block
            sentence = f"Pre's mean square is {relation} the input's and {most:g} a block"
            yield gl.claim.mean(sentence, row, bound, LEMMA, relation=relation)
    if uniform and "Pre" in data.position:
        pre = data.sel(position="Pre")
        yield gl.claim.mean(
            "Pre: the mean square grows as tokens become alike, by its law",
            *(pre.square, pre.square_law, THEOREM),
            finite_width=pre.square_beyond,
        )
    if summed.any():
        yield gl.claim.mean(
            "the last gradient is exactly √(d - 2) |relu(W_1 x)| over the deviation of the sum",
            *(data.ratio, 1.0, THEOREM),
            where=summed,
        )
    known = fixed | uniform
    if known.any():
        yield gl.claim.mean(
            "the last gradient is d times the root of its branch's share in the sum, at any depth",
            *(data["last"], data.last_law, THEOREM),
            where=known,
            finite_width=data.last_beyond,
        )
    if uniform:
        yield gl.claim.mean(
            "every block's gradient follows the tokens' gradients and their sum's on the way back",
            *(data.by_block, data.by_block_law, THEOREM),
            finite_width=data.by_block_beyond,
        )
    end = data.isel(block=-1)
    yield gl.claim.everywhere(
        "the last block's gradient is the same by the product of Jacobians",
        *(end.by_block, end["last"], "Rumelhart, Hinton and Williams 1986"),
        # Three products of n terms and three norms, each of 4 √n eps (Higham and Mary 2019).
        rounding=24 * data.attrs["width"] ** 0.5 * eps,
    )


FAULTS = {
    "weights 3 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.03),
    "norms leave a deviation of 1.5": gl.fault.scale("transformer.layer_norm", 1.5),
    "queries not 0": gl.fault.argument("transformer.weights", sigma_q=lambda s: s + 3.0),
    "attention left out": gl.fault.replace("transformer.attend", lambda params, z: z),
    "a sublayer's identity dropped": gl.fault.argument(
        "transformer.encoder", design=lambda d: d._replace(skip=0.5)
    ),
    "a gradient a block too early": gl.fault.change(
        "jacobians.weight_gradients",
        lambda f: lambda *a: (f(*a)[0]._replace(W_2=jnp.roll(f(*a)[0].W_2, 1, 0)),),
    ),
}

HARMLESS = {"a Jacobian transposed": "W and its transpose have one law"}


if __name__ == "__main__":
    gl.run(__file__)
