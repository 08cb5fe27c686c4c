"""Where does optax's clipping by the global norm give the formula, and where does it not?

The formula g tau/max(|g|, tau) (Pascanu, Mikolov and Bengio 2013, algorithm 1) has one value for
every gradient. optax squares the entries in the gradient's own format: what is too large or too
small for that is lost without a word. Both are held against the exact value, in whole numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "clipping"
SOURCE = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
IEEE, NAN = "IEEE 754-2019, section 7", math.nan
# Case to first two entries of a gradient, its threshold, and what formula and optax make of them.
SPECIAL = {
    "zero": ((0.0, 0.0), 1.0, (0.0, 0.0), (0.0, 0.0)),
    "zero, τ = 0": ((0.0, 0.0), 0.0, (0.0, 0.0), (NAN, NAN)),
    "infinite": ((math.inf, 1.0), 1.0, (NAN, 0.0), (NAN, 0.0)),
    "nan": ((NAN, 1.0), 1.0, (NAN, NAN), (NAN, NAN)),
}


@gl.config
class Config:
    """Random gradients of many norms, in several formats."""

    dtype: gl.Strings
    num_entries: int = gl.key("entries of a gradient", at_least=4, at_most=4096)
    norm_from: float = gl.key("smallest norm of a gradient", at_least=1e-34, below="norm_to")
    norm_to: float = gl.key("largest norm of a gradient", at_most=1e35)
    num_norms: int = gl.key("norms, evenly spread over the logarithm", at_least=2, at_most=1001)
    tau_over_norm: gl.Floats = gl.key("thresholds over the norm", at_least=1e-3, at_most=1e3)
    num_draws: int = gl.key("random gradients of each norm", at_least=1, at_most=1000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """What optax and the formula make of random, critical and special gradients, by format."""
    formats = gl.grid.formats(cfg.dtype)
    norm = 10 ** jnp.linspace(jnp.log10(cfg.norm_from), jnp.log10(cfg.norm_to), cfg.num_norms)
    parts = [random_cases(cfg, norm, key), equal_cases(cfg, key), special_cases(cfg)]
    entries = jnp.concatenate([entries.reshape(-1, cfg.num_entries) for entries, _ in parts])
    tau, sizes = jnp.concatenate([tau.ravel() for _, tau in parts]), [t.size for _, t in parts]
    # One program for all cases of a format, because compiling it takes longer than running it.
    rows = [jax.vmap(functools.partial(one_gradient, name))(entries, tau) for name in formats]
    found = jax.tree.map(lambda *each: jnp.split(jnp.stack(each), np.cumsum(sizes)[:-1], 1), *rows)
    shape, axes = (len(formats), *parts[0][1].shape), "format tau_over_norm norm draw"
    known = [gl.theory.scalar.FORMATS[name] for name in formats]
    random = {
        name: gl.named(found[name][0].reshape(shape), axes, long_name=text)
        for name, text in QUANTITIES.items()
    }
    return random | {
        "format": gl.named(formats, "format"),
        "norm": gl.named(norm, "norm", long_name="norm of the gradient"),
        "special": gl.named(list(SPECIAL), "special"),
        "side": gl.named(["formula", "optax"], "side"),
        "first_two": gl.named(found["first_two"][2], "format special side entry"),
        "eps": gl.named(jnp.array([2 * one.unit for one in known]), "format"),
        "tiny": gl.named(2.0 ** jnp.array([one.log2_smallest_normal for one in known]), "format"),
        "root": gl.named(2.0 ** jnp.array([one.log2_overflow / 2 for one in known]), "format"),
        "root_error": gl.named([gl.formats.root_error(name) for name in formats], "format"),
        "quotient_error": gl.named([gl.formats.quotient_error(name) for name in formats], "format"),
        "changed_at_equality": gl.named(found["changed"][1], "format case"),
    }


QUANTITIES = {
    "below": "most ulps that an entry of the formula is below the exact value",
    "above": "most ulps that one is above it",
    "ulps": "most floats between an entry of optax's result and the formula's",
    "changed": "most floats between an entry of the formula's result and the gradient's",
    "left": "norm after optax's clip over the norm before",
    "size": "norm of the gradient in its format",
    "smallest": "smallest entry after the formula",
}


def random_cases(cfg: Config, norm: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients and thresholds over the axes (tau_over_norm, norm, draw)."""
    directions = jax.random.normal(key, (cfg.num_draws, cfg.num_entries))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    size = jnp.broadcast_to(norm[:, None], (cfg.tau_over_norm.size, cfg.num_norms, cfg.num_draws))
    return size[..., None] * directions, size * cfg.tau_over_norm[:, None, None]


