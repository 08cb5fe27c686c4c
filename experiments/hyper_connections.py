"""Do hyper-connections keep the gradient, and what does projecting them on doubly stochastic leave?

Zhu et al. 2024 (arXiv:2409.19606) mix n residual streams in each layer by a free matrix; Xie et al.
2025 (mHC, arXiv:2512.24880), equation 9, by one that Sinkhorn's sweeps make doubly stochastic. The
gain forward is the largest absolute row sum of the composite matrix, the gain back its largest
absolute column sum (their figures 3 and 7, captions read; their numbers from a second source).
Shown besides: the smallest column sum, which a maximum hides. Rows are divided last, so all that
the sweeps leave undone lies on the way back; and with layers alike, not with independent ones, it
adds up. What any such mixing does lose is the difference between streams.

Answers: mHC sinkhorn iterations 20 enough; hyper connections loss spike gradient norm; doubly
stochastic residual streams collapse to one; sinkhorn backward gain 1.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
FREE = "derived: |v + s g|² is noncentral chi squared (gradlab.theory.products)"
XIE = "Xie et al. 2025, equation 9; Sinkhorn and Knopp 1967"
MASS = "the entries of a matrix with row sums 1 add up to n, however they are summed"
DOBRUSHIN = "an average lies between its parts, so their range shrinks (Dobrushin 1956)"
LAYERS = ("alike", "independent")


@gl.config
class Config:
    """The streams, the free mixing, and the logits of the projected one."""

    num_streams: int = gl.key("residual streams", at_least=2, at_most=64)
    depth: int
    s: gl.Floats = gl.key("deviation of a free mixing I + s G", at_least=0.01, at_most=10)
    shared: float = gl.key("deviation of the logits that all layers share", at_least=0, at_most=20)
    fresh: float = gl.key("deviation of what each layer adds to them", at_least=0, at_most=20)
    num_sweeps: gl.Ints = gl.key("Sinkhorn's sweeps", at_least=1, at_most=10**5)
    diagonal: float = gl.key("by how much logits favour the diagonal", at_least=0, at_most=40)
    num_draws: int


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Norms and gains of free products; sums of projected ones; what is left of differences."""
    key_free, key_mixed = jax.random.split(key)
    norm, gain, mixed = gl.grid.over_draws(lambda key: free(cfg, key), key_free, cfg.num_draws)
    sums = gl.grid.over_draws(lambda key: projected(cfg, key), key_mixed, cfg.num_draws)
    rows, columns, left, end, logits = sums
    mixing = partial(gl.mixing.near_identity, num_streams=cfg.num_streams, deviation=cfg.s[0])
    few = gl.certificate.of_few_layers(
        key_free, lambda *sizes: gl.chain.linear(mixing(*sizes)), cfg.num_streams, cfg.depth
    )
    block = jnp.arange(1, cfg.depth + 1)
    rate = gl.theory.products.identity_plus_log_mean(cfg.num_streams, cfg.s)
    even = gl.mixing.sinkhorn(cfg.diagonal * jnp.eye(cfg.num_streams), 1)
    alike = gl.chain.linear(jnp.broadcast_to(even, (cfg.depth, *even.shape)))
    second = gl.jacobians.product(alike, jnp.ones(cfg.num_streams))
    apart = jnp.zeros(cfg.num_streams).at[:2].set(jnp.array([1.0, -1.0]))
    off = jnp.exp(-cfg.diagonal)
    return {
        "block": gl.named(block, "block", long_name="layers"),
        "layers": gl.named(list(LAYERS), "layers"),
        "log_square": gl.named(norm, "draw s block", long_name="log |Jv|²", units="nats"),
        "log_square_law": gl.named(rate[:, None] * block, "s block", units="nats"),
        "entries": gl.named(mixed, "draw s moment", long_name="of s G"),
        "entries_of_logits": gl.named(logits, "draw layers moment"),
        "log_gain": gl.named(gain, "draw s", long_name="largest row sum, log", units="nats"),
        "row": gl.named(rows, "draw layers num_sweeps stream", long_name="row sums"),
        "column": gl.named(columns, "draw layers num_sweeps stream", long_name="column sums"),
        "log_left": gl.named(left, "draw layers block", long_name="log range of streams"),
        **{way: gl.named(part, "of layer", units="nats") for way, part in few._asdict().items()},
        "end": gl.named(end, "draw layers", long_name="states from the product's"),
        "kept": gl.named((second @ apart)[0], "", long_name="of a difference, even mixing"),
        "kept_law": gl.named(((1 - off) / (1 + (cfg.num_streams - 1) * off)) ** cfg.depth, ""),
    }


