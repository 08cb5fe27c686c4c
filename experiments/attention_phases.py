"""Between which two collapses can attention be trained?

Giorlandino and Goldt 2026 (arXiv:2505.24333; abstract and the authors' code read): logits and skips
decide whether all tokens become one (rank collapse) or attention rests on one token (entropy
collapse); their diagrams take a softmax's limit of many tokens, whose rows share nothing. Here both
overlaps are exact at every T, and differ much: at 1.5 times the critical logits two rows of
correlation .8 share .35 of 16 tokens, .06 of a million. Large logits keep tokens apart for fewer
layers than that; of nearly equal ones a skip alone decides how fast they merge: 1 + 1/skip².

Answers: how large should attention logits be at initialization; residual strength; rank collapse.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "attention"
ROWS = "exact at finite T, derived: gradlab.theory.attention.overlaps"
BLOCK = "Giorlandino and Goldt 2026, the authors' code, with exact overlaps: theory.transformer"
PAPER = "Giorlandino and Goldt 2026, abstract"
MERGING = "derived: a softmax of equal tokens is uniform, and relu keeps small differences"
OF, FAR = ("of one row", "of two"), 3.0  # that far above the critical logits training suffers
SMALL, NODES = 1e-6, 96  # what nearly equal tokens differ by, squared; of the rule for overlaps


@gl.config
class Config:
    """Rows of attention, blocks that follow each other, and readers of images that are trained."""

    num_tokens: int = gl.key("tokens", at_least=2, at_most=64)
    correlation: float = gl.key("of any two tokens at the start", above=0, at_most=0.99)
    ratio: gl.Floats = gl.key("deviation of logits over the critical", above=0, at_most=4, fewest=2)
    skip: gl.Floats = gl.key("factor of the identity", above=0, at_most=10, fewest=2)
    chain_ratio: gl.Floats = gl.key("the same, of the blocks", above=0, at_most=4)
    chain_skip: gl.Floats = gl.key("the same, of the blocks", above=0, at_most=10)
    depth: int = gl.key("blocks", at_least=2, at_most=100)
    width: int = gl.key("entries of a token", at_least=66, at_most=2**12)
    num_draws: int = gl.key("draws of rows, and of blocks", at_least=8, at_most=10**5)
    num_blocks: int = gl.key("blocks of a reader", at_least=1, at_most=64)
    num_units: int = gl.key("entries of its 8 tokens", at_least=8, at_most=512)
    num_runs: int = gl.key("readers trained", at_least=2, at_most=64)
    num_steps: int
    batch_size: int
    learning_rate: float


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Overlaps of rows, correlations by block, and what is left of the loss, with their laws."""
    key_rows, key_chain, key_run = jax.random.split(key, 3)
    theory, T = gl.theory.attention, cfg.num_tokens
    critical, draws = theory.critical_std(T), cfg.num_draws
    logits = critical * cfg.ratio
    overlap, merged = gl.grid.over_draws(lambda key: rows(key, cfg, logits), key_rows, draws)
    std = logits * jnp.sqrt(1 - cfg.correlation)
    law = jax.lax.map(lambda s: theory.overlaps(s, cfg.correlation, T), std)
    limits = theory.limit_participation(std, T)
    pairs = jnp.meshgrid(critical * cfg.chain_ratio, cfg.chain_skip, indexing="ij")
    sizes = jnp.stack([pair.ravel() for pair in pairs], -1)
    alike, entries = gl.grid.over_draws(lambda key: chains(key, cfg, sizes), key_chain, draws)
    before = jnp.roll(jnp.mean(alike, 0), 1, 1).at[:, 0].set(cfg.correlation)
    made = cfg.correlation, cfg.depth, T, NODES
    by_block, limit, near = gl.theory.collapse.predictions(sizes, before, *made)
    axes, shape = "chain_ratio chain_skip layer", (*pairs[0].shape, cfg.depth)
    loss, first = gl.grid.over_draws(lambda key: losses(key, cfg), key_run, cfg.num_runs)
    return {
        "of": gl.named(list(OF), "of"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer"),
        "logits": gl.named(logits, "ratio", long_name="deviation of the logits"),
        "overlap": gl.named(overlap, "draw ratio of", long_name="sum p p'"),
        "overlap_law": gl.named(jnp.stack(law, -1), "ratio of"),
        "overlap_limit": gl.named(jnp.stack([limits, 0 * limits], -1), "ratio of"),
        "rule": gl.named(theory.overlaps_error(std, T), "ratio", long_name="of the law's integral"),
        "merged": gl.named(merged, "draw ratio skip", long_name="differences, before over after"),
        "merged_law": gl.named(gl.theory.collapse.merging(cfg.skip), "skip"),
        "alike": gl.named(alike.reshape(-1, *shape), f"draw {axes}", long_name="correlation"),
        "alike_law": gl.named(by_block.reshape(shape), axes),
        "alike_limit": gl.named(limit.reshape(shape), axes, long_name="of many tokens"),
        **{f"near_{at}": gl.named(x.reshape(shape), axes) for at, x in near._asdict().items()},
        "chain_rule": gl.named(theory.overlaps_error(jnp.max(sizes[:, 0]), T, NODES), ""),
        "entries": gl.named(entries, "draw matrix moment", long_name="of Q, K, V, W_1 and W_2"),
        "loss": gl.named(loss, "run ratio skip", long_name="loss at the end", units="nats"),
        "first": gl.named(first, "run ratio skip way first_step number"),
    }


def post(skip: jax.Array) -> gl.transformer.Design:
    """Norms behind both sums of a block, and that factor of the identity in both."""
    return gl.transformer.Design(after=1.0, skip=skip)


def rows(key: jax.Array, cfg: Config, logits: jax.Array) -> tuple[jax.Array, ...]:
    """Overlaps of rows, `(ratio, 2)`; how far small differences shrink, `(ratio, skip)`."""
    key_x, key_Q, key_weights = jax.random.split(key, 3)
    x = gl.transformer.correlated(key_x, cfg.num_tokens, cfg.width, cfg.correlation)
    close = gl.transformer.correlated(key_x, cfg.num_tokens, cfg.width, 1 - SMALL)
    Q = gl.ensembles.unit_orthogonal(key_Q, (cfg.width, cfg.width), float)
    drawn = gl.chain.params_at(gl.transformer.weights(key_weights, 1, cfg.width, 0.0), 0)

    def one(s: jax.Array) -> tuple[jax.Array, ...]:
        weights = drawn._replace(Q=s * Q)

        def left(skip: jax.Array) -> jax.Array:
            z = gl.transformer.attend((weights, post(skip=skip)), close.ravel())
            return SMALL / gl.transformer.apartness(z.reshape(x.shape))

        return jnp.stack(gl.transformer.overlaps(weights, x)), jax.lax.map(left, cfg.skip)

    return jax.lax.map(one, logits)


def chains(key: jax.Array, cfg: Config, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean correlation behind each block, `(sizes, layer)`, and the weights' moments."""
    key_x, key_weights = jax.random.split(key)
    x = gl.transformer.correlated(key_x, cfg.num_tokens, cfg.width, cfg.correlation)
    drawn = gl.transformer.weights(key_weights, cfg.depth, cfg.width, 1.0)

    def one(size: jax.Array) -> jax.Array:
        chain = gl.transformer.encoder(drawn._replace(Q=size[0] * drawn.Q), post(skip=size[1]))
        behind = gl.chain.states(chain, x.ravel())[1:]
        return 1 - jax.vmap(lambda z: gl.transformer.apartness(z.reshape(x.shape)))(behind)

    return jax.lax.map(one, sizes), jnp.stack([gl.ensembles.realised(W) for W in drawn])


def losses(key: jax.Array, cfg: Config) -> tuple[jax.Array, jax.Array]:
    """The loss over the last tenth of steps of readers, `(ratio, skip)`; their first steps."""
    key_reader, key_batches = jax.random.split(key)
    train, _ = gl.training.digits(float)
    data = train._replace(x=(train.x - jnp.mean(train.x)) / jnp.std(train.x))
    batches = gl.training.schedule(key_batches, len(data.y), cfg.batch_size, cfg.num_steps)
    critical, last = gl.theory.attention.critical_std(8), max(1, cfg.num_steps // 10)
    sizes, adam = (cfg.num_blocks, cfg.num_units, 8, 64, 10), optax.adam(cfg.learning_rate)
    rule = gl.backpropagation.adam(cfg.learning_rate)

    def one(ratio: jax.Array, skip: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = gl.transformer.reader(key_reader, *sizes, sigma_q=critical * ratio)
        apply = partial(gl.transformer.classify, post(skip=skip))
        ran = gl.training.train(apply, start, adam, data, batches)
        hand = partial(gl.backpropagation.of_reader, post(skip=skip)), rule
        return jnp.mean(ran.loss[-last:]), gl.backpropagation.first_steps(ran, *hand, data, batches)

    return jax.lax.map(lambda r: jax.lax.map(lambda s: one(r, s), cfg.skip), cfg.ratio)


def figure(data: xr.Dataset) -> gl.Figure:
    """What rows share; the correlation by block; what is left of the loss over logits and skip."""
    fig, (overlap, alike, loss) = gl.figures.panels(1, 3, height=2.9)
    for name, look in zip(OF, gl.figures.series(2), strict=True):
        gl.figures.band(overlap, data.ratio, data.overlap.sel(of=name), look, label=name)
        gl.figures.predicted(overlap, data.ratio, data.overlap_law.sel(of=name))
        gl.figures.bound(overlap, data.ratio, data.overlap_limit.sel(of=name))
    overlap.set(ylim=(-0.03, 1), xlabel="deviation of the logits / s_c", ylabel="overlap of rows")
    overlap.legend(loc="upper left")
    row = data.isel(chain_ratio=-1)
    for skip, look in zip(data.chain_skip.values, gl.figures.series(9), strict=False):
        one, label = row.sel(chain_skip=skip), f"skip {skip:g}"
        gl.figures.measured(alike, data.layer, one.alike.mean("draw"), look, label)
        gl.figures.predicted(alike, data.layer, one.alike_law)
        gl.figures.bound(alike, data.layer, one.alike_limit)
    alike.set(ylim=(0, 1.03), xlabel=f"block, logits {float(row.chain_ratio):g} s_c")
    alike.set(ylabel="correlation of two tokens")
    alike.legend(loc="lower right")
    logits, skip = np.log2(data.ratio), np.log2(data.skip)
    logits.attrs["long_name"], skip.attrs["long_name"] = "log₂ of logits / s_c", "log₂ of the skip"
    plane = data.loss.mean("run").transpose("ratio", "skip").assign_coords(ratio=logits, skip=skip)
    gl.figures.surface(loss, plane, "loss at the end, nats", cmap="cividis", alpha=1.0)
    gl.figures.words(loss, 0.05, 0.05, "all tokens are one", color="black")
    gl.figures.titles(fig, "rows of attention", "tokens become one", "what trains")
    return fig


def caption(data: xr.Dataset) -> str:
    """The overlap of two rows, the correlation at the end, and the best of the diagram."""
    row, end = data.isel(ratio=-1), data.isel(chain_ratio=-1, chain_skip=-1, layer=-1)
    (own, shared), limit = row.overlap.mean("draw").values, float(row.overlap_limit[0])
    ratio, skip = data.loss.mean("run").to_series().idxmin()
    return f"""At {float(row.ratio):g} times the critical logits one row of attention overlaps
        itself by {own:.2f} and another's by {shared:.2f}; in the limit of many tokens (dashed) by
        {limit:.2f} and 0. Behind {data.attrs["depth"]} blocks of skip {float(end.chain_skip):g}
        tokens correlate by {float(end.alike.mean()):.2f} (law {float(end.alike_law):.2f}, limit
        {float(end.alike_limit):.2f}). Readers learn best at {ratio:g} s_c, a skip of {skip:g}."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What two rows share at the largest logits, and the correlation at the end."""
    row, end = data.isel(ratio=-1, of=1), data.isel(chain_ratio=-1, chain_skip=-1, layer=-1)
    yield gl.headline.mean("overlap of two rows", row.overlap, law=float(row.overlap_law))
    yield gl.headline.mean("correlation at the end", end.alike, law=float(end.alike_law))


def near(data: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """The correlations by a block's law, given those before; and what a cube more may be."""
    off = data.alike.shift(layer=1, fill_value=data.attrs["correlation"]) - data.near_at
    to_second = data.near_value + data.near_slope * off + data.near_curvature * off**2 / 2
    return to_second, np.abs(data.near_third * off**3).max("draw") / 6


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Exact overlaps; a block's law; how nearly equal tokens merge; both collapses in training."""
    width, eps = data.attrs["width"], float(np.finfo(data.overlap.dtype).eps)
    yield gl.claim.weights(data.entries, BLOCK)
    sentence = "rows of attention overlap as the exact law of so many tokens says, at any logits"
    given = data.overlap, data.overlap_law, ROWS
    yield gl.claim.mean(sentence, *given, rule=data.rule, rounding=4 * width * eps)
    yield gl.claim.mean(
        "nearly equal tokens merge by 1 + 1/skip² a block, however large the logits are",
        *(data.merged, data.merged_law, MERGING),
        # A norm keeps all but the mean of width entries; logits of small differences are small.
        finite_width=2 * data.merged_law / width,
        small=SMALL * data.logits**2 * data.merged_law,
        rounding=4 * width * eps * data.merged_law / SMALL**0.5,
    )
    law, cube = near(data)
    # The correlation of two tokens varies by at most 1/width behind each of two sublayers, which
    # relu's kernel curves by at most 1/pi, the block's law by its curvature; norms by 1/width.
    yield gl.claim.mean(
        "behind each block two tokens are as alike as its law says, given the block before",
        *(data.alike - law, 0.0, BLOCK),
        finite_width=(np.abs(data.near_curvature) + 1 / np.pi + 2) / width,
        third_order=cube,
        rule=2 * data.chain_rule,
    )
    sizes = [data.attrs[name] for name in ("num_blocks", "batch_size", "num_units", "num_units")]
    yield gl.claim.backpropagated(data["first"], kinked=[8 * data.loss.size, *sizes])
    sentence = "a skip of nearly nothing leaves more of the loss than the largest, at any logits"
    won = data.loss.isel(skip=0) - data.loss.isel(skip=-1)
    yield gl.claim.gain(sentence, won, f"{PAPER}: rank collapse", over="run")
    if data.ratio[-1] >= FAR:
        sentence = "at a skip near 1 logits far above the critical leave more of it than those do"
        row = data.loss.sel(skip=1, method="nearest")
        won = row.isel(ratio=-1) - row.sel(ratio=1, method="nearest")
        yield gl.claim.gain(sentence, won, f"{PAPER}: entropy collapse", over="run")


HARMLESS = {"computed in another format": "a rounding is far below the error of the sampling"}
FAULTS = {
    "logits 44 % too large": gl.fault.argument("transformer.attention_matrix", x=lambda x: 1.2 * x),
    "skip forgotten": gl.fault.argument("post", skip=lambda skip: 0 * skip + 1),
    "norm forgotten": gl.fault.replace("transformer.layer_norm", lambda x, on=1.0: x),
    "weights 10 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.1),
    "readers without queries": gl.fault.argument("transformer.reader", sigma_q=lambda s: 0 * s),
}


if __name__ == "__main__":
    gl.run(__file__)
