"""Is optax's clipping by the global norm the formula, in every float format?

The formula g <- g tau / max(|g|, tau) (Pascanu, Mikolov and Bengio 2013, algorithm 1) keeps the
direction of a gradient and caps its norm. As `gl.clipping.clip` evaluates it, every entry is right
to an ulp at any size; optax squares the entries first, which leaves the range of a short format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

SOURCE = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
IEEE = "IEEE 754-2019, section 7"

NUM_ENTRIES = 16  # of one random gradient: a 4 by 3 weight and a bias of 4
SPECIAL = (
    "zero",
    "zero, tau = 0",
    "one entry infinite",
    "one entry nan",
    "squares overflow",
    "squares underflow",
)


@gl.config
class Config:
    """The formats, and the random gradients that are clipped in them."""

    dtype: gl.Strings
    ratio: gl.Floats = gl.key("thresholds over the norm: one clips, one does not", above=0)
    decades: float = gl.key("norms are between 1e-decades and 1e+decades", above=0, at_most=30)
    num_norms: int = gl.key("norms between these", at_least=2, at_most=1001)
    num_draws: int = gl.key("random gradients of each norm", at_least=1, at_most=1000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """What optax and the formula make of random and of special gradients, in each format."""
    names = gl.grid.formats(cfg.dtype)
    rows = [one_format(cfg, key, name) for name in names]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    at = {
        "": ("ratio", "norm", "draw"),
        "_at_equality": ("draw_at_equality",),
        "_special": ("special",),
    }
    return {
        "format": gl.named(names, "format"),
        "norm": gl.named(norms(cfg), "norm", long_name="norm of the gradient"),
        "special": gl.named(list(SPECIAL), "special"),
        "cause": gl.named(list(gl.clipping.CAUSES), "cause"),
    } | {
        f"{name}{part}": gl.named(values, "format", *axes, long_name=QUANTITIES[name])
        for part, axes in at.items()
        for name, values in stacked[part].items()
    }


QUANTITIES = {
    "ulps": "most floats between an entry of optax's result and the formula's",
    "why": "index of the cause of the disagreement",
    "bend_optax": "1 - cosine of the angle between the gradient and optax's result",
    "bend_formula": "1 - cosine of the angle between the gradient and the formula's result",
    "norm_optax": "norm after optax's clip over min(norm, threshold)",
    "norm_formula": "norm after the formula over min(norm, threshold)",
    "low": "most ulps that an entry of the formula's result is below the exact one",
    "high": "most ulps that one is above it",
    "changed": "most floats between an entry of the formula's result and the gradient's",
    "first_optax": "first entry after optax's clip",
    "second_optax": "second entry after optax's clip",
    "first_formula": "first entry after the formula",
    "second_formula": "second entry after the formula",
    "normal": "1 where every exact entry is a normal number of the format",
}


ENTRIES = ("first_optax", "second_optax", "first_formula", "second_formula")
RANDOM = tuple(name for name in QUANTITIES if name not in ENTRIES)


def norms(cfg: Config) -> jax.Array:
    """The norms of the random gradients, `(num_norms,)`."""
    return jnp.logspace(-cfg.decades, cfg.decades, cfg.num_norms)


def one_format(cfg: Config, key: jax.Array, dtype: str) -> dict[str, dict[str, jax.Array]]:
    """All quantities of the random gradients, those at equality and the special ones."""
    key_random, key_equal = jax.random.split(key)
    random = random_cases(cfg, key_random)
    parts = [random, equal_cases(cfg, key_equal), special_cases(dtype)]
    entries = jnp.concatenate([part[0].reshape(-1, NUM_ENTRIES) for part in parts])
    tau = jnp.concatenate([part[1].ravel() for part in parts])
    # One program for all three, because compiling it takes longer than running it.
    measured = jax.vmap(lambda entries, tau: one_gradient(entries, tau, dtype))(entries, tau)
    ends = np.cumsum([part[1].size for part in parts])[:2]
    split = {name: jnp.split(values, ends) for name, values in measured.items()}
    return {
        "": {name: split[name][0].reshape(random[1].shape) for name in RANDOM},
        "_at_equality": {name: split[name][1] for name in ("ulps", "why", "changed")},
        "_special": {name: split[name][2] for name in ("ulps", "why", *ENTRIES)},
    }


def random_cases(cfg: Config, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients and thresholds over the axes (ratio, norm, draw)."""
    directions = jax.random.normal(key, (cfg.num_draws, NUM_ENTRIES))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    size = jnp.broadcast_to(norms(cfg)[:, None], (cfg.ratio.size, cfg.num_norms, cfg.num_draws))
    return size[..., None] * directions[None, None], size * cfg.ratio[:, None, None]


