"""Which threshold clips freak batches and nothing else: a fixed one, or a running quantile?

A threshold is a guess of how long gradients are. AutoClip (Seetharaman, Wichern, Pardo and Le Roux
2020) takes it from the norms so far: their quantile. It then fires on the same share of steps
whatever the gradients do, and breaks down where freak batches are a larger share than that. Seen
on handwritten digits, with freak batches at a swept rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "clipping"
ALGORITHM = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
RANKS = "Rényi 1962: ranks of independent draws; gradlab.theory.clipping.quantile_fires"
MOMENTS = "moments of the normal law"
ORDER = "order statistics: the k-th smallest of n is a freak's only if fewer than k are not"
RULES = ("fixed", "quantile", "not clipped")


@gl.config
class Config:
    """A training, its freak batches, and the two thresholds."""

    rate: gl.Floats = gl.key("share of batches that are freaks", at_least=0, at_most=1)
    tau: float
    part: float = gl.key("quantile of the norms so far", at_least=0.01, at_most=0.99)
    freak_gain: float = gl.key("what a freak's inputs are multiplied by", at_least=1, at_most=1e30)
    depth: int
    width: int = gl.key("number of neurons in a layer", at_least=64, at_most=4096)
    sigma_w: float
    learning_rate: float
    batch_size: int
    num_steps: int = gl.key("number of optimiser steps", at_least=3, at_most=10**5)
    num_norms: int = gl.key("independent norms of a stream", at_least=10, at_most=10**5)
    num_draws: int = gl.key("draws of weights, the trained ones first", at_least=8, at_most=10**5)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """What fires and what is learned, by rule and rate; and a stream of independent norms."""
    key_model, key_batches, key_freaks, key_stream = jax.random.split(key, 4)
    train, held_out = gl.training.digits(float)
    batches = gl.training.schedule(key_batches, len(train.y), cfg.batch_size, cfg.num_steps)
    is_freak = jax.random.uniform(key_freaks, (cfg.num_steps,))[None] < cfg.rate[:, None]
    gains, logits = jnp.where(is_freak, cfg.freak_gain, 1.0), gl.training.ten_logits
    model = network(cfg, jax.random.split(key_model, cfg.num_draws)[0])

    def run(rule: str, gain: jax.Array) -> tuple[jax.Array, ...]:
        steps = batches._replace(gain=gain)
        seen = gl.training.train(logits, model, optimizer(rule, cfg), train, steps)
        size = jnp.linalg.norm(seen.gradient, axis=1)
        hand = partial(gl.backpropagation.by_matrices, gl.activations.PHI["relu"], 10)
        by_hand = gl.backpropagation.Rule(cfg.learning_rate, thresholds(rule, size, cfg))
        first = gl.backpropagation.first_steps(seen, hand, by_hand, train, steps)
        return size, seen.step_size, gl.training.loss(logits, seen.params, held_out), first

    # One after another, since a clip's branches are both taken where it is mapped by `vmap`.
    each = [jax.lax.map(lambda gain, rule=rule: run(rule, gain), gains) for rule in RULES]
    size, step_size, loss, first = (jnp.stack(part) for part in zip(*each, strict=True))
    drawn = gl.grid.over_draws(
        lambda key: gl.ensembles.realised(network(cfg, key).params.W), key_model, cfg.num_draws
    )
    # Norms of a heavy tail, as of gradients: only their order counts.
    stream = jnp.exp(jax.random.normal(key_stream, (cfg.num_norms,)))
    fired_law = gl.theory.clipping.quantile_fires(jnp.arange(cfg.num_norms), cfg.part)
    axes = "rule rate step"
    return {
        "rule": gl.named(list(RULES), "rule"),
        "rate": gl.named(cfg.rate, "rate", long_name="share of freak batches"),
        "is_freak": gl.named(is_freak, "rate step"),
        "gradient": gl.named(size, axes, long_name="norm before the clip"),
        "step_size": gl.named(step_size, axes, long_name="length of the step"),
        "loss": gl.named(loss, "rule rate", long_name="held-out loss at the end", units="nats"),
        "first": gl.named(first, "rule rate way first_step number"),
        "drawn": gl.named(drawn, "draw moment", long_name="of weights, times powers of n"),
        "stream_fired": gl.named(fires(stream, cfg.part), "norm"),
        "stream_law": gl.named(fired_law, "norm"),
    }


def network(cfg: Config, key: jax.Array) -> gl.chain.Chain:
    """A chain of layers W relu(z) of one width."""
    sizes = cfg.depth, cfg.width, gl.activations.PHI["relu"], cfg.sigma_w, 0.0
    return gl.ensembles.random(key, *sizes, draw="gaussian", layer="preactivation")


def thresholds(rule: str, size: jax.Array, cfg: Config) -> Any:
    """What a rule clips the first three steps to, `(3,)`, given their gradients' norms."""
    first, second = size[0], size[1]
    both = jnp.where(cfg.part > 0.5, jnp.maximum(first, second), jnp.minimum(first, second))
    quantile = jnp.stack([jnp.inf, first, both])
    return {"fixed": cfg.tau, "quantile": quantile, "not clipped": jnp.inf}[rule]


