"""Can clipping bring back a gradient that has vanished?

The formula g <- g tau / max(|g|, tau) (Pascanu, Mikolov and Bengio 2013, algorithm 1) multiplies
the gradients of all layers by one number, so each keeps its share of the norm. Held
against a chain whose gradient vanishes, at one gradient and over a training on handwritten digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "clipping"
ALGORITHM = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
TRIANGLE = "the triangle inequality over the steps"
MEDIANT = "the mediant inequality: sums of k a over sums of k b are at most the largest a/b"
FIELD = "Hanin and Nica 2020, to first order in 1/width; gradlab.theory.finite_width"
CHI = "W ~ N(0, σ_w²/n), b ~ N(0, σ_b²): |W x + b|² over its mean is chi² of n, over n"
CLIPS = ("formula", "optax")


@gl.config
class Config:
    """A chain that vanishes, and the thresholds that it is clipped at."""

    tau: gl.Floats
    activation: str
    depth: int
    width: int = gl.key("number of neurons in a layer", at_least=64, at_most=4096)
    sigma_w: float
    sigma_b: float
    learning_rate: float
    batch_size: int
    num_steps: int
    num_examples: int = gl.key("digits whose gradient is shared out", at_least=1, at_most=1438)
    ratio: float = gl.key("threshold over the norm of that gradient", above=0, at_most=1)
    num_draws: int = gl.key("chains that are clipped", at_least=1, at_most=1000)
    num_chains: int = gl.key("chains held against their laws", at_least=8, at_most=10**6)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The layers' shares of a gradient, as it is and clipped, and a training at each threshold."""
    key_model, key_batches, key_chains = jax.random.split(key, 3)
    train, _ = gl.training.digits(float)
    keys = jax.random.split(key_model, cfg.num_draws)
    some = gl.training.Data(train.x[: cfg.num_examples], train.y[: cfg.num_examples])
    clipped, whole = jax.vmap(lambda key: shares(cfg, network(cfg, key), some))(keys)
    batches = gl.training.schedule(key_batches, len(train.y), cfg.batch_size, cfg.num_steps)
    threshold = jnp.concatenate([jnp.array([jnp.inf]), cfg.tau])
    run = partial(trained, cfg, network(cfg, keys[0]), batches, train)
    moved, gradient, first = jax.vmap(run)(threshold)
    kept = jnp.minimum(1, threshold[:, None] / jnp.linalg.norm(gradient, axis=-1))
    reach = cfg.learning_rate * jnp.sum(kept[..., None] * gradient, axis=1)
    over = partial(gl.grid.over_draws, key=key_chains, num_draws=cfg.num_chains)
    arriving, length, off, entries = over(partial(one_chain, cfg, train))
    (law, beyond), theory = growth(cfg), gl.theory.products
    most = jnp.max(gradient / gradient[..., -1:], axis=1)
    return {
        "threshold": gl.named(threshold, "threshold", long_name="clipping threshold τ"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer"),
        "clip": gl.named(list(CLIPS), "clip"),
        "share": gl.named(clipped["as it is"], "draw layer", long_name="gradient over the last's"),
        "share_clipped": gl.named(jnp.stack([clipped[name] for name in CLIPS]), "clip draw layer"),
        "whole": gl.named(whole, "draw clip", long_name="length of the clipped gradient over τ"),
        "moved": gl.named(moved, "threshold layer", long_name="length of a layer's way"),
        "most": gl.named(most, "threshold layer", long_name="largest share, before the clip"),
        "log_arriving": gl.named(arriving, "chain layer", long_name="log |v J_L ... J_(l+1)|/|v|"),
        "log_arriving_law": gl.named(law, "layer", long_name="to first order in 1/width"),
        "log_arriving_beyond": gl.named(beyond, "layer", long_name="the next order"),
        "length": gl.named(length, "chain layer", long_name="log of |z_l|² over its mean"),
        "log_mean": gl.named(theory.linear_log_mean(cfg.width), "", long_name="E log(chi²/width)"),
        "log_variance": gl.named(theory.linear_log_variance(cfg.width), ""),
        "entries": gl.named(entries, "chain moment", long_name="moments of W √width / σ_w"),
        "first": gl.named(first, "threshold way first_step number"),
        "off": gl.named(off, "chain of size", long_name="off: a state, a log; rounding"),
        "reach": gl.named(reach, "threshold layer", long_name="learning rate times clipped ones"),
    }


def network(cfg: Config, key: jax.Array) -> gl.chain.Chain:
    """A chain of layers W phi(z) + b of one width, whose first ten outputs are the logits."""
    phi = gl.activations.PHI[cfg.activation]
    made = key, cfg.depth, cfg.width, phi, cfg.sigma_w, cfg.sigma_b
    return gl.ensembles.random(*made, draw="gaussian", layer="preactivation")


def shares(cfg: Config, model: gl.chain.Chain, data: gl.training.Data) -> tuple[Any, jax.Array]:
    """The layers' gradient norms over the last one's, `(depth,)`; the whole one's over τ."""
    grads = jax.grad(partial(gl.training.loss, gl.training.ten_logits))(model, data)
    tau, norms = cfg.ratio * gl.training.fast_norm(grads), gl.training.norms_by_layer
    both = {"formula": gl.clipping.clip(grads, tau), "optax": gl.clipping.optax_clip(grads, tau)}
    sizes = {name: norms(each) for name, each in ({"as it is": grads} | both).items()}
    whole = jnp.stack([jnp.linalg.norm(sizes[name]) for name in CLIPS]) / tau
    return {name: size / size[-1] for name, size in sizes.items()}, whole


def one_chain(cfg: Config, data: gl.training.Data, key: jax.Array) -> tuple[jax.Array, ...]:
    """Log of what arrives, log |z_l|² over its mean, `(depth,)`; how far z is off; W's moments."""
    key_chain, key_digit, key_back = jax.random.split(key, 3)
    model, phi = network(cfg, key_chain), gl.activations.PHI[cfg.activation]
    digit = data.x[jax.random.randint(key_digit, (), 0, len(data.y))]
    x, v = jnp.pad(digit, (0, cfg.width - digit.size)), jax.random.normal(key_back, (cfg.width,))
    given = model, x, partial(jnp.vdot, v)
    logs = gl.jacobians.log_gradient_norms(*given)
    literal = gl.chain_rule.log_norms_back(*given)
    z = gl.chain.states(model, x)
    mean = cfg.sigma_w**2 * jnp.mean(jnp.square(phi(z[:-1])), axis=1) + cfg.sigma_b**2
    length = jnp.log(jnp.mean(jnp.square(z[1:]), axis=1) / mean)
    apart = jnp.stack([jnp.max(jnp.abs(logs - literal.logs)), literal.rounding[0]])
    off = jnp.stack([gl.one_layer.step_error(model.params, phi, z), apart])
    entries = gl.ensembles.realised(model.params.W / cfg.sigma_w)
    return logs[1:] - jnp.log(jnp.linalg.norm(v)), length, off, entries


def growth(cfg: Config) -> tuple[jax.Array, ...]:
    """Mean log of what arrives, first order in 1/width, and the next; nan unless chi is relu's."""
    phi = gl.activations.PHI[cfg.activation]
    known = 1.0 if gl.theory.gauss.homogeneous(phi) is not None else jnp.nan
    sizes = cfg.width, cfg.depth - 1
    found = gl.theory.finite_width.plain(phi, 1.0, cfg.sigma_w, cfg.sigma_b, *sizes)
    first, second = found.infinite + found.first, found.second
    return tuple(jnp.cumsum(known * jnp.append(0, each))[::-1] for each in (first, second))


def trained(
    cfg: Config, model: Any, batches: Any, data: gl.training.Data, tau: jax.Array
) -> tuple[jax.Array, ...]:
    """How far each layer went, `(depth,)`, its gradients' norms by `step`, and the first steps."""
    descent = optax.chain(gl.clipping.clip_by_global_norm(tau), optax.sgd(cfg.learning_rate))
    seen = gl.training.train(gl.training.ten_logits, model, descent, data, batches)
    moved = jax.tree.map(jnp.subtract, seen.params, model)
    phi, rule = gl.activations.PHI[cfg.activation], gl.backpropagation.Rule(cfg.learning_rate, tau)
    hand = partial(gl.backpropagation.by_matrices, phi, 10)
    first = gl.backpropagation.first_steps(seen, hand, rule, data, batches)
    return gl.training.norms_by_layer(moved), seen.gradient, first


def figure(data: xr.Dataset) -> gl.Figure:
    """The shares, clipped on unclipped, and how far the layers of a clipped training went."""
    fig, (gradients, ways) = gl.figures.panels(1, 2, height=2.7)
    plain, *others = gl.figures.series(3)
    gl.figures.band(gradients, data.layer, data.share, plain | {"markersize": 6}, "as it is")
    for name, look, mark in zip(CLIPS, others, "x+", strict=True):
        look |= {"marker": mark, "markersize": 5}
        share = data.share_clipped.sel(clip=name).median("draw")
        gl.figures.measured(gradients, data.layer, share, look, f"clipped, {name}")
    law = np.exp(data.log_arriving_law)
    gl.figures.predicted(gradients, data.layer, law, "law of what arrives of dL/dz")
    gradients.set(yscale="log", xlabel="layer", ylabel="gradient over the last layer's")
    gradients.legend(title="median in all draws", loc="lower right")
    looks = gl.figures.shades(data.sizes["threshold"])
    for tau, look in zip(data.threshold.values, looks, strict=True):
        label = f"τ = {tau:g}" if np.isfinite(tau) else "not clipped"
        gl.figures.measured(ways, data.layer, data.moved.sel(threshold=tau), look, label)
    ways.set(yscale="log", xlabel="layer", ylabel="length of the way in training")
    ways.legend(loc="upper left")
    told = "clipping multiplies all layers by one number", "so the first layers learn no better"
    gl.figures.titles(fig, *told)
    return fig


def caption(data: xr.Dataset) -> str:
    """What is left in the first layer, before and after."""
    first = data.isel(layer=0).median("draw")
    worst = float(np.abs(data.share_clipped / data.share - 1).max())
    return f"""In a chain of {data.sizes["layer"]} layers the first one's gradient is
        {first.share:.2g} of the last one's; clipped to {data.attrs["ratio"]:g} of its norm it is
        still {first.share_clipped[0]:.2g}: no share changes by more than {worst:.0e}."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What arrives at layer 1, and its share of the last one's gradient after a clip."""
    first, unit = data.isel(layer=0), "decades"
    law = first.log_arriving_law / gl.LN10
    yield gl.headline.mean("gradient that arrives", first.log_arriving / gl.LN10, unit, law)
    yield gl.headline.mean("share of layer 1, clipped", np.log10(first.share_clipped), unit)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Shares stay, the first layer's is small, and no layer goes farther than its gradients."""
    eps = float(np.finfo(data.share.dtype).eps)
    num_entries = int(data.attrs["width"]) * (int(data.attrs["width"]) + 1)  # of a layer
    yield gl.claim.everywhere(
        "clipping leaves the ratio of gradient norms between layers as it is, by formula or optax",
        *(data.share_clipped, data.share, ALGORITHM),
        # An entry is multiplied and rounded, by an ulp at most, here and in the last layer; each of
        # four norms is the root of a sum of rounded squares (Higham 2002, section 3.1).
        rounding=(num_entries + 2) * eps * data.share,
    )
    sentence, layers = "clipped, the whole gradient is as long as the threshold", data.layer.size
    rounding = (layers * num_entries + 2) * eps  # of the norm, twice, and of each entry
    yield gl.claim.everywhere(sentence, data.whole, 1.0, ALGORITHM, rounding=rounding)
    if np.isfinite(data.log_arriving_law).all():
        yield gl.claim.mean(
            "the gradient vanishes as chi says: what arrives at each layer follows its law, in log",
            *(data.log_arriving, data.log_arriving_law, FIELD),
            over="chain",
            finite_width=data.log_arriving_beyond,
            rounding=num_entries * eps,  # of norms, as above, and of a matrix times a vector
        )
    yield gl.claim.weights(data.entries.rename(chain="draw"), CHI)
    names = "depth", "width", "width", "batch_size"
    yield gl.claim.backpropagated(data["first"], kinked=[data.attrs[name] for name in names])
    sentence = "a state is W phi(z) + b of that before, a gradient's log that of all J_k's product"
    off, rounding = data.off.transpose("size", ...)
    # Where relu's input is so near 0 that rounding has it on either side, slopes differ.
    chance = min(0.5, eps * num_entries * data.length.size)
    yield gl.claim.everywhere(sentence, off, 0.0, "chain rule", chance=chance, rounding=rounding)
    # A bias is nothing to relu's slopes, but a part of every length.
    yield gl.claim.everywhere(
        "the weights and biases are of the size asked for: |z| has its law, given the layer before",
        *(data.length.mean(), data.log_mean, CHI),
        sampling=gl.estimate.Sampling(np.sqrt(data.log_variance / data.length.size)),
    )
    steps, last = int(data.attrs["num_steps"]), data.reach.isel(layer=-1)
    # Weights are rounded at each step, by half an ulp of numbers below 8 deviations.
    weights = steps * eps * 4 * np.sqrt(num_entries) * data.attrs["sigma_w"]
    sentence = "in training no layer goes farther than its own gradients, times their common factor"
    rounding = (num_entries / 2 + steps) * eps * data.reach + weights
    yield gl.claim.at_most(sentence, data.moved, data.reach, TRIANGLE, rounding=rounding)
    sentence = "nor is its way a larger share of the last one's than its gradient ever was"
    rounding = (num_entries + steps) * eps * data.most + weights / last
    yield gl.claim.at_most(sentence, data.moved / last, data.most, MEDIANT, rounding=rounding)


def by_layer(grads: Any, tau: Any) -> Any:
    """Every layer's gradients brought to the threshold by themselves."""
    return jax.tree.map(jax.vmap(lambda leaf: leaf * (tau / gl.training.fast_norm(leaf))), grads)


FAULTS = {
    "threshold 1 % off": gl.fault.argument("clipping.optax_clip", tau=lambda tau: 1.01 * tau),
    "every layer clipped by itself": gl.fault.replace("clipping.clip", by_layer),
    "optax clips every layer by itself": gl.fault.replace("clipping.optax_clip", by_layer),
    "weights 10 % too large": gl.fault.argument("ensembles.random", sigma_w=lambda s: 1.1 * s),
    "no biases": gl.fault.argument("ensembles.random", sigma_b=lambda s: 0 * s),
    "layers rolled": gl.fault.result("jacobians.log_gradient_norms", lambda g: jnp.roll(g, 1)),
    "gradients 1 % too long": gl.fault.scale("training.norms_by_layer", 1.01),
}
HARMLESS = {"computed in another format": "a rounding is far below the error of the sampling"}
LESSON = gl.lesson.Offer(claims={"clipping revives nothing": "clipping leaves the ratio"})


if __name__ == "__main__":
    gl.run(__file__)