def equal_cases(cfg: Config, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients whose norm is the threshold exactly: four Pythagorean quadruples and zeros."""
    m, n, p, q = jax.random.randint(key, (4, 10 * cfg.num_draws), 1, 5).astype(float)
    legs = (m * m + n * n - p * p - q * q, 2 * (m * q + n * p), 2 * (n * q - m * p))
    quadruple = jnp.stack([*legs, jnp.zeros_like(m)], axis=1)
    return jnp.tile(quadruple, 4), 2 * (m * m + n * n + p * p + q * q)


def special_cases(dtype: str) -> tuple[jax.Array, jax.Array]:
    """The gradients in `SPECIAL`, whose first entries tell them apart, and their thresholds."""
    info = finfo(dtype)
    large, small = float(info.max) / 8, float(info.tiny) * 8
    start = {
        "zero": ([0.0, 0.0], 1.0),
        "zero, tau = 0": ([0.0, 0.0], 0.0),
        "one entry infinite": ([jnp.inf, 1.0], 1.0),
        "one entry nan": ([jnp.nan, 1.0], 1.0),
        "squares overflow": ([large, large], 1.0),
        "squares underflow": ([small, small], small),
    }
    entries = jnp.zeros((len(SPECIAL), NUM_ENTRIES))
    entries = entries.at[:, :2].set(jnp.array([start[name][0] for name in SPECIAL]))
    return entries, jnp.array([start[name][1] for name in SPECIAL])


def one_gradient(entries: jax.Array, tau: jax.Array, dtype: str) -> dict[str, jax.Array]:
    """The quantities of one gradient `(NUM_ENTRIES,)` and one threshold in one format."""
    flat = entries.astype(dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    tau = tau.astype(wide)
    result = gl.clipping.compare({"W": flat[:12].reshape(4, 3), "b": flat[12:]}, tau)
    # The exact value is good to some ulps of the default format only.
    exact = gl.theory.clipping.clipped(flat.astype(float), tau.astype(float))
    after = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(result.formula)])
    after_optax = result.optax["W"].ravel()
    low = (jnp.abs(exact) - jnp.abs(after.astype(float))) / ulp(exact, dtype)
    capped = jnp.minimum(result.norm, tau)
    return {
        "ulps": result.max_ulps,
        "why": result.cause,
        "bend_optax": 1 - result.cosine_optax,
        "bend_formula": 1 - result.cosine_formula,
        "norm_optax": result.norm_optax / capped,
        "norm_formula": result.norm_formula / capped,
        "low": jnp.max(low),
        "high": jnp.max(-low),
        "changed": jnp.max(gl.clipping.ulps(after, flat)),
        "first_optax": after_optax[0].astype(float),
        "second_optax": after_optax[1].astype(float),
        "first_formula": after[0].astype(float),
        "second_formula": after[1].astype(float),
        "normal": (jnp.min(jnp.abs(exact)) >= float(finfo(dtype).tiny)).astype(jnp.int32),
    }


def finfo(dtype: Any) -> Any:
    """What a format holds; jax gives its own function no types."""
    read: Any = jnp.finfo
    return read(dtype)


def ulp(value: jax.Array, dtype: str) -> jax.Array:
    """The distance between the floats of a format around a value."""
    info = finfo(dtype)
    exponent = jnp.frexp(value)[1] - 1
    return jnp.ldexp(1.0, jnp.maximum(exponent, int(info.minexp)) - info.nmant)


# ---- the figure


def figure(data: xr.Dataset) -> gl.Figure:
    """Optax beside the formula: entries, the norm that is left, and why they differ."""
    fig, (values, left, causes) = gl.figures.panels(1, 3, height=2.6)
    draw_values(values, data)
    draw_norms(left, data)
    draw_causes(causes, data)
    for axes, text in (
        (values, "optax off the formula"),
        (left, "norm after optax"),
        (causes, "why, how often"),
    ):
        gl.figures.title(axes, text)
    return fig


def caption(data: xr.Dataset) -> str:
    """From which norm on optax loses a gradient, in each format."""
    lost = {
        name: limit(str(name))
        for name in data.format.values
        if limit(str(name)) < 10 ** float(data.attrs["decades"])
    }
    ends = (
        ", ".join(f"{size:.2g} in {name}" for name, size in lost.items()) or "none of these norms"
    )
    return (
        f"optax's clip agrees with g τ / max(‖g‖, τ) to some ulps, until the squares leave the "
        f"format's range: from a norm of {ends} every entry silently becomes 0. The formula's own "
        f"entries are right to an ulp at every norm."
    )


def draw_formats(axes: gl.Axes, data: xr.Dataset, name: str, low: float, high: float) -> None:
    """The worst draw at each norm for each format, within limits; nan at the upper one."""
    worst = data[name].isel(ratio=0).max("draw", skipna=False)
    shown = worst.fillna(high).clip(low, high)
    num_formats = data.sizes["format"]
    for i, look in enumerate(gl.figures.series(num_formats)):
        every = slice(i, None, max(1, num_formats * data.sizes["norm"] // 120))
        axes.plot(
            data.norm[every],
            shown.isel(format=i)[every],
            **look | {"linestyle": "none", "markersize": 2.6, "markerfacecolor": "none"},
            label=str(data.format.values[i]),
        )
    axes.set(xscale="log", xlabel="norm of the gradient", xticks=[1e-30, 1e-15, 1, 1e15, 1e30])
    axes.minorticks_off()


def draw_overflows(axes: gl.Axes, data: xr.Dataset) -> None:
    """The norms from which a sum of squares overflows: predicted."""
    for name in data.format.values:
        if limit(str(name)) <= float(data.norm[-1]):
            axes.axvline(limit(str(name)), **gl.figures.THEORY | {"linestyle": ":"})


def draw_values(axes: gl.Axes, data: xr.Dataset) -> None:
    """Ulps between the two, at thresholds of a tenth of the norm."""
    draw_formats(axes, data, "ulps", 0.4, 1e11)
    draw_overflows(axes, data)
    axes.axhline(ROUNDING, **gl.figures.THEORY, label="bound on rounding")
    axes.set(yscale="log", ylabel="ulps apart", ylim=(0.2, 3e11))
    axes.set_yticks([0.4, 10, 1e4, 1e8, 1e11], ["0", "10", r"$10^4$", r"$10^8$", "nan"])
    axes.minorticks_off()
    axes.legend(*(part[-1:] for part in axes.get_legend_handles_labels()), loc=(0.03, 0.5))


def draw_norms(axes: gl.Axes, data: xr.Dataset) -> None:
    """The norm over the threshold: 1 where it is right."""
    draw_formats(axes, data, "norm_optax", 0.0, 12.5)
    draw_overflows(axes, data)
    axes.axhline(1, **gl.figures.THEORY)
    axes.set_ylabel(r"$\|g\|/\tau$ after the clip")
    axes.set_yticks([0, 1, 5, 10, 12.5], ["0", "1", "5", "10", "nan"])
    axes.legend(loc=(0.1, 0.3), handletextpad=0.2)


def draw_causes(axes: gl.Axes, data: xr.Dataset) -> None:
    """How many of all the gradients, those at equality and special too, differ by which cause."""
    why = (data.why, data.why_at_equality, data.why_special)
    each = np.concatenate([part.values.reshape(data.sizes["format"], -1) for part in why], axis=1)
    counts = np.stack([(each == i).sum(axis=1) for i in range(data.sizes["cause"])])
    axes.imshow(counts > 0, cmap="Greys", vmin=0, vmax=8, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=5.5)
    short = [str(name).removesuffix(" at equality") for name in data.cause.values]
    short = [name.replace("none", "agree").replace("low-precision", "16-bit") for name in short]
    axes.set_yticks(range(len(short)), short, fontsize=5)
    names = [str(name).replace("float", "f") for name in data.format.values]
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.set(xlabel="format", ylabel="cause")


# ---- the claims

# Ulps: the norm 4 (two in a mantissa near 2), the quotient 1, the product 1, the formula 1.
ROUNDING = 7


def limit(name: str) -> float:
    """The norm from which the sum of squares is above the range of a format: sqrt(max)."""
    return math.sqrt(float(finfo(name).max))


def bend(name: str) -> float:
    """What rounding can add to 1 - cosine: half an angle of one ulp squared, and the cosine's."""
    wide = finfo(jnp.promote_types(name, jnp.float32))
    return float(finfo(name).eps) ** 2 / 2 + NUM_ENTRIES * float(wide.eps)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The formula and optax in each format, then the special gradients."""
    for name in data.format.values:
        yield from formula_claims(data.sel(format=name), str(name))
        yield from optax_claims(data.sel(format=name), str(name))
    yield from special_claims(data)


def formula_claims(data: xr.Dataset, name: str) -> Iterator[gl.Claim]:
    """Values, norm and direction of the formula, and where it must change nothing."""
    eps = float(finfo(name).eps)
    wide = float(finfo(jnp.promote_types(name, jnp.float32)).eps)
    # The exact value is computed in the default format, with a few roundings.
    exact = {"rounding of the exact value": 8 * float(np.finfo(data.norm.dtype).eps) / eps}
    finite = np.isfinite(data.low)
    yield gl.Claim(
        f"{name}: no entry is more than one ulp below the exact formula",
        measured=worst(data.low.where(finite)),
        expected=1.0,
        tolerance=exact,
        source=SOURCE,
        relation="<=",
    )
    yield gl.Claim(
        f"{name}: no entry is above the exact formula",
        measured=worst(data.high.where(finite)),
        expected=0.0,
        tolerance=exact | {"two-float arithmetic, ulps": 2.0**-9},
        source=SOURCE,
        relation="<=",
    )
    finite &= np.isfinite(data.norm_formula)
    yield gl.Claim(
        f"{name}: the norm after clipping is never above the threshold",
        measured=worst(data.norm_formula.where(finite)),
        expected=1.0,
        tolerance={"rounding of the ratio": wide},
        source=SOURCE,
        relation="<=",
    )
    yield gl.Claim(
        f"{name}: clipping keeps the direction (1 - cosine, entries being normal numbers)",
        measured=worst(np.abs(data.bend_formula).where(finite & (data.normal == 1))),
        expected=0.0,
        tolerance={"rounding": bend(name)},
        source=SOURCE,
    )
    yield gl.Claim(
        f"{name}: a gradient below the threshold keeps every bit (ulps)",
        measured=worst(data.changed.where(finite).isel(ratio=1)),
        expected=0.0,
        tolerance={},
        source=SOURCE,
    )
    yield gl.Claim(
        f"{name}: a gradient whose norm is the threshold keeps every bit (ulps)",
        measured=worst(data.changed_at_equality),
        expected=0.0,
        tolerance={},
        source=SOURCE,
    )


def optax_claims(data: xr.Dataset, name: str) -> Iterator[gl.Claim]:
    """Where optax agrees, by how much it does not, and where its norm overflows."""
    causes = list(data.cause.values)
    plain = data.why.isin([causes.index("rounding"), causes.index("one-ulp corner at equality")])
    if plain.any():
        yield gl.Claim(
            f"{name}: where no cause but rounding is named, optax is within {ROUNDING} ulps",
            measured=worst(data.ulps.where(plain)),
            expected=ROUNDING,
            tolerance={},
            source=SOURCE,
            relation="<=",
        )
    yield gl.Claim(
        f"{name}: at a norm equal to the threshold optax is within an ulp",
        measured=worst(data.ulps_at_equality),
        expected=1.0,
        tolerance={},
        source=SOURCE,
        relation="<=",
    )
    grid = np.log10(data.norm.values)
    overflows = (data.why == causes.index("norm overflow")).any(("ratio", "draw"))
    first = grid[np.argmax(overflows.values)] if overflows.any() else math.inf
    expected = math.log10(limit(name))
    yield gl.Claim(
        f"{name}: optax loses the gradient from log10 norm = log10(max)/2 on, by overflow",
        measured=first,
        expected=expected if expected <= grid[-1] else math.inf,
        tolerance={"grid of norms": grid[1] - grid[0]},
        source=IEEE,
    )


def special_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Zero, infinity and nan: what both give, and where only optax gives nan."""
    cases = (
        ("zero", "formula", (0.0, 0.0), "a zero gradient stays zero"),
        ("zero", "optax", (0.0, 0.0), "a zero gradient stays zero in optax too"),
        ("zero, tau = 0", "formula", (0.0, 0.0), "a zero gradient stays zero at tau = 0"),
        ("zero, tau = 0", "optax", (math.nan,) * 2, "optax gives 0/0 = nan there"),
        ("one entry infinite", "formula", (math.nan, 0.0), "infinity gives nan there, 0 elsewhere"),
        ("one entry infinite", "optax", (math.nan, 0.0), "as it does in optax"),
        ("one entry nan", "formula", (math.nan,) * 2, "one nan makes everything nan"),
        ("one entry nan", "optax", (math.nan,) * 2, "as it does in optax"),
    )
    for case, side, wanted, sentence in cases:
        row = data.sel(special=case)
        found = np.stack([row[f"first_{side}_special"], row[f"second_{side}_special"]])
        agree = np.isclose(found.T, wanted, rtol=0, atol=0, equal_nan=True).all(axis=1)
        yield gl.Claim(
            f"{case}: {sentence} (share of the formats)",
            measured=agree.mean(),
            expected=1.0,
            tolerance={},
            source=SOURCE,
        )


def worst(values: xr.DataArray) -> float:
    """The largest value; nan counts where all are, else as missing; 0 of none."""
    return float(values.max()) if values.size and values.notnull().any() else 0.0


# ---- planted faults


def always(grads: Any, tau: Any) -> Any:
    """Every gradient brought to the threshold, small ones too."""
    size = gl.training.fast_norm(grads)
    factor = jnp.where(jnp.isinf(tau), 1, tau / size)
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), grads)


