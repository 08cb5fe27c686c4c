"""How fast does each direction grow in a product of random matrices, to the last standard error?

Newman 1986: the Lyapunov exponents of a product of Gaussian matrices are known exactly at every
width, and so is the variance of each step: the increments of the QR iteration are independent
logarithms of chi variables. So a measurement can be judged in standard errors, with nothing fitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "width"
NEWMAN = "Newman 1986"
# Layers whose weights are looked at by themselves, in so many parts.
LOOKED_AT, NUM_PARTS = 8192, 32
GOODMAN = "log|det W| is a sum of independent log chi variables (Goodman 1963)"


@gl.config
class Config:
    """One ensemble: W_ij ~ N(0, 1/width), a new matrix in every layer."""

    width: int
    depth: int
    num_draws: int
    num_records: int = gl.key("depths recorded, evenly on a log axis", at_least=2, at_most=1000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The exponents by depth, the variance of the increments, and both laws."""
    records = recorded_depths(cfg.depth, cfg.num_records)
    at = jnp.array(records) - 1

    def measured(key: jax.Array) -> tuple[jax.Array, ...]:
        model = gaussian_layers(key, cfg)
        growth = gl.spectra.log_growth(model, jnp.zeros(cfg.width))
        running, sizes = (
            jnp.cumsum(part, axis=0)[at] / jnp.array(records)[:, None]
            for part in (growth, determinants(cfg, model))
        )
        own = jnp.mean(growth, axis=0), jnp.var(growth, axis=0, ddof=1)
        return running, *sizes.T, *own, drawn(cfg, model)

    found = gl.grid.over_draws(measured, key, cfg.num_draws)
    exponents, log_det, condition, mean, variance, entries = found
    axes, rate, theory = "draw direction", {"units": "nats a layer"}, gl.theory.products
    exponent_law = theory.lyapunov_exponents(cfg.width, 1 / cfg.width)
    variance_law = theory.lyapunov_variances(cfg.width)
    return {
        "direction": gl.named(jnp.arange(1, cfg.width + 1), "direction", long_name="index k"),
        "records": gl.named(jnp.array(records), "records", long_name="depth L"),
        "running": gl.named(exponents, "draw records direction", long_name="mean growth", **rate),
        "log_det": gl.named(log_det, "draw records", long_name="mean log|det W| up to L", **rate),
        "condition": gl.named(condition, "draw records", long_name="of W, mean up to L"),
        "exponent": gl.named(mean, axes, long_name="Lyapunov exponent", **rate),
        "variance": gl.named(variance, axes, long_name="of the growth in a layer", units="nats²"),
        "entries": gl.named(entries, "draw part moment", long_name="of W's"),
        "exponent_predicted": gl.named(exponent_law, "direction", **rate),
        "variance_predicted": gl.named(variance_law, "direction", units="nats²"),
        "fourth_predicted": gl.named(fourth_moment(cfg.width), "direction", units="nats⁴"),
    }


def recorded_depths(depth: int, num_records: int) -> tuple[int, ...]:
    """Depths from 1 to `depth`, evenly spread on a log axis."""
    return tuple(sorted({round(depth ** (i / (num_records - 1))) for i in range(num_records)}))


def gaussian_layers(key: jax.Array, cfg: Config) -> gl.chain.Chain:
    """Layers W z that draw their own W: a million of them need no memory."""

    def layer(index: jax.Array, z: jax.Array) -> jax.Array:
        W = gl.ensembles.unit_gaussian(
            jax.random.fold_in(key, index.astype("uint32")), (cfg.width, cfg.width), z.dtype
        )
        return W @ z

    return gl.chain.Chain(layer, jnp.arange(float(cfg.depth)))


