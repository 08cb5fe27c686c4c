"""How fast does each direction grow in a product of random matrices, to the last standard error?

Newman 1986: the Lyapunov exponents of a product of Gaussian matrices are known exactly at every
width, and so is the variance of each step: the increments of the QR iteration are independent
logarithms of chi variables. So a measurement can be judged in standard errors, with nothing fitted.
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

NEWMAN = "Newman 1986"
NUM_RECORDS = 60
# Standard deviations that a chi squared sum may be off by: one in 15,000 is by chance.
NUM_DEVIATIONS = 4.0


@gl.config
class Config:
    """One ensemble: W_ij ~ N(0, 1/width), a new matrix in every layer."""

    width: int
    depth: int
    num_seeds: int


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """The exponents by depth, the variance of the increments, and both laws."""
    records = recorded_depths(cfg.depth)
    at = jnp.array(records) - 1
    over = jnp.arange(1.0, cfg.depth + 1)[:, None]

    def measured(key_seed: Array) -> tuple[Array, Array, Array]:
        growth = gl.spectra.log_growth(gaussian_layers(key_seed, cfg), jnp.zeros(cfg.width))
        running = jnp.cumsum(growth, axis=0) / over
        return running[at], jnp.mean(growth, axis=0), jnp.var(growth, axis=0, ddof=1)

    exponents, mean, variance = jax.lax.map(measured, jax.random.split(key, cfg.num_seeds))
    axes = ("seed", "direction")
    return {
        "direction": gl.named(jnp.arange(1, cfg.width + 1), "direction", long_name="index k"),
        "records": gl.named(jnp.array(records), "records", long_name="depth L"),
        "running": gl.named(
            exponents,
            *("seed", "records", "direction"),
            long_name="mean growth up to depth L",
            units="nats a layer",
        ),
        "exponent": gl.named(mean, *axes, long_name="Lyapunov exponent", units="nats a layer"),
        "variance": gl.named(
            variance, *axes, long_name="variance of the growth in one layer", units="nats²"
        ),
        "exponent_predicted": gl.named(
            gl.theory.products.lyapunov_exponents(cfg.width, 1 / cfg.width),
            "direction",
            long_name="½ [log(2/n) + ψ((n - k + 1)/2)]",
            units="nats a layer",
        ),
        "variance_predicted": gl.named(
            gl.theory.products.lyapunov_variances(cfg.width),
            "direction",
            long_name="ψ₁((n - k + 1)/2)/4",
            units="nats²",
        ),
        "fourth_predicted": gl.named(
            fourth_moment(cfg.width), "direction", long_name="fourth central moment", units="nats⁴"
        ),
    }


def recorded_depths(depth: int) -> tuple[int, ...]:
    """Depths from 1 to `depth`, evenly spread on a log axis."""
    return tuple(sorted({round(depth ** (i / (NUM_RECORDS - 1))) for i in range(NUM_RECORDS)}))


def gaussian_layers(key: Array, cfg: Config) -> gl.chain.Chain:
    """Layers W z that draw their own W: a million of them need no memory."""

    def layer(index: Array, z: Array) -> Array:
        W = gl.ensembles.unit_gaussian(
            jax.random.fold_in(key, index.astype("uint32")), (cfg.width, cfg.width), z.dtype
        )
        return W @ z

    return gl.chain.Chain(layer, jnp.arange(float(cfg.depth)))


def fourth_moment(width: int) -> Array:
    """The fourth central moment of the growth in one layer, `(width,)`: `ψ₃/16 + 3 (ψ₁/4)²`.

    A log chi variable is half a log chi² one, whose cumulants are polygamma functions.
    """
    half = jnp.arange(width, 0, -1.0) / 2
    polygamma = jax.scipy.special.polygamma
    return polygamma(3, half) / 16 + 3 * (polygamma(1, half) / 4) ** 2


def scores(data: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """The exponents' and the variances' distances from the law, in standard errors."""
    depth = data.attrs["depth"]
    error = np.sqrt(data.variance_predicted / depth)
    # The variance of a sample variance is (fourth moment - variance²)/n, to order 1/n.
    spread = np.sqrt((data.fourth_predicted - data.variance_predicted**2) / depth)
    return (
        (data.exponent - data.exponent_predicted) / error,
        (data.variance - data.variance_predicted) / spread,
    )


def figure(data: xr.Dataset) -> gl.Figure:
    """The exponents settling on the law, and their distance from it in standard errors."""
    fig, (settling, distance, by_index) = gl.figures.panels(1, 3, height=2.6)
    looks = list(gl.figures.shades(data.sizes["direction"]))
    for i, look in enumerate(looks):
        row = data.isel(direction=i)
        running = row.running.isel(seed=0)
        exact = float(row.exponent_predicted)
        settling.axhline(exact, **gl.figures.THEORY)
        settling.plot(data.records[::3], running[::3], **look)
        distance.plot(data.records[::3], np.abs(running - exact)[::3], **look)
    law = np.sqrt(float(data.variance_predicted.mean()) / data.records)
    distance.plot(data.records, law, **gl.figures.THEORY, label=r"$\sigma/\sqrt{L}$")
    distance.legend(loc="lower left")
    settling.set(xscale="log", xlabel="depth L", ylabel="nats a layer")
    gl.figures.title(settling, "exponents settle")
    distance.set(xscale="log", yscale="log", xlabel="depth L", ylabel="distance from the law")
    gl.figures.title(distance, "as one over root L")
    names = ("exponent", "variance of a step")
    by_index.axhspan(-2, 2, color="0.92", zorder=0)
    by_index.axhline(0, **gl.figures.THEORY)
    for z, name, look in zip(scores(data), names, gl.figures.series(2), strict=True):
        look |= {"linestyle": "none"}
        by_index.plot(data.direction, z.T, **look)
        by_index.plot([], [], **look, label=name)
    by_index.set(xlabel="index k", ylabel="standard errors from Newman's law", ylim=(-5, 5))
    by_index.legend(loc="lower left")
    gl.figures.title(by_index, "every one on the law")
    return fig


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Means and variances of all directions and seeds at once, in chi squared, and the sum."""
    depth = data.attrs["depth"]
    for z, noun in zip(scores(data), ("exponents", "variances of the increments"), strict=True):
        yield gl.Claim(
            f"the {noun} follow the exact law: chi squared over all directions and seeds",
            measured=float((z**2).sum()),
            expected=float(z.size),
            tolerance={"sampling": NUM_DEVIATIONS * math.sqrt(2 * z.size)},
            source=NEWMAN,
        )
    total = data.exponent.mean("seed").sum()
    expected = float(data.exponent_predicted.sum())
    error = math.sqrt(float(data.variance_predicted.sum()) / depth / data.sizes["seed"])
    yield gl.Claim(
        "the exponents add up to the mean log|det W|",
        measured=float(total),
        expected=expected,
        tolerance={"sampling": NUM_DEVIATIONS * error},
        source="log|det W| is a sum of independent log chi variables (Goodman 1963)",
    )
    yield gl.Claim(
        "the largest exponent is below 0: at this width a typical gradient vanishes, though its "
        "mean square keeps its size",
        measured=float(data.exponent.isel(direction=0).mean()),
        expected=0.0,
        tolerance={},
        source=NEWMAN,
        relation="<=",
    )


def with_draw(change: Callable[[Array], Array]) -> Callable[..., Any]:
    """A fault of the ensemble: the matrices are not what they should be."""
    return lambda honest: lambda key, shape, dtype: change(honest(key, shape, dtype))


FAULTS = {
    "weights 5 % too large": gl.fault.change(
        "ensembles.unit_gaussian", with_draw(lambda W: 1.05 * W)
    ),
    "weights 20 % too large": gl.fault.change(
        "ensembles.unit_gaussian", with_draw(lambda W: 1.2 * W)
    ),
    "weights 20 % too small": gl.fault.change(
        "ensembles.unit_gaussian", with_draw(lambda W: 0.8 * W)
    ),
    "orthogonal instead of Gaussian": gl.fault.change(
        "ensembles.unit_gaussian", lambda honest: gl.ensembles.unit_orthogonal
    ),
    "one entry in three is cut at one deviation": gl.fault.change(
        "ensembles.unit_gaussian",
        with_draw(lambda W: jnp.clip(W, -(W.shape[-1] ** -0.5), W.shape[-1] ** -0.5)),
    ),
}


if __name__ == "__main__":
    gl.run(__file__)
