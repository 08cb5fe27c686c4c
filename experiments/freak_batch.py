"""What does one freak batch do to a training, with clipping and without?

A batch whose inputs are far too large gives a gradient that is far too long, and one plain step
along it throws the parameters out of all they have learned. Clipped by g <- g tau / max(|g|, tau)
(Pascanu, Mikolov and Bengio 2013, algorithm 1) the same step is no longer than the learning rate
times tau (Zhang, He, Sra and Jadbabaie 2020, section 1). Both are seen on handwritten digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "clipping"
ALGORITHM = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
ZHANG = "Zhang, He, Sra and Jadbabaie 2020, section 1"
SAME = "one network, and the same batches till then"
DRAWN = "moments of the normal law"
KINDS = ("calm", "freak")
UNBOUNDED = ("linear", "relu", "leaky_relu")  # others cap what they are given
TOP = 1e4  # of both panels; what is above stands as an arrowhead at the rim


@gl.config
class Config:
    """The network, the thresholds, and the batch that goes wrong."""

    tau: gl.Floats
    activation: str
    depth: int
    width: int = gl.key("number of neurons in a layer", at_least=64, at_most=4096)
    sigma_w: float
    sigma_b: float
    learning_rate: float
    batch_size: int
    num_steps: int = gl.key("number of optimiser steps", at_least=3, at_most=10**6)
    freak_step: int = gl.key("step, from 0, at which a batch goes wrong", at_least=1, at_most=10**6)
    freak_gain: float = gl.key("what its inputs are multiplied by", at_least=1, at_most=1e30)
    num_draws: int = gl.key("draws of weights, the first of which is trained", at_least=8)
    num_examples: int = gl.key("held-out digits that the loss is of", at_least=1, at_most=359)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Loss, step and distance over the steps: with and without the freak, at each threshold."""
    key_model, key_batches = jax.random.split(key)
    train, held_out = gl.training.digits(float)
    some = gl.training.Data(held_out.x[: cfg.num_examples], held_out.y[: cfg.num_examples])
    batches = gl.training.schedule(key_batches, len(train.y), cfg.batch_size, cfg.num_steps)
    threshold = jnp.concatenate([jnp.array([jnp.inf]), cfg.tau])
    entries = gl.grid.over_draws(lambda key: moments(cfg, key), key_model, cfg.num_draws)
    model = network(cfg, jax.random.split(key_model, cfg.num_draws)[0])

    def run(gain: jax.Array, tau: jax.Array) -> tuple[jax.Array, ...]:
        steps = gl.training.with_freak(batches, cfg.freak_step, gain)
        return trained(cfg, model, steps, tau, train, some)

    gains = jnp.array([1.0, cfg.freak_gain])
    seen = jax.vmap(lambda gain: jax.vmap(lambda tau: run(gain, tau))(threshold))(gains)
    loss, step_size, distance, gradient, first = seen
    longest = cfg.learning_rate * gl.theory.clipping.norm_after(jnp.inf, threshold)
    axes = "kind threshold step"
    return {
        "kind": gl.named(list(KINDS), "kind"),
        "threshold": gl.named(threshold, "threshold", long_name="clipping threshold τ"),
        "loss": gl.named(loss, axes, long_name="held-out loss before the step", units="nats"),
        "step_size": gl.named(step_size, axes, long_name="length of the step"),
        "distance": gl.named(distance, axes, long_name="distance from the start, after it"),
        "gradient": gl.named(gradient, axes, long_name="norm of the gradient before the clip"),
        "first": gl.named(first, "kind threshold way first_step number"),
        "longest": gl.named(longest, "threshold", long_name="learning rate times τ"),
        "parameter": gl.named(["W √width", "b"], "parameter"),
        "entries": gl.named(entries, "draw parameter moment", long_name="at the start"),
        "variance": gl.named(jnp.stack([cfg.sigma_w, cfg.sigma_b]) ** 2, "parameter"),
    }


def network(cfg: Config, key: jax.Array) -> gl.chain.Chain:
    """The network as it is drawn."""
    made = cfg.depth, cfg.width, gl.activations.PHI[cfg.activation], cfg.sigma_w, cfg.sigma_b
    return gl.ensembles.random(key, *made, draw="gaussian", layer="preactivation")


