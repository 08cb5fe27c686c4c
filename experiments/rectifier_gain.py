"""Why does a deep ReLU network not learn from Xavier's weights, and what does He's factor 2 mend?

He, Zhang, Ren and Sun 2015 (arXiv:1502.01852), equations 9 to 15 and figure 3. A rectifier drops
half of the mean square, so a layer multiplies it by n Var W (1 + a²)/2, a the slope below 0: at
Xavier's n Var W = 1 thirty layers leave 2^-30 of the squared gradient, and the loss stays at
ln 10. With the fixed standard deviation 0.01 of earlier practice the layers conv2 to conv10 of
VGG-B lose a factor that is 1.7e4 if the deviations are rounded (so the paper is quoted; not read,
from a second source) and 1.67e4 if not. A homogeneous network makes that product exact.

Answers: training loss stuck at 2.30 deep relu network; loss 2.302 does not decrease xavier relu;
kaiming vs xavier init relu 30 layers; gain for leaky relu sqrt(2/(1+a^2)); std 0.01 init VGG fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "depth"
HE = "He et al. 2015, equations 9 to 15"
EXACT = f"{HE}; of the typical |Jv| Hanin and Nica 2020 and gradlab.theory.finite_width"
VGG = "He et al. 2015, section 2.2, on model B of Simonyan and Zisserman 2015"
GUESS = "who sees no digit has the loss ln 10; Miller 1955 for one batch's labels"


@gl.config
class Config:
    """The scales of weights; the network that is trained; the convolutions."""

    variance: gl.Floats = gl.key("n Var W, 1 of Xavier's weights", above=0, at_most=100)
    slope: gl.Floats = gl.key("slope of the rectifier below 0", at_least=0, at_most=1)
    depth: int
    width: int
    num_draws: int = gl.key("draws of the chain", at_least=8, at_most=10**5)
    start: gl.Floats = gl.key("n Var W of the networks that are trained", above=0, at_most=4)
    num_runs: int = gl.key("draws of each network that are trained", at_least=2, at_most=10**3)
    num_steps: int = gl.key("number of optimiser steps", at_least=10, at_most=10**5)
    batch_size: int
    learning_rate: float
    channels: gl.Ints = gl.key("channels of the convolutions", at_least=1, at_most=1024)
    deviation: float = gl.key("fixed deviation of their weights", above=0, at_most=1)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The gain a layer with its law, losses in training, and what fixed deviations cost."""
    key_gain, key_runs, key_convolutions, key_few = jax.random.split(key, 4)
    rate, drawn = gl.grid.over_draws(lambda key: rates(cfg, key), key_gain, cfg.num_draws)
    loss, left, first = gl.grid.over_draws(partial(trained, cfg), key_runs, cfg.num_runs)
    few = gl.certificate.of_few_layers(key_few, partial(network, cfg), cfg.width, cfg.depth)
    one, mean = jnp.ones(()), gl.theory.finite_width.log_of_mean  # exact at any width and depth
    less = jax.lax.map(lambda a: mean(gl.activations.leaky(a), one, cfg.width), cfg.slope)
    law = jnp.log(cfg.variance * (1 + cfg.slope[:, None] ** 2) / 2) + less[:, None]
    he = gl.theory.products.rectifier_deviation(9 * jnp.array(cfg.channels[1:]), 0.0)
    lost = jnp.sum(jnp.log(he / cfg.deviation))
    nats = {"units": "nats a layer"}
    return {
        "entries": gl.named(drawn, "draw variance moment", long_name="moments of W √n"),
        "rate": gl.named(rate, "draw slope variance", long_name="growth of log |Jv|²", **nats),
        "rate_law": gl.named(law, "slope variance", long_name="its mean at this width", **nats),
        **{way: gl.named(part, "of layer", units="nats") for way, part in few._asdict().items()},
        "critical": gl.named(2 / (1 + cfg.slope**2), "slope", long_name="n Var W of gain 1"),
        "step": gl.named(jnp.arange(cfg.num_steps), "step", long_name="step"),
        "loss": gl.named(loss, "run start step", long_name="loss of a batch", units="nats"),
        "first": gl.named(first, "run start way first_step number"),
        "log2_left": gl.named(left, "run start", long_name="log2 |dL/dz_0| / |dL/dz_L|"),
        "log_lost": gl.named(convolved(cfg, key_convolutions), "", long_name="measured"),
        "log_lost_law": gl.named(lost, "", long_name="sum of log(He's over fixed)"),
    }


def rectifier(params: tuple[Any, jax.Array], z: jax.Array) -> jax.Array:
    """The layer phi(W z), phi with a slope below 0 that may be swept."""
    affine, slope = params
    h = affine(z)
    return jnp.where(h > 0, h, slope * h)


