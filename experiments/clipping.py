"""What does clipping by the global norm do, what does it promise, and what can it not do?

The formula g <- g tau / max(|g|, tau) (Pascanu, Mikolov and Bengio 2013, algorithm 1) keeps the
direction of a gradient and caps its norm, so one freak batch cannot throw the parameters far. It
cannot revive a vanished gradient: all layers are multiplied by one number. Both are held against
training on handwritten digits, and optax's implementation against the formula, in every format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np

if TYPE_CHECKING:
    import xarray as xr
    from jax import Array

SOURCE = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
ZHANG = "Zhang, He, Sra and Jadbabaie 2020, section 1"
IEEE = "IEEE 754-2019, section 7"

# Norms of the random gradients, and the threshold over the norm: one that clips, one that does not.
DECADES = (-30, 30)
RATIOS = (0.1, 10.0)
NUM_ENTRIES = 16  # of one random gradient: a 4 by 3 weight and a bias of 4
SPECIAL = (
    "zero",
    "zero, tau = 0",
    "one entry infinite",
    "one entry nan",
    "squares overflow",
    "squares underflow",
)
KINDS = ("calm", "freak", "vanishing")


@gl.config
class Config:
    """The thresholds, the network, and the batch that goes wrong."""

    tau: gl.Floats
    activation: str
    depth: int
    width: int = gl.key("number of neurons in a layer", at_least=64, at_most=4096)
    sigma_w: float
    sigma_w_vanishing: float = gl.key(
        "sigma_w of the chain whose gradient vanishes", at_least=0, at_most=1e3
    )
    sigma_b: float
    learning_rate: float
    batch_size: int
    num_steps: int = gl.key("number of optimiser steps", at_least=3, at_most=10**6)
    freak_step: int = gl.key("step, from 0, at which a batch goes wrong", at_least=1, at_most=10**6)
    freak_gain: float = gl.key("what the inputs of that batch are multiplied by", at_most=1e30)
    dtypes: gl.Strings
    num_norms: int = gl.key("norms between 1e-30 and 1e30", at_least=2, at_most=1001)
    num_seeds: int = gl.key("vanishing chains that are drawn", at_least=1, at_most=1000)
    num_draws: int = gl.key("random gradients of each norm", at_least=1, at_most=1000)


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """Optax against the formula, then training with and without a threshold."""
    key_cases, key_training = jax.random.split(key)
    return {**implementations(cfg, key_cases), **trainings(cfg, key_training)}


# ---- optax against the formula


def implementations(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """What optax and the formula make of random and of special gradients, in each format."""
    # Without 64-bit mode float64 is not there to be measured.
    names = [name for name in cfg.dtypes if jax.dtypes.canonicalize_dtype(name).name == name]
    if not names:
        raise gl.BadInput(f"dtypes is {list(cfg.dtypes)}; allowed without 64-bit mode: others too")
    rows = [one_format(cfg, key, name) for name in names]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    at = {
        "": ("ratio", "norm", "draw"),
        "_at_equality": ("draw_at_equality",),
        "_special": ("special",),
    }
    return {
        "format": gl.named(names, "format"),
        "norm": gl.named(norms(cfg), "norm", long_name="norm of the gradient"),
        "ratio": gl.named(jnp.array(RATIOS), "ratio", long_name="threshold over norm"),
        "special": gl.named(list(SPECIAL), "special"),
        "cause": gl.named(list(gl.clipping.CAUSES), "cause"),
    } | {
        f"{name}{part}": gl.named(values, "format", *axes, long_name=QUANTITIES[name])
        for part, axes in at.items()
        for name, values in stacked[part].items()
    }


QUANTITIES = {
    "ulps": "most floats between an entry of optax's result and the formula's",
    "why": "index of the cause of the disagreement",
    "bend_optax": "1 - cosine of the angle between the gradient and optax's result",
    "bend_formula": "1 - cosine of the angle between the gradient and the formula's result",
    "norm_optax": "norm after optax's clip over min(norm, threshold)",
    "norm_formula": "norm after the formula over min(norm, threshold)",
    "low": "most ulps that an entry of the formula's result is below the exact one",
    "high": "most ulps that one is above it",
    "changed": "most floats between an entry of the formula's result and the gradient's",
    "first_optax": "first entry after optax's clip",
    "second_optax": "second entry after optax's clip",
    "first_formula": "first entry after the formula",
    "second_formula": "second entry after the formula",
    "normal": "1 where every exact entry is a normal number of the format",
}


ENTRIES = ("first_optax", "second_optax", "first_formula", "second_formula")
RANDOM = tuple(name for name in QUANTITIES if name not in ENTRIES)


def norms(cfg: Config) -> Array:
    """The norms of the random gradients, `(num_norms,)`."""
    return jnp.logspace(*DECADES, cfg.num_norms)


def one_format(cfg: Config, key: Array, dtype: str) -> dict[str, dict[str, Array]]:
    """All quantities of the random gradients, those at equality and the special ones."""
    key_random, key_equal = jax.random.split(key)
    random = random_cases(cfg, key_random)
    parts = [random, equal_cases(cfg, key_equal), special_cases(dtype)]
    entries = jnp.concatenate([part[0].reshape(-1, NUM_ENTRIES) for part in parts])
    tau = jnp.concatenate([part[1].ravel() for part in parts])
    # One program for all three, because compiling it takes longer than running it.
    measured = jax.vmap(lambda entries, tau: one_gradient(entries, tau, dtype))(entries, tau)
    ends = np.cumsum([part[1].size for part in parts])[:2]
    split = {name: jnp.split(values, ends) for name, values in measured.items()}
    return {
        "": {name: split[name][0].reshape(random[1].shape) for name in RANDOM},
        "_at_equality": {name: split[name][1] for name in ("ulps", "why", "changed")},
        "_special": {name: split[name][2] for name in ("ulps", "why", *ENTRIES)},
    }


def random_cases(cfg: Config, key: Array) -> tuple[Array, Array]:
    """Gradients and thresholds over the axes (ratio, norm, draw)."""
    directions = jax.random.normal(key, (cfg.num_draws, NUM_ENTRIES))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    size = jnp.broadcast_to(norms(cfg)[:, None], (len(RATIOS), cfg.num_norms, cfg.num_draws))
    return size[..., None] * directions[None, None], size * jnp.array(RATIOS)[:, None, None]


def equal_cases(cfg: Config, key: Array) -> tuple[Array, Array]:
    """Gradients whose norm is the threshold exactly: four Pythagorean quadruples and zeros."""
    m, n, p, q = jax.random.randint(key, (4, 10 * cfg.num_draws), 1, 5).astype(float)
    legs = (m * m + n * n - p * p - q * q, 2 * (m * q + n * p), 2 * (n * q - m * p))
    quadruple = jnp.stack([*legs, jnp.zeros_like(m)], axis=1)
    return jnp.tile(quadruple, 4), 2 * (m * m + n * n + p * p + q * q)


def special_cases(dtype: str) -> tuple[Array, Array]:
    """The gradients in `SPECIAL`, whose first entries tell them apart, and their thresholds."""
    info = finfo(dtype)
    large, small = float(info.max) / 8, float(info.tiny) * 8
    start = {
        "zero": ([0.0, 0.0], 1.0),
        "zero, tau = 0": ([0.0, 0.0], 0.0),
        "one entry infinite": ([jnp.inf, 1.0], 1.0),
        "one entry nan": ([jnp.nan, 1.0], 1.0),
        "squares overflow": ([large, large], 1.0),
        "squares underflow": ([small, small], small),
    }
    entries = jnp.zeros((len(SPECIAL), NUM_ENTRIES))
    entries = entries.at[:, :2].set(jnp.array([start[name][0] for name in SPECIAL]))
    return entries, jnp.array([start[name][1] for name in SPECIAL])


def one_gradient(entries: Array, tau: Array, dtype: str) -> dict[str, Array]:
    """The quantities of one gradient `(NUM_ENTRIES,)` and one threshold in one format."""
    flat = entries.astype(dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    tau = tau.astype(wide)
    result = gl.clipping.compare({"W": flat[:12].reshape(4, 3), "b": flat[12:]}, tau)
    # The exact value is good to some ulps of the default format only.
    exact = gl.theory.clipping.clipped(flat.astype(float), tau.astype(float))
    after = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(result.formula)])
    after_optax = result.optax["W"].ravel()
    low = (jnp.abs(exact) - jnp.abs(after.astype(float))) / ulp(exact, dtype)
    capped = jnp.minimum(result.norm, tau)
    return {
        "ulps": result.max_ulps,
        "why": result.cause,
        "bend_optax": 1 - result.cosine_optax,
        "bend_formula": 1 - result.cosine_formula,
        "norm_optax": result.norm_optax / capped,
        "norm_formula": result.norm_formula / capped,
        "low": jnp.max(low),
        "high": jnp.max(-low),
        "changed": jnp.max(gl.clipping.ulps(after, flat)),
        "first_optax": after_optax[0].astype(float),
        "second_optax": after_optax[1].astype(float),
        "first_formula": after[0].astype(float),
        "second_formula": after[1].astype(float),
        "normal": (jnp.min(jnp.abs(exact)) >= float(finfo(dtype).tiny)).astype(jnp.int32),
    }


def finfo(dtype: Any) -> Any:
    """What a format holds; jax gives its own function no types."""
    read: Any = jnp.finfo
    return read(dtype)


def ulp(value: Array, dtype: str) -> Array:
    """The distance between the floats of a format around a value."""
    info = finfo(dtype)
    exponent = jnp.frexp(value)[1] - 1
    return jnp.ldexp(1.0, jnp.maximum(exponent, int(info.minexp)) - info.nmant)


# ---- training with and without a threshold


def trainings(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """The trajectories of each kind of run under each threshold, and one gradient's layers."""
    key_model, key_batches = jax.random.split(key)
    train, held_out = gl.training.digits(float)
    num_examples = len(train.y)
    batches = gl.training.schedule(key_batches, num_examples, cfg.batch_size, cfg.num_steps)
    threshold = jnp.concatenate([jnp.array([jnp.inf]), cfg.tau])
    gain = jnp.array([1.0, cfg.freak_gain, 1.0])
    keys = jax.random.split(key_model, cfg.num_seeds)
    # The runs share one draw; the vanishing one is the first of `num_seeds`.
    models = jax.vmap(lambda key, sigma_w: network(key, cfg, sigma_w))(
        jnp.concatenate([keys[:1], keys[:1], keys]),
        jnp.array([cfg.sigma_w] * 2 + [cfg.sigma_w_vanishing] * cfg.num_seeds),
    )

    def run(kind: Array, threshold: Array) -> dict[str, Array]:
        model = jax.tree.map(lambda leaf: leaf[kind], models)
        schedule = gl.training.with_freak(batches, cfg.freak_step, gain[kind])
        return trajectory(cfg, model, schedule, threshold, train, some(held_out))

    kind, which = jnp.meshgrid(jnp.arange(len(KINDS)), threshold, indexing="ij")
    flat = jax.vmap(run)(kind.ravel(), which.ravel())
    seen = {name: values.reshape(*kind.shape, *values.shape[1:]) for name, values in flat.items()}
    vanishing = jax.tree.map(lambda leaf: leaf[2:], models)
    layers = jax.vmap(lambda model: shares(model, some(train)))(vanishing)
    phi = gl.activations.PHI[cfg.activation]
    back = cfg.depth - 1 - jnp.arange(cfg.depth)
    chi_1 = gl.theory.meanfield.chi_1(phi, cfg.sigma_w_vanishing, cfg.sigma_b)
    over = ("kind", "threshold")
    texts = {
        "loss": ("loss on held-out digits, before the step", "nats"),
        "step_size": ("length of the step", "1"),
        "gradient": ("norm of the gradient before the clip", "1"),
        "distance": ("distance from the start, after the step", "1"),
    }
    return {
        "kind": gl.named(list(KINDS), "kind"),
        "threshold": gl.named(threshold, "threshold", long_name="clipping threshold"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer"),
        **{
            name: gl.named(seen[name], *over, "step", long_name=text, units=units)
            for name, (text, units) in texts.items()
        },
        "moved": gl.named(
            seen["moved"], *over, "layer", long_name="change of a layer's weights over their norm"
        ),
        "longest_step": gl.named(
            cfg.learning_rate * gl.theory.clipping.norm_after(jnp.inf, threshold),
            "threshold",
            long_name="learning rate times tau",
        ),
        **{
            f"share_{name}": gl.named(
                values, "seed", "layer", long_name=f"gradient norm over the last layer's, {name}"
            )
            for name, values in layers.items()
        },
        "share_predicted": gl.named(chi_1 ** (back / 2), "layer", long_name="chi_1^((L - l)/2)"),
    }


def network(key: Array, cfg: Config, sigma_w: Array) -> Any:
    """A chain of layers W phi(z) + b of one width, whose first ten outputs are the logits."""
    phi = gl.activations.PHI[cfg.activation]
    return gl.ensembles.random(
        key, cfg.depth, cfg.width, phi, sigma_w, cfg.sigma_b, draw="gaussian", layer="preactivation"
    )


def logits(model: Any, image: Array) -> Array:
    """The ten logits of an image, whose pixels are followed by zeros up to the width."""
    width = model.params.b.shape[-1]
    scores: Array = model(jnp.pad(image, (0, width - image.size)))
    return scores[:10]


def trajectory(
    cfg: Config, model: Any, schedule: Any, threshold: Array, train: Any, held_out: Any
) -> dict[str, Array]:
    """One training run of gradient descent, clipped at a threshold that may be infinite."""
    import optax

    clip = gl.clipping.clip_by_global_norm(threshold)
    seen = gl.training.train(
        logits,
        model,
        optax.chain(clip, optax.sgd(cfg.learning_rate)),
        train,
        schedule,
        watch=lambda model: gl.training.loss(logits, model, held_out),
    )
    moved = jax.tree.map(jnp.subtract, seen.params, model)
    return {
        "loss": seen.watched,
        "step_size": seen.step_size,
        "distance": seen.distance,
        "gradient": jnp.linalg.norm(seen.gradient, axis=1),
        "moved": gl.training.norms_by_layer(moved) / gl.training.norms_by_layer(model),
    }


def some(data: Any) -> Any:
    """The first 120 examples: a loss to a few percent, at a tenth of the cost of all."""
    return gl.training.Data(data.x[:120], data.y[:120])


def shares(model: Any, data: Any) -> dict[str, Array]:
    """The layers' gradient norms over the last one's: as they are, and clipped to a tenth."""
    grads = jax.grad(lambda model: gl.training.loss(logits, model, data))(model)
    tau = 0.1 * gl.training.fast_norm(grads)
    results = {
        "unclipped": grads,
        "formula": gl.clipping.clip(grads, tau),
        "optax": gl.clipping.optax_clip(grads, tau),
    }
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results.values())
    sizes = jax.vmap(gl.training.norms_by_layer)(stacked)
    # The gradient by a bias is the one by h, on which mean field theory has its law.
    hidden = jnp.linalg.norm(grads.params.b, axis=1)
    return dict(zip(results, sizes / sizes[:, -1:], strict=True)) | {"hidden": hidden / hidden[-1]}