def moments(cfg: Config, key: jax.Array) -> jax.Array:
    """`realised` of its weights and of its biases, `(2, 6)`."""
    W, b = network(cfg, key).params
    return jnp.stack([gl.ensembles.realised(part) for part in (W, b[..., None])])


def trained(
    cfg: Config, model: Any, steps: Any, tau: jax.Array, train: Any, held_out: Any
) -> tuple[jax.Array, ...]:
    """Loss, length of the step, distance and gradient's norm at every step; the first by hand."""
    import optax

    seen = gl.training.train(
        gl.training.ten_logits,
        model,
        optax.chain(gl.clipping.clip_by_global_norm(tau), optax.sgd(cfg.learning_rate)),
        train,
        steps,
        watch=lambda model: gl.training.loss(gl.training.ten_logits, model, held_out),
    )
    phi, rule = gl.activations.PHI[cfg.activation], gl.backpropagation.Rule(cfg.learning_rate, tau)
    hand = partial(gl.backpropagation.by_matrices, phi, 10)
    first = gl.backpropagation.first_steps(seen, hand, rule, train, steps)
    length = jnp.linalg.norm(seen.gradient, axis=1)
    return seen.watched, seen.step_size, seen.distance, length, first


def figure(data: xr.Dataset) -> gl.Figure:
    """The loss and the length of each step, thin lines being the same runs without the freak."""
    fig, (losses, steps) = gl.figures.panels(1, 2, height=2.7)
    freak = int(data.attrs["freak_step"])
    looks = list(gl.figures.series(data.sizes["threshold"]))
    for tau, look in zip(data.threshold.values, looks, strict=True):
        row = data.sel(threshold=tau)
        label = f"τ = {tau:g}" if np.isfinite(tau) else "not clipped"
        losses.plot(data.step, row.loss.sel(kind="calm"), color=look["color"], linewidth=0.6)
        for axes, name in ((losses, "loss"), (steps, "step_size")):
            values = row[name].sel(kind="freak").fillna(np.inf)
            shown = values.where(values < TOP, np.inf)
            gl.figures.measured(axes, data.step, shown, look, label)
            axes.plot(freak, values[freak], marker="o", ms=7, mfc="none", mec=look["color"])
        if np.isfinite(tau):
            gl.figures.bound(steps, data.step, 0 * data.step + float(row.longest))
    for axes in (losses, steps):
        gl.figures.rule(axes, x=freak)
        axes.set(yscale="log", xlabel="step (ringed: the freak batch)")
    losses.set(ylabel="held-out loss (nats)", ylim=(0.2, TOP))
    steps.set(ylabel="length of the step", ylim=(float(data.longest.min()) / 3, TOP))
    losses.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
    gl.figures.title(losses, "one freak batch undoes a training")
    gl.figures.title(steps, "a clipped step is at most η τ (dashed)")
    return fig


