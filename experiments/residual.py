"""Does a residual branch keep the gradient from vanishing, and where does it not?

He, Zhang, Ren and Sun 2016: a layer z + F(z) has the Jacobian I + F', so the product over layers
keeps the identity in every factor. Often said: it can never vanish. Exactly: it cannot while every
‖F'‖ is below 1 (no singular value is then below the product of 1 - ‖F'‖), and it does vanish where
F' has an eigenvalue at -1. Both are computed here: the promise, and its edge.
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

HE = "He, Zhang, Ren and Sun 2016"
WEYL = "Weyl's inequality for singular values"
LN10 = math.log(10)
KINDS = ("plain", "residual")
# Standard errors that a mean may be off by: one in 15,000 is by chance.
NUM_ERRORS = 4.0


@gl.config
class Config:
    """One chain with and without the branch z +, a linear residual chain, and the edge."""

    activation: str
    depth: int
    width: int
    sigma_w: float
    sigma_b: float
    factor: float
    num_seeds: int
    s: float = gl.key("size of the branch of the linear chain I + s G/√width", above=0, at_most=2)
    num_draws: int = gl.key("draws of the linear chain", at_least=2, at_most=10**6)
    depth_edge: int = gl.key("layers of the chain at the edge", at_least=1, at_most=10**5)
    w_edge: gl.Floats = gl.key("eigenvalues of F', among them -1", at_least=-10, at_most=10)


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """Spectra and gradients of both chains, the bound, the linear law, and the edge at -1."""
    key_chains, key_linear, key_edge = jax.random.split(key, 3)
    keys = jax.random.split(key_chains, cfg.num_seeds)
    depths = recorded_depths(cfg.depth)
    log_values, log_gradient, log_bound, branch_norm = jax.lax.map(
        lambda key_seed: both(cfg, key_seed, depths), keys
    )
    log_second, error = linear_second_moment(key_linear, cfg)
    smallest, expected = edge(key_edge, cfg)
    predicted = jnp.stack([predicted_gradient(cfg, kind) for kind in KINDS])
    axes = ("seed", "kind")
    return {
        "kind": gl.named(list(KINDS), "kind"),
        "depths": gl.named(jnp.array(depths), "depths", long_name="depth L"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="depth L"),
        "log_singular_values": gl.named(
            log_values,
            *(*axes, "depths", "direction"),
            long_name="log singular values of J_L ... J_1",
            units="nats",
        ),
        "log_gradient": gl.named(
            log_gradient,
            *(*axes, "layer"),
            long_name="log of the gradient at layer 1, root mean square over output directions",
            units="nats",
        ),
        "log_gradient_predicted": gl.named(
            predicted, "kind", "layer", long_name="infinite width", units="nats"
        ),
        "log_bound": gl.named(
            log_bound,
            *("seed", "layer"),
            long_name="sum of log(1 - |F'_k|), the residual chain's lower bound",
            units="nats",
        ),
        "branch_norm": gl.named(
            branch_norm, "seed", "layer", long_name="|F'_k|, the branch's spectral norm"
        ),
        "log_second_moment": gl.named(
            log_second, "layer", long_name="log E|Jv|² of J = I + s G/√width", units="nats"
        ),
        "log_second_moment_error": gl.named(
            error, "layer", long_name="its standard error", units="nats"
        ),
        "log_second_moment_predicted": gl.named(
            gl.theory.residual.log_linear_second_moment(cfg.s, jnp.arange(1, cfg.depth + 1)),
            "layer",
            long_name="L log(1 + s²)",
            units="nats",
        ),
        "log10_edge": gl.named(
            smallest, "w_edge", "edge", long_name="log10 of the smallest |eigenvalue| kept"
        ),
        "log10_edge_predicted": gl.named(expected, "w_edge", long_name="L log10 |1 + w|"),
        "edge": gl.named(["scalar", "one direction of many"], "edge"),
    }


def recorded_depths(depth: int) -> tuple[int, ...]:
    """Eight depths up to `depth`, at which all singular values are kept."""
    return tuple(sorted({max(1, round(depth * i / 8)) for i in range(1, 9)}))


def chains(cfg: Config, key: Array) -> dict[str, gl.chain.Chain]:
    """The plain and the residual chain, with the same weights."""
    phi = gl.activations.PHI[cfg.activation]
    sizes = (cfg.depth, cfg.width, phi, cfg.sigma_w, cfg.sigma_b)
    plain = gl.ensembles.gaussian(key, *sizes)
    return dict(zip(KINDS, (plain, gl.ensembles.residual(key, *sizes, cfg.factor)), strict=True))


def both(cfg: Config, key: Array, depths: tuple[int, ...]) -> tuple[Array, ...]:
    """Spectra, gradients, and the bound of one draw, the first two with a leading axis kind."""
    key_chain, key_input = jax.random.split(key)
    x = gl.ensembles.inputs(key_input, cfg.width, 1.0)
    pair = chains(cfg, key_chain)
    J = jnp.stack([gl.chain.jacobians(model, x) for model in pair.values()])
    # One program for both kinds: a linear chain has the Jacobians that it is given.
    values = jax.vmap(lambda J: gl.spectra.log_singular_values(gl.chain.linear(J), x, depths))(J)
    # |P|² / width is the mean of |v P|² over directions v of the output, |v| = 1.
    norms = jax.vmap(lambda J: gl.jacobians.log_norms(gl.chain.linear(J), x))(J)
    norm = branch_norms(J[KINDS.index("residual")])
    up_to_here = jnp.where(jnp.tri(cfg.depth, dtype=bool), norm[None, :], 0.0)
    bound = gl.theory.residual.log_lower_bound(up_to_here)
    return values, norms - math.log(cfg.width) / 2, bound, norm


def branch_norms(J: Array) -> Array:
    """The spectral norm of F' = J - I in every layer, `(depth,)`."""
    return jnp.linalg.norm(J - jnp.eye(J.shape[-1]), ord=2, axis=(1, 2))