# ---- the figure


def figure(data: xr.Dataset) -> gl.Figure:
    """Optax against the formula above, training in the middle, what clipping cannot do below."""
    fig, axes = gl.figures.panels(3, 3, height=6.4)
    draws = (
        (draw_values, "values: optax, formula"),
        (draw_norms, "norm after optax"),
        (draw_directions, "direction after optax"),
        (draw_causes, "causes, and how often"),
        (draw_losses, "one freak batch: loss"),
        (draw_steps, "one freak batch: step"),
        (draw_distances, "one freak batch: distance"),
        (draw_shares, "vanishing chain: gradient"),
        (draw_moves, "vanishing chain: learning"),
    )
    for axis, (draw, text) in zip(axes, draws, strict=True):
        draw(axis, data)
        gl.figures.title(axis, text)
    return fig


def draw_formats(axes: gl.Axes, data: xr.Dataset, name: str, low: float, high: float) -> None:
    """The worst draw at each norm for each format, within limits; nan at the upper one."""
    worst = data[name].isel(ratio=0).max("draw", skipna=False)
    shown = worst.fillna(high).clip(low, high)
    num_formats = data.sizes["format"]
    for i, look in enumerate(gl.figures.series(num_formats)):
        every = slice(i, None, max(1, num_formats * data.sizes["norm"] // 120))
        axes.plot(
            data.norm[every],
            shown.isel(format=i)[every],
            **look | {"linestyle": "none", "markersize": 2.6, "markerfacecolor": "none"},
            label=str(data.format.values[i]),
        )
    axes.set(xscale="log", xlabel="norm of the gradient", xticks=[1e-30, 1e-15, 1, 1e15, 1e30])
    axes.minorticks_off()


def draw_overflows(axes: gl.Axes, data: xr.Dataset) -> None:
    """The norms from which a sum of squares overflows: predicted."""
    for name in data.format.values:
        if limit(str(name)) <= float(data.norm[-1]):
            axes.axvline(limit(str(name)), **gl.figures.THEORY | {"linestyle": ":"})


def draw_values(axes: gl.Axes, data: xr.Dataset) -> None:
    """Ulps between the two, at thresholds of a tenth of the norm."""
    draw_formats(axes, data, "ulps", 0.4, 1e11)
    draw_overflows(axes, data)
    axes.axhline(ROUNDING, **gl.figures.THEORY, label="bound on rounding")
    axes.set(yscale="log", ylabel="ulps apart", ylim=(0.2, 3e11))
    axes.set_yticks([0.4, 10, 1e4, 1e8, 1e11], ["0", "10", r"$10^4$", r"$10^8$", "nan"])
    axes.minorticks_off()
    axes.legend(*(part[-1:] for part in axes.get_legend_handles_labels()), loc=(0.03, 0.5))


def draw_norms(axes: gl.Axes, data: xr.Dataset) -> None:
    """The norm over the threshold: 1 where it is right."""
    draw_formats(axes, data, "norm_optax", 0.0, 12.5)
    draw_overflows(axes, data)
    axes.axhline(1, **gl.figures.THEORY)
    axes.set_ylabel(r"$\|g\|/\tau$ after the clip")
    axes.set_yticks([0, 1, 5, 10, 12.5], ["0", "1", "5", "10", "nan"])
    axes.legend(loc=(0.1, 0.3), handletextpad=0.2)


def draw_directions(axes: gl.Axes, data: xr.Dataset) -> None:
    """How far the direction turns: nothing but rounding, until there is none."""
    draw_formats(axes, data, "bend_optax", 1e-17, 1e2)
    draw_overflows(axes, data)
    for name in data.format.values:
        axes.axhline(bend(str(name)), **gl.figures.THEORY | {"linewidth": 0.6})
    axes.set(yscale="log", ylabel="1 - cosine", ylim=(3e-18, 3e2))
    axes.set_yticks(
        [1e-17, 1e-15, 1e-10, 1e-5, 1e2], ["0", r"$10^{-15}$", r"$10^{-10}$", r"$10^{-5}$", "none"]
    )
    axes.minorticks_off()


def draw_causes(axes: gl.Axes, data: xr.Dataset) -> None:
    """How many of all the gradients, those at equality and special too, differ by which cause."""
    why = (data.why, data.why_at_equality, data.why_special)
    each = np.concatenate([part.values.reshape(data.sizes["format"], -1) for part in why], axis=1)
    counts = np.stack([(each == i).sum(axis=1) for i in range(data.sizes["cause"])])
    axes.imshow(counts > 0, cmap="Greys", vmin=0, vmax=8, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=5.5)
    short = [str(name).removesuffix(" at equality") for name in data.cause.values]
    short = [name.replace("none", "agree").replace("low-precision", "16-bit") for name in short]
    axes.set_yticks(range(len(short)), short, fontsize=5)
    names = [str(name).replace("float", "f") for name in data.format.values]
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(length=0)


def runs(data: xr.Dataset, kind: str) -> Iterator[tuple[xr.Dataset, str, dict[str, Any]]]:
    """One kind of run under each threshold, its name and its look."""
    for i, look in enumerate(gl.figures.series(data.sizes["threshold"])):
        run = data.sel(kind=kind).isel(threshold=i)
        tau = float(run.threshold)
        name = rf"$\tau$ = {tau:g}" if math.isfinite(tau) else "no clipping"
        yield run, name, look | {"linestyle": "none", "markersize": 2.4}


def draw_over_steps(axes: gl.Axes, data: xr.Dataset, name: str, high: float) -> None:
    """Some thirty points a run, at the upper limit where beyond it or not a number."""
    every = max(1, data.sizes["step"] // 30)
    for run, label, look in runs(data, "freak"):
        values = np.minimum(run[name].fillna(high), high)
        axes.plot(data.step[::every], values[::every], **look, label=label)
        freak = int(data.attrs["freak_step"])
        axes.plot(freak, values[freak], **look | {"markersize": 4.5})
    line: dict[str, Any] = {"color": "0.6", "linewidth": 0.6, "linestyle": ":"}
    axes.axvline(int(data.attrs["freak_step"]), **line, label="freak batch")
    axes.set(yscale="log", xlabel="step")


def draw_losses(axes: gl.Axes, data: xr.Dataset) -> None:
    """The held-out loss; thin lines without the freak batch."""
    draw_over_steps(axes, data, "loss", 1e3)
    for run, _, look in runs(data, "calm"):
        axes.plot(data.step, run.loss, color=look["color"], linewidth=0.6, zorder=1)
    axes.set(ylabel="held-out loss (nats)", ylim=(0.3, 2e3))
    axes.set_yticks([1, 10, 100, 1e3], ["1", "10", "100", "> 1000"])
    axes.minorticks_off()
    axes.legend(loc="center right", fontsize=5.5, handletextpad=0.2)


def draw_steps(axes: gl.Axes, data: xr.Dataset) -> None:
    """The length of each step on the longest one that the threshold allows."""
    draw_over_steps(axes, data, "step_size", 1e4)
    for cap in data.longest_step.values:
        if math.isfinite(cap):
            axes.axhline(cap, **gl.figures.THEORY)
    axes.plot([], [], **gl.figures.THEORY, label=r"learning rate $\times\,\tau$")
    axes.set(ylabel="length of the step", ylim=(1e-3, 2e4))
    axes.set_yticks([1e-2, 1, 100, 1e4], [r"$10^{-2}$", "1", "100", "> $10^4$"])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[-1:], labels[-1:], loc="center right", fontsize=5.5)
    axes.minorticks_off()


def draw_distances(axes: gl.Axes, data: xr.Dataset) -> None:
    """How far from its start a run is."""
    draw_over_steps(axes, data, "distance", 1e4)
    axes.set(ylabel="distance from the start", ylim=(1e-2, 2e4))
    axes.set_yticks([1e-2, 1, 100, 1e4], [r"$10^{-2}$", "1", "100", "> $10^4$"])
    axes.minorticks_off()


def draw_shares(axes: gl.Axes, data: xr.Dataset) -> None:
    """Layers' gradient norms, as they are and clipped, and the mean-field line of the hidden."""
    blue, red, green = gl.figures.COLOURS[:3]
    open_mark: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "none"}
    low, median, high = np.exp(np.quantile(np.log(data.share_hidden), (0, 0.5, 1), axis=0))
    axes.plot(data.layer, data.share_predicted, **gl.figures.THEORY, label=r"$\chi_1^{(L-l)/2}$")
    axes.fill_between(data.layer, low, high, color=green, alpha=0.2, linewidth=0)
    axes.plot(data.layer, median, "^", color=green, **open_mark, label="dL/dh: range, median")
    axes.plot(
        data.layer,
        data.share_unclipped[0],
        "o",
        color=blue,
        **open_mark,
        markersize=5,
        label="dL/d(W, b), one chain",
    )
    axes.plot(data.layer, data.share_formula[0], "x", color=red, label=r"clipped to $\|g\|/10$")
    axes.set(yscale="log", xlabel="layer l", ylabel="gradient over last layer's")
    axes.set_ylim(bottom=float(data.share_unclipped.min()) / 100)
    number_layers(axes, data)
    axes.legend(loc="lower right", fontsize=5.5, handletextpad=0.2)


def number_layers(axes: gl.Axes, data: xr.Dataset) -> None:
    """Whole numbers along the layers."""
    num_layers = data.sizes["layer"]
    axes.set_xticks(range(1, num_layers + 1, max(1, -(-num_layers // 8))))


def draw_moves(axes: gl.Axes, data: xr.Dataset) -> None:
    """How far each layer's weights went in all of the training."""
    for run, label, look in runs(data, "vanishing"):
        axes.plot(
            data.layer,
            run.moved,
            **look | {"markersize": 3.2, "markerfacecolor": "none"},
            label=label,
        )
    axes.set(yscale="log", xlabel="layer l", ylabel="change of (W, b) / norm")
    number_layers(axes, data)
    axes.legend(loc="upper left", fontsize=5.5, handletextpad=0.2)


# ---- the claims

# Ulps: the norm 4 (two in a mantissa near 2), the quotient 1, the product 1, the formula 1.
ROUNDING = 7


def limit(name: str) -> float:
    """The norm from which the sum of squares is above the range of a format: sqrt(max)."""
    return math.sqrt(float(finfo(name).max))


def bend(name: str) -> float:
    """What rounding can add to 1 - cosine: half an angle of one ulp squared, and the cosine's."""
    wide = finfo(jnp.promote_types(name, jnp.float32))
    return float(finfo(name).eps) ** 2 / 2 + NUM_ENTRIES * float(wide.eps)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The formula and optax in each format, the special gradients, then training."""
    for name in data.format.values:
        yield from formula_claims(data.sel(format=name), str(name))
        yield from optax_claims(data.sel(format=name), str(name))
    yield from special_claims(data)
    for i in range(1, data.sizes["threshold"]):
        yield from promise_claims(data, data.isel(threshold=i))
        yield from denial_claims(data, data.isel(threshold=i))
    yield from freak_claims(data)
    yield from share_claims(data)


def formula_claims(data: xr.Dataset, name: str) -> Iterator[gl.Claim]:
    """Values, norm and direction of the formula, and where it must change nothing."""
    eps = float(finfo(name).eps)
    wide = float(finfo(jnp.promote_types(name, jnp.float32)).eps)
    # The exact value is computed in the default format, with a few roundings.
    exact = {"rounding of the exact value": 8 * float(np.finfo(data.loss.dtype).eps) / eps}
    finite = np.isfinite(data.low)
    yield gl.Claim(
        f"{name}: no entry is more than one ulp below the exact formula",
        measured=worst(data.low.where(finite)),
        expected=1.0,
        tolerance=exact,
        source=SOURCE,
        relation="<=",
    )
    yield gl.Claim(
        f"{name}: no entry is above the exact formula",
        measured=worst(data.high.where(finite)),
        expected=0.0,
        tolerance=exact | {"two-float arithmetic, ulps": 2.0**-9},
        source=SOURCE,
        relation="<=",
    )
    finite &= np.isfinite(data.norm_formula)
    yield gl.Claim(
        f"{name}: the norm after clipping is never above the threshold",
        measured=worst(data.norm_formula.where(finite)),
        expected=1.0,
        tolerance={"rounding of the ratio": wide},
        source=SOURCE,
        relation="<=",
    )
    yield gl.Claim(
        f"{name}: clipping keeps the direction (1 - cosine, entries being normal numbers)",
        measured=worst(np.abs(data.bend_formula).where(finite & (data.normal == 1))),
        expected=0.0,
        tolerance={"rounding": bend(name)},
        source=SOURCE,
    )
    yield gl.Claim(
        f"{name}: a gradient below the threshold keeps every bit (ulps)",
        measured=worst(data.changed.where(finite).isel(ratio=1)),
        expected=0.0,
        tolerance={},
        source=SOURCE,
    )
    yield gl.Claim(
        f"{name}: a gradient whose norm is the threshold keeps every bit (ulps)",
        measured=worst(data.changed_at_equality),
        expected=0.0,
        tolerance={},
        source=SOURCE,
    )


def optax_claims(data: xr.Dataset, name: str) -> Iterator[gl.Claim]:
    """Where optax agrees, by how much it does not, and where its norm overflows."""
    causes = list(data.cause.values)
    plain = data.why.isin([causes.index("rounding"), causes.index("one-ulp corner at equality")])
    if plain.any():
        yield gl.Claim(
            f"{name}: where no cause but rounding is named, optax is within {ROUNDING} ulps",
            measured=worst(data.ulps.where(plain)),
            expected=ROUNDING,
            tolerance={},
            source=SOURCE,
            relation="<=",
        )
    yield gl.Claim(
        f"{name}: at a norm equal to the threshold optax is within an ulp",
        measured=worst(data.ulps_at_equality),
        expected=1.0,
        tolerance={},
        source=SOURCE,
        relation="<=",
    )
    grid = np.log10(data.norm.values)
    overflows = (data.why == causes.index("norm overflow")).any(("ratio", "draw"))
    first = grid[np.argmax(overflows.values)] if overflows.any() else math.inf
    expected = math.log10(limit(name))
    yield gl.Claim(
        f"{name}: optax loses the gradient from log10 norm = log10(max)/2 on, by overflow",
        measured=first,
        expected=expected if expected <= grid[-1] else math.inf,
        tolerance={"grid of norms": grid[1] - grid[0]},
        source=IEEE,
    )


def special_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Zero, infinity and nan: what both give, and where only optax gives nan."""
    cases = (
        ("zero", "formula", (0.0, 0.0), "a zero gradient stays zero"),
        ("zero", "optax", (0.0, 0.0), "a zero gradient stays zero in optax too"),
        ("zero, tau = 0", "formula", (0.0, 0.0), "a zero gradient stays zero at tau = 0"),
        ("zero, tau = 0", "optax", (math.nan,) * 2, "optax gives 0/0 = nan there"),
        ("one entry infinite", "formula", (math.nan, 0.0), "infinity gives nan there, 0 elsewhere"),
        ("one entry infinite", "optax", (math.nan, 0.0), "as it does in optax"),
        ("one entry nan", "formula", (math.nan,) * 2, "one nan makes everything nan"),
        ("one entry nan", "optax", (math.nan,) * 2, "as it does in optax"),
    )
    for case, side, wanted, sentence in cases:
        row = data.sel(special=case)
        found = np.stack([row[f"first_{side}_special"], row[f"second_{side}_special"]])
        agree = np.isclose(found.T, wanted, rtol=0, atol=0, equal_nan=True).all(axis=1)
        yield gl.Claim(
            f"{case}: {sentence} (share of the formats)",
            measured=agree.mean(),
            expected=1.0,
            tolerance={},
            source=SOURCE,
        )


def promise_claims(data: xr.Dataset, clipped: xr.Dataset) -> Iterator[gl.Claim]:
    """What the text promises under one threshold."""
    eps = float(np.finfo(data.loss.dtype).eps)
    tau = float(clipped.threshold)
    yield gl.Claim(
        f"tau = {tau:g}: no step, freak or not, is longer than the learning rate times tau",
        measured=worst(clipped.step_size) / float(clipped.longest_step),
        expected=1.0,
        tolerance={"rounding": 4 * eps},
        source=SOURCE,
        relation="<=",
    )
    steps = (clipped.step_size / clipped.longest_step).where(clipped.gradient > tau)
    yield gl.Claim(
        f"tau = {tau:g}: a step whose gradient is above it has that length",
        measured=float(steps.min()) if steps.notnull().any() else 1.0,
        expected=1.0,
        tolerance={"rounding": 4 * eps},
        source=SOURCE,
    )
    end = clipped.loss.isel(step=slice(-10, None)).mean("step", skipna=False)
    yield gl.Claim(
        f"tau = {tau:g}: after a freak batch the last ten losses are as without one (ratio)",
        measured=end.sel(kind="freak") / end.sel(kind="calm"),
        expected=1.0,
        tolerance={"one step of another direction": 0.2},
        source=ZHANG,
    )


def freak_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """What happens without clipping, where the activation does not itself cap what it is given."""
    if data.attrs["activation"] not in ("relu", "linear"):
        return
    freak = int(data.attrs["freak_step"])
    run = data.sel(kind="freak").isel(threshold=0)
    ordinary = float(run.step_size[:freak].median())
    yield gl.Claim(
        "no clipping: the freak batch makes a step longer by its gain (decades)",
        measured=math.log10(float(run.step_size[freak]) / ordinary),
        expected=math.log10(data.attrs["freak_gain"]),
        tolerance={"another batch, other errors": 1.0},
        source=ZHANG,
    )
    if freak + 1 < data.sizes["step"]:
        after = float(run.loss[freak + 1])
        yield gl.Claim(
            "no clipping: the freak batch multiplies the held-out loss by 10 at least (decades)",
            measured=math.log10(after / float(run.loss[freak])) if after < math.inf else math.inf,
            expected=1.0,
            tolerance={},
            source=ZHANG,
            relation=">=",
        )


def denial_claims(data: xr.Dataset, clipped: xr.Dataset) -> Iterator[gl.Claim]:
    """What clipping cannot do for a vanishing chain under one threshold."""
    tau = float(clipped.threshold)
    first = slice(0, max(1, data.sizes["layer"] // 3))
    free = data.isel(threshold=0).moved.sel(kind="vanishing")
    held = clipped.moved.sel(kind="vanishing")
    yield gl.Claim(
        f"tau = {tau:g}: the first layers of the vanishing chain learn no more than unclipped",
        measured=held[first].mean() / free[first].mean(),
        expected=1.0,
        tolerance={"trajectories part when a step is clipped": 0.05},
        source=SOURCE,
        relation="<=",
    )
    yield gl.Claim(
        f"tau = {tau:g}: they learn little, next to the last layer, clipped as unclipped (ratio)",
        measured=(held[first].mean() / held[-1]) / (free[first].mean() / free[-1]),
        expected=1.0,
        tolerance={"trajectories part when a step is clipped": 0.5},
        source=SOURCE,
    )


def share_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The ratio of gradient norms between layers, which is small and stays what it was."""
    eps = float(np.finfo(data.loss.dtype).eps)
    for side in ("formula", "optax"):
        yield gl.Claim(
            f"{side}: clipping leaves the ratio of gradient norms between layers as it is",
            measured=worst(np.abs(data[f"share_{side}"] / data.share_unclipped - 1)),
            expected=0.0,
            tolerance={"rounding": 8 * eps},
            source=SOURCE,
        )
    first = slice(0, max(1, data.sizes["layer"] // 3))
    moved = data.moved.sel(kind="vanishing").isel(threshold=0)
    yield gl.Claim(
        "no clipping: the first layers of the vanishing chain learn little, next to the last",
        measured=moved[first].mean() / moved[-1],
        expected=0.2,
        tolerance={},
        source=SOURCE,
        relation="<=",
    )


def worst(values: xr.DataArray) -> float:
    """The largest value; nan counts where all are, else as missing; 0 of none."""
    return float(values.max()) if values.size and values.notnull().any() else 0.0


# ---- planted faults


def always(grads: Any, tau: Any) -> Any:
    """Every gradient brought to the threshold, small ones too."""
    size = gl.training.fast_norm(grads)
    factor = jnp.where(jnp.isinf(tau), 1, tau / size)
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), grads)


def each_layer(grads: Any, tau: Any) -> Any:
    """Every layer's W, and its b, brought to the threshold by itself."""
    return jax.tree.map(jax.vmap(lambda leaf: always(leaf, tau)), grads)


def each_entry(grads: Any, tau: Any) -> Any:
    """Every entry clipped by itself."""
    bound = jnp.asarray(tau) / 2
    return jax.tree.map(
        lambda leaf: jnp.clip(leaf, -bound.astype(leaf.dtype), bound.astype(leaf.dtype)), grads
    )


def at_threshold(factor: float) -> Callable[..., Any]:
    """A clip with a wrong threshold."""
    return lambda honest: lambda grads, tau: honest(grads, jnp.asarray(tau) * factor)


def masked(honest: Callable[..., Any]) -> Callable[..., Any]:
    """A clip that hides infinity and nan."""
    return lambda grads, tau: jax.tree.map(jnp.nan_to_num, honest(grads, tau))


def instead(other: Callable[..., Any]) -> Callable[..., Any]:
    """Another function in place of the honest one."""
    return lambda honest: other


FAULTS = {
    "threshold 10 % too low": gl.fault.change("clipping.formula", at_threshold(0.9)),
    "small gradients scaled up": gl.fault.change("clipping.formula", instead(always)),
    "every entry clipped by itself": gl.fault.change("clipping.formula", instead(each_entry)),
    "infinity and nan hidden": gl.fault.change("clipping.formula", masked),
    "optax in place of the formula": gl.fault.change(
        "clipping.formula", lambda honest: gl.clipping.optax_clip
    ),
    "clip forgotten in training": gl.fault.change(
        "clipping.clip", instead(lambda grads, tau: grads)
    ),
    "every layer clipped by itself": gl.fault.change("clipping.clip", instead(each_layer)),
    "optax scales all up and clips every entry": gl.fault.change(
        "clipping.optax_clip", instead(lambda grads, tau: each_entry(always(grads, tau), tau))
    ),
    "optax's infinity and nan hidden": gl.fault.change("clipping.optax_clip", masked),
    "freak batch forgotten": gl.fault.change(
        "training.with_freak", instead(lambda schedule, step, gain: schedule)
    ),
    "vanishing chain at the edge": gl.fault.change(
        "network",
        lambda honest: lambda key, cfg, sigma_w: honest(key, cfg, jnp.maximum(sigma_w, 1.4)),
    ),
}


LESSON = gl.lesson.Offer(
    claims={"clipping revives nothing": "clipping leaves the ratio of gradient norms"}
)


if __name__ == "__main__":
    gl.run(__file__)