def optimizer(rule: str, cfg: Config) -> Any:
    """Plain descent behind the clip."""
    if rule == "not clipped":
        return optax.sgd(cfg.learning_rate)
    fixed = gl.clipping.clip_by_global_norm(cfg.tau)
    clip = fixed if rule == "fixed" else gl.clip_rules.by_quantile(cfg.part, cfg.num_steps)
    return optax.chain(clip, optax.sgd(cfg.learning_rate))


def fires(norms: jax.Array, part: float) -> jax.Array:
    """Whether the running quantile clips each of a stream of gradients, `(norm,)`."""
    rule = gl.clip_rules.by_quantile(part, norms.size)

    def step(state: Any, size: jax.Array) -> tuple[Any, jax.Array]:
        after, state = rule.update(size[None], state)
        return state, after[0] < size

    return jax.lax.scan(step, rule.init(norms), norms)[1]


def figure(data: xr.Dataset) -> gl.Figure:
    """How often each fires, and what is learned, over the share of freaks."""
    fig, (often, learned) = gl.figures.panels(1, 2, height=2.5)
    share = fired(data).mean("step")
    gl.figures.predicted(often, data.rate, data.rate, "freaks alone")
    for name, colour, mark in zip(RULES, ("C0", "C2", "C1"), "sov", strict=True):
        look = {"color": colour, "marker": mark}
        if name != "not clipped":
            gl.figures.measured(often, data.rate, share.sel(rule=name), look, name)
        loss = data.loss.sel(rule=name).fillna(np.inf)
        gl.figures.measured(learned, data.rate, loss.where(loss < 1e4, np.inf), look, name)
    for axes in (often, learned):
        gl.figures.rule(axes, x=1 - data.attrs["part"])
        axes.set(xlabel=data.rate.long_name)
    often.set(ylabel="share of steps clipped", ylim=(0, None))
    learned.set(yscale="log", ylabel="held-out loss at the end (nats)")
    often.legend(loc="upper left")
    learned.legend(loc="center right")
    gl.figures.title(often, "the quantile clips its share of the steps")
    gl.figures.title(learned, "and breaks down where freaks are more")
    return fig


def fired(data: xr.Dataset) -> xr.DataArray:
    """Whether a step was shorter than its gradient asked for, beyond rounding."""
    eps = float(np.finfo(data.loss.dtype).eps)
    num = int(data.attrs["depth"]) * int(data.attrs["width"]) * (int(data.attrs["width"]) + 1)
    asked = data.attrs["learning_rate"] * data.gradient
    return (data.step_size < asked * (1 - num * eps)) & np.isfinite(asked)


