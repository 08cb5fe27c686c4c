"""At which depth does each float format lose a product of random Jacobians, and does rescaling?

The log norm of a product of Gaussian matrices grows by the largest Lyapunov exponent a layer
(Newman 1986), so a format's range is used up after a depth that theory gives for every width and
scale. A product that carries its own power of two (gradlab.arithmetic.scaled) has no such depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import gradlab as gl
from gradlab.lazy import jax, jnp, np

if TYPE_CHECKING:
    import xarray as xr
    from jax import Array

LN2 = math.log(2)
ALGORITHMS = ("plain", "rescaled")
# Standard deviations that one product may be away from the mean: one in 15,000 is by chance.
NUM_DEVIATIONS = 4.0


@gl.config
class Config:
    """Gaussian layers of several widths and scales."""

    sigma_w: gl.Floats
    widths: gl.Ints = gl.key("widths of the chains", at_least=1, at_most=4096)
    depth: int
    dtypes: gl.Strings


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """The first depth at which a norm is wrong by a factor of two, measured and predicted."""
    names = [name for name in cfg.dtypes if jax.dtypes.canonicalize_dtype(name).name == name]
    measured = []
    for i, width in enumerate(cfg.widths):
        unit = gl.ensembles.unit_gaussian(
            jax.random.fold_in(key, i), (cfg.depth, width, width), float
        )
        measured.append(jnp.stack([first_wrong(unit, cfg.sigma_w, name) for name in names]))
    predicted, allowed = zip(
        *(expected(cfg.sigma_w, width, name) for width in cfg.widths for name in names),
        strict=True,
    )
    shape = (len(cfg.widths), len(names), cfg.sigma_w.shape[0])
    axes = ("widths", "format", "sigma_w")
    return {
        "format": gl.named(names, "format"),
        "algorithm": gl.named(list(ALGORITHMS), "algorithm"),
        "first_wrong": gl.named(
            jnp.stack(measured),
            *(*axes, "algorithm"),
            long_name="first depth at which the norm is wrong by a factor of two, inf where never",
            units="layers",
        ),
        "first_wrong_predicted": gl.named(
            jnp.stack(predicted).reshape(shape),
            *axes,
            long_name="depth at which the norm leaves the format's range",
            units="layers",
        ),
        "allowed": gl.named(
            jnp.stack(allowed).reshape(shape),
            *axes,
            long_name="layers by which one product may be away from that",
            units="layers",
        ),
    }


def first_wrong(unit: Array, sigma_w: Array, name: str) -> Array:
    """The first depth of a factor of two for the plain and the rescaled product, `(sigma_w, 2)`."""
    depth, width, _ = unit.shape
    zeros = jnp.zeros(width)
    layer = jnp.arange(1, depth + 1)
    truth = gl.jacobians.log_norms(gl.chain.linear(unit), zeros)

    def one(sigma: Array) -> Array:
        J = (sigma * unit).astype(name)
        rescaled = gl.jacobians.log_norms(gl.chain.linear(J), zeros.astype(name)).astype(float)
        logs = jnp.stack([plain_log_norms(J), rescaled])
        wrong = ~(jnp.abs(logs - truth - layer * jnp.log(sigma)) <= LN2)
        return jnp.where(jnp.any(wrong, axis=1), 1.0 + jnp.argmax(wrong, axis=1), jnp.inf)

    return jax.lax.map(one, sigma_w)


def plain_log_norms(J: Array) -> Array:
    """`log |J_k ... J_1|` of the product as its format has it, `(depth,)`."""

    def step(P: Array, factor: Array) -> tuple[Array, Array]:
        P = factor @ P
        wide = P.astype(float)
        size = jnp.max(jnp.abs(wide))  # squares must not leave the range that P is in
        ratio = wide / jnp.where(size > 0, size, 1)
        return P, jnp.log(size) + jnp.log(jnp.linalg.norm(ratio))

    return jax.lax.scan(step, jnp.eye(J.shape[-1], dtype=J.dtype), J)[1]


def expected(sigma_w: Array, width: int, name: str) -> tuple[Array, Array]:
    """The depth at which the norm leaves the format, and how far one product may be from it."""
    format_ = gl.theory.scalar.FORMATS[name]
    rate = gl.theory.products.lyapunov_exponents(width, 1 / width)[0] + jnp.log(sigma_w)
    variance = gl.theory.products.lyapunov_variances(width)[0]
    low, high = LN2 * format_.log2_smallest_normal, LN2 * format_.log2_overflow
    depth = jnp.where(rate < 0, low, high) / rate
    # Where subnormals are kept the lower end is that much further off; the norm of width² entries
    # is up to width times the largest, and starts at √width.
    subnormal = LN2 * (format_.log2_smallest_normal - format_.log2_smallest)
    digits = jnp.where(rate < 0, subnormal, 0) + 2 * math.log(width) + LN2
    fluctuation = NUM_DEVIATIONS * jnp.sqrt(variance * depth)
    # In a short format, rounding a product moves its log by up to a unit a layer and term.
    rounding = depth * width * format_.unit
    return depth, 1 + (digits + fluctuation + rounding) / jnp.abs(rate)


def figure(data: xr.Dataset) -> gl.Figure:
    """Measured depths on the predicted ones, one panel for each width."""
    count = data.sizes["widths"]
    fig, panels = gl.figures.panels(1, count, height=2.6, sharey=True)
    fine = np.geomspace(float(data.sigma_w.min()), float(data.sigma_w.max()), 400)
    for i, axes in enumerate(panels):
        width = int(data.widths[i])
        looks = gl.figures.series(data.sizes["format"])
        for name, look in zip(data.format.values, looks, strict=True):
            law = np.asarray(expected(jnp.asarray(fine), width, str(name))[0])
            axes.plot(fine, np.where(law < 1e5, law, np.nan), **gl.figures.THEORY)
            row = data.first_wrong.isel(widths=i).sel(format=name, algorithm="plain")
            look |= {"linestyle": "none"}
            axes.plot(data.sigma_w, row.where(np.isfinite(row)), **look, label=str(name))
        axes.axhline(data.attrs["depth"], color="0.75", linewidth=0.6, linestyle=":")
        axes.set(yscale="log", xlabel=r"$\sigma_w$", ylim=(5, 1e5))
        gl.figures.title(axes, f"width {width}")
    panels[0].set_ylabel("first depth off by a factor 2")
    panels[0].legend(loc="upper left", fontsize=5.5)
    return fig


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Every plain product fails where theory says; no rescaled one fails for want of range."""
    beyond = data.attrs["depth"] + 1
    plain = np.minimum(data.first_wrong.sel(algorithm="plain"), beyond)
    predicted = np.minimum(data.first_wrong_predicted, beyond)
    off = np.abs(plain - predicted) / np.minimum(data.allowed, beyond)
    for name in data.format.values:
        yield gl.Claim(
            f"{name}: the plain product is lost at the depth that Newman's exponent gives, for "
            "every width and scale, in units of what one product may be away",
            measured=float(off.sel(format=name).max()),
            expected=1.0,
            tolerance={},
            source="Newman 1986; IEEE 754-2019, section 3.3",
            relation="<=",
        )
    for name in data.format.values:
        if gl.theory.scalar.FORMATS[str(name)].num_bits < 24:
            continue  # a format of so few digits loses the norm to rounding, range or not
        rescaled = data.first_wrong.sel(format=name, algorithm="rescaled")
        yield gl.Claim(
            f"{name}: the rescaled product is right at every depth, width and scale",
            measured=float(np.minimum(rescaled, beyond).min()),
            expected=float(beyond),
            tolerance={},
            source="multiplication by a power of two is exact",
            relation=">=",
        )


def scaled_by(change: float) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """A fault of a product: every layer is too large by a factor."""
    return lambda honest: lambda J: honest((change * J).astype(J.dtype))


FAULTS = {
    "every layer 30 % too weak": gl.fault.change("plain_log_norms", scaled_by(0.7)),
    "every format computed in float64": gl.fault.change(
        "plain_log_norms", lambda honest: lambda J: honest(J.astype("float64"))
    ),
    "every format computed in float32": gl.fault.change(
        "plain_log_norms", lambda honest: lambda J: honest(J.astype("float32"))
    ),
    "exponent forgotten": gl.fault.change(
        "jacobians.log_norms", lambda honest: lambda model, x: honest(model, x) % 300.0
    ),
}


if __name__ == "__main__":
    gl.run(__file__)
