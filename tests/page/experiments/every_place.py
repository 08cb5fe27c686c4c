"""What does an experiment look like that offers every place of the lesson?

Its arrays are made up, of the right shapes: the pages are tested with it, and no real experiment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradlab as gl
from gradlab.lazy import jnp, np

if TYPE_CHECKING:
    import xarray as xr
    from jax import Array

W = np.linspace(0.5, 1.5, 101)
LAYER = np.arange(1, 501)
FORMATS = {"float16": (-8.0, 5.0), "float32": (-45.0, 38.5)}  # log10 of the ends
ACTIVATIONS, KINDS = ["linear", "tanh"], ["plain", "residual"]
NUM_STEPS = 40
BRANCH, DEPTHS = np.arange(-30, 21) / 10, [1, 10, 100]


@gl.config
class Config:
    sigma_w: gl.Floats


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    del key
    return (
        {
            "format": gl.named(list(FORMATS), "format"),
            "activation": gl.named(ACTIVATIONS, "activation"),
            "kind": gl.named(KINDS, "kind"),
        }
        | chain_arrays()
        | network_arrays(cfg.sigma_w)
        | descent_arrays()
        | branch_arrays()
    )


def chain_arrays() -> dict[str, gl.Named]:
    log10_w = jnp.log10(jnp.array(W))
    ends = {
        "zero": [low for low, _ in FORMATS.values()],
        "infinite": [b for _, b in FORMATS.values()],
    }
    first = {name: jnp.ceil(jnp.array(end)[:, None] / log10_w) for name, end in ends.items()}
    first = {name: jnp.where(depth > 0, depth, jnp.inf) for name, depth in first.items()}
    first["wrong"] = jnp.minimum(first["zero"], first["infinite"]) - 1
    return {
        "w": gl.named(jnp.array(W), "w"),
        "layer": gl.named(jnp.array(LAYER), "layer"),
        "log10_left": gl.named(log10_w[:, None] * LAYER, "w", "layer"),
    } | {f"first_{name}": gl.named(depth, "format", "w") for name, depth in first.items()}


def network_arrays(sigma_w: Array) -> dict[str, gl.Named]:
    slope = jnp.array([[1.0, 0.8], [0.2, 0.1]])  # (kind, activation)
    chi_1 = sigma_w**2 * jnp.array([1.0, 0.9])[:, None]
    median = slope.T[:, :, None, None] * jnp.log10(sigma_w)[:, None] * jnp.arange(31.0)
    axes = ("activation", "kind", "sigma_w", "back")
    return {
        "chi_1": gl.named(chi_1, "activation", "sigma_w"),
        "median": gl.named(median, *axes),
        "low": gl.named(median - 0.5, *axes),
        "high": gl.named(median + 0.7, *axes),
        "predicted": gl.named(
            jnp.log10(chi_1)[:, :, None] / 2 * jnp.arange(31.0), "activation", "sigma_w", "back"
        ),
    }


def descent_arrays() -> dict[str, gl.Named]:
    """Gradient descent on w² + 25 b², from (2, 1), at a rate at which b jumps."""
    taus = [*np.geomspace(0.1, 50, 13), math.inf]
    rows = [descend(tau) for tau in taus]
    names = ("way_w", "way_b", "loss", "gradient_norm", "clipped_norm", "step_size")
    grid = jnp.linspace(-2.5, 2.5, 21)
    return {
        "tau": gl.named(jnp.array(taus), "tau"),
        "loss_map": gl.named(grid[:, None] ** 2 * 25 + grid**2, "b_map", "w_map"),
    } | {
        name: gl.named(jnp.array(values), "tau", "step")
        for name, values in zip(names, np.moveaxis(np.array(rows), -1, 0), strict=True)
    }


def branch_arrays() -> dict[str, gl.Named]:
    """Powers of w, 1 + w and 1 + w/L; and ways that grow with the steps and with the layer."""
    factors = jnp.stack([jnp.array(BRANCH), 1 + jnp.array(BRANCH)])
    log10 = jnp.log10(jnp.abs(factors))[:, None] * jnp.array(DEPTHS)[:, None]
    small = [jnp.log10(jnp.abs(1 + jnp.array(BRANCH) / depth)) * depth for depth in DEPTHS]
    ways = jnp.arange(3.0)[:, None, None] - 4 + jnp.log10(1 + jnp.arange(5.0))[:, None]
    return {
        "branch_w": gl.named(jnp.array(BRANCH), "branch_w"),
        "branch_depth": gl.named(jnp.array(DEPTHS), "branch_depth"),
        "branch_left": gl.named(
            jnp.concatenate([log10, jnp.stack(small)[None]]), "branch branch_depth branch_w"
        ),
        "log10_way": gl.named(ways + 0.1 * jnp.arange(7.0), "mover taken part"),
    }


def descend(tau: float) -> list[tuple[float, ...]]:
    at, rate, seen = np.array([2.0, 1.0]), 0.035, []
    for _ in range(NUM_STEPS):
        gradient = np.array([2.0, 50.0]) * at
        norm = float(np.linalg.norm(gradient))
        clipped = gradient * tau / max(norm, tau) if math.isfinite(tau) else gradient
        left = float(np.linalg.norm(clipped))
        seen.append((*at, float(at[0] ** 2 + 25 * at[1] ** 2), norm, left, rate * left))
        at = at - rate * clipped
    return seen


def figure(data: xr.Dataset) -> gl.Figure:
    fig, (axes,) = gl.figures.panels()
    axes.plot(data.layer, data.log10_left.T)
    axes.set(xlabel="depth L", ylabel="log10 of what is left")
    return fig


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    yield gl.Claim(
        "at w = 1 what is left is 1",
        measured=data.log10_left.sel(w=1.0, layer=500),
        expected=0.0,
        tolerance={},
        source="made up",
    )


def chain(data: xr.Dataset) -> gl.lesson.Chain:
    return {
        "w": gl.lesson.exact(data.w),
        "layer": data.layer.values.tolist(),
        "log10": gl.lesson.exact(data.log10_left),
        "views": [100, 500],
    }


def format_ends(data: xr.Dataset) -> gl.lesson.FormatEnds:
    return {
        "formats": data.format.values.tolist(),
        "w": gl.lesson.exact(data.w),
        "first_zero": gl.lesson.exact(data.first_zero),
        "first_infinite": gl.lesson.exact(data.first_infinite),
        "first_wrong": gl.lesson.exact(data.first_wrong),
        "edges": [
            {"format": name, "floor": floor, "ceiling": ceiling}
            for name, (floor, ceiling) in FORMATS.items()
        ],
    }


def network(data: xr.Dataset) -> gl.lesson.Network:
    return {
        "activations": data.activation.values.tolist(),
        "kinds": data.kind.values.tolist(),
        "sigma_w": gl.lesson.exact(data.sigma_w),
        "back": data.back.values.tolist(),
        "median": gl.lesson.decimals(data["median"], 3),
        "low": gl.lesson.decimals(data["low"], 3),
        "high": gl.lesson.decimals(data["high"], 3),
        "predicted": gl.lesson.decimals(data["predicted"], 3),
        "chi_1": gl.lesson.exact(data.chi_1),
        "width": 64,
        "num_draws": 20,
    }


def clipping(data: xr.Dataset) -> gl.lesson.Clipping:
    return {
        "tau": gl.lesson.exact(data.tau),
        "num_steps": data.sizes["step"],
        "w": gl.lesson.exact(data.way_w),
        "b": gl.lesson.exact(data.way_b),
        "loss": gl.lesson.exact(data.loss),
        "gradient_norm": gl.lesson.exact(data.gradient_norm),
        "clipped_norm": gl.lesson.exact(data.clipped_norm),
        "step_size": gl.lesson.exact(data.step_size),
        "map": {
            "w": [-2.5, 2.5],
            "b": [-2.5, 2.5],
            "loss": gl.lesson.decimals(data.loss_map, 3),
        },
        "meets": 3,
    }


def branch(data: xr.Dataset) -> gl.lesson.Branch:
    plain, residual, small = (gl.lesson.decimals(data.branch_left[k], 4) for k in range(3))
    return {
        "w": gl.lesson.exact(data.branch_w),
        "depths": data.branch_depth.values.tolist(),
        "plain": plain,
        "residual": residual,
        "small": small,
    }


def moved(data: xr.Dataset) -> gl.lesson.Moved:
    return {
        "kinds": ["plain", "clipped", "residual"],
        "layer": list(range(1, 8)),
        "steps": [1, 2, 5, 10, 20],
        "log10_moved": gl.lesson.decimals(data.log10_way, 4),
        "num_runs": 4,
    }


WORDS = "what is left"
BRANCHES = {
    name: gl.lesson.at("branch_left", scale="log10", branch=kind, branch_w=w, branch_depth=100)
    for name, kind, w in (
        *(("left without identity", 0, 0.1), ("left with identity", 1, 0.1)),
        *(("left with a small branch", 2, 0.1), ("left of the largest branch", 1, 1.0)),
        ("left of the largest branch, small", 2, 1.0),
    )
}
WAYS = {
    name: gl.lesson.at("log10_way", mover=k, taken="last", part=0)
    for k, name in enumerate(
        ("way of the first layer", "way when clipped", "way with identity"),
    )
}
LESSON = gl.lesson.Offer(
    figures={
        "chain": chain,
        "format ends": format_ends,
        "network": network,
        "clipping": clipping,
        "branch": branch,
        "moved": moved,
    },
    numbers={
        "textbook depth": gl.lesson.at("layer", layer=50),
        "weight below one": gl.lesson.at("w", w=0.9),
        "weight above one": gl.lesson.at("w", w=1.1),
        "left below one": gl.lesson.at("log10_left", scale="log10", w=0.9, layer=50),
        "grown above one": gl.lesson.at("log10_left", scale="log10", w=1.1, layer=50),
        "weight of zero depths": gl.lesson.at("w", w=0.9),
        "weight of infinite depths": gl.lesson.at("w", w=1.1),
        "zero depths": gl.lesson.at("first_zero", along="format", w=0.9),
        "infinite depths": gl.lesson.at("first_infinite", along="format", w=1.1),
        "network depth": gl.lesson.at("back", back="last"),
        "network width": gl.lesson.at("layer", layer="last"),
        "small sigma_w": gl.lesson.at("sigma_w", how="min"),
        "large sigma_w": gl.lesson.at("sigma_w", how="max"),
        "gradient at small sigma_w": gl.lesson.at("median", how="min", scale="log10"),
        "gradient at large sigma_w": gl.lesson.at("median", how="max", scale="log10"),
        "largest chi_1 of the logistic": gl.lesson.at("chi_1", how="max", activation="tanh"),
        "recurrent steps": gl.lesson.at("step", step="last"),
        "steepest gradient": gl.lesson.at("gradient_norm", how="max"),
        "first weight": gl.lesson.at("way_w", tau="last", step=0),
        "first bias": gl.lesson.at("way_b", tau="last", step=0),
        "longest gradient": gl.lesson.at("gradient_norm", how="max", tau="last"),
        "longest step": gl.lesson.at("step_size", how="max", tau="last"),
        "descent steps": gl.lesson.at("step", step="last"),
        "loss without clipping": gl.lesson.at("loss", tau="last", step="last"),
        "threshold": gl.lesson.at("tau", tau=0.1),
        "loss with clipping": gl.lesson.at("loss", tau=0.1, step="last"),
        "identity depth": gl.lesson.at("back", back="last"),
        "gradient without identity": gl.lesson.at("median", how="min", scale="ln", kind="plain"),
        "gradient with identity": gl.lesson.at("median", how="max", scale="ln", kind="residual"),
        "weight scale of the quartiles": gl.lesson.at("sigma_w", how="median"),
        "low quartile": gl.lesson.at("low", how="min", scale="log10"),
        "high quartile": gl.lesson.at("high", how="min", scale="log10"),
        "residual relu at 1": gl.lesson.at("median", how="min", scale="log10", kind="residual"),
        "residual relu at 2.5": gl.lesson.at("median", how="max", scale="log10", kind="residual"),
        "gradient of the logistic": gl.lesson.at("median", how="min", scale="log10"),
        "steep gradient on the map": gl.lesson.at("gradient_norm", how="min"),
        "weight of the steepest": gl.lesson.at("way_w", how="max"),
        "learning rate": gl.lesson.at("step_size", how="min"),
        "longest clipped step": gl.lesson.at("step_size", how="max", tau=0.1),
        "depth of branches": gl.lesson.at("branch_depth", branch_depth="last"),
        "small weight of branches": gl.lesson.at("branch_w", branch_w=0.1),
        "steps of training": gl.lesson.at("taken", taken="last"),
        "layers trained": gl.lesson.at("part", part="last"),
    }
    | BRANCHES
    | WAYS,
    claims={
        "product is the gradient": WORDS,
        "left below one": WORDS,
        "grown above one": WORDS,
        "limit below one": WORDS,
        "limit at one": WORDS,
        "limit above one": WORDS,
        "no limit at minus one": WORDS,
        "slope below one": WORDS,
        "slope above one": WORDS,
        "formats end as predicted": WORDS,
        "no gain at the edge": WORDS,
        "slope at every sigma_w": WORDS,
        "typical gradient does not vanish": WORDS,
        "clipping keeps the direction": WORDS,
        "short gradients stay": WORDS,
        "no step is longer": WORDS,
        "gradient in closed form": WORDS,
        "plain step throws": WORDS,
        "clipping ends lower": WORDS,
        "clipping revives nothing": WORDS,
        "no direction below the bound": WORDS,
        "nothing left at minus one": WORDS,
        "draws scatter": WORDS,
        "typical is not the mean": WORDS,
        "residual explodes": WORDS,
        "power of the factor": WORDS,
        "linear residual grows": WORDS,
        "small branch below e": WORDS,
        "small branch above a quarter": WORDS,
        "zero moves": WORDS,
        "clipped moves less": WORDS,
        "one number for all layers": WORDS,
        "identity moves more": WORDS,
    },
)
