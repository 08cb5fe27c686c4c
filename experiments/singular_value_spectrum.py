"""What is left of the weakest direction at depth, and which method can tell?

The singular values of a product of Jacobians say what happens to every direction of a gradient. In
a chain whose layers all stretch the same rotating frame, J_k = Q_k D Q_{k-1}^T, they are d_i^L by
construction. Three ways to find them are held against that: the graded factorisation of this
laboratory, the singular values of the computed product (right only for those above eps times the
largest: Golub and Van Loan 2013, section 8.6), and the diagonal of a forward QR (Benettin et al.
1980), which has the right rates but is off by a constant at every depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradlab as gl
from gradlab.lazy import jax, jnp, np

if TYPE_CHECKING:
    import xarray as xr
    from jax import Array

ALGORITHMS = ("graded", "svd of product", "forward QR")
NUM_DEPTHS = 8
LN10 = math.log(10)


@gl.config
class Config:
    """One chain with a prescribed spectrum, in several formats."""

    width: int
    depth: int
    condition: float = gl.key("largest over smallest d_i of a layer", above=1, at_most=1e8)
    dtypes: gl.Strings


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """The log singular values by depth, for every method and format, and the true ones."""
    depths = recorded_depths(cfg.depth)
    J = layers(key, cfg)
    names = [name for name in cfg.dtypes if jax.dtypes.canonicalize_dtype(name).name == name]
    found = jnp.stack([by_every_method(J.astype(name), depths).astype(float) for name in names])
    _, log_det = jnp.linalg.slogdet(J)
    axes = ("format", "algorithm", "depths", "direction")
    return {
        "format": gl.named(names, "format"),
        "algorithm": gl.named(list(ALGORITHMS), "algorithm"),
        "depths": gl.named(jnp.array(depths), "depths", long_name="depth L"),
        "log_sigma": gl.named(found, *axes, long_name="log singular value", units="nats"),
        "log_sigma_true": gl.named(
            jnp.array(depths)[:, None] * log_stretch(cfg)[None, :],
            *axes[2:],
            long_name="L log d_i",
            units="nats",
        ),
        "log_det": gl.named(
            jnp.cumsum(log_det)[jnp.array(depths) - 1],
            "depths",
            long_name="sum of log|det J_k|",
            units="nats",
        ),
    }


def recorded_depths(depth: int) -> tuple[int, ...]:
    """At most eight depths, evenly spread up to `depth`."""
    return tuple(sorted({max(1, round(depth * i / NUM_DEPTHS)) for i in range(1, NUM_DEPTHS + 1)}))


def log_stretch(cfg: Config) -> Array:
    """The log of the stretch d_i of every layer, from 0 down to -log(condition), `(width,)`."""
    return -jnp.linspace(0.0, 1.0, cfg.width) * jnp.log(cfg.condition)


def layers(key: Array, cfg: Config) -> Array:
    """The Jacobians `Q_k D Q_{k-1}^T`, `(depth, width, width)`, with Haar orthogonal `Q_k`."""
    shape = (cfg.depth + 1, cfg.width, cfg.width)
    Q = gl.ensembles.unit_orthogonal(key, shape, float)
    return jnp.einsum("kij,j,klj->kil", Q[1:], jnp.exp(log_stretch(cfg)), Q[:-1])


def by_every_method(J: Array, depths: tuple[int, ...]) -> Array:
    """`log sigma_i` in the format of `J`, `(len(ALGORITHMS), num_depths, width)`, descending."""
    model, x = gl.chain.linear(J), jnp.zeros(J.shape[-1], J.dtype)
    at = jnp.array(depths) - 1
    growth = jnp.cumsum(gl.spectra.log_growth(model, x), axis=0)[at]
    return jnp.stack(
        [
            gl.spectra.log_singular_values(model, x, depths),
            svd_of_product(model, x, at),
            -jnp.sort(-growth, axis=1),
        ]
    )


def svd_of_product(model: gl.chain.Model, x: Array, at: Array) -> Array:
    """The log singular values that LAPACK finds in the product, which is kept from underflow."""
    products = gl.jacobians.along(model, x, lambda P: P)
    values = jnp.linalg.svd(products.mantissa[at], compute_uv=False)
    return jnp.log(values) + math.log(2) * products.exponent[at, :, 0].astype(values.dtype)


def figure(data: xr.Dataset) -> gl.Figure:
    """The weakest direction by depth, its error, and the error of every direction at the end."""
    fig, (weakest, errors, directions) = gl.figures.panels(1, 3, height=2.6)
    last = data.isel(direction=-1)
    weakest.plot(data.depths, last.log_sigma_true / LN10, **gl.figures.THEORY, label="exact")
    error = np.abs(data.log_sigma - data.log_sigma_true)
    smallest = 1e-16  # an error of nothing has no place on a log axis
    for algorithm, look in zip(
        data.algorithm.values, gl.figures.series(len(ALGORITHMS)), strict=True
    ):
        for name, style in zip(data.format.values, ("none", "full"), strict=False):
            mark = look | {"linestyle": "none", "fillstyle": style}
            picked = {"algorithm": algorithm, "format": name}
            weakest.plot(data.depths, last.log_sigma.sel(picked) / LN10, **mark)
            off = error.sel(picked)
            errors.plot(data.depths, np.maximum(off.isel(direction=-1), smallest), **mark)
            index = np.arange(1, data.sizes["direction"] + 1)
            directions.plot(index, np.maximum(off.isel(depths=-1), smallest), **mark)
        directions.plot([], [], color=look["color"], marker=look["marker"], ls="", label=algorithm)
    weakest.plot([], [], "o", color="0.4", fillstyle="none", label=str(data.format.values[0]))
    if data.sizes["format"] > 1:
        weakest.plot([], [], "o", color="0.4", label=str(data.format.values[1]))
    weakest.set(xlabel="depth L", ylabel=r"$\log_{10}$ smallest singular value")
    weakest.legend(loc="lower left")
    gl.figures.title(weakest, "the weakest direction")
    errors.set(yscale="log", xlabel="depth L", ylabel=r"error of its log, nats ($10^{-16}$: none)")
    gl.figures.title(errors, "how wrong by depth")
    directions.set(
        yscale="log",
        xlabel="direction, strongest first",
        ylabel=r"error of the log, nats ($10^{-16}$: none)",
    )
    directions.set_ylim(1e-17, 1e8)
    directions.legend(loc="upper left", fontsize=5.5)
    gl.figures.title(directions, "how wrong by direction")
    return fig


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """What each method can tell, in each format."""
    depth, width, condition = (data.attrs[name] for name in ("depth", "width", "condition"))
    error = np.abs(data.log_sigma - data.log_sigma_true)
    for name in data.format.values:
        eps = 2 * gl.theory.scalar.FORMATS[str(name)].unit
        # Each J_k is rounded, which moves its weakest direction by up to condition roundings, and
        # so is each step of the factorisation; the log itself has digits of its own size.
        rounding = depth * width * eps * condition + 4 * eps * float(
            np.abs(data.log_sigma_true).max()
        )
        in_format = error.sel(format=name)
        yield gl.Claim(
            f"{name}: the graded factorisation has the log of every singular value at every depth",
            measured=float(in_format.sel(algorithm="graded").max()),
            expected=0.0,
            tolerance={"rounding of the layers": rounding},
            source="d_i^L by construction; method after Demmel et al. 1999",
        )
        smallest = in_format.isel(direction=-1, depths=-1)
        # What lies below eps times the largest is noise, so the log stops near log(eps).
        lost = -float(data.log_sigma_true[-1, -1]) + math.log(eps)
        if lost > 5:
            yield gl.Claim(
                f"{name}: the SVD of the product has lost the weakest direction, by more than half "
                "of the nats that it lies below eps",
                measured=float(smallest.sel(algorithm="svd of product")),
                expected=lost / 2,
                tolerance={},
                source="Golub and Van Loan 2013, section 8.6",
                relation=">=",
            )
        qr = data.log_sigma.sel(format=name, algorithm="forward QR")
        yield gl.Claim(
            f"{name}: the forward QR adds up to log|det| as the singular values do",
            measured=float(np.abs(qr.sum("direction") - data.log_det).max()),
            expected=0.0,
            tolerance={"rounding of the layers": width * rounding},
            source="|det Q| = 1",
        )
        yield gl.Claim(
            f"{name}: the forward QR is not the singular values: off by more than rounding "
            "at the full depth",
            measured=float(in_format.sel(algorithm="forward QR").isel(depths=-1).max()),
            expected=10 * rounding,
            tolerance={},
            source="Benettin et al. 1980: the rates agree as L grows, the values do not",
            relation=">=",
        )
    yield gl.Claim(
        "the log singular values add up to the sum of log|det J_k|",
        measured=float(
            np.abs(
                data.log_sigma.sel(algorithm="graded").isel(format=-1).sum("direction")
                - data.log_det
            ).max()
        ),
        expected=0.0,
        tolerance={"rounding of the layers": width * rounding},
        source="|det P| is the product of the singular values",
    )


FAULTS = {
    "layers 0.1 % too strong": gl.fault.change(
        "layers", lambda honest: lambda key, cfg: 1.001 * honest(key, cfg)
    ),
    "one layer missing": gl.fault.change(
        "layers", lambda honest: lambda key, cfg: honest(key, cfg).at[0].set(jnp.eye(cfg.width))
    ),
    "the product's SVD taken for the graded one": gl.fault.change(
        "spectra.log_singular_values",
        lambda honest: lambda model, x, depths: svd_of_product(model, x, jnp.array(depths) - 1),
    ),
    "the graded one taken for the product's SVD": gl.fault.change(
        "svd_of_product",
        lambda honest: (
            lambda model, x, at: gl.spectra.log_singular_values(
                model, x, recorded_depths(gl.chain.depth(model))
            )
        ),
    ),
    "the singular values taken for the forward QR": gl.fault.change(
        "by_every_method",
        lambda honest: lambda J, depths: (values := honest(J, depths)).at[2].set(values[0]),
    ),
    "forward QR forgets a layer": gl.fault.change(
        "spectra.log_growth", lambda honest: lambda model, x: honest(model, x).at[0].set(0)
    ),
}


if __name__ == "__main__":
    gl.run(__file__)