def network(cfg: Config, key: jax.Array, depth: int, variance: Any = 2.0, slope: Any = 0.0) -> Any:
    """A chain of rectifiers, He's where nothing else is said."""
    linear = gl.activations.PHI["linear"]
    drawn = gl.ensembles.gaussian(key, depth, cfg.width, linear, jnp.sqrt(variance), 0.0)
    return gl.chain.Chain(rectifier, (drawn.params, jnp.full(depth, slope)))


def rates(cfg: Config, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Growth of log |v J_L ... J_1|² a layer, `(slope, variance)`, and moments of its weights."""
    key_chain, key_input, key_loss = jax.random.split(key, 3)
    x, v = (jax.random.normal(key, (cfg.width,)) for key in (key_input, key_loss))

    def one(slope: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = network(cfg, key_chain, cfg.depth, variance, slope)
        logs = gl.jacobians.log_gradient_norms(model, x, lambda z: v @ z)
        return 2 * (logs[0] - logs[-1]) / cfg.depth, gl.ensembles.realised(model.params[0].W)

    rate, moments = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(cfg.slope, cfg.variance)
    return rate, moments[0]


def trained(cfg: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """The loss of each step, log2 of the gradient that is left, the first steps: by start."""
    key_chain, key_project, key_readout, key_batches = jax.random.split(key, 4)
    relu = gl.activations.PHI["relu"]
    data = gl.training.digits_of_width(key_project, cfg.width, float)
    batches = gl.training.schedule(key_batches, len(data.y), cfg.batch_size, cfg.num_steps)
    readout = gl.ensembles.unit_gaussian(key_readout, (1, 10, cfg.width), float)
    rule, descent = gl.backpropagation.Rule(cfg.learning_rate), optax.sgd(cfg.learning_rate)
    by_hand = partial(gl.backpropagation.of_readout, relu), rule

    def one(variance: jax.Array) -> tuple[jax.Array, ...]:
        drawn = key_chain, cfg.depth, cfg.width, relu, jnp.sqrt(variance), 0.0
        model = [gl.ensembles.gaussian(*drawn), gl.chain.linear(readout)]
        read = model[:1], data.x[0], lambda z: readout[0, 0] @ z
        logs = gl.jacobians.log_gradient_norms(*read) / jnp.log(2)
        run = gl.training.train(gl.training.apply_model, model, descent, data, batches)
        first = gl.backpropagation.first_steps(run, *by_hand, data, batches)
        return run.loss, logs[0] - logs[-1], first

    return jax.lax.map(one, cfg.start)


def convolved(cfg: Config, key: jax.Array) -> jax.Array:
    """The log of how much smaller the gradient is with the fixed deviation than with He's, `()`.

    Both networks have the same unit weights; images of 2 x 2 pixels wrap around, so that each
    weight of a 3 x 3 kernel is used alike. The fan is that of the way back: 9 times the filters.
    """
    unit, key_input, *keys = gl.ensembles, *jax.random.split(key, len(cfg.channels))
    shapes = [(before, 9 * d) for before, d in pairwise(cfg.channels)]
    pairs = [(key, shape, float) for key, shape in zip(keys, shapes, strict=True)]
    he = [unit.unit_he(*drawn) for drawn in pairs]
    fixed = [cfg.deviation * unit.unit_gaussian(*p) * jnp.sqrt(p[1][1]) for p in pairs]
    x = jax.random.normal(key_input, (1, cfg.channels[0], 2, 2))

    def log_gradient(weights: list[jax.Array]) -> jax.Array:
        def output(x: jax.Array) -> jax.Array:
            for W in weights:
                kernel = W.reshape(len(W), -1, 3, 3).swapaxes(0, 1)
                wrapped = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="wrap")
                x = jax.nn.relu(jax.lax.conv(wrapped, kernel, (1, 1), "VALID"))
            return jnp.sum(x)

        return jnp.log(jnp.linalg.norm(jax.grad(output)(x)))

    return log_gradient(he) - log_gradient(fixed)


def figure(data: xr.Dataset) -> gl.Figure:
    """The loss from each start, and the gain a layer by n Var W with its law."""
    fig, (training, gain) = gl.figures.panels(1, 2, height=2.9)
    every = max(1, data.sizes["step"] // gl.figures.NUM_MARKS)
    for value, look in zip(data.start.values, gl.figures.series(data.sizes["start"]), strict=True):
        row = data.loss.sel(start=value).isel(step=slice(None, None, every))
        name = {1.0: "Xavier: ", 2.0: "He: "}.get(value, "") + f"n Var W = {value:g}"
        gl.figures.band(training, row.step, row, look, name, over="run")
    gl.figures.rule(training, y=gl.LN10)
    gl.figures.named(training, 0, gl.LN10, "ln 10: guessing", "0.4", xytext=(60, 7))
    for value, look in zip(data.slope.values, gl.figures.shades(data.slope.size), strict=True):
        row = data.sel(slope=value)
        gl.figures.predicted(gain, data.variance, np.exp(row.rate_law))
        gl.figures.band(gain, data.variance, np.exp(row.rate), look, f"slope a = {value:g} below 0")
        gl.figures.rule(gain, x=float(row.critical), color=look["color"])
    gl.figures.rule(gain, y=1.0)
    training.legend(loc="lower left")
    gain.legend(loc="lower right")
    training.set(xlabel="step", ylabel="loss of a batch, nats", ylim=(0, None))
    gain.set(xlabel="n Var W", ylabel="factor of the squared norm, a layer")
    gl.figures.title(training, f"{data.attrs['depth']} rectifier layers on digits")
    gl.figures.title(gain, "gain of a layer; upright lines: 2/(1 + a²)")
    return fig


def caption(data: xr.Dataset) -> str:
    """What is left of the gradient, what training makes of it, and the convolutions' factor."""
    rows = [
        f"from n Var W = {value:g}, 2^{float(data.log2_left.sel(start=value).mean()):.1f} of the "
        f"gradient arrives and the loss ends at {float(ending(data).sel(start=value).mean()):.2f}"
        for value in data.start.values
    ]
    return f"""Through {data.attrs["depth"]} rectifier layers of {data.attrs["width"]} units,
        {"; ".join(rows)} nats (guessing: 2.30). Bands hold all draws, black lines are exact. With
        the fixed deviation {data.attrs["deviation"]:g} the convolutions of VGG-B lose a factor
        {float(np.exp(data.log_lost)):.1f} of the gradient."""


def ending(data: xr.Dataset) -> xr.DataArray:
    """The loss over the last tenth of steps."""
    return data.loss.isel(step=slice(-max(1, data.sizes["step"] // 10), None)).mean("step")


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The loss at the end from every start, and what the convolutions lose."""
    for value in data.start.values[: gl.headline.MOST - 1]:
        loss = ending(data).sel(start=value)
        yield gl.headline.mean(f"loss at the end, n Var W = {value:g}", loss, "nats")
    yield gl.Headline("lost by VGG-B", float(data.log_lost), "nats", float(data.log_lost_law))


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The weights, the gain, what training makes of it, and the convolutions."""
    yield gl.claim.weights(data.entries, HE, variance=data.variance)
    data = data.isel(draw=np.isfinite(data.rate).all(("slope", "variance")).values)
    sentence = "a layer multiplies |Jv|² by n Var W (1 + a²)/2, less what the width takes, in log"
    yield gl.claim.mean(sentence, data.rate, data.rate_law, EXACT)
    sentence = "a gradient and two norms, at each of a few layers, are those of J_k multiplied out"
    yield gl.claim.everywhere(sentence, data.fast, data.literal, EXACT, rounding=data.rounding)
    eps, depth = float(np.finfo(data.loss.dtype).eps), data.attrs["depth"]
    sentence = "a fixed deviation costs the product of He's deviations over it, in log"
    # Each layer sums 9 d products (Higham 2002, section 3.1), in both networks.
    rounding = 2 * eps * float(np.sum(9 * np.asarray(data.attrs["channels"])))
    yield gl.claim.everywhere(sentence, data.log_lost, data.log_lost_law, VGG, rounding=rounding)
    sizes = [data.attrs[name] for name in ("depth", "batch_size", "width", "width")]
    yield gl.claim.backpropagated(data["first"], kinked=[data.log2_left.size, *sizes])
    weak, end = (data.start / 2) ** (depth / 2) < 1e-3, ending(data)  # of signal and logits
    if weak.any():
        yield gl.claim.everywhere(
            "where a thousandth of the signal arrives, or less, the loss stays that of guessing",
            *(end, gl.LN10, GUESS),
            where=weak,
            labels_of_a_batch=9 / (2 * data.attrs["batch_size"]),
        )
    kept = np.abs(depth / 2 * np.log(data.start / 2)) < 1
    if weak.any() and kept.any():
        gain = end.isel(start=weak.values).min("start") - end.isel(start=kept.values).max("start")
        sentence = "from He's weights the loss falls below that on the same batches, in the mean"
        yield gl.claim.gain(sentence, gain, HE, over="run")


FAULTS = {
    "weights 3 % too large": gl.fault.argument("ensembles.gaussian", sigma_w=lambda s: 1.03 * s),
    "He's factor 2 forgotten": gl.fault.scale("ensembles.unit_he", 2**-0.5),
    "not trained": gl.fault.argument("training.train", optimizer=lambda _: optax.sgd(0.0)),
    "one start": gl.fault.argument("trained", cfg=lambda c: replace(c, start=2 + 0 * c.start)),
    "gradients 1 % too long": gl.fault.scale("training.norms_by_layer", 1.01),
    "logs 0.1 % too large": gl.fault.scale("jacobians.log_gradient_norms", 1.001),
}
HARMLESS = {
    "a Jacobian transposed": "a Gaussian matrix is as likely as its transpose",
    "the loss halved": "what is left of a gradient is a ratio",
    "computed in another format": "a rounding is far below the error of the sampling",
}


if __name__ == "__main__":
    gl.run(__file__)
