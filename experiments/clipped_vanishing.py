"""Can clipping bring back a gradient that has vanished?

The formula g <- g tau / max(|g|, tau) (Pascanu, Mikolov and Bengio 2013, algorithm 1) multiplies
the gradients of all layers by one number, so each keeps its share of the norm: what is small
beside the last layer's stays small beside it. Held against a chain whose gradient vanishes, at one
gradient and over a training on handwritten digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

ALGORITHM = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
TRIANGLE = "the triangle inequality over the steps"
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
    num_draws: int = gl.key("chains that are drawn", at_least=1, at_most=1000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The layers' shares of a gradient, as it is and clipped, and a training at each threshold."""
    key_model, key_batches = jax.random.split(key)
    train, _ = gl.training.digits(float)
    keys = jax.random.split(key_model, cfg.num_draws)
    some = gl.training.Data(train.x[: cfg.num_examples], train.y[: cfg.num_examples])
    clipped = jax.vmap(lambda key: shares(cfg, network(cfg, key), some))(keys)
    batches = gl.training.schedule(key_batches, len(train.y), cfg.batch_size, cfg.num_steps)
    threshold = jnp.concatenate([jnp.array([jnp.inf]), cfg.tau])
    model = network(cfg, keys[0])
    moved, gradient = jax.vmap(lambda tau: trained(cfg, model, batches, tau, train))(threshold)
    size = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
    kept = jnp.minimum(1, threshold[:, None, None] / size)
    return {
        "threshold": gl.named(threshold, "threshold", long_name="clipping threshold τ"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer"),
        "clip": gl.named(list(CLIPS), "clip"),
        "share": gl.named(clipped["as it is"], "draw layer", long_name="gradient over the last's"),
        "share_clipped": gl.named(
            jnp.stack([clipped[name] for name in CLIPS]), "clip draw layer", long_name="clipped"
        ),
        "moved": gl.named(moved, "threshold layer", long_name="length of a layer's way"),
        "reach": gl.named(
            cfg.learning_rate * jnp.sum(kept * gradient, axis=1),
            "threshold layer",
            long_name="learning rate times the sum of its clipped gradients",
        ),
    }


def network(cfg: Config, key: jax.Array) -> gl.chain.Chain:
    """A chain of layers W phi(z) + b of one width, whose first ten outputs are the logits."""
    phi = gl.activations.PHI[cfg.activation]
    options: dict[str, Any] = {"draw": "gaussian", "layer": "preactivation"}
    return gl.ensembles.random(key, cfg.depth, cfg.width, phi, cfg.sigma_w, cfg.sigma_b, **options)


def logits(model: gl.chain.Chain, image: jax.Array) -> jax.Array:
    """The ten logits of an image, whose pixels are followed by zeros up to the width."""
    return model(jnp.pad(image, (0, model.params.b.shape[-1] - image.size)))[:10]


def shares(cfg: Config, model: gl.chain.Chain, data: gl.training.Data) -> dict[str, jax.Array]:
    """The layers' gradient norms over the last one's, `(depth,)`: as they are, and clipped."""
    grads = jax.grad(lambda model: gl.training.loss(logits, model, data))(model)
    tau = cfg.ratio * gl.training.fast_norm(grads)
    found = {
        "as it is": grads,
        "formula": gl.clipping.clip(grads, tau),
        "optax": gl.clipping.optax_clip(grads, tau),
    }
    sizes = {name: gl.training.norms_by_layer(each) for name, each in found.items()}
    return {name: size / size[-1] for name, size in sizes.items()}


def trained(
    cfg: Config, model: Any, batches: Any, tau: jax.Array, data: gl.training.Data
) -> tuple[jax.Array, jax.Array]:
    """How far each layer went, `(depth,)`, and its gradients' norms, `(num_steps, depth)`."""
    import optax

    clip = gl.clipping.clip_by_global_norm(tau)
    descent = optax.chain(clip, optax.sgd(cfg.learning_rate))
    seen = gl.training.train(logits, model, descent, data, batches)
    moved = jax.tree.map(jnp.subtract, seen.params, model)
    return gl.training.norms_by_layer(moved), seen.gradient


def figure(data: xr.Dataset) -> gl.Figure:
    """The shares, clipped on unclipped, and how far the layers of a clipped training went."""
    fig, (gradients, ways) = gl.figures.panels(1, 2, height=2.7)
    plain, formula, optax = gl.figures.series(3)
    gl.figures.band(gradients, data.layer, data.share, plain | {"markersize": 6}, "as it is")
    for name, look, mark in (("formula", formula, "x"), ("optax", optax, "+")):
        look |= {"marker": mark, "markersize": 5}
        share = data.share_clipped.sel(clip=name).median("draw")
        gl.figures.measured(gradients, data.layer, share, look, f"clipped, {name}")
    gradients.set(yscale="log", xlabel="layer", ylabel="gradient over the last layer's")
    gradients.legend(title="median in all draws", loc="lower right")
    gl.figures.title(gradients, "clipping multiplies all layers by one number")
    looks = gl.figures.shades(data.sizes["threshold"])
    for tau, look in zip(data.threshold.values, looks, strict=True):
        label = f"τ = {tau:g}" if np.isfinite(tau) else "not clipped"
        gl.figures.measured(ways, data.layer, data.moved.sel(threshold=tau), look, label)
    ways.set(yscale="log", xlabel="layer", ylabel="length of the way in training")
    ways.legend(loc="upper left")
    gl.figures.title(ways, "so the first layers learn no better")
    return fig


def caption(data: xr.Dataset) -> str:
    """What is left in the first layer, before and after."""
    before, after = (
        float(data.share[:, 0].median()),
        data.share_clipped.isel(layer=0).median("draw"),
    )
    worst = float(np.abs(data.share_clipped / data.share - 1).max())
    return (
        f"In a chain of {data.sizes['layer']} layers the first one's gradient is {before:.2g} of "
        f"the last one's; clipped to {data.attrs['ratio']:g} of its norm it is still "
        f"{float(after.sel(clip='formula')):.2g}: no share changes by more than {worst:.0e}."
    )


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Shares stay, the first layer's is small, and no layer goes farther than its gradients."""
    eps = float(np.finfo(data.share.dtype).eps)
    num_entries = int(data.attrs["width"]) * (int(data.attrs["width"]) + 1)  # of a layer
    for name in CLIPS:
        yield gl.claim.everywhere(
            f"{name}: clipping leaves the ratio of gradient norms between layers as it is",
            *(data.share_clipped.sel(clip=name), data.share, ALGORITHM),
            # An entry is multiplied by the common factor and rounded, by an ulp at most, here and
            # in the last layer; each of four norms is the root of a sum of rounded squares
            # (Higham 2002, section 3.1).
            rounding_of_entries=2 * eps * data.share,
            rounding_of_sums=4 * num_entries * eps / 4 * data.share,
        )
    yield gl.claim.at_most(
        "the gradient vanishes: in every chain the first layer's is less than half of the last's",
        *(data.share.isel(layer=0), 0.5, "Schoenholz et al. 2017, section 4"),
    )
    steps = int(data.attrs["num_steps"])
    yield gl.claim.at_most(
        "in training no layer goes farther than its own gradients, times their common factor",
        *(data.moved, data.reach, TRIANGLE),
        rounding_of_sums=(num_entries / 2 + steps) * eps * data.reach,
        # Weights are rounded at each step, by half an ulp of numbers below 8 deviations.
        rounding_of_weights=steps * eps * 4 * np.sqrt(num_entries) * data.attrs["sigma_w"],
    )


def by_layer(grads: Any, tau: Any) -> Any:
    """Every layer's gradients brought to the threshold by themselves."""

    def one(leaf: jax.Array) -> jax.Array:
        size = gl.training.fast_norm(leaf)
        return leaf * jnp.where(jnp.isinf(tau), 1, tau / size).astype(leaf.dtype)

    return jax.tree.map(jax.vmap(one), grads)


FAULTS = {
    "every layer clipped by itself": gl.fault.replace("clipping.clip", by_layer),
    "optax clips every layer by itself": gl.fault.replace("clipping.optax_clip", by_layer),
    "a chain that does not vanish": gl.fault.argument(
        "ensembles.random", sigma_w=lambda sigma_w: jnp.maximum(sigma_w, 1.6)
    ),
}


LESSON = gl.lesson.Offer(
    claims={"clipping revives nothing": "clipping leaves the ratio of gradient norms"}
)


if __name__ == "__main__":
    gl.run(__file__)