def each_entry(grads: Any, tau: Any) -> Any:
    """Every entry clipped by itself."""
    bound = jnp.asarray(tau) / 2
    return jax.tree.map(
        lambda leaf: jnp.clip(leaf, -bound.astype(leaf.dtype), bound.astype(leaf.dtype)), grads
    )


def at_threshold(factor: float) -> Callable[..., Any]:
    """A clip with a wrong threshold."""
    return lambda honest: lambda grads, tau: honest(grads, jnp.asarray(tau) * factor)


def masked(honest: Callable[..., Any]) -> Callable[..., Any]:
    """A clip that hides infinity and nan."""
    return lambda grads, tau: jax.tree.map(jnp.nan_to_num, honest(grads, tau))


def instead(other: Callable[..., Any]) -> Callable[..., Any]:
    """Another function in place of the honest one."""
    return lambda honest: other


FAULTS = {
    "threshold 10 % too low": gl.fault.change("clipping.formula", at_threshold(0.9)),
    "small gradients scaled up": gl.fault.change("clipping.formula", instead(always)),
    "every entry clipped by itself": gl.fault.change("clipping.formula", instead(each_entry)),
    "infinity and nan hidden": gl.fault.change("clipping.formula", masked),
    "optax in place of the formula": gl.fault.change(
        "clipping.formula", lambda honest: gl.clipping.optax_clip
    ),
    "optax scales all up and clips every entry": gl.fault.change(
        "clipping.optax_clip", instead(lambda grads, tau: each_entry(always(grads, tau), tau))
    ),
    "optax's infinity and nan hidden": gl.fault.change("clipping.optax_clip", masked),
}


if __name__ == "__main__":
    gl.run(__file__)