def free(cfg: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """The log |J_k ... J_1 v|² by k, the log gain, and moments of s G, of I + s G, for each s."""
    first = jnp.eye(cfg.num_streams)[0]

    def one(s: jax.Array) -> tuple[jax.Array, ...]:
        drawn = gl.mixing.near_identity(key, cfg.depth, cfg.num_streams, s)
        model = gl.chain.linear(drawn)
        along = gl.jacobians.log_norms([lambda t: t * first, model], jnp.ones(1))[1:]
        whole = jnp.sum(jnp.abs(gl.jacobians.product(model, first)), axis=1)
        return 2 * along, jnp.log(jnp.max(whole)), moments(drawn - jnp.eye(cfg.num_streams))

    return jax.vmap(one)(cfg.s)


def moments(entries: jax.Array) -> jax.Array:
    """`realised` of matrices whose entries have a deviation of their own, whatever their size."""
    return gl.ensembles.realised(entries / entries.shape[-1] ** 0.5)


def projected(cfg: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """Row and column sums of the composite, `(layers, num_sweeps, n)`; ranges, `(layers, depth)`.

    And how far the last state is off the product's, and moments of logits; layers alike, or not.
    """
    total = jnp.hypot(cfg.shared, cfg.fresh)
    ways = jnp.array([cfg.shared, 0.0]), jnp.stack([jnp.asarray(cfg.fresh), total])
    x = jax.random.normal(jax.random.fold_in(key, 1), (cfg.num_streams,))

    def one(way: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        drawn = gl.mixing.logits(key, cfg.depth, cfg.num_streams, *way)
        mixed = [gl.chain.linear(gl.mixing.sinkhorn(drawn, count)) for count in cfg.num_sweeps]
        whole = jnp.stack([gl.jacobians.product(model, x) for model in mixed])
        seen = gl.chain.states(mixed[0], x)
        span = jnp.log(jnp.max(seen, axis=1) - jnp.min(seen, axis=1))
        ends = jnp.stack([seen[0] - x, seen[-1] - whole[0] @ x])
        off = jnp.max(jnp.abs(ends)) / jnp.max(jnp.abs(x))
        rows, columns = jnp.sum(whole, axis=2), jnp.sum(whole, axis=1)
        return rows, columns, span[1:] - span[0], off, moments(drawn)

    return jax.lax.map(one, ways)


def figure(data: xr.Dataset) -> gl.Figure:
    """Free mixing by depth; column sums by sweeps; what is left of differences by depth."""
    fig, (grown, sums, left) = gl.figures.panels(1, 3, height=2.9)
    last = data.sizes["block"]
    for value, look in zip(data.s.values, gl.figures.series(data.sizes["s"]), strict=True):
        row = data.sel(s=value)
        gl.figures.band(grown, data.block, row.log_square / gl.LN10, look, share=0.9)
        gl.figures.predicted(grown, data.block, row.log_square_law / gl.LN10)
    grown.set(xlim=(0, last), xlabel="layers", ylabel="decades of |Jv|²")
    ends = data.log_square.median("draw").isel(block=-1, drop=True) / gl.LN10
    ends = ends.assign_coords(s=[f"s = {value:g}" for value in data.s.values])
    gl.figures.ends(grown, last, ends)
    for name, look in zip(LAYERS, gl.figures.series(2), strict=True):
        column = data.column.sel(layers=name)
        for extreme in (column.max("stream"), column.min("stream")):
            gl.figures.band(sums, data.num_sweeps, extreme, look, share=0.98)
        seen = data.log_left.sel(layers=name).clip(min=np.log(np.finfo(data.row.dtype).eps))
        gl.figures.band(left, data.block, seen / gl.LN10, look, share=0.9)
    gl.figures.rule(sums, y=1.0)
    sums.set(xscale="log", xticks=data.num_sweeps, xticklabels=data.num_sweeps.values)
    sums.minorticks_off()
    sums.set(xlabel="Sinkhorn's sweeps", ylabel="largest and smallest column sum")
    left.set(xlim=(0, last), xlabel="layers", ylabel="decades of the streams' range")
    gl.figures.key(
        left, dict(zip([f"layers {name}" for name in LAYERS], gl.figures.series(2), strict=True))
    )
    gl.figures.title(grown, "free: I + s G")
    gl.figures.title(sums, "projected: the way back")
    gl.figures.title(left, "projected: streams merge")
    return fig


def caption(data: xr.Dataset) -> str:
    """The gain of free mixing; the spread of column sums; how far streams merge."""
    column = data.column.sel(layers="alike").isel(num_sweeps=0)
    high, low = column.max("stream").quantile(0.99), column.min("stream").quantile(0.01)
    left = data.log_left.isel(block=-1).median("draw") / gl.LN10
    gains = ", ".join(
        f"{float(np.exp(g)):.3g} (s = {float(g.s):g})" for g in data.log_gain.median("draw")
    )
    return f"""Through {data.attrs["depth"]} layers the median gain of free mixing is {gains}. With
        {int(data.num_sweeps[0])} sweeps the column sums of alike layers reach {float(high):.2f} and
        {float(low):.2f} (99 and 1 % of {data.sizes["draw"]} draws), while rows stay 1; what streams
        differ by falls to 10^{float(left[0]):.0f} with layers alike, to 10^{float(left[1]):.0f}
        with independent ones. Bands: draws; lines: exact."""


def off_one(sums: xr.DataArray) -> xr.DataArray:
    """The largest |log| of the sums over streams; nan where one is negative."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs: xr.DataArray = xr.apply_ufunc(np.log, sums)
    return abs(logs).max("stream", skipna=False)


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The growth of free mixing, and how far column sums of alike layers are off 1, in log."""
    for s in data.s.values[: gl.headline.MOST - 1]:
        row = data.sel(s=s).isel(block=-1)
        yield gl.headline.mean(f"log|Jv|², s = {s:g}", row.log_square, "nats", row.log_square_law)
    column = data.column.sel(layers="alike").isel(num_sweeps=0)
    yield gl.headline.mean("column sums off 1", off_one(column), "nats")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The free law; rows, columns and sweeps of the projection; the streams' range."""
    eps, n = float(np.finfo(data.row.dtype).eps), data.attrs["num_streams"]
    # Sums of n products of numbers between 0 and 1, in each layer (Higham 2002, section 3.5).
    rounding = 4 * eps * n * data.attrs["depth"]
    sentence = "free mixing: rows go back, and norms grow, as by the matrices multiplied out"
    ways = data.fast, data.literal
    yield gl.claim.everywhere(sentence, *ways, "the chain rule", rounding=data.rounding)
    sentence = "projected: the first state is the input, and the last the composite's of it"
    yield gl.claim.everywhere(sentence, data.end, 0.0, "the chain rule", rounding=rounding)
    yield gl.claim.mean(
        "free mixing: log|Jv|² is a sum of independent logs of noncentral chi squared",
        *(data.log_square, data.log_square_law, FREE),
    )
    yield gl.claim.weights(data.entries, FREE, of="free matrices", variance=data.s**2)
    shared, fresh = (data.attrs[name] ** 2 for name in ("shared", "fresh"))
    alike, apart = (data.entries_of_logits.sel(layers=name) for name in LAYERS)
    yield gl.claim.weights(apart, XIE, of="independent logits", variance=shared + fresh)
    sentence = "alike logits: their mean square, and their product with those a layer before"
    law = xr.DataArray([shared + fresh, shared * (data.sizes["block"] > 1)], dims="moment")
    yield gl.claim.mean(sentence, alike.isel(moment=[1, 3]), law, XIE)
    sentence = "projected: the composite's row sums are 1 after any number of sweeps"
    yield gl.claim.everywhere(sentence, data.row, 1.0, XIE, rounding=rounding)
    sentence = "the column sums are 1 in the mean, so that each above it has one below"
    yield gl.claim.everywhere(sentence, data.column.mean("stream"), 1.0, MASS, rounding=rounding)
    size = off_one(data.column)
    if data.sizes["num_sweeps"] > 1:
        first, last = size.isel(num_sweeps=0), size.isel(num_sweeps=-1)
        sentence = "more sweeps bring the composite's column sums nearer to 1"
        yield gl.claim.mean(sentence, last - first, 0.0, XIE, relation="<=")
    if shared > 0:
        alike, apart = (size.isel(num_sweeps=0).sel(layers=name) for name in LAYERS)
        sentence = "layers alike leave more on the way back than independent ones"
        yield gl.claim.mean(sentence, alike - apart, 0.0, XIE, relation=">=")
    after = data.log_left.isel(block=slice(1, None))
    resolved = after > np.log(eps) / 2  # below, what is left of a difference is rounding
    yield gl.claim.at_most(
        "no projected layer makes the streams' range larger",
        *(data.log_left.diff("block").where(resolved, 0.0), 0.0, DOBRUSHIN),
        where=resolved,
        # The range is a difference of numbers that agree to all but what is left of it.
        rounding=8 * eps * n / np.exp(after.where(resolved, 0.0)),
    )
    sentence = "even mixing keeps the power of its second eigenvalue of a difference"
    kept = data.kept, data.kept_law, "eigenvalue of a matrix with equal entries off its diagonal"
    yield gl.claim.everywhere(sentence, *kept, rounding=rounding)


FAULTS = {
    "mixing too free": gl.fault.argument("mixing.near_identity", deviation=lambda s: 1.2 * s),
    "norms along the way 1 % off": gl.fault.result("jacobians.log_norms", lambda logs: logs + 0.01),
    "columns divided last": gl.fault.change(
        "mixing.sinkhorn",
        lambda f: lambda logits, count: f(logits.swapaxes(-1, -2), count).swapaxes(-1, -2),
    ),
    "rows summed to 1.001": gl.fault.scale("mixing.sinkhorn", 1.001),
    "few sweeps": gl.fault.argument("mixing.sinkhorn", num_sweeps=lambda n: max(1, 45 - n)),
    "logits 2 % too large": gl.fault.scale("mixing.logits", 1.02),
    "layers never alike": gl.fault.argument("mixing.logits", shared=lambda s: 0 * s),
    "a negative weight": gl.fault.result("mixing.sinkhorn", lambda M: 2 * jnp.eye(M.shape[-1]) - M),
}
HARMLESS = {"the loss halved": "a row on its way back is held against what it began as"}

if __name__ == "__main__":
    gl.run(__file__)
