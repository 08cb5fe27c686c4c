"""At which depth does each float format lose a product of random Jacobians, and does rescaling?

The log norm of a product of Gaussian matrices grows by the largest Lyapunov exponent a layer
(Newman 1986), so a format's range is used up after a depth that theory gives for every width and
scale; where a given product leaves it, its exact norm tells to a few layers. A product that carries
its own power of two (gradlab.arithmetic.scaled) has the same digits and no such depth: what it
loses, it loses to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "formats"
LN2 = math.log(2)
NEWMAN = "Newman 1986"
RANGE = "IEEE 754-2019, section 3.3"
EXACT = "multiplication by a power of two is exact"
NUM_PARTS = 100  # of the layers, whose weights are samples of one law
CHANCE = 1e-4  # that any product is turned away, or long, as `theory.ranges` has it but for this


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
    rows, theory, ranges = [], gl.theory.products, gl.theory.ranges
    for key_width, width in zip(keys, cfg.width, strict=True):
        unit = gl.ensembles.unit_gaussian(key_width, (cfg.depth, width, width), float)
        formats = jnp.stack([first_wrong(unit, cfg, name) for name in names])
        parts = gl.ensembles.realised_in_parts(unit, max(2, cfg.depth // NUM_PARTS))
        rows.append((formats, one_growth(unit), parts, both_ways(unit)))
    found, growth, entries, ways = map(jnp.stack, zip(*rows, strict=True))
    ends = [[ranges.mean_end(fine, width, name) for name in names] for width in cfg.width]
    chance = CHANCE / found[..., 0].size
    sure = [[ranges.sure_end(cfg.sigma_w, n, name, chance) for name in names] for n in cfg.width]
    laws = [(theory.lyapunov_exponents(n, 1 / n), theory.lyapunov_variances(n)) for n in cfg.width]
    plain, rescaled, half, earliest, latest = jnp.moveaxis(found, -1, 0)
    axes, units = "width format sigma_w", {"units": "layers"}
    wrong = jnp.stack([plain, rescaled], -1)
    label = "first depth at which the norm is wrong by a factor of two, inf where never"
    return {
        "format": gl.named(names, "format"),
        "algorithm": gl.named(["plain", "rescaled"], "algorithm"),
        "sigma_fine": gl.named(fine, "sigma_fine", long_name="sigma_w"),
        "first_wrong": gl.named(wrong, axes + " algorithm", long_name=label, **units),
        "half_wrong": gl.named(half, axes, long_name="the same by √2, rescaled", **units),
        "earliest": gl.named(earliest, axes, long_name="first at an end of the range", **units),
        "latest": gl.named(latest, axes, long_name="first surely beyond it", **units),
        "entries": gl.named(entries, "width part moment", long_name="moments of W √n"),
        "growth": gl.named(growth, "width", long_name="log |P e_1| / L", units="nats"),
        "exponent": gl.named(jnp.stack([exponents[0] for exponents, _ in laws]), "width"),
        "variance": gl.named(jnp.stack([variances[0] for _, variances in laws]), "width"),
        "both_ways": gl.named(ways, "width way", long_name="log |P_L|", units="nats"),
        "range_end_fine": gl.named(jnp.array(ends), "width format sigma_fine", **units),
        "sure_end": gl.named(jnp.array(sure), "width format side sigma_w", **units),
    }


def one_growth(unit: jax.Array) -> jax.Array:
    """The mean growth of one vector in a layer, nats: a mean of independent log chi variables."""
    first = jnp.eye(unit.shape[-1])[0]
    along = gl.jacobians.log_norms([lambda t: t * first, gl.chain.linear(unit)], jnp.ones(1))
    return along[-1] / unit.shape[0]


def both_ways(unit: jax.Array) -> jax.Array:
    """`log |P_L|` as rescaled here and by the library, and what rounding may part them by."""
    model, x = gl.chain.linear(unit), jnp.zeros(unit.shape[-1])
    library, bound = gl.jacobians.log_norms(model, x)[-1], gl.certificate.log_norm_bound(model, x)
    return jnp.stack([log_norms(unit)[-1, 1], library, 2 * bound])


def first_wrong(unit: jax.Array, cfg: Config, name: str) -> jax.Array:
    """First depths: off by two, plain and rescaled, and by √2; `ranges.outside`. `(sigma_w, 5)`."""
    depth, width, _ = unit.shape
    truth = gl.jacobians.log_norms(gl.chain.linear(unit), jnp.zeros(width))
    row = jnp.log(jnp.max(jnp.linalg.norm(unit, axis=2), axis=1))
    layer, cells = jnp.arange(1, depth + 1), cfg.sigma_w.size * len(cfg.width) * len(cfg.dtype)

    def one(sigma: jax.Array) -> jax.Array:
        path = truth + layer * jnp.log(sigma)
        off = jnp.abs(log_norms((sigma * unit).astype(name)) - path[:, None])
        far = ~(off <= LN2)
        happens = [far[:, 0], far[:, 1], ~(off[:, 1] <= LN2 / 2)]
        happens += gl.theory.ranges.outside(path, row + jnp.log(sigma), width, name, CHANCE / cells)
        return gl.grid.first(jnp.stack(happens))

    return jax.lax.map(one, cfg.sigma_w)


def log_norms(J: jax.Array) -> jax.Array:
    """`log |J_k ... J_1|` as the format of J has it, plain and rescaled, `(depth, 2)`."""

    def step(
        carry: tuple[jax.Array, gl.scaled.Scaled], factor: jax.Array
    ) -> tuple[tuple[jax.Array, gl.scaled.Scaled], jax.Array]:
        plain, rescaled = factor @ carry[0], factor @ carry[1].mantissa
        scaled = gl.scaled.rescale(gl.scaled.Scaled(rescaled, carry[1].exponent))
        shift = scaled.exponent[0, 0].astype(float) * LN2
        # In the default format; squares must not leave the range that the products are in.
        wide = gl.scaled.scale(jnp.stack([plain, scaled.mantissa]).astype(float), (-2, -1))
        logs = gl.scaled.log_magnitude(gl.scaled.norm(wide, (-2, -1)))
        return (plain, scaled), logs.at[1].add(shift)

    start = jnp.eye(J.shape[-1], dtype=J.dtype)
    return jax.lax.scan(step, (start, gl.scaled.scale(start, (-2, -1))), J)[1]


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


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The growth at the largest width, and what is lost to the formats."""
    last, (plain, rescaled) = data.isel(width=-1), data.first_wrong.transpose("algorithm", ...)
    error = gl.headline.HALF_WIDTH * np.sqrt(last.variance / data.attrs["depth"])
    ends = last.growth - error, last.growth + error
    yield gl.Headline("growth of a vector", last.growth, "nats a layer", last.exponent, *ends)
    yield gl.Headline("first product lost", plain.min(), "layers")
    yield gl.Headline("lost though rescaled", 100 * np.isfinite(rescaled).mean(), "%")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The growth is Newman's; range ends a plain product there, and till then it is the other."""
    depth, eps = data.attrs["depth"], float(np.finfo(data.growth.dtype).eps)
    yield gl.claim.everywhere(
        "one vector grows by Newman's exponent a layer, at every width",
        *(data.growth, data.exponent, NEWMAN),
        sampling=gl.estimate.Sampling(np.sqrt(data.variance / depth)),
        rounding=2 * eps * data.width,  # of a matrix times a vector (Higham 2002, section 3.5)
    )
    yield gl.claim.weights(data.entries, NEWMAN, over="part")
    here, library, rounding = data.both_ways.transpose("way", ...)
    if (known := np.isfinite(rounding)).any():
        sentence = "the norm that formats are held against is that of the product multiplied out"
        ways = library, here, "Higham 2002, chapter 3"
        yield gl.claim.everywhere(sentence, *ways, where=known, rounding=rounding)
    beyond = depth + 1.0
    plain, rescaled = np.minimum(data.first_wrong, beyond).transpose("algorithm", ...)
    ends = np.minimum(data[["half_wrong", "earliest", "latest"]], beyond)
    yield gl.claim.at_least(
        "no plain product is lost before its norm, or that of a factor, is at an end of the "
        "format's range, or rounding has halved the rescaled one",
        *(plain, np.minimum(ends.half_wrong, ends.earliest), RANGE),
        chance=CHANCE,
    )
    yield gl.claim.at_most(
        "every plain product is lost when no entry of it can be in the range",
        *(plain, ends.latest, RANGE),
    )
    first, last = np.minimum(data.sure_end, beyond).transpose("side", ...)
    yield gl.claim.everywhere(
        "no entry can be in the range from the layer on that moments of Gaussian products allow",
        *(ends.latest, (first + last) / 2, NEWMAN),
        chance=CHANCE,
        law_of_the_norm=(last - first) / 2,
    )
    # Only a product that grows has no entry below the range while the norm is within it.
    early = (rescaled < ends.earliest) & (data.exponent + np.log(data.sigma_w) > 0)
    if early.any():
        same = "what rounding ends before the range does, it ends there, rescaled or not"
        yield gl.claim.everywhere(same, plain, rescaled, EXACT, where=early)
    units = np.array([gl.theory.scalar.FORMATS[str(name)].unit for name in data.format.values])
    if (long := units <= 2.0**-24).any():
        yield gl.claim.equal(
            "with 24 digits or more the rescaled product is right at every depth, width and scale",
            *(rescaled.isel(format=np.flatnonzero(long)), beyond, EXACT),
            # Roundings, if independent, turn a product by about its unit over √width along any one
            # direction (Higham and Mary 2019). It is halved where what is left is as little: in the
            # words of `ranges.outside`, with a probability of about two units a layer.
            chance=min(0.5, 2 * float(units[long].max()) * depth * data.sizes["width"]),
        )


FAULTS = {
    "weights 10 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.1),
    "layers 1 % too weak": gl.fault.argument("log_norms", J=lambda J: (0.99 * J).astype(J.dtype)),
    "layers transposed in a format": gl.fault.argument("log_norms", J=lambda J: J.mT),
    "every format computed in float64": gl.fault.argument("log_norms", J=lambda J: J.astype("f8")),
    "every format computed in float32": gl.fault.argument("log_norms", J=lambda J: J.astype("f4")),
    "norms held in float32": gl.fault.result("jacobians.log_norms", lambda a: a.astype("f4")),
    "no exponent": gl.fault.result("scaled.rescale", lambda s: type(s)(s.mantissa, 0 * s.exponent)),
}


if __name__ == "__main__":
    gl.run(__file__)