def drawn(cfg: Config, model: gl.chain.Chain) -> jax.Array:
    """`realised` of parts of its first layers, `(part, 6)`, by what they make of unit vectors."""
    some = model.params[:LOOKED_AT]
    W = jax.vmap(jax.vmap(model.layer, (None, 0), 1), (0, None))(some, jnp.eye(cfg.width))
    return gl.ensembles.realised_in_parts(W, max(1, len(some) // NUM_PARTS))


def determinants(cfg: Config, model: gl.chain.Chain) -> jax.Array:
    """`log|det W|` and the condition number of each W, by its singular values, `(depth, 2)`."""

    def one(index: jax.Array) -> jax.Array:
        W = jax.vmap(model.layer, (None, 0), 1)(index, jnp.eye(cfg.width))
        values = jnp.linalg.svd(W, compute_uv=False)
        return jnp.stack([jnp.sum(jnp.log(values)), values[0] / values[-1]])

    return jax.lax.map(one, model.params, batch_size=LOOKED_AT)


def fourth_moment(width: int) -> jax.Array:
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
    one = data.isel(draw=0)
    for i, look in enumerate(gl.figures.shades(data.sizes["direction"])):
        row = one.isel(direction=i)
        gl.figures.measured(settling, data.records, row.running, look)
        exact = np.full(2, float(row.exponent_predicted))
        gl.figures.predicted(settling, (1, 3 * float(data.records[-1])), exact)
    ends = one.exponent_predicted.assign_coords(
        direction=[f"k = {k}" for k in data.direction.values]
    )
    settling.set(xscale="log", xlabel="depth L", ylabel="exponent (nats a layer)")
    gl.figures.ends(settling, 3 * float(data.records[-1]), ends)
    gl.figures.title(settling, "each exponent finds its law")
    off = np.sqrt((np.square(one.running - data.exponent_predicted)).mean("direction"))
    law = np.sqrt(float(data.variance_predicted.mean()) / data.records)
    gl.figures.measured(
        distance, data.records, off, next(gl.figures.series(1)), "all k, root mean square"
    )
    gl.figures.predicted(distance, data.records, law, r"law, $\propto 1/\sqrt{L}$")
    distance.set(
        xscale="log", yscale="log", xlabel="depth L", ylabel="distance from the law (nats)"
    )
    distance.legend(loc="lower left")
    gl.figures.title(distance, "as one over root L")
    names = ("exponent", "variance of a step")
    by_index.axhspan(-2, 2, color="0.92", zorder=0)
    gl.figures.rule(by_index, y=0)
    for z, name, look in zip(scores(data), names, gl.figures.series(2), strict=True):
        for draw in range(z.sizes["draw"]):
            label = None if draw else name
            gl.figures.measured(by_index, data.direction, z.isel(draw=draw), look, label)
    by_index.set(xlabel="index k", ylabel="standard errors from Newman's law", ylim=(-5, 5))
    by_index.legend(loc="lower left")
    gl.figures.words(by_index, 0.98, 0.71, "grey: two standard errors", ha="right", va="bottom")
    gl.figures.title(by_index, "within its standard error")
    return fig


def caption(data: xr.Dataset) -> str:
    """What the figure shows, in numbers."""
    z = np.concatenate([part.values.ravel() for part in scores(data)])
    return (
        f"After {data.attrs['depth']:,} layers of width {data.sizes['direction']} every Lyapunov "
        "exponent, and every variance of its steps, is on Newman's exact law: all within "
        f"{float(np.abs(z).max()):.1f} standard errors. Even the largest, "
        f"{float(data.exponent_predicted[0]):.3f} nats a layer, is below 0: a typical gradient "
        "vanishes, though its mean square keeps its size."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The first and the last exponent, in the mean over draws."""
    steps = data.attrs["depth"] * data.sizes["draw"]
    for name, place in (("largest exponent", 0), ("smallest exponent", -1)):
        row = data.isel(direction=place)
        error = gl.headline.HALF_WIDTH * np.sqrt(row.variance_predicted / steps)
        value, law = row.exponent.mean("draw"), row.exponent_predicted
        yield gl.Headline(name, value, "nats a layer", law, value - error, value + error)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Means and variances of all directions and draws at once, in chi squared, and the sum."""
    yield gl.claim.weights(data.entries, NEWMAN, over="part")
    for z, noun in zip(scores(data), ("exponents", "variances of the increments"), strict=True):
        sentence = f"the {noun} follow the exact law: chi squared over all directions and draws"
        yield gl.claim.chi_squared(sentence, z, NEWMAN)
    # A QR, and an SVD, are exact for a matrix changed by some n² eps of its norm (Higham 2002,
    # theorem 19.4); that moves the n logs by its condition number times as much, each. Sums of L
    # numbers are off by L eps of their sizes, at most.
    eps, n = float(np.finfo(data.running.dtype).eps), data.attrs["width"]
    sizes = np.sqrt(
        n * np.square(data.exponent_predicted).sum() + n * data.variance_predicted.sum()
    )
    yield gl.claim.everywhere(
        "at every depth the growth of all directions is that of log|det W|, layer by layer",
        *(data.running.sum("direction"), data.log_det, "Benettin et al. 1980"),
        rounding_of_the_matrices=8 * n**3 * eps * data.condition,
        rounding_of_the_sums=2 * eps * data.records * sizes,
    )
    steps = data.attrs["depth"] * data.sizes["draw"]
    yield gl.claim.everywhere(
        "the exponents add up to the mean log|det W|",
        data.exponent.mean("draw").sum(),
        data.exponent_predicted.sum(),
        GOODMAN,
        sampling=gl.estimate.Sampling(np.sqrt(data.variance_predicted.sum() / steps)),
    )
    yield gl.claim.at_most(
        "the largest exponent is below 0: at this width a typical gradient vanishes, though its "
        "mean square keeps its size",
        *(data.exponent.isel(direction=0).mean("draw"), 0.0, NEWMAN),
        # The mean is exactly known to be below 0; a short chain may be above it by chance.
        sampling=gl.estimate.Sampling(np.sqrt(data.variance_predicted[0] / steps)),
    )


FAULTS = {
    "weights 1 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.01),
    "weights 20 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.2),
    "weights of mean a tenth of their deviation": gl.fault.result(
        "ensembles.unit_gaussian", lambda W: W + 0.1 * W.shape[-1] ** -0.5
    ),
    "a layer's growth lost": gl.fault.result("spectra.log_growth", lambda g: g.at[0].set(0)),
    "orthogonal instead of Gaussian": gl.fault.change(
        "ensembles.unit_gaussian", lambda honest: gl.ensembles.unit_orthogonal
    ),
    "one entry in three is cut at one deviation": gl.fault.result(
        "ensembles.unit_gaussian",
        lambda W: jnp.clip(W, -(W.shape[-1] ** -0.5), W.shape[-1] ** -0.5),
    ),
}
HARMLESS = {
    "a Jacobian transposed": "a Gaussian matrix is as likely as its transpose",
    "each draw used twice": "there is one draw",
}
LESSON = gl.lesson.Offer(
    claims={
        "draws scatter": "variances of the increments follow",
        "typical is not the mean": "though its mean square keeps its size",
    }
)


if __name__ == "__main__":
    gl.run(__file__)
