"""How does a gradient fare on its way back through a deep random network?

In a wide random network every layer multiplies the mean squared gradient by chi_1, which depends
on sigma_w and on the activation alone: below 1 the gradient vanishes, above 1 it explodes, and at
1 lies the edge of chaos (Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 4). Adding
the layer's input to its output (He, Zhang, Ren and Sun 2016) moves the edge: such a network's
typical gradient does not vanish at any sigma_w.
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

KINDS = ("plain", "residual")
LN10 = math.log(10)
SCHOENHOLZ = "Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, equation 19"
HE = "He, Zhang, Ren and Sun 2016, section 2"
MEAN = "the mean over Gaussian W, layer by layer: E|v + Wv|² = (1 + sigma_w²)|v|²"


@gl.config
class Config:
    """The activations, and the standard deviations that can be dragged through."""

    activations: gl.Strings = gl.key("nonlinearities, each in a network of its own")
    sigma_w: gl.Floats
    sigma_b: float
    depth: int
    width: int
    num_seeds: int = gl.key("number of independent draws", at_least=2, at_most=10**4)


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """Gradient norms over the layers, in decades from the last one's, and chi_1's prediction."""
    phis = [gl.activations.PHI[name] for name in cfg.activations]
    chi_1 = jnp.stack([gl.theory.meanfield.chi_1(phi, cfg.sigma_w, cfg.sigma_b) for phi in phis])
    back = jnp.arange(cfg.depth + 1)

    # (activation, kind, seed, sigma_w, back)
    decades = jnp.stack(
        [jnp.stack([over_seeds(cfg, key, phi, kind) for kind in KINDS]) for phi in phis]
    )
    low, median, high = jnp.quantile(decades, jnp.array([0.25, 0.5, 0.75]), axis=2)
    axes = ("activation", "kind", "sigma_w", "back")
    return {
        "activation": gl.named(list(cfg.activations), "activation"),
        "kind": gl.named(list(KINDS), "kind"),
        "back": gl.named(back, "back", long_name="layers back from the last"),
        "log10_median": gl.named(median, *axes, long_name="log10 |dL/dz_l| / |dL/dz_L|, median"),
        "log10_low": gl.named(low, *axes, long_name="its lower quartile over seeds"),
        "log10_high": gl.named(high, *axes, long_name="its upper quartile over seeds"),
        "rate": gl.named(
            decades[..., -1] / cfg.depth,
            *("activation", "kind", "seed", "sigma_w"),
            long_name="decades that the gradient grows by a layer back",
        ),
        "chi_1": gl.named(chi_1, "activation", "sigma_w", long_name="chi_1"),
        "log10_predicted": gl.named(
            back[None, None, :] * jnp.log10(chi_1)[..., None] / 2,
            *("activation", "sigma_w", "back"),
            long_name="(L - l) log10(chi_1) / 2",
        ),
    }


def over_seeds(cfg: Config, key: Array, phi: Any, kind: str) -> Array:
    """`log10 |dL/dz_l| / |dL/dz_L|`, `(num_seeds, num_sigma_w, depth + 1)`, backwards in l."""

    def one(key: Array, sigma_w: Array) -> Array:
        key_chain, key_input, key_loss = jax.random.split(key, 3)
        model = network(key_chain, cfg, phi, sigma_w, kind)
        x = gl.ensembles.inputs(key_input, cfg.width, input_square(phi, sigma_w, cfg.sigma_b))
        direction = jax.random.normal(key_loss, (cfg.width,))
        norms: Array = gl.jacobians.log_gradient_norms(model, x, lambda z: direction @ z)
        return (norms - norms[-1])[::-1] / LN10

    keys = jax.random.split(key, cfg.num_seeds)
    # One draw serves every sigma_w, so that the curves over sigma_w are smooth.
    decades: Array = jax.lax.map(lambda key: jax.vmap(lambda s: one(key, s))(cfg.sigma_w), keys)
    return decades


def network(key: Array, cfg: Config, phi: Any, sigma_w: Array, kind: str) -> Any:
    """A plain or a residual chain with Gaussian weights."""
    if kind == "plain":
        return gl.ensembles.gaussian(key, cfg.depth, cfg.width, phi, sigma_w, cfg.sigma_b)
    return gl.ensembles.residual(key, cfg.depth, cfg.width, phi, sigma_w, cfg.sigma_b, 1.0)


def input_square(phi: Any, sigma_w: Array, sigma_b: float) -> Array:
    """The mean square of an input whose first pre-activation already has the length q*.

    1 where there is no q*: there the activation is homogeneous, and chi_1 the same at every q.
    """
    square = (gl.theory.meanfield.q_star(phi, sigma_w, sigma_b) - sigma_b**2) / sigma_w**2
    return jnp.where(jnp.isfinite(square) & (square > 0), square, 1.0)


def figure(data: xr.Dataset) -> gl.Figure:
    """The rate over sigma_w (points, quartiles) on chi_1's prediction, one panel an activation."""
    fig, panels = gl.figures.panels(1, data.sizes["activation"], height=2.4, sharey=True)
    for axes, name in zip(panels, data.activation.values, strict=True):
        draw_rates(axes, data.sel(activation=name))
        gl.figures.title(axes, str(name))
    panels[0].set_ylabel("decades a layer back")
    panels[0].legend(loc="lower right")
    return fig