def equal_cases(cfg: Config, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients whose norm is the threshold exactly: quadruples m² + n² + p² + q² and zeros."""
    m, n, p, q = jax.random.randint(key, (4, 10 * cfg.num_draws), 1, 5).astype(float)
    legs = [m * m + n * n - p * p - q * q, 2 * (m * q + n * p), 2 * (n * q - m * p)]
    padding = ((0, 0), (0, cfg.num_entries - 3))
    return jnp.pad(jnp.stack(legs, axis=1), padding), m * m + n * n + p * p + q * q


def special_cases(cfg: Config) -> tuple[jax.Array, jax.Array]:
    """The gradients of `SPECIAL` and their thresholds."""
    two, tau, *_ = (jnp.array(part) for part in zip(*SPECIAL.values(), strict=True))
    return jnp.pad(two, ((0, 0), (0, cfg.num_entries - 2))), tau


def one_gradient(dtype: str, entries: jax.Array, tau: jax.Array) -> dict[str, jax.Array]:
    """The quantities of one gradient `(num_entries,)` and one threshold in one format."""
    flat = gl.formats.settled(entries.astype(dtype))
    tau = tau.astype(jnp.promote_types(dtype, jnp.float32))
    result = gl.clipping.compare({"W": flat[:3], "b": flat[3:]}, tau)
    formula, by_optax = (jnp.concatenate([t["W"], t["b"]]) for t in (result.formula, result.optax))
    below = gl.theory.clipping.ulps_below(flat, tau, formula)
    return {
        "below": jnp.max(below),
        "above": jnp.max(-below),
        "ulps": result.max_ulps,
        "changed": jnp.max(gl.clipping.ulps(formula, flat)),
        "left": gl.formats.ratio(result.norm_optax, result.norm),
        "size": result.norm,
        "smallest": jnp.min(jnp.abs(formula)).astype(float),
        "first_two": jnp.stack([formula[:2], by_optax[:2]]).astype(entries.dtype),
    }


OUTCOMES: dict[str, dict[str, Any]] = {
    "right to rounding": {"color": "C2", "marker": ".", "linestyle": "none"},
    "not clipped": {"color": "C5", "marker": "^", "linestyle": "none"},
    "every entry 0": {"color": "C1", "marker": "v", "linestyle": "none"},
    "nan, or wrong": {"color": "black", "marker": "x", "linestyle": "none"},
}


def figure(data: xr.Dataset) -> gl.Figure:
    """What becomes of a gradient in optax, how it is rounded, and the special cases."""
    fig, (outcome, off) = gl.figures.panels(1, 2, height=2.4, width_ratios=(1.5, 1))
    one = data.isel(tau_over_norm=0, draw=0)
    index = np.select([one.ulps <= rounding(data), one.left == 1, one.left == 0], [0, 1, 2], 3)
    for lane in range(data.sizes["format"]):
        for place, look in enumerate(OUTCOMES.values()):
            x = data.norm[(index[lane] == place) & np.isfinite(one["size"][lane])]
            gl.figures.measured(outcome, x, np.full(x.size, -lane), look, markevery=1)
    outcome.set_yticks(-np.arange(data.sizes["format"]), data.format.values)
    outcome.set(xscale="log", xlabel="norm of the gradient", ylabel="format", ylim=(None, 1.6))
    gl.figures.key(outcome, OUTCOMES, loc="upper center", ncols=2)
    gl.figures.title(outcome, f"optax, τ = {data.tau_over_norm[0]:g} ‖gradient‖")
    ulps = one.ulps[-1].where(one.ulps[-1] <= rounding(data)[-1])
    gl.figures.measured(off, data.norm, ulps, {"color": "C3", "marker": "o"})
    gl.figures.measured(off, data.norm, one.below[-1], {"color": "C0", "marker": "s"})
    gl.figures.bound(off, data.norm, np.ones(data.norm.size))
    gl.figures.words(off, 0.03, 0.93, "optax: from the formula", color="C3")
    gl.figures.words(off, 0.03, 0.05, "formula: below the exact value", color="C0")
    off.set(xscale="log", xlabel="norm of the gradient", ylabel="ulps, largest", ylim=(-0.4, None))
    gl.figures.title(off, f"rounding in {data.format[-1].item()}")
    return fig


def caption(data: xr.Dataset) -> str:
    """What the figure says, with its numbers."""
    lost = zip(data.format.values, data.root.values, strict=True)
    return (
        "optax clips a gradient right where its squares stay within its format. From a norm of "
        + ", ".join(f"{limit:.3g} ({name})" for name, limit in lost)
        + " on every entry becomes 0 without a word; far below, nothing is clipped. The formula "
        "is the exact value rounded toward zero."
    )


def rounding(data: xr.Dataset) -> xr.DataArray:
    """The most floats that roundings alone put between optax and the formula, by format."""
    # In half ulps: root and quotient what the device says, the product one, the formula two, and
    # half of the sum's: one of the squares, one of those lost below the smallest normal number, and
    # one for each term. A short format is summed in float32, so that each of two leaves and their
    # sum is rounded once.
    terms = 2 + (data.eps <= 2.0**-23) * (data.attrs["num_entries"] - 2)
    return data.root_error + data.quotient_error + 3 + (2 + terms) / 2


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """How far the formula is off, and how often optax is."""
    finite, wrong = np.isfinite(data["size"]), ~(data.ulps <= rounding(data))
    yield gl.Headline("formula off by at most", data.below.where(finite).max(), "ulps")
    yield gl.Headline("wrong in optax", 100 * wrong.where(finite).mean(), "%")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The formula to the ulp, then optax: where it agrees, and what it loses."""
    size, tau, tiny = data["size"], data.tau_over_norm * data.norm, data.tiny
    finite, slack = np.isfinite(size), rounding(data) * data.eps
    # |g| and tau are compared up to 2^12 eps² of the arithmetic (gl.clipping): 2/eps times in ulps.
    twice = 2.0**13 * np.minimum(data.eps, 2.0**-23) ** 2 / data.eps
    for sentence, off, most in (
        ("no entry is more than an ulp below the exact value, in any format", data.below, 1.0),
        ("and none is above it, so that a clipped norm is never above tau", data.above, 0.0),
    ):
        causes = {"where": finite, "arithmetic_in_twice_the_digits": twice}
        yield gl.claim.at_most(f"the formula: {sentence}", off, most, SOURCE, **causes)
    below = data.changed.where(finite & (size * (1 + 2 * data.eps) < tau), 0.0)
    for norm, changed in (("below tau", below), ("tau", data.changed_at_equality)):
        sentence = f"the formula: a gradient whose norm is {norm} keeps every bit"
        yield gl.claim.equal(sentence, changed, 0.0, SOURCE)
    for side, name in enumerate(data.side.values):
        wanted = np.array([case[2 + side] for case in SPECIAL.values()])
        found = data.first_two.sel(side=name)
        yield gl.claim.always(
            f"{name}: zero, infinity and nan give {', '.join(map(str, wanted.ravel()))}",
            *((found == wanted) | (np.isnan(found) & np.isnan(wanted)), IEEE),
        )
    fits = finite & (tau >= tiny) & (tau < data.root**2)
    enough = np.sqrt(2 * data.attrs["num_entries"] * tiny / data.eps)
    normal = fits & (data.smallest >= tiny) & (size >= enough)
    held = normal & (size < data.root * (1 - slack))
    if held.any():
        yield gl.claim.at_most(
            "optax: where squares and results are in a format's range, the formula to rounding",
            *(data.ulps, 0.0, SOURCE),
            where=held,
            rounding=rounding(data),
        )
    over = fits & (size > data.root * (1 + slack))
    # A square below half the smallest subnormal number is 0 whether or not these are kept.
    under = fits & (size > 0) & (size < np.sqrt(tiny * data.eps / 2))
    for sentence, where, left in (
        ("a finite gradient whose squares overflow becomes 0, every entry", over, 0.0),
        ("a gradient whose squares underflow is not clipped", under, 1.0),
    ):
        if where.any():
            yield gl.claim.equal(f"optax: {sentence}", data.left.where(where, left), left, IEEE)


def finite_only(tree: Any) -> Any:
    """The result with infinity and nan hidden."""
    return jax.tree.map(jnp.nan_to_num, tree)


FAULTS = {
    "threshold 1 % too low": gl.fault.argument("clipping.formula", tau=lambda tau: 0.99 * tau),
    "an ulp too long": gl.fault.result(
        "clipping.formula", lambda tree: jax.tree.map(lambda x: jnp.nextafter(x, 2 * x), tree)
    ),
    "infinity and nan hidden": gl.fault.result("clipping.formula", finite_only),
    "optax for the formula": gl.fault.change("clipping.formula", lambda _: gl.clipping.optax_clip),
    "optax's nan hidden": gl.fault.result("clipping.optax_clip", finite_only),
    "optax's threshold 1 % off": gl.fault.argument("clipping.optax_clip", tau=lambda t: 1.01 * t),
    "formula for optax": gl.fault.change("clipping.optax_clip", lambda _: gl.clipping.formula),
}


if __name__ == "__main__":
    gl.run(__file__)
