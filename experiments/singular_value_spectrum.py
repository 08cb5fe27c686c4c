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

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
SMALLEST = 1e-16  # where an error of nothing is drawn on a log axis
ALGORITHMS = ("graded", "svd of product", "forward QR")
DEMMEL = "d_i^L by construction; method after Demmel et al. 1999"
BENETTIN = "Benettin et al. 1980; the Cauchy-Binet formula for the k-th minors of the product"
SANKAR = "Golub and Van Loan 2013, section 8.6; Sankar, Spielman and Teng 2006, theorem 3.3"
CHANCE = 1e-4  # that noise of random signs has a smaller singular value than is allowed


@gl.config
class Config:
    """One chain with a prescribed spectrum, in several formats."""

    width: int
    depth: int
    condition: float = gl.key("largest over smallest d_i of a layer", above=1, at_most=1e8)
    dtype: gl.Strings
    num_depths: int = gl.key("depths recorded", at_least=1, at_most=100)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The log singular values by depth, for every method and format, and the true ones."""
    depths = gl.grid.depths(cfg.depth, cfg.num_depths)
    Q = frames(key, cfg)
    J = layers(Q, cfg)
    names = gl.grid.formats(cfg.dtype)
    found = jnp.stack([by_every_method(J.astype(name), depths).astype(float) for name in names])
    own = gl.certificate.singular_value_bound  # what the graded method says of its error
    bound = [own(gl.chain.linear(J.astype(n)), jnp.zeros(cfg.width, n), depths) for n in names]
    at, nats = jnp.array(depths), {"units": "nats"}
    true = at[:, None] * log_stretch(cfg)[None, :]
    log_det = jnp.cumsum(jnp.linalg.slogdet(J)[1])[at - 1]
    axes, label = "format algorithm depths direction", "log |k-th leading minor of the first frame|"
    return {
        "format": gl.named(names, "format"),
        "algorithm": gl.named(list(ALGORITHMS), "algorithm"),
        "depths": gl.named(jnp.array(depths), "depths", long_name="depth L"),
        "log_sigma": gl.named(found, axes, long_name="log singular value", **nats),
        "bound": gl.named(
            jnp.stack(bound), "format depths", long_name="of the graded method's error", **nats
        ),
        "log_sigma_true": gl.named(true, "depths direction", long_name="L log d_i", **nats),
        "log_minor": gl.named(log_minors(Q[0]), "direction", long_name=label),
        "log_det": gl.named(log_det, "depths", long_name="sum of log|det J_k|", **nats),
    }


def log_stretch(cfg: Config) -> jax.Array:
    """The log of the stretch d_i of every layer, from 0 down to -log(condition), `(width,)`."""
    return -jnp.linspace(0.0, 1.0, cfg.width) * jnp.log(cfg.condition)


def frames(key: jax.Array, cfg: Config) -> jax.Array:
    """The frames `Q_0 ... Q_depth`, `(depth + 1, width, width)`, Haar orthogonal."""
    return gl.ensembles.unit_orthogonal(key, (cfg.depth + 1, cfg.width, cfg.width), float)


def layers(Q: jax.Array, cfg: Config) -> jax.Array:
    """The Jacobians `Q_k D Q_{k-1}^T`, `(depth, width, width)`."""
    return jnp.einsum("kij,j,klj->kil", Q[1:], jnp.exp(log_stretch(cfg)), Q[:-1])


def log_minors(Q_0: jax.Array) -> jax.Array:
    """The logs of the leading minors of `Q_0^T S`, `(width,)`, S being what a forward QR starts at.

    By Cauchy and Binet the first k diagonal entries of R multiply to `d_1^L ... d_k^L` times the
    k-th of them, as L grows: the QR's offset, which no depth mends.
    """
    M = Q_0.T @ gl.spectra.orthogonal_start(jnp.zeros(len(Q_0)))
    return jnp.stack([jnp.linalg.slogdet(M[:k, :k])[1] for k in range(1, len(M) + 1)])


def by_every_method(J: jax.Array, depths: tuple[int, ...]) -> jax.Array:
    """`log sigma_i` in the format of `J`, `(len(ALGORITHMS), num_depths, width)`, descending."""
    model, x = gl.chain.linear(J), jnp.zeros(J.shape[-1], J.dtype)
    at = jnp.array(depths) - 1
    growth = jnp.cumsum(gl.spectra.log_growth(model, x), axis=0)[at]
    return jnp.stack(
        [gl.spectra.log_singular_values(model, x, depths), svd_of_product(model, x, at), growth]
    )


def svd_of_product(model: gl.chain.Model, x: jax.Array, at: jax.Array) -> jax.Array:
    """The log singular values that LAPACK finds in the product, which is kept from underflow."""
    products = gl.jacobians.along(model, x, lambda P: P)
    values = jnp.linalg.svd(products.mantissa[at], compute_uv=False)
    return jnp.log(values) + math.log(2) * products.exponent[at, :, 0].astype(values.dtype)


def figure(data: xr.Dataset) -> gl.Figure:
    """The weakest direction by depth on the exact line, and how far each method is from it."""
    fig, (values, errors) = gl.figures.panels(1, 2, height=2.6)
    last = data.isel(direction=-1)
    # Formats differ in size of mark; a method that is more than 10 % off is drawn open.
    gl.figures.predicted(values, data.depths, last.log_sigma_true / gl.LN10, "exact")
    error = np.abs(last.log_sigma - last.log_sigma_true)
    looks = list(gl.figures.series(len(ALGORITHMS)))
    for name, size in zip(data.format.values, (3.2, 6.0, 8.0, 10.0), strict=False):
        for (place, algorithm), look in zip(enumerate(ALGORITHMS), looks, strict=True):
            picked = {"algorithm": algorithm, "format": name}
            off = error.sel(picked)
            wrong = bool((off > 0.1 * np.abs(last.log_sigma_true)).any())
            mark = look | {"markersize": size, "fillstyle": "none" if wrong else "full"}
            shown = slice(place % data.sizes["depths"], None, len(ALGORITHMS))
            if wrong:
                shown = slice(None)
            found = last.log_sigma.sel(picked) / gl.LN10
            gl.figures.measured(values, data.depths[shown], found[shown], mark)
            gl.figures.measured(errors, data.depths, off.where(off > 0, SMALLEST), mark)
    marks = {
        name: look | {"linestyle": "none"} for name, look in zip(ALGORITHMS, looks, strict=True)
    }
    gl.figures.key(values, marks | {"exact": gl.figures.THEORY}, loc="lower left")
    values.set(xlabel="depth L", ylabel=r"$\log_{10}$ smallest singular value")
    gl.figures.words(values, 0.97, 0.86, "open: more than 10 % off", ha="right")
    gl.figures.title(values, "the weakest direction")
    errors.set(yscale="log", xlabel="depth L", ylabel="error of its log (nats)", ylim=(1e-17, 1e5))
    sizes = ", ".join(str(name) for name in data.format.values)
    gl.figures.words(errors, 0.97, 0.3, f"small to large marks: {sizes}\n1e-16: none", ha="right")
    gl.figures.title(errors, "how wrong")
    return fig


def caption(data: xr.Dataset) -> str:
    """What the figure shows, in numbers."""
    last = data.isel(direction=-1, depths=-1, format=-1)
    off = np.abs(last.log_sigma - last.log_sigma_true)
    of_svd, of_qr = (float(off.sel(algorithm=name)) for name in ALGORITHMS[1:])
    return (
        f"At depth {int(last.depths)} the weakest direction is 10^"
        f"{float(last.log_sigma_true) / gl.LN10:.0f}. The SVD of the computed product stops at its "
        f"rounding, {of_svd:.0f} nats above; the forward QR has the rate and stays {of_qr:.1f} "
        "nats off; the graded factorisation is right to "
        f"{float(off.sel(algorithm='graded')):.0e} nats."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The weakest direction at the full depth by the graded method, and how far others are off."""
    last = data.isel(direction=-1, depths=-1, format=-1)
    exact, (graded, *others) = last.log_sigma_true / gl.LN10, last.log_sigma / gl.LN10
    yield gl.Headline("weakest direction", graded, "decades", exact)
    for name, found in zip(("SVD", "forward QR"), others, strict=True):
        yield gl.Headline(f"error of {name}", found - exact, "decades")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """What each method can tell, in each format."""
    depth, width, condition = (data.attrs[name] for name in ("depth", "width", "condition"))
    true = float(np.abs(data.log_sigma_true).max())
    eps = data.format.copy(
        data=[2 * gl.theory.scalar.FORMATS[str(name)].unit for name in data.format.values]
    )
    # A rounded J_k moves its weakest direction by up to condition roundings, a log by its own size.
    layers, log = depth * width * condition * eps, 4 * true * eps
    exact = -data.depths * data.direction / max(1, width - 1) * math.log(condition)
    graded, of_svd, qr = (data.log_sigma.sel(algorithm=name) for name in ALGORITHMS)
    yield gl.claim.everywhere(
        "the graded factorisation has the log of every singular value at every depth",
        *(graded, exact, DEMMEL),
        rounding_of_the_layers=layers,
        rounding_of_the_method=data.bound,
        rounding_of_the_log=log,
    )
    # What lies below eps times the largest is noise: about half an eps over √12 of entries of the
    # size 1/width, of which some direction sees less than x times that with a probability of less
    # than 2.35 √width x. LAPACK may call what is far below that 0, so the strongest is looked at.
    noise = math.log(2.35 * width**1.5 / CHANCE) + math.log(2 * math.sqrt(12))
    last, floor = data.log_sigma_true[-1], np.log(eps) - noise
    if (lost := last < floor).any():
        yield gl.claim.at_least(
            "the SVD of the product has lost every direction far below eps times the largest: the "
            "strongest of them lies, in its log, as far off as noise of size eps",
            *(np.abs(of_svd[:, -1] - last), floor - last, SANKAR),
            where=lost & (lost.cumsum("direction") == 1),
            chance=CHANCE * data.sizes["format"],
        )
    # Factors are at most 1 in norm: each adds its own rounding and that of a product, together less
    # than n² eps (Higham 2002, section 3.5), LAPACK as much, and no singular value moves by more.
    moved = (data.depths + 1) * width**2 * eps / np.exp(data.log_sigma_true)
    yield gl.claim.everywhere(
        "the SVD of the product has the log of every direction far above its rounding",
        *(of_svd, data.log_sigma_true, SANKAR),
        where=moved < 0.5,
        rounding_of_the_product=-np.log1p(-np.minimum(moved, 0.5)),
        rounding_of_the_log=log,
    )
    # R's first k entries squared multiply to a sum over all k-th minors of Q_0^T S, whose squares
    # add up to 1; all but the first are smaller by the ratio of two neighbours, d_(k+1)/d_k.
    minor = data.log_minor.where((k := 1 + data.direction) < width, 0.0)  # |det| is 1
    squares = np.exp(2 * minor)
    ratio = condition ** (-2 * data.depths / max(1, width - 1))
    others = np.maximum(1 - squares, 0).where(k < width, 0.0)
    yield gl.claim.everywhere(
        "the forward QR is not the singular values: it is off by the log of a minor of the first "
        "frame, at every depth",
        *(qr.cumsum("direction"), data.log_sigma_true.cumsum("direction") + minor),
        BENETTIN,
        smaller_minors=np.log1p(ratio * others / squares) / 2,
        # As of one log, k of them, more where the first frame is nearly on another subspace.
        rounding_of_the_layers=k * layers / np.sqrt(squares),
        rounding_of_the_logs=k * log,
    )
    yield gl.claim.everywhere(
        "the log singular values add up to log|det|, the sum of log|det J_k|",
        *(graded.sum("direction"), data.log_det, "|det P| is their product"),
        rounding_of_the_layers=width * layers,
        rounding_of_the_logs=width * log,
    )


FAULTS = {
    "layers 0.1 % too strong": gl.fault.scale("layers", 1.001),
    "layers transposed": gl.fault.result("layers", lambda J: J.mT),
    "one matrix used for two layers": gl.fault.result("layers", lambda J: J.at[1].set(J[0])),
    "one layer missing": gl.fault.result("layers", lambda J: J.at[0].set(jnp.eye(J.shape[-1]))),
    "the product's SVD taken for the graded one": gl.fault.change(
        "spectra.log_singular_values",
        lambda honest: lambda model, x, depths: svd_of_product(model, x, jnp.array(depths) - 1),
    ),
    "the graded one taken for the product's SVD": gl.fault.result(
        "by_every_method", lambda values: values.at[1].set(values[0])
    ),
    "the singular values taken for the forward QR": gl.fault.result(
        "by_every_method", lambda values: values.at[2].set(values[0])
    ),
    "forward QR forgets a layer": gl.fault.result("spectra.log_growth", lambda g: g.at[0].set(0)),
}
HARMLESS = {"each matrix used for two layers": "any frames have the same singular values"}

if __name__ == "__main__":
    gl.run(__file__)
