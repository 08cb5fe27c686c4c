"""At which depth does each float format lose a product of random Jacobians, and does rescaling?

The log norm of a product of Gaussian matrices grows by the largest Lyapunov exponent a layer
(Newman 1986), so a format's range is used up after a depth that theory gives for every width and
scale. A product that carries its own power of two (gradlab.arithmetic.scaled) has the same digits
and no such depth: what it loses, it loses to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

LN2 = math.log(2)
NEWMAN = "Newman 1986; IEEE 754-2019, section 3.3"
EXACT = "multiplication by a power of two is exact"
# Standard deviations that one product may be away from the mean: one in 15,000 is by chance.
NUM_DEVIATIONS = 4.0


@gl.config
class Config:
    """Gaussian layers of several widths and scales."""

    sigma_w: gl.Floats
    width: gl.Ints
    depth: int
    dtype: gl.Strings
    num_fine: int = gl.key("points of the predicted curves", at_least=2, at_most=2000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The first depth at which a norm is wrong by a factor of two, and where the range ends."""
    names, keys = gl.grid.formats(cfg.dtype), jax.random.split(key, len(cfg.width))
    fine = jnp.geomspace(jnp.min(cfg.sigma_w), jnp.max(cfg.sigma_w), cfg.num_fine)

    def measured(key: jax.Array, width: int) -> jax.Array:
        unit = gl.ensembles.unit_gaussian(key, (cfg.depth, width, width), float)
        return jnp.stack([first_wrong(unit, cfg.sigma_w, name) for name in names])

    def law(sigma_w: jax.Array) -> tuple[jax.Array, ...]:
        rows = [[range_end(sigma_w, width, name) for name in names] for width in cfg.width]
        return tuple(jnp.array([[cell[i] for cell in row] for row in rows]) for i in range(3))

    end, digits, fluctuation = law(cfg.sigma_w)
    axes, units = "width format sigma_w", "layers"
    return {
        "format": gl.named(names, "format"),
        "algorithm": gl.named(["plain", "rescaled"], "algorithm"),
        "sigma_fine": gl.named(fine, "sigma_fine", long_name="sigma_w"),
        "first_wrong": gl.named(
            jnp.stack([measured(key, width) for key, width in zip(keys, cfg.width, strict=True)]),
            *(axes, "algorithm"),
            long_name="first depth at which the norm is wrong by a factor of two, inf where never",
            units=units,
        ),
        "range_end": gl.named(end, axes, long_name="depth at which the range ends", units=units),
        "digits": gl.named(digits, axes, long_name="what entries and subnormals add", units=units),
        "fluctuation": gl.named(
            fluctuation, axes, long_name="what one product may be away", units=units
        ),
        "range_end_fine": gl.named(
            law(fine)[0], "width format sigma_fine", long_name="range_end", units=units
        ),
    }


def first_wrong(unit: jax.Array, sigma_w: jax.Array, name: str) -> jax.Array:
    """The first depth of a factor of two for the plain and the rescaled product, `(sigma_w, 2)`."""
    depth, width, _ = unit.shape
    truth = gl.jacobians.log_norms(gl.chain.linear(unit), jnp.zeros(width))
    layer = jnp.arange(1, depth + 1)

    def one(sigma: jax.Array) -> jax.Array:
        logs = log_norms((sigma * unit).astype(name))
        wrong = ~(jnp.abs(logs - (truth + layer * jnp.log(sigma))[:, None]) <= LN2)
        return gl.grid.first(wrong.T)

    return jax.lax.map(one, sigma_w)


def log_norms(J: jax.Array) -> jax.Array:
    """`log |J_k ... J_1|` as the format of J has it, plain and rescaled, `(depth, 2)`."""

    def step(
        carry: tuple[jax.Array, gl.scaled.Scaled], factor: jax.Array
    ) -> tuple[tuple[jax.Array, gl.scaled.Scaled], jax.Array]:
        plain, rescaled = factor @ carry[0], factor @ carry[1].mantissa
        scaled = gl.scaled.rescale(gl.scaled.Scaled(rescaled, carry[1].exponent))
        shift = scaled.exponent[0, 0].astype(float) * LN2
        logs = jnp.stack([log_norm(plain), log_norm(scaled.mantissa) + shift])
        return (plain, scaled), logs

    start = jnp.eye(J.shape[-1], dtype=J.dtype)
    return jax.lax.scan(step, (start, gl.scaled.scale(start, (-2, -1))), J)[1]


def log_norm(P: jax.Array) -> jax.Array:
    """`log |P|` (Frobenius) in the default format; squares must not leave the range P is in."""
    wide = P.astype(float)
    size = jnp.max(jnp.abs(wide))
    return jnp.log(size) + jnp.log(jnp.linalg.norm(wide / jnp.where(size > 0, size, 1)))


