"""How far does each layer of a network move in training: plain, clipped, with the identity?

A weight learns as fast as its gradient allows, and that is a product of Jacobians: where it
vanishes, the first layers stay where they are. Clipping (Pascanu, Mikolov and Bengio 2013,
algorithm 1) multiplies the steps of all layers by one number; the identity (He, Zhang, Ren and Sun
2016) changes the product. The same weights and batches of handwritten digits for all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "the textbook"
KINDS = PLAIN, CLIPPED, RESIDUAL = "plain", "clipped", "residual"
ALGORITHM = "Pascanu, Mikolov and Bengio 2013, algorithm 1; the step of gradient descent"
TRIANGLE = "the triangle inequality over the steps"
HE = "He, Zhang, Ren and Sun 2016"


@gl.config
class Config:
    """A network that vanishes, the branch's factor beside the identity, and the training."""

    activation: str
    depth: int
    width: int = gl.key("number of neurons in a layer", at_least=64, at_most=1024)
    sigma_w: float
    sigma_b: float
    factor: float
    tau: float
    learning_rate: float
    batch_size: int
    num_steps: int = gl.key("number of optimiser steps", at_least=2, at_most=10**4)
    num_runs: int = gl.key("draws of weights and batches", at_least=4, at_most=1000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """How far each layer is from its start after so many steps, and what its gradients were."""
    train, _ = gl.training.digits(float)
    steps = sorted({1, *gl.grid.depths(cfg.num_steps, 24)})
    at = jnp.array(steps) - 1

    def one(key: jax.Array) -> dict[str, jax.Array]:
        key_model, key_batches = jax.random.split(key)
        batches = gl.training.schedule(key_batches, len(train.y), cfg.batch_size, cfg.num_steps)
        runs = [trained(kind, cfg, key_model, batches, train) for kind in KINDS]
        found = {name: jnp.stack([run[name] for run in runs]) for name in runs[0]}
        found["reach"] = cfg.learning_rate * jnp.cumsum(found["step"], axis=1)[:, at]
        return found | {"moved": found["moved"][:, at]}

    found = gl.grid.over_draws(one, key, cfg.num_runs)
    phi = gl.activations.PHI[cfg.activation]
    by_layer, by_step = "run kind layer", "run kind num_taken layer"
    return {
        "kind": gl.named(list(KINDS), "kind"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer"),
        "num_taken": gl.named(jnp.array(steps), "num_taken", long_name="steps taken"),
        "moved": gl.named(found["moved"], by_step, long_name="|W - W_0| of a layer"),
        "reach": gl.named(found["reach"], by_step, long_name="sum of its steps' lengths"),
        "parameter": gl.named(["W", "b"], "parameter"),
        "variance": gl.named(jnp.stack([cfg.sigma_w, cfg.sigma_b]) ** 2, "parameter"),
        "entries": gl.named(found["entries"][:, 0], "run parameter pair moment"),
        "by_hand": gl.named(found["by_hand"], "run kind way first_step number"),
        "length": gl.named(found["length"], "run kind step", long_name="of the whole gradient"),
        "step_size": gl.named(found["step_size"], "run kind step"),
        "size": gl.named(found["size"], by_layer, long_name="|W_0|"),
        "chi_1": gl.named(gl.theory.meanfield.chi_1(phi, cfg.sigma_w, cfg.sigma_b), ""),
        "loss": gl.named(found["loss"], "run kind", long_name="at the end", units="nats"),
    }


def logits(kind: str, cfg: Config, model: gl.chain.Chain, image: jax.Array) -> jax.Array:
    """The first ten outputs of the network of a kind, `(10,)`, for an image with zeros after it."""
    if kind == RESIDUAL:
        branch = gl.ensembles.Branch(model.params, jnp.full(cfg.depth, cfg.factor))
        layer = gl.ensembles.residual_layer(gl.activations.PHI[cfg.activation])
        model = gl.chain.Chain(layer, branch)
    return model(jnp.pad(image, (0, cfg.width - image.size)))[:10]


def trained(
    kind: str, cfg: Config, key: jax.Array, batches: Any, data: gl.training.Data
) -> dict[str, jax.Array]:
    """What each layer does in one training: `(num_steps, depth)`, or `(depth,)` at its start."""
    phi, descent = gl.activations.PHI[cfg.activation], optax.sgd(cfg.learning_rate)
    model = gl.ensembles.gaussian(key, cfg.depth, cfg.width, phi, cfg.sigma_w, cfg.sigma_b)
    if kind == CLIPPED:
        descent = optax.chain(gl.clipping.clip_by_global_norm(cfg.tau), descent)

    def moved(params: Any) -> jax.Array:
        return gl.training.norms_by_layer(jax.tree.map(jnp.subtract, params, model))

    def by_hand(model: gl.chain.Chain, batch: gl.training.Data) -> Any:
        read = model, gl.chain.linear(jnp.eye(10, cfg.width)[None])  # the first ten outputs
        found = gl.backpropagation.of_readout(phi, read, batch, skip, factor)
        return found._replace(gradient=found.gradient[0], norms=found.norms[:-1])

    skip, factor = (1.0, cfg.factor) if kind == RESIDUAL else (0.0, 1.0)
    tau = cfg.tau if kind == CLIPPED else jnp.inf
    rule = gl.backpropagation.Rule(cfg.learning_rate, tau)
    run = gl.training.train(partial(logits, kind, cfg), model, descent, data, batches, moved)
    (W, b), realised = model.params, gl.ensembles.realised_in_parts
    kept = jnp.minimum(1.0, tau / (length := jnp.linalg.norm(run.gradient, axis=1, keepdims=True)))
    return {
        "moved": jnp.concatenate([run.watched[1:], moved(run.params)[None]]),
        "step": kept * run.gradient,
        "step_size": run.step_size,
        "length": length[:, 0],
        "by_hand": gl.backpropagation.first_steps(run, by_hand, rule, data, batches),
        "size": gl.training.norms_by_layer(model),
        "entries": jnp.stack([realised(W, 2), realised(b[..., None], 2)]),
        "loss": jnp.mean(run.loss[-max(1, cfg.num_steps // 10) :]),
    }


def share(data: xr.Dataset) -> Any:
    """How far each layer is from its start, over its size there."""
    return data.moved / data["size"]


def figure(data: xr.Dataset) -> gl.Figure:
    """Every layer's way at the end, and the first layer's by step."""
    fig, (layers, steps) = gl.figures.panels(1, 2, height=2.7)
    moved = share(data)
    for kind, look in zip(KINDS, gl.figures.series(3), strict=True):
        row = moved.sel(kind=kind).rename(run="draw")
        gl.figures.band(layers, data.layer, row.isel(num_taken=-1), look, kind)
        gl.figures.band(steps, data.num_taken, row.isel(layer=0), look, kind)
    layers.set(yscale="log", xlabel="layer", ylabel="|W - W₀| / |W₀|")
    steps.set(yscale="log", xscale="log", xlabel="steps taken", ylabel="of layer 1")
    layers.legend(loc="best")
    gl.figures.titles(fig, f"after {int(data.num_taken[-1])} steps", "the first layer")
    return fig


def caption(data: xr.Dataset) -> str:
    """What the first layer makes of the training, by kind."""
    first = share(data).isel(layer=0, num_taken=-1).median("run")
    plain, clipped, residual = (f"10^{float(np.log10(first.sel(kind=kind))):.1f}" for kind in KINDS)
    return f"""In {int(data.num_taken[-1])} steps the first of {data.sizes["layer"]} layers changes
        by {plain} of itself in a plain network, by {clipped} where the same training is clipped,
        and by {residual} where its layers keep the identity. Bands: all {data.sizes["run"]}."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The way of the first layer, by kind."""
    first = np.log10(share(data).isel(layer=0, num_taken=-1))
    for kind in KINDS:
        yield gl.headline.mean(f"layer 1 moves, {kind}", first.sel(kind=kind), "decades of itself")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The start, the first step, the reach of all, what clip and identity make of layer 1."""
    eps, width = float(np.finfo(data.moved.dtype).eps), int(data.attrs["width"])
    rate, tau, num = data.attrs["learning_rate"], data.attrs["tau"], width * (width + 1)
    # Weights are rounded at each step by half an ulp of numbers below 8 deviations of 1/√width.
    deviation = max(float(data.attrs["sigma_w"]) / width**0.5, float(data.attrs["sigma_b"]))
    of_weights = eps * 4 * deviation * num**0.5
    first = data.isel(num_taken=0)
    yield gl.claim.everywhere(
        "the first step moves each layer by the rate times its gradient, and all clipped by one",
        *(first.moved, first.reach, ALGORITHM),
        rounding_of_sums=2 * num * eps * first.reach,
        rounding_of_weights=2 * of_weights,
    )
    limit = data.kind.copy(data=np.where(data.kind == CLIPPED, tau, np.inf))
    given = data.step_size, data.length, limit, rate, num * data.layer.size
    yield gl.claim.step_lengths(*given, ALGORITHM)
    sizes = data.loss.size, data.attrs["batch_size"], data.layer.size, width, width
    yield gl.claim.backpropagated(data.by_hand, kinked=sizes)
    taken = data.num_taken
    yield gl.claim.at_most(
        "after any number of steps no layer is farther than all of its steps together",
        *(data.moved, data.reach, TRIANGLE),
        rounding_of_sums=(num + taken) * eps * data.reach,
        rounding_of_weights=2 * taken * of_weights,
    )
    drawn = data.entries.stack(draw=("run", "pair"))
    yield gl.claim.weights(drawn, "the normal law", variance=data.variance)
    first = np.log10(data.moved.isel(layer=0, num_taken=-1))
    plain, clipped, residual = first.transpose("kind", ...)
    if (
        data.length.sel(kind=CLIPPED).isel(step=0) > tau
    ).all():  # else a run may be none the shorter
        sentence = "clipped, the first layer moves less than in the same training not clipped"
        yield gl.claim.gain(f"{sentence}, in decades", plain - clipped, ALGORITHM, over="run")
    # The plain gradient loses √chi_1 a layer, that of a branch its factor: else nothing is gained.
    if data.chi_1 ** ((data.attrs["depth"] - 1) / 2) < min(1.0, float(data.attrs["factor"])):
        sentence = "with the identity it moves more than without, on the same weights and batches"
        yield gl.claim.gain(f"{sentence}, in decades", residual - plain, HE, over="run")


def by_layer(grads: Any, tau: Any) -> Any:
    """Every layer's gradients brought to the threshold by themselves."""
    return jax.tree.map(jax.vmap(lambda leaf: leaf * (tau / gl.training.fast_norm(leaf))), grads)


FAULTS = {
    "every layer clipped by itself": gl.fault.replace("clipping.clip", by_layer),
    "identity dropped": gl.fault.replace(
        "ensembles.residual_layer",
        lambda phi: lambda branch, z: branch.factor * phi(branch.affine(z)),
    ),
    "threshold 1 % too large": gl.fault.argument(
        "clipping.clip_by_global_norm", tau=lambda tau: 1.01 * tau
    ),
    "ways 1 % too long": gl.fault.scale("training.norms_by_layer", 1.01),
    "momentum": gl.fault.argument("training.train", optimizer=lambda _: optax.sgd(0.1, 0.9)),
    "weights 3 % too large": gl.fault.argument("ensembles.gaussian", sigma_w=lambda s: 1.03 * s),
}


def payload(data: xr.Dataset) -> gl.lesson.Payload:
    """The median way of each layer, log10, by kind and step: what the numbers below are of too."""
    median = np.log10(data.moved.median("run")).transpose("kind", "num_taken", "layer")
    return {
        "kinds": data.kind.values.tolist(),
        "layer": data.layer.values.tolist(),
        "steps": data.num_taken.values.tolist(),
        "log10_moved": gl.lesson.decimals(median, 4),
        "num_runs": data.sizes["run"],
    }


WAY: dict[str, Any] = {"how": "median", "num_taken": "last", "layer": 1}
LESSON = gl.lesson.Offer(
    figures={"moved": payload},
    numbers={
        "steps of training": gl.lesson.at("num_taken", num_taken="last"),
        "layers trained": gl.lesson.at("depth"),
        "way of the first layer": gl.lesson.at("moved", kind=PLAIN, **WAY),
        "way when clipped": gl.lesson.at("moved", kind=CLIPPED, **WAY),
        "way with identity": gl.lesson.at("moved", kind=RESIDUAL, **WAY),
    },
    claims={
        "one number for all layers": "all clipped by one",
        "clipped moves less": "the first layer moves less",
        "identity moves more": "with the identity it moves more",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
