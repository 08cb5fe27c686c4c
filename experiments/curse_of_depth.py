"""Does the variance of a Pre-LN transformer grow exponentially with depth, and what does 1/√l cure?

Sun et al. 2025 (arXiv:2502.05795; abstract read, and the scaling in the authors' code; the theorem
not read; from a second source): the output variance of Pre-LN "exponentially grows", between
Theta(L) and Theta(exp L), so that deep blocks become the identity; their cure multiplies what each
norm gives by 1/√l (LayerNorm Scaling). At the start independent branches add between 1/2 and 3/2
a block: the variance grows as L, and scaled as log L. Even the printed recursion, s + √s, grows as
L²/4; and a short training makes it no exponential. Deep blocks do tend to the identity, |J - I|² as
1/l; scaled ones are nearer to it still, since a smaller branch meets the stream.

Answers: pre-norm residual stream variance grows with depth linear or exponential; curse of depth
layernorm scaling 1/sqrt(layer); deep transformer layers identity; hidden state norm grows LLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "depth"
SUN = "Sun et al. 2025, abstract, and their theorem from a second source"
LAW = "derived: gradlab.theory.transformer; the bounds as in Xiong et al. 2020, lemma 2"
NORM = "Ba, Kiros and Hinton 2016, section 3"
VARIANTS, LOOKS = ("Pre", "scaled"), ("start", "trained")
GREY = {"marker": "o", "linestyle": "none", "color": "0.3"}


@gl.config
class Config:
    """The deep network that is looked at, and the smaller one that is trained."""

    depth: int = gl.key("number of blocks", at_least=12, at_most=2000)
    width: int = gl.key("entries of a token", at_least=16, at_most=2**12)
    num_tokens: int = gl.key("tokens, of the digits so many equal parts", at_least=2, at_most=64)
    num_draws: int = gl.key("draws of weights and tokens", at_least=8, at_most=10**5)
    num_blocks: int = gl.key("blocks of the network that is trained", at_least=12, at_most=200)
    num_units: int = gl.key("entries of a token of it", at_least=8, at_most=1024)
    num_runs: int = gl.key("trainings, each with and without scaling", at_least=4, at_most=1000)
    num_steps: int = gl.key("steps of Adam", at_least=10, at_most=10**5)
    batch_size: int
    learning_rate: float


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Variance and |J - I|² by block, at the start with their laws, and of trained networks."""
    key_start, key_train = jax.random.split(key)
    drawn = gl.grid.over_draws(lambda key: start(cfg, key), key_start, cfg.num_draws)
    (square, distance, added), entries, norm = jnp.moveaxis(drawn[0], 2, 0), *drawn[1:]
    ran = gl.grid.over_draws(lambda key: run(cfg, key), key_train, cfg.num_runs)
    seen, apart, loss, first = ran
    given = cfg.depth, cfg.width, cfg.num_tokens
    law = jax.vmap(lambda gain: gl.theory.transformer.pre_laws(gain, *given))(gains(cfg.depth))
    at, later, nats = "draw variant block", "run variant look later_block", {"units": "nats"}
    return {
        "block": gl.named(jnp.arange(1, cfg.depth + 1), "block", long_name="block"),
        "later_block": gl.named(jnp.arange(1, cfg.num_blocks + 1), "later_block"),
        "variant": gl.named(list(VARIANTS), "variant"),
        "look": gl.named(list(LOOKS), "look"),
        "square": gl.named(square, at, long_name="mean square of the stream"),
        "distance": gl.named(distance, at, long_name="|(J - I) u|²/|u|² of a block"),
        **{name: gl.named(part, "variant block") for name, part in law._asdict().items()},
        "added": gl.named(jnp.mean(added, axis=-1), "draw variant", long_name="over its mean"),
        "entries": gl.named(entries, "draw matrix moment", long_name="of K, V, W_1 and W_2"),
        "norm": gl.named(norm, "draw", long_name="a norm's mean or square, off"),
        "first": gl.named(first, "run variant way first_step number"),
        "printed": gl.named(gl.theory.transformer.word_for_word(1.0, cfg.depth), "block"),
        "later_square": gl.named(seen, later, long_name="log mean square of the stream", **nats),
        "later_distance": gl.named(apart, later, long_name="log |(J - I) u|²/|u|²", **nats),
        "loss": gl.named(loss, "run variant step", long_name="cross-entropy", **nats),
    }


def gains(depth: int) -> jax.Array:
    """What multiplies the norms of each block, without and with scaling, `(2, depth)`."""
    return jnp.stack([jnp.ones(depth), jnp.arange(1, depth + 1) ** -0.5])