def range_end(sigma_w: jax.Array, width: int, name: str) -> tuple[jax.Array, ...]:
    """The depth at which the norm leaves the format, and two amounts that may move it, layers."""
    format_ = gl.theory.scalar.FORMATS[name]
    rate = gl.theory.products.lyapunov_exponents(width, 1 / width)[0] + jnp.log(sigma_w)
    low, high = LN2 * format_.log2_smallest_normal, LN2 * format_.log2_overflow
    depth = jnp.where(rate < 0, low, high) / rate
    # Where subnormals are kept the lower end is that much further off; the norm of width² entries
    # is up to width times the largest, and starts at √width; and wrong is a factor of two.
    subnormal = LN2 * (format_.log2_smallest_normal - format_.log2_smallest)
    digits = jnp.where(rate < 0, subnormal, 0) + 2 * math.log(width) + LN2
    variance = gl.theory.products.lyapunov_variances(width)[0]
    fluctuation = NUM_DEVIATIONS * jnp.sqrt(variance * depth)
    return depth, digits / jnp.abs(rate), fluctuation / jnp.abs(rate)


def figure(data: xr.Dataset) -> gl.Figure:
    """Plain products on the ends of their ranges, and rescaled ones, one panel for each width."""
    fig, panels = gl.figures.panels(1, data.sizes["width"], height=2.7, sharey=True)
    for width, axes in zip(data.width.values, panels, strict=True):
        looks = gl.figures.series(data.sizes["format"])
        for name, look in zip(data.format.values, looks, strict=True):
            row = data.sel(width=width, format=name)
            gl.figures.predicted(axes, data.sigma_fine, row.range_end_fine, color=look["color"])
            plain, rescaled = row.first_wrong.transpose("algorithm", ...)
            gl.figures.measured(axes, data.sigma_w, plain, look)
            lost = rescaled.where(np.isfinite(rescaled), drop=True)
            gl.figures.measured(axes, lost.sigma_w, lost, look, fillstyle="none", markersize=5)
        axes.set(yscale="log", xlabel=r"$\sigma_w$", ylim=(3, 3.0 * data.attrs["depth"]))
        gl.figures.title(axes, f"width {width}")
    panels[0].set_ylabel("first depth off by a factor of two")
    gl.figures.words(panels[0], 0.03, 0.03, "filled: plain; hollow: rescaled, where lost")
    last = data.isel(width=-1, sigma_fine=-1)
    ends = zip(gl.figures.series(last.sizes["format"]), ("bottom", "top") * 2, strict=False)
    for name, (look, side) in zip(last.format.values, ends, strict=True):
        place = float(last.sigma_fine), float(last.range_end_fine.sel(format=name))
        gl.figures.named(panels[-1], *place, str(name), look["color"], va=side)
    return fig


def caption(data: xr.Dataset) -> str:
    """The message, with what was measured."""
    plain, rescaled = data.first_wrong.transpose("algorithm", ...)
    kept, total = int(np.isinf(rescaled).sum()), rescaled.size
    return (
        f"A plain product (filled) is lost where its format's range ends (lines), in "
        f"{int(np.isfinite(plain).sum())} of {total} cases within {data.attrs['depth']} layers; "
        f"one that carries its own power of two (hollow where lost) only to rounding, in "
        f"{total - kept} of them, all in short formats. Arrowheads at the upper rim: not lost."
    )


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Range ends a plain product where theory says, and until then it is the rescaled one."""
    beyond = data.attrs["depth"] + 1.0
    plain, rescaled = np.minimum(data.first_wrong, beyond).transpose("algorithm", ...)
    allowed = 1 + data.digits + data.fluctuation
    yield gl.claim.first_depth(
        "the plain product is lost where Newman's exponent ends the format's range, or where "
        "rounding has ended the rescaled one, at every width and scale",
        *(plain, np.minimum(rescaled, data.range_end), NEWMAN),
        deepest=data.attrs["depth"],
        whole_layers=1.0,
        digits=data.digits,
        fluctuation=data.fluctuation,
    )
    early = rescaled < data.range_end - allowed
    if early.any():
        yield gl.claim.everywhere(
            "what rounding ends before the range does, it ends at the same layer, rescaled or not",
            *(plain, rescaled, EXACT),
            where=early,
        )
    long = [gl.theory.scalar.FORMATS[str(name)].num_bits >= 24 for name in data.format.values]
    if any(long):
        yield gl.claim.equal(
            "with 24 digits or more the rescaled product is right at every depth, width and scale",
            *(rescaled.isel(format=np.flatnonzero(long)), beyond, EXACT),
        )


FAULTS = {
    "every layer 30 % too weak": gl.fault.argument(
        "log_norms", J=lambda J: (0.7 * J).astype(J.dtype)
    ),
    "every format computed in float64": gl.fault.argument(
        "log_norms", J=lambda J: J.astype("float64")
    ),
    "every format computed in float32": gl.fault.argument(
        "log_norms", J=lambda J: J.astype("float32")
    ),
    "exponent forgotten": gl.fault.result(
        "scaled.rescale", lambda s: gl.scaled.Scaled(s.mantissa, s.exponent % 300)
    ),
}


if __name__ == "__main__":
    gl.run(__file__)