def draw_rates(axes: gl.Axes, data: xr.Dataset) -> None:
    """One panel: plain and residual."""
    axes.plot(
        data.sigma_w, np.log10(data.chi_1) / 2, **gl.figures.THEORY, label=r"$\log_{10}\chi_1/2$"
    )
    axes.axhline(0, color="0.75", linewidth=0.6, zorder=0)
    for kind, look in zip(data.kind.values, gl.figures.series(len(KINDS)), strict=True):
        low, median, high = np.quantile(data.rate.sel(kind=kind), (0.25, 0.5, 0.75), axis=0)
        axes.fill_between(data.sigma_w, low, high, color=look["color"], alpha=0.25, linewidth=0)
        axes.plot(
            data.sigma_w,
            median,
            color=look["color"],
            marker=look["marker"],
            linestyle="none",
            markevery=max(1, len(median) // 12),
            label=str(kind),
        )
    axes.set_xlabel(r"$\sigma_w$")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The rate and its edge for each activation, then what the identity branch changes."""
    for name in data.activation.values:
        yield from plain_claims(data.sel(activation=name), str(name))
    yield from residual_claims(data)


def tolerance(data: xr.Dataset, rate: xr.DataArray) -> dict[str, Any]:
    """What a mean rate may be off by, in decades a layer, over the axes left of `rate`."""
    return {
        # Four standard errors; the means share their draws over sigma_w, so they are few.
        "sampling": 4 * gl.estimate.mean(rate.transpose("seed", ...)).error,
        # Hanin and Nica 2020: the log falls short of the log of the mean square by 5/(4n) nats a
        # layer for relu and 1/(2n) for linear; the second power of 1/n is of the same size here.
        "finite width": 2 / (LN10 * float(data.attrs["width"])),
    }


def plain_claims(data: xr.Dataset, name: str) -> Iterator[gl.Claim]:
    """The growth by sqrt(chi_1) a layer, and the sigma_w at which it is none."""
    # Where lengths grow for ever (gelu at a large sigma_w) there is no q*, and no prediction.
    data = data.isel(sigma_w=np.isfinite(data.chi_1.values))
    if not data.sizes["sigma_w"]:
        return
    rate = data.rate.sel(kind="plain")
    mean = rate.mean("seed")
    predicted = np.log10(data.chi_1) / 2
    allowed = sum(tolerance(data, rate).values())
    yield gl.Claim(
        f"{name}: at every sigma_w the log gradient grows by log chi_1 / 2 a layer, "
        "in units of what sampling and finite width allow",
        measured=float(np.max(np.abs(mean - predicted) / allowed)),
        expected=1.0,
        tolerance={},
        source=SCHOENHOLZ,
        relation="<=",
    )
    edge = crossing(data.sigma_w, predicted)
    if math.isnan(edge):
        return
    steepness = float(np.max(np.diff(predicted) / np.diff(data.sigma_w), initial=0))
    near = {
        cause: float(np.max(amount)) / max(slope_at(data.sigma_w, predicted, edge), 1e-3)
        for cause, amount in tolerance(data, rate).items()
    }
    spacing = float(np.max(np.diff(data.sigma_w)))
    yield gl.Claim(
        f"{name}: the gradient neither vanishes nor explodes where chi_1 = 1",
        measured=crossing(data.sigma_w, mean),
        expected=edge,
        tolerance=near | {"straight lines between grid points": steepness * spacing**2},
        source="Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 4",
    )


def crossing(sigma_w: xr.DataArray, rate: Any) -> float:
    """The sigma_w at which a rate crosses 0, by straight lines; nan where it does not."""
    if np.size(rate) < 2:
        return math.nan
    return float(np.interp(0.0, rate, sigma_w, left=np.nan, right=np.nan))


def slope_at(sigma_w: xr.DataArray, rate: Any, at: float) -> float:
    """The slope of a rate over sigma_w, at one place."""
    return float(np.interp(at, sigma_w, np.gradient(rate, sigma_w)))


def residual_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """No typical gradient vanishes, and the exact growth where the branch is linear."""
    rate = data.rate.sel(kind="residual")
    error = gl.estimate.mean(rate.transpose("seed", ...)).error
    yield gl.Claim(
        "residual: at no sigma_w, with no activation, does the typical gradient vanish",
        measured=float(np.min(rate.mean("seed"))),
        expected=0.0,
        tolerance={"sampling": 4 * float(np.max(error))},
        source=HE,
        relation=">=",
    )
    plain = data.rate.sel(kind="plain").mean("seed").isel(sigma_w=0)
    yield gl.Claim(
        "plain: at the smallest sigma_w it vanishes with every activation, by at least a decade",
        measured=float(np.max(plain)) * int(data.attrs["depth"]),
        expected=-1.0,
        tolerance={},
        source=SCHOENHOLZ,
        relation="<=",
    )
    if "linear" in data.activation.values:
        linear = rate.sel(activation="linear")
        off = linear.mean("seed") - np.log10(1 + data.sigma_w**2) / 2
        yield gl.Claim(
            "residual, linear: the log gradient grows by log(1 + sigma_w²) / 2 a layer, "
            "in units of what sampling and finite width allow",
            measured=float(np.max(np.abs(off) / sum(tolerance(data, linear).values()))),
            expected=1.0,
            tolerance={},
            source=MEAN,
            relation="<=",
        )


def plain(change: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """A fault of the plain ensemble: `change(phi, sigma_w, sigma_b)` is drawn instead."""
    return lambda honest: lambda key, depth, width, *rest: honest(key, depth, width, *change(*rest))


FAULTS = {
    "weights 15 % too large": gl.fault.change(
        "ensembles.gaussian", plain(lambda phi, sigma_w, sigma_b: (phi, 1.15 * sigma_w, sigma_b))
    ),
    "activation forgotten": gl.fault.change(
        "ensembles.gaussian",
        plain(lambda phi, *sigmas: (gl.activations.PHI["linear"], *sigmas)),
    ),
    "gradient read from the wrong end": gl.fault.change(
        "jacobians.log_gradient_norms",
        lambda honest: lambda model, x, loss: honest(model, x, loss)[::-1],
    ),
    "identity branch dropped": gl.fault.change(
        "ensembles.residual",
        lambda honest: lambda *args: gl.ensembles.gaussian(*args[:6]),
    ),
    "residual branch at half its size": gl.fault.change(
        "ensembles.residual", lambda honest: lambda *args: honest(*args[:6], 0.5)
    ),
}


def network_payload(data: xr.Dataset) -> gl.lesson.Network:
    """Median and quartiles over draws for each activation and sigma_w, plain and residual."""
    axes = ("activation", "kind", "sigma_w", "back")
    return {
        "activations": data.activation.values.tolist(),
        "kinds": data.kind.values.tolist(),
        "sigma_w": gl.lesson.exact(data.sigma_w),
        "back": data.back.values.tolist(),
        "median": gl.lesson.decimals(data.log10_median.transpose(*axes), 3),
        "low": gl.lesson.decimals(data.log10_low.transpose(*axes), 3),
        "high": gl.lesson.decimals(data.log10_high.transpose(*axes), 3),
        "predicted": gl.lesson.decimals(
            data.log10_predicted.transpose("activation", "sigma_w", "back"), 3
        ),
        "chi_1": gl.lesson.exact(data.chi_1.transpose("activation", "sigma_w")),
        "width": int(data.attrs["width"]),
        "num_draws": int(data.attrs["num_seeds"]),
    }


TANH = {"activation": "tanh", "kind": "plain", "back": "last"}
LESSON = gl.lesson.Offer(
    figures={"network": network_payload},
    numbers={
        "network depth": gl.lesson.at("depth"),
        "network width": gl.lesson.at("width"),
        "small sigma_w": gl.lesson.at("sigma_w", sigma_w=0.5),
        "large sigma_w": gl.lesson.at("sigma_w", sigma_w=2.5),
        "gradient at small sigma_w": gl.lesson.at(
            "log10_median", scale="log10", sigma_w=0.5, **TANH
        ),
        "gradient at large sigma_w": gl.lesson.at(
            "log10_median", scale="log10", sigma_w=2.5, **TANH
        ),
        "largest chi_1 of the logistic": gl.lesson.at("chi_1", how="max", activation="logistic"),
    },
    claims={
        "no gain at the edge": "tanh: the gradient neither",
        "slope at every sigma_w": "tanh: at every sigma_w",
        "typical gradient does not vanish": "residual: at no sigma_w",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