def predicted_gradient(cfg: Config, kind: str) -> Array:
    """Half the sum of the log factors of the mean squared gradient at infinite width, `(depth,)`.

    The input has mean square 1. For the residual chain phi is taken to be odd, as tanh is.
    """
    phi = gl.activations.PHI[cfg.activation]
    weight, bias = cfg.sigma_w, cfg.sigma_b
    if kind == "plain":
        q = gl.theory.meanfield.lengths(phi, weight**2 + bias**2, weight, bias, cfg.depth)
        factor = gl.theory.meanfield.chi(phi, q, weight)
    else:
        q = gl.theory.residual.lengths(phi, 1.0, weight, bias, cfg.factor, cfg.depth)
        factor = gl.theory.residual.gradient_factor(phi, q, weight, cfg.factor)
    return jnp.cumsum(jnp.log(factor)) / 2


def linear_second_moment(key: Array, cfg: Config) -> tuple[Array, Array]:
    """`log E|Jv|²` at every depth over draws of J = I + s G/√width, and its standard error."""

    def log_squares(key_draw: Array) -> Array:
        key_chain, key_direction = jax.random.split(key_draw)
        v = gl.ensembles.inputs(key_direction, cfg.width, 1 / cfg.width)  # |v| = 1
        return 2 * jnp.log(
            jnp.linalg.norm(gl.chain.states(linear_chain(key_chain, cfg), v), axis=1)
        )

    keys = jax.random.split(key, cfg.num_draws)
    logs = jax.lax.map(log_squares, keys, batch_size=100)[:, 1:]
    shift = jnp.max(logs, axis=0)
    squares = jnp.exp(logs - shift)
    mean = jnp.mean(squares, axis=0)
    error = jnp.std(squares, axis=0, ddof=1) / jnp.sqrt(cfg.num_draws) / mean
    return jnp.log(mean) + shift, error


def linear_chain(key: Array, cfg: Config) -> gl.chain.Chain:
    """Layers z + s G z/√width, G_ij ~ N(0, 1)."""
    phi = gl.activations.PHI["linear"]
    return gl.ensembles.residual(key, cfg.depth, cfg.width, phi, cfg.s, 0.0, 1.0)