def looked_at(weights: Any, gain: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
    """By block, `(3, depth)`: mean square, distance from I, added square over its exact mean."""
    model = gl.transformer.encoder(weights, gl.transformer.Design(before=1.0, gain=gain))
    z = gl.chain.states(model, x.ravel())

    def moved(at: tuple[Any, jax.Array]) -> jax.Array:
        return jax.jvp(partial(model.layer, at[0]), at[1:], (u,))[1] - u

    apart = jnp.mean(jax.lax.map(moved, (model.params, z[:-1])) ** 2, axis=1) / jnp.mean(u * u)
    shared = jnp.mean(gl.transformer.layer_norm(z[:-1].reshape(-1, *x.shape)), axis=1)
    exact = gain**2 * (jnp.mean(shared**2, axis=1) + 0.5)
    added = jnp.mean(jnp.diff(z, axis=0) ** 2, axis=1) / exact
    return jnp.stack([jnp.mean(z[1:] ** 2, axis=1), apart, added])


def start(cfg: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """A deep network as it is drawn, with both gains, `(2, 3, depth)`; its weights; its norms."""
    key_weights, key_x, key_u = jax.random.split(key, 3)
    weights = gl.transformer.weights(key_weights, cfg.depth, cfg.width, 0.0)
    x, u = (jax.random.normal(key, (cfg.num_tokens, cfg.width)) for key in (key_x, key_u))
    x, u = gl.transformer.layer_norm(x), u.ravel()
    seen = jax.lax.map(lambda gain: looked_at(weights, gain, x, u), gains(cfg.depth))
    return seen, jnp.stack([*map(gl.ensembles.realised, weights[1:])]), gl.one_layer.norm_error(x)


def run(cfg: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """One training of both: log squares and distances before and after it, losses, first steps."""
    key_reader, key_batches, key_u = jax.random.split(key, 3)
    train, held_out = gl.training.digits(float)
    sizes = cfg.num_blocks, cfg.num_units, cfg.num_tokens, train.x.shape[1], 10
    reader = gl.transformer.reader(key_reader, *sizes)
    batches = gl.training.schedule(key_batches, len(train.y), cfg.batch_size, cfg.num_steps)
    images, adam = held_out.x[: cfg.batch_size], optax.adam(cfg.learning_rate)
    u = jax.random.normal(key_u, (len(images), cfg.num_tokens * cfg.num_units))
    rule = gl.backpropagation.adam(cfg.learning_rate)

    def one(gain: jax.Array) -> tuple[jax.Array, ...]:
        design = gl.transformer.Design(before=1.0, gain=gain)
        apply = partial(gl.transformer.classify, design)

        def look(reader: Any) -> jax.Array:  # logs of means over images
            tokens = jax.vmap(lambda image: gl.transformer.embedded(reader, image))(images)
            seen = jax.lax.map(lambda at: looked_at(reader.weights, gain, *at), (tokens, u))
            return jnp.log(jnp.mean(seen, axis=0))

        seen = gl.training.train(apply, reader, adam, train, batches)
        square, distance, _ = jnp.stack([look(reader), look(seen.params)], axis=1)
        hand = partial(gl.backpropagation.of_reader, design)
        first = gl.backpropagation.first_steps(seen, hand, rule, train, batches)
        return square, distance, seen.loss, first

    return jax.lax.map(one, gains(cfg.num_blocks))


def figure(data: xr.Dataset) -> gl.Figure:
    """The variance by block, drawn and trained, and how far a block's Jacobian is from I."""
    fig, (drawn, trained, distance) = gl.figures.panels(1, 3, height=2.9)
    looks = [*gl.figures.series(len(VARIANTS))]
    for name, look in zip(VARIANTS, looks, strict=True):
        row = data.sel(variant=name)
        for axes, part in ((drawn, "square"), (distance, "distance")):
            gl.figures.band(axes, data.block, row[part], look)
            gl.figures.predicted(axes, data.block, row[f"{part}_law"])
        for when, style in zip(LOOKS, ({"fillstyle": "none"}, {}), strict=True):
            seen = np.exp(row.later_square.sel(look=when))
            gl.figures.band(trained, data.later_block, seen, look | style, over="run")
    gl.figures.bound(drawn, data.block, data.printed)
    gl.figures.words(drawn, 0.6, 0.72, "s + √s, as printed", ha="right")
    labels = "mean square of the stream", " ", "|(J - I) u|²/|u|² of a block"
    for axes, label in zip(fig.axes, labels, strict=True):
        axes.set(xscale="log", yscale="log", xlabel="block", ylabel=label)
    marks = [look | {"linestyle": "none"} for look in looks]
    gl.figures.key(drawn, {"Pre-LN": marks[0], "times 1/√l": marks[1]}, loc="lower right")
    both = {"at the start": GREY | {"fillstyle": "none"}, "trained": GREY}
    gl.figures.key(trained, both, loc="upper left")
    gl.figures.titles(fig, "drawn: powers of depth", "trained: powers", "deep blocks tend to I")
    return fig


def exponents(row: xr.Dataset) -> Any:
    """The slope of the log variance over log l in the deeper half, `(look, run)`."""
    half = row.later_square[..., row.sizes["later_block"] // 2 :].transpose("look", ...)
    return np.asarray(gl.estimate.slope(np.log(half.later_block), half).value)


def caption(data: xr.Dataset) -> str:
    """The variance at the end, its exponents, and the losses."""
    ends = data.square.mean("draw").isel(block=-1).values
    powers = [float(exponents(data.sel(variant=name))[-1].mean()) for name in VARIANTS]
    return f"""Behind {data.attrs["depth"]} blocks of Pre-LN the mean square has grown
        {ends[0]:.3g} times, and {ends[1]:.3g} with norms times 1/√l. In the deeper half of
        {data.attrs["num_blocks"]} trained blocks it grows as l^{powers[0]:.2f} and
        l^{powers[1]:.2f}; an exponential would bend upwards. Bands: all draws; black: laws."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The exponents in the deeper half, before and after training."""
    for name in VARIANTS:
        for when, power in zip(LOOKS, exponents(data.sel(variant=name)), strict=True):
            yield gl.headline.mean(f"exponent, {name}, {when}", power)


def kept_rate(log_square: xr.DataArray, block: str) -> xr.DataArray:
    """The growth a block in the deeper half, less half of that before; an exponential keeps it."""
    last = log_square.sizes[block] - 1
    first, middle, end = (log_square.isel({block: at}) for at in (0, last // 2, last))
    return (end - middle) / (last - last // 2) - (middle - first) / (last // 2) / 2


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The laws at the start, that no growth is exponential, and what 1/√l does to |J - I|."""
    pre, scaled = (data.sel(variant=name) for name in VARIANTS)
    below = partial(gl.claim.mean, relation="<=")
    sentence = "at the start independent branches add up to the mean square of their law"
    given = data.square, data.square_law, LAW
    yield gl.claim.mean(sentence, *given, finite_width=data.square_beyond)
    sentence = "a block adds the squares of the tokens' mean and of 1/√2, times its gain's, exactly"
    yield gl.claim.mean(sentence, data.added, 1.0, LAW)
    sentence = "Pre-LN's is below half of the printed recursion's L²/4, not exponential either"
    end, printed = np.log(pre.square.isel(block=-1)), np.log(data.printed[-1] / 2)
    yield below(sentence, end, printed, SUN)
    sentence = "deep down its log grows by less than half as much a block: not exponentially"
    yield below(sentence, kept_rate(np.log(data.square), "block"), 0.0, SUN)
    sentence = "nor does that of the smaller network, before or after its training"
    yield below(sentence, kept_rate(data.later_square, "later_block"), 0.0, SUN, over="run")
    sentence = "a block's Jacobian tends to I as its branches' share of the sum falls, by its law"
    given = data.distance, data.distance_law, LAW
    yield gl.claim.mean(sentence, *given, finite_width=data.distance_beyond)
    yield gl.claim.mean(
        "with the same weights scaling takes each block but the first nearer to I, as laws differ",
        *(pre.distance - scaled.distance, pre.distance_law - scaled.distance_law, LAW),
        where=data.block > 1,
        finite_width=pre.distance_beyond + scaled.distance_beyond,
    )
    gained = (pre.later_distance - scaled.later_distance)[..., -5:].mean("later_block")
    sentence = "and the last of the smaller network, before and after its training, in log"
    yield gl.claim.gain(sentence, gained, SUN, over="run")
    eps = float(np.finfo(data.square.dtype).eps)
    yield gl.claim.weights(data.entries, LAW)
    sentence, sums = "a norm leaves the mean 0 and the mean square 1", 4 * data.attrs["width"]
    yield gl.claim.everywhere(sentence, data.norm, 0.0, NORM, rounding_of_sums=sums * eps)
    sizes = "num_runs", "num_blocks", "num_tokens", "batch_size", "num_units", "num_units"
    yield gl.claim.backpropagated(data["first"], kinked=[2, *(data.attrs[name] for name in sizes)])
    won = gl.LN10 - data.loss[..., -5:].mean("step")
    yield gl.claim.gain("trained, the loss is below guessing, in the mean", won, SUN, over="run")


HARMLESS = {"computed in another format": "a rounding is far below the error of the sampling"}
FAULTS = {
    "weights 3 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.03),
    "scale erased": gl.fault.argument("transformer.encoder", design=lambda d: d._replace(gain=1.0)),
    "no norms": gl.fault.replace("transformer.layer_norm", lambda x, on=1.0: x),
    "scaled by l": gl.fault.result("gains", lambda gain: 1 / gain),
    "beta 2 of 0.99": gl.fault.argument(
        "training.train", optimizer=lambda _: optax.adam(0.003, b2=0.99)
    ),
    "nothing learned": gl.fault.argument("training.train", optimizer=lambda _: optax.sgd(0.0)),
}


if __name__ == "__main__":
    gl.run(__file__)