def caption(data: xr.Dataset) -> str:
    """How often each fires, and what is lost, at the highest rate below the breakdown."""
    below = data.isel(rate=np.flatnonzero(data.rate <= 1 - data.attrs["part"])[-1:])
    rate = 100 * float(below.rate[0]) if below.sizes["rate"] else float("nan")
    share = fired(below).mean("step")
    told = "; ".join(
        f"{name}: clipped {100 * float(share.sel(rule=name).max()):.0f} % of the steps, loss "
        f"{float(below.loss.sel(rule=name).max()):.2g}"
        for name in ("fixed", "quantile")
    )
    return f"""With {rate:.2g} % freak batches: {told} nats. Grey line: the share of steps that the
        quantile lets fire; where freaks are more, they are its threshold. Arrowheads: no number."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """How often the quantile fires on a stream, and what is lost at the highest rate."""
    law = 100 * float(data.stream_law.mean())
    yield gl.Headline("fires, quantile", 100 * data.stream_fired.mean(), "%", law=law)
    for name in ("fixed", "quantile"):
        yield gl.Headline(f"loss, {name}", data.loss.sel(rule=name)[-1], "nats")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """How often a quantile fires, what each rule makes of a step, and what all of it is about."""
    eps, law = float(np.finfo(data.loss.dtype).eps), data.stream_law
    yield gl.claim.everywhere(
        "of independent norms the quantile clips the share that their ranks say",
        *(data.stream_fired.mean(), law.mean(), RANKS),
        sampling=gl.estimate.Sampling(float(np.sqrt((law * (1 - law)).sum()) / law.size)),
    )
    depth, width, num_digits = (int(data.attrs[name]) for name in ("depth", "width", "batch_size"))
    rate, part, tau = (data.attrs[name] for name in ("learning_rate", "part", "tau"))
    quantile = quantiles(data.gradient, part)
    limit = quantile.where(data.rule == "quantile", np.inf).where(data.rule != "fixed", tau)
    num_entries = depth * width * (width + 1)
    given = data.step_size, data.gradient, limit, rate, num_entries, ALGORITHM
    yield gl.claim.step_lengths(*given)
    yield gl.claim.backpropagated(
        data["first"], kinked=[data.loss.size, depth, width, width, num_digits]
    )
    yield gl.claim.weights(data.drawn, MOMENTS, variance=data.attrs["sigma_w"] ** 2)
    step, size = (data[name].sel(rule="quantile") for name in ("step_size", "gradient"))
    calm = before(np.maximum, size.where(~data.is_freak, 0))
    freak = before(np.minimum, size.where(data.is_freak, np.inf))
    num = step.copy(data=np.broadcast_to(np.arange(step.sizes["step"]), step.shape))
    finite = np.isfinite(before(np.maximum, size)) & (num > 0)
    few = np.ceil(part * num) <= num - before(np.add, data.is_freak.astype(float))
    usual = "while freaks are fewer than the quantile's share no step is longer than a usual one"
    through = "where they are more, it lets a freak's step through"
    sums = (num_entries / 2 + 4) * eps  # of norms, here and there (Higham 2002, section 3.1)
    for sentence, relation, bound, where in (
        (usual, gl.claim.at_most, rate * calm, finite & few),
        (through, gl.claim.at_least, rate * freak, finite & ~few & (size > freak)),
    ):
        if bool(where.any()):
            yield relation(sentence, step, bound, ORDER, where=where, rounding=sums * bound)


def before(rule: Any, values: xr.DataArray) -> xr.DataArray:
    """What a running maximum, minimum or sum was before each step; of nothing, the first value."""
    running = rule.accumulate(values.values, axis=-1)
    first = np.zeros_like(running[..., :1]) if rule is np.add else running[..., :1]
    return values.copy(data=np.concatenate([first, running[..., :-1]], axis=-1))


def quantiles(sizes: xr.DataArray, part: float) -> xr.DataArray:
    """The quantile of all norms before each step; infinite for the first one."""
    ranks = np.ceil(sizes.dtype.type(part) * np.arange(sizes.sizes["step"])).astype(int)
    rows = [np.sort(sizes[..., :k])[..., max(1, ranks[k]) - 1] for k in range(1, ranks.size)]
    first = np.full(sizes.shape[:-1], np.inf)
    return sizes.copy(data=np.stack([first, *rows], axis=-1))


FAULTS = {
    "clip forgotten": gl.fault.replace("clipping.clip", lambda grads, tau: grads),
    "threshold 1 % too large": gl.fault.argument("clipping.clip", tau=lambda tau: 1.01 * tau),
    "quantile of the largest": gl.fault.argument("clip_rules.by_quantile", part=lambda part: 1.0),
    "quantile of half": gl.fault.argument("clip_rules.by_quantile", part=lambda part: part / 2),
    "gradients 1 % too long": gl.fault.scale("training.norms_by_layer", 1.01),
    "weights 1 % too large": gl.fault.argument("ensembles.random", sigma_w=lambda s: 1.01 * s),
}

if __name__ == "__main__":
    gl.run(__file__)