def edge(key: Array, cfg: Config) -> tuple[Array, Array]:
    """log10 of what is left of the direction in which F' has the eigenvalue w: `(w, 2)`, `(w,)`.

    First for a scalar chain, then for one direction of a wide chain whose other ones are random.
    """
    keys = jax.random.split(key, cfg.depth_edge)

    def left(w: Array) -> Array:
        scalar = gl.ensembles.scalar_residual(w, cfg.depth_edge)
        wide = gl.chain.linear(jax.vmap(lambda key_layer: edge_layer(key_layer, w, cfg))(keys))
        along = gl.jacobians.scaled_product(wide, jnp.zeros(cfg.width))
        direction = gl.scaled.Scaled(along.mantissa[:, :1], along.exponent)
        log_wide = gl.scaled.log_magnitude(gl.scaled.norm(direction))
        log_scalar = gl.jacobians.log_norms(scalar, jnp.ones(1))[-1]
        return jnp.stack([log_scalar, log_wide.reshape(())]) / LN10

    expected = gl.theory.residual.log10_scalar_product(cfg.w_edge, cfg.depth_edge)
    return jax.lax.map(left, cfg.w_edge), expected


def edge_layer(key: Array, w: Array, cfg: Config) -> Array:
    """I + F' with the eigenvalue w of F' along the first axis, and a random branch beside it."""
    rest = jax.random.normal(key, (cfg.width, cfg.width)) * cfg.s / math.sqrt(cfg.width)
    return jnp.eye(cfg.width) + rest.at[0, :].set(0).at[:, 0].set(0).at[0, 0].set(w)


def figure(data: xr.Dataset) -> gl.Figure:
    """Gradients with their predictions, all singular values with the bound, and the edge."""
    fig, (gradients, values, ends) = gl.figures.panels(1, 3, height=2.6)
    draw_gradients(gradients, data)
    draw_values(values, data)
    draw_edge(ends, data)
    return fig