def caption(data: xr.Dataset) -> str:
    """What the freak step does, clipped and not."""
    freak = int(data.attrs["freak_step"])
    step = data.step_size.sel(kind="freak").isel(step=freak)
    end = data.loss.sel(kind="freak").isel(step=-1)
    lost = "no number" if np.isnan(end[0]) else f"{float(end[0]):.2g} nats"
    return (
        f"At step {freak} a batch has inputs {data.attrs['freak_gain']:g} times too large. Not "
        f"clipped, that step is {float(step[0]):.2g} long and the loss at the end is "
        f"{lost}; clipped at τ = {float(data.threshold[1]):g} it is "
        f"{float(step[1]):.2g} long and it is {float(end[1]):.2g} nats. "
        "Thin lines: without it; arrowheads: beyond the panel, or no number."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The freak step and the loss at the end, not clipped and at the first threshold."""
    run = data.sel(kind="freak")
    for place, name in enumerate(("", ", clipped")):
        row, freak = run.isel(threshold=place), int(data.attrs["freak_step"])
        law = row.longest.where(np.isfinite(row.threshold))
        yield gl.Headline(f"freak step{name}", row.step_size[freak], law=law)
        yield gl.Headline(f"loss at the end{name}", row.loss[-1], "nats")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """What clipping promises of every step, and what it saves."""
    eps = float(np.finfo(data.loss.dtype).eps)
    freak = int(data.attrs["freak_step"])
    depth, width, num_digits = (int(data.attrs[name]) for name in ("depth", "width", "batch_size"))
    # The norm of a step is the root of a rounded sum of n squares (Higham 2002, section 3.1); an
    # entry of it is rounded when it is clipped and when it is multiplied by the learning rate.
    num_entries = depth * width * (width + 1)
    clipped = data.isel(threshold=slice(1, None))
    yield gl.claim.at_most(
        "no clipped step, freak or not, is longer than the learning rate times tau",
        *(clipped.step_size, clipped.longest, ALGORITHM),
        rounding_of_sums=num_entries * eps / 4 * clipped.longest,
        rounding_of_entries=2 * eps * clipped.longest,
    )
    given = data.gradient, data.threshold, data.attrs["learning_rate"], num_entries
    yield gl.claim.step_lengths(data.step_size, *given, ALGORITHM)
    sizes = [2 * data.sizes["threshold"], depth, num_digits, width, width]
    yield gl.claim.backpropagated(data["first"], kinked=sizes)
    before = data.isel(step=slice(freak))
    yield gl.claim.equal(
        "up to the freak batch both trainings are one, to the last bit",
        *(before.distance.sel(kind="freak"), before.distance.sel(kind="calm"), SAME),
    )
    # If nothing were learned, each later loss would be above the mean of the earlier as often as
    # not. A clip above all usual steps promises nothing.
    loss, usual = clipped.loss.sel(kind="freak").fillna(np.inf), before.step_size[0, 0].max()
    later, short = loss.isel(step=slice(freak + 1, None)), clipped.longest <= usual
    if short.any() and (chance := float(short.sum()) * 0.5 ** later.sizes["step"]) < 0.01:
        yield gl.claim.at_most(
            "clipped, the training goes on: its lowest loss after the freak batch is below its "
            "mean before",
            *(later.min("step"), loss.isel(step=slice(freak + 1)).mean("step"), ZHANG),
            where=short,
            chance=chance,
        )
    # What clipping does, it does to any network: only its draw tells of weights that are off.
    yield gl.claim.weights(data.entries, DRAWN, variance=data.variance)
    # One digit of the batch that is taken for another makes the step as long as gain/batch of its
    # usual ones. Who is right with a probability, and knows it, has this loss at most (Fano 1961).
    plain, gain = data.isel(threshold=0).sel(kind="freak"), data.attrs["freak_gain"]
    right = np.linspace(0.1, 1, 1000)[:-1]
    most = -right * np.log(right) - (1 - right) * np.log((1 - right) / 9)
    chance = float(right[most >= float(plain.loss[freak])].max(initial=0.1)) ** num_digits
    enough = data.attrs["activation"] in UNBOUNDED and gain >= freak * num_digits
    if enough and chance < 0.01:
        yield gl.claim.at_least(
            "not clipped, the freak step is longer than all steps before it together",
            *(plain.step_size[freak], plain.step_size[:freak].sum(), ZHANG),
            chance=chance,
        )


FAULTS = {
    "loss 1 % too large": gl.fault.scale("training.loss", 1.01),
    "clip forgotten": gl.fault.replace("clipping.clip", lambda grads, tau: grads),
    "threshold 1 % too large": gl.fault.argument("clipping.clip", tau=lambda tau: 1.01 * tau),
    "threshold 1 % too small": gl.fault.argument("clipping.clip", tau=lambda tau: 0.99 * tau),
    "weights 10 % too large": gl.fault.argument("ensembles.random", sigma_w=lambda s: 1.1 * s),
    "no biases": gl.fault.argument("ensembles.random", sigma_b=lambda s: 0 * s),
    "freak batch a step early": gl.fault.argument("training.with_freak", step=lambda k: k - 1),
    "freak batch forgotten": gl.fault.argument("training.with_freak", gain=lambda gain: 1.0),
}


if __name__ == "__main__":
    gl.run(__file__)