def draw_gradients(axes: gl.Axes, data: xr.Dataset) -> None:
    """The gradient at layer 1 by depth: median and range over seeds, and infinite width."""
    every = max(1, data.sizes["layer"] // 16)
    for kind, look in zip(data.kind.values, gl.figures.series(2), strict=True):
        gradient = data.log_gradient.sel(kind=kind) / LN10
        low, middle, high = gradient.quantile([0.0, 0.5, 1.0], dim="seed").values[:, ::every]
        axes.errorbar(
            data.layer[::every],
            middle,
            (middle - low, high - middle),
            color=look["color"],
            marker=look["marker"],
            linestyle="none",
            elinewidth=0.7,
            label=f"{kind}, all seeds",
        )
        predicted = data.log_gradient_predicted.sel(kind=kind) / LN10
        axes.plot(data.layer, predicted, **gl.figures.THEORY)
    axes.plot([], [], **gl.figures.THEORY, label="infinite width")
    axes.set(xlabel="depth L", ylabel=r"$\log_{10}$ gradient at layer 1")
    axes.legend(loc="lower left")
    gl.figures.title(axes, "the gradient that arrives")


def draw_values(axes: gl.Axes, data: xr.Dataset) -> None:
    """Largest, median and smallest singular value by depth, and the residual chain's bound."""
    middle = data.sizes["direction"] // 2
    picked = {"largest": 0, "median": middle, "smallest": -1}
    for kind, look in zip(data.kind.values, gl.figures.series(2), strict=True):
        for name, mark in zip(picked, ("full", "left", "none"), strict=True):
            rows = data.log_singular_values.sel(kind=kind).isel(direction=picked[name])
            axes.plot(
                data.depths,
                rows.median("seed") / LN10,
                color=look["color"],
                marker=look["marker"],
                linestyle="none",
                fillstyle=mark,
                label=f"{kind}, {name}",
            )
    axes.plot(
        data.layer, data.log_bound.median("seed") / LN10, **gl.figures.THEORY, label="lower bound"
    )
    axes.set(xlabel="depth L", ylabel=r"$\log_{10}$ singular value")
    axes.legend(loc="lower left", fontsize=5.5)
    gl.figures.title(axes, "every direction")


def draw_edge(axes: gl.Axes, data: xr.Dataset) -> None:
    """What is left of the direction with the eigenvalue w, on the prediction |1 + w|^L."""
    fine = np.linspace(float(data.w_edge.min()), float(data.w_edge.max()), 400)
    depth = data.attrs["depth_edge"]
    with np.errstate(divide="ignore"):
        axes.plot(fine, depth * np.log10(np.abs(1 + fine)), **gl.figures.THEORY, label=r"$|1+w|^L$")
    for name, look in zip(data.edge.values, gl.figures.series(2), strict=True):
        rows = data.log10_edge.sel(edge=name)
        look |= {"linestyle": "none", "fillstyle": "full" if name == "scalar" else "none"}
        axes.plot(
            data.w_edge,
            rows.where(np.isfinite(rows)),
            **look,
            label=str(name).replace(" of", "\nof"),
        )
    axes.axvline(-1, color="0.75", linewidth=0.6, zorder=0)
    axes.annotate("exactly 0\nat -1", (-0.95, 0.02), xycoords=("data", "axes fraction"), fontsize=6)
    axes.set(xlabel="eigenvalue w of F'", ylabel=f"$\\log_{{10}}$ of what is left, L = {depth}")
    axes.legend(loc="lower left", fontsize=5.5, handlelength=1.0)
    gl.figures.title(axes, "the edge at w = -1")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The promise, the growth, the linear law, and the edge."""
    eps = float(np.finfo(data.log_singular_values.dtype).eps)
    yield from promise_claims(data, eps)
    yield from growth_claims(data)
    yield from edge_claims(data, eps)


def promise_claims(data: xr.Dataset, eps: float) -> Iterator[gl.Claim]:
    """The lower bound, and what the plain chain does below it."""
    smallest = data.log_singular_values.isel(direction=-1)
    bound = data.log_bound.sel(layer=data.depths)
    finite = bound.where(np.isfinite(bound), 0.0)
    rounding = 100 * eps * data.attrs["depth"] * (1 + float(np.max(np.abs(finite))))
    yield gl.Claim(
        "z + F(z): no singular value of the product is below the product of 1 - |F'|",
        measured=float(np.min(smallest.sel(kind="residual") - bound)),
        expected=0.0,
        tolerance={"rounding": rounding},
        source=WEYL,
        relation=">=",
    )
    last = {"depths": -1}
    yield gl.Claim(
        "without the identity the smallest singular value is far below that bound",
        measured=float(np.max((smallest.sel(kind="plain") - bound).isel(last))),
        expected=0.0,
        tolerance={},
        source=HE,
        relation="<=",
    )


def growth_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The gradient at layer 1 against infinite width, and the exact law of the linear chain."""
    depth, width = data.attrs["depth"], data.attrs["width"]
    for kind in data.kind.values:
        # Only an odd phi keeps the two terms of z + F(z) uncorrelated, as the prediction asks.
        rate = gl.estimate.mean(data.log_gradient.sel(kind=kind).isel(layer=-1) / depth)
        predicted = float(data.log_gradient_predicted.sel(kind=kind)[-1])
        yield gl.Claim(
            f"{kind}: the gradient at layer 1 changes by the predicted nats a layer",
            measured=rate.value,
            expected=predicted / depth,
            tolerance={
                "sampling": NUM_ERRORS * float(rate.error),
                # The log of a mean is above the mean of the log, which falls by 1/(2 width) a layer
                # for Gaussian weights (Newman 1986); the branch has less of them.
                "finite width": 0.5 / width,
            },
            source="Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 4"
            if kind == "plain"
            else "Yang and Schoenholz 2017, for one branch",
        )
    for layer in sorted({(depth + 1) // 2, depth}):
        row = data.sel(layer=layer)
        yield gl.Claim(
            f"J = I + s G/√width: E|Jv|² is (1 + s²)^L at L = {layer}, in log",
            measured=row.log_second_moment,
            expected=row.log_second_moment_predicted,
            tolerance={"sampling": NUM_ERRORS * float(row.log_second_moment_error)},
            source="E over G of |v + s G v/√width|² = (1 + s²)|v|², layer by layer",
        )


def edge_claims(data: xr.Dataset, eps: float) -> Iterator[gl.Claim]:
    """Vanishing and exploding by |1 + w|, and nothing left at w = -1."""
    predicted = data.log10_edge_predicted
    inside = np.isfinite(predicted)
    depth = data.attrs["depth_edge"]
    # 1 + w is rounded once, by eps relative to its summands, and every layer rounds once more.
    relative = eps * (1 + np.abs(data.w_edge)) / np.abs(1 + data.w_edge) + eps
    allowed = depth * relative / LN10 + 4 * eps * np.abs(predicted)
    for name in data.edge.values:
        rows = data.log10_edge.sel(edge=name)
        if bool(inside.any()):
            off = (np.abs(rows - predicted) / allowed).where(inside, drop=True)
            yield gl.Claim(
                f"{name}: what is left of the direction is |1 + w|^L for every w, in units of "
                "what rounding allows",
                measured=float(np.max(off)),
                expected=1.0,
                tolerance={},
                source="(1 + w)^L, the scalar chain of the source text",
                relation="<=",
            )
        if not bool(inside.all()):
            yield gl.Claim(
                f"{name}: at the eigenvalue -1 of F' nothing is left: 'never' ends here",
                measured=float(np.max(rows.where(~inside, drop=True))),
                expected=-math.inf,
                tolerance={},
                source="the determinant of I + F' is 0",
            )


def with_factor(change: float) -> Callable[..., Any]:
    """A fault of the residual ensemble: the branch is too large by a factor."""
    return lambda honest: lambda *sizes: honest(*sizes[:-1], change * sizes[-1])


FAULTS = {
    "identity dropped": gl.fault.change(
        "ensembles.residual", lambda honest: lambda *sizes: gl.ensembles.gaussian(*sizes[:-1])
    ),
    "plain chain given the identity": gl.fault.change(
        "ensembles.gaussian",
        lambda honest: (
            lambda key, depth, width, phi, sigma_w, sigma_b: gl.ensembles.residual(
                key, depth, width, phi, sigma_w, sigma_b, 0.1
            )
        ),
    ),
    "weights 10 % too large in the plain chain": gl.fault.change(
        "ensembles.gaussian",
        lambda honest: (
            lambda key, depth, width, phi, sigma_w, sigma_b: honest(
                key, depth, width, phi, 1.1 * sigma_w, sigma_b
            )
        ),
    ),
    "branch twice as large": gl.fault.change("ensembles.residual", with_factor(2.0)),
    "branch norm taken from its smallest direction": gl.fault.change(
        "branch_norms",
        lambda honest: lambda J: jnp.linalg.norm(J - jnp.eye(J.shape[-1]), ord=-2, axis=(1, 2)),
    ),
    "eigenvalue 1 % off in the scalar chain": gl.fault.change(
        "ensembles.scalar_residual", lambda honest: lambda w, depth: honest(0.99 * w, depth)
    ),
    "eigenvalue 1 % off in one direction": gl.fault.change(
        "edge_layer", lambda honest: lambda key, w, cfg: honest(key, 0.99 * w, cfg)
    ),
}


LESSON = gl.lesson.Offer(
    numbers={
        "identity depth": gl.lesson.at("depth"),
        "gradient without identity": gl.lesson.at(
            "log_gradient", how="median", scale="ln", kind="plain", layer="last"
        ),
        "gradient with identity": gl.lesson.at(
            "log_gradient", how="median", scale="ln", kind="residual", layer="last"
        ),
    },
    claims={
        "no direction below the bound": "no singular value of the product",
        "nothing left at minus one": "nothing is left",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
