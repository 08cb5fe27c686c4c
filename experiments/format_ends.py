"""At which depth does each float format lose a product of equal numbers?

The product w^L (Pascanu, Mikolov and Bengio 2013, section 2) is a straight line on a log axis. A
format ends where the line leaves its range (IEEE 754-2019, section 3.3), and is wrong before that
where the roundings of w and of L products have added up (Higham 2002, lemma 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "formats"
TEXTBOOK = "Pascanu, Mikolov and Bengio 2013, section 2"
RANGE = "IEEE 754-2019, section 3.3"
ENDS = {
    "first_zero": "first depth at which the product is 0",
    "first_infinite": "first depth at which the product is infinite",
    "first_wrong": "first depth at which the product is wrong by more than the error",
}


@gl.config
class Config:
    """A fine grid of weights, and the formats."""

    depth: int
    dtype: gl.Strings
    num_w: int = gl.key("points of the grid over w", at_least=2, at_most=2001)
    from_w: float = gl.key("smallest w of the grid", above=0, at_most=10)
    to_w: float = gl.key("largest w of the grid", above=0, at_most=10)
    error: float = gl.key("relative error at which a product is wrong", above=0, at_most=1)


def compute(cfg: Config, _: jax.Array) -> dict[str, gl.Named]:
    """The line of every w, and the depths at which formats fail, measured and predicted."""
    layers, names = gl.grid.depths(cfg.depth, 200, every=100), gl.grid.formats(cfg.dtype)
    w = jnp.linspace(cfg.from_w, cfg.to_w, cfg.num_w)
    measured = jnp.stack([jax.vmap(lambda w, n=n: failures(w, cfg, n))(w) for n in names])
    *predicted, uncertainty = zip(*(expected(w, cfg.error, name) for name in names), strict=True)
    axes, lines = "format w", jax.vmap(lambda w: log10_product(w, layers))(w)
    return {
        "w": gl.named(w, "w", long_name="weight w"),
        "layer": gl.named(jnp.array(layers), "layer", long_name="depth L"),
        "format": gl.named(names, "format"),
        "log10_product": gl.named(lines, "w layer", long_name="log10 |J_L ... J_1|"),
        "uncertainty": gl.named(jnp.stack(uncertainty), axes, long_name="roundings, layers"),
    } | {
        name + suffix: gl.named(values, axes, long_name=text + said, units="layers")
        for (name, text), seen, law in zip(
            ENDS.items(), jnp.moveaxis(measured, 2, 0), predicted, strict=True
        )
        for suffix, values, said in (("", seen, ""), ("_predicted", jnp.stack(law), ", predicted"))
    }


def log10_product(w: jax.Array, layers: tuple[int, ...]) -> jax.Array:
    """`log10 |J_L ... J_1|` for each depth in `layers`, `(len(layers),)`: no format ends it."""
    logs = gl.jacobians.log_norms(gl.ensembles.scalar(w, max(layers)), jnp.ones(1))
    return logs[jnp.array(layers) - 1] / gl.LN10


def failures(w: jax.Array, cfg: Config, name: str) -> jax.Array:
    """The first depths at which the plain product in a format is 0, infinite and wrong, `(3,)`.

    The truth is w^L for the w asked for, so that rounding w to the format counts as well.
    """
    model = gl.ensembles.scalar(w, cfg.depth, name)
    factors = gl.chain.jacobians(model, jnp.ones(1, name))[:, 0, 0]
    _, magnitude = jax.lax.scan(multiply, jnp.ones((), name), factors)
    truth = gl.theory.scalar.log10_product(w, jnp.arange(1, cfg.depth + 1))
    wrong = ~(jnp.abs(jnp.log10(magnitude) - truth) <= jnp.log1p(cfg.error) / gl.LN10)
    return gl.grid.first(jnp.stack([magnitude == 0, jnp.isinf(magnitude), wrong]))


def multiply(product: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next product, in its own format, and its magnitude in the default one.

    XLA on CPU copies a whole stack of bfloat16 for each entry that it writes: 500 times slower.
    """
    product = product * factor
    return product, jnp.abs(product).astype(float)


def expected(w: jax.Array, error: float, name: str) -> tuple[jax.Array, ...]:
    """The predicted depths of 0 and infinity, the one before which nothing is wrong, and layers."""
    scalar = gl.theory.scalar
    flushed = scalar.depth_of_zero(w, name, flushed=True)
    zero = jnp.where(flushes(w, name), flushed, scalar.depth_of_zero(w, name, flushed=False))
    infinite = scalar.depth_of_inf(w, name)
    left = jnp.minimum(flushed, infinite)
    uncertainty = scalar.depth_uncertainty(w, name, left)
    left = jnp.where(jnp.isfinite(left), left - uncertainty, jnp.inf)
    return zero, infinite, jnp.minimum(scalar.depth_of_error(w, name, error), left), uncertainty


def flushes(w: jax.Array, name: str) -> jax.Array:
    """Whether this device turns half of the smallest normal number into 0, with the shape of `w`.

    Measured, with a factor that the compiler cannot know, because it depends on the device.
    """
    smallest_normal = 2.0 ** gl.theory.scalar.FORMATS[name].log2_smallest_normal
    return (0.5 * w / w).astype(name) * jnp.asarray(smallest_normal, name) == 0


def figure(data: xr.Dataset) -> gl.Figure:
    """The depth at which each format is 0 or infinite, and the one at which it is wrong."""
    fig, (ends, wrongs) = gl.figures.panels(1, 2, height=2.9, sharey=True)
    looks = gl.figures.series(data.sizes["format"])
    for name, look in zip(data.format.values, looks, strict=True):
        row = data.sel(format=name)
        gone = np.minimum(row.first_zero, row.first_infinite)
        law = np.minimum(row.first_zero_predicted, row.first_infinite_predicted)
        gl.figures.predicted(ends, data.w, law.where(np.isfinite(law)), color=look["color"])
        gl.figures.measured(ends, data.w, gone, look)
        bound = row.first_wrong_predicted
        gl.figures.bound(wrongs, data.w, bound.where(np.isfinite(bound)), color=look["color"])
        gl.figures.measured(wrongs, data.w, row.first_wrong, look)
    for axes in (ends, wrongs):
        axes.set(yscale="log", ylim=(1, 2.0 * data.attrs["depth"]), xlabel="weight w")
        gl.figures.rule(axes, x=1.0)
    ends.set_ylabel("depth L")
    last = data.isel(w=-1)
    sides, looks = ("top", "top", "bottom", "top"), gl.figures.series(last.sizes["format"])
    gone = np.minimum(last.first_zero, last.first_infinite).values
    for name, depth, look, side in zip(last.format.values, gone, looks, sides, strict=False):
        if math.isfinite(depth):
            gl.figures.named(ends, float(last.w), depth, str(name), look["color"], va=side)
    gl.figures.words(ends, 0.02, 0.03, "arrowheads: not within the layers looked at")
    gl.figures.title(ends, "first 0 or infinity, on the ends of the range")
    gl.figures.title(
        wrongs, f"first {100 * data.attrs['error']:g} % wrong, above its bound (dashed)"
    )
    return fig


def caption(data: xr.Dataset) -> str:
    """The message, with what was measured."""
    first = data.sel(w=0.9, method="nearest")
    gone = np.minimum(first.first_zero, first.first_infinite)
    ends = ", ".join(
        f"{name} " + (f"{depth:.0f}" if np.isfinite(depth) else "never (it sticks above 0)")
        for name, depth in zip(data.format.values, gone.values, strict=True)
    )
    return (
        f"The product of equal numbers w = {float(first.w):.3g} is first 0, or infinite, at depth: "
        f"{ends}. The short formats are wrong long before that, by rounding (right), the long ones "
        "not before. Lines: where w^L leaves the range; dashed: the earliest at which roundings "
        f"can add up; arrowheads at the upper rim: not within {data.attrs['depth']} layers."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """Where the last format named is 0 and wrong, at the weight nearest to 0.9."""
    row = data.sel(w=0.9, method="nearest").isel(format=-1)
    yield gl.Headline("first 0", row.first_zero, "layers", row.first_zero_predicted)
    yield gl.Headline("first error", row.first_wrong, "layers")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The line itself, then the first 0, the first infinity and the first error of every format."""
    eps, law = float(np.finfo(data.log10_product.dtype).eps), data.layer * np.log10(data.w)
    yield gl.claim.everywhere(
        "log10 of the product is L log10 w at every depth and w",
        *(data.log10_product, law, TEXTBOOK),
        rounding_of_products=eps / 2 * data.layer / gl.LN10,
        # XLA may compute the grid twice, and round it otherwise.
        rounding_of_w=eps * data.layer / gl.LN10,
        # A few units of the log, or of 1 where that of the mantissa cancels that of the exponent.
        rounding_of_logs=4 * eps * (1 + abs(law)),
    )
    deepest = int(data.attrs["depth"])
    for name, noun in (("first_zero", "0"), ("first_infinite", "infinite")):
        yield gl.claim.first_depth(
            f"in every format the product is first {noun} where w^L leaves the range",
            *(data[name], data[f"{name}_predicted"], RANGE),
            deepest=deepest,
            rounding=data.uncertainty,
            whole_layers=1.0,
        )
    wrong = data[["first_wrong", "first_wrong_predicted"]].clip(max=deepest + 1.0)
    yield gl.claim.at_least(
        "in no format is the product wrong before roundings can have added up to the error",
        *(wrong.first_wrong, wrong.first_wrong_predicted, "Higham 2002, lemma 3.1"),
        whole_layers=1.0,
    )


FAULTS = {
    "weights 1 % too large": gl.fault.argument("ensembles.scalar", w=lambda w: 1.01 * w),
    "weights 1 % too small": gl.fault.argument("ensembles.scalar", w=lambda w: 0.99 * w),
    "weights inverted": gl.fault.argument("ensembles.scalar", w=lambda w: 1 / w),
    "product held within float64": gl.fault.result(
        "jacobians.log_norms", lambda logs: jnp.clip(logs, -745, 709)
    ),
    "every format computed in float32": gl.fault.argument("failures", name=lambda _: "float32"),
}


def chain(data: xr.Dataset) -> gl.lesson.Chain:
    """The line of every weight of the grid."""
    layer, log10 = data.layer.values.tolist(), gl.lesson.exact(data.log10_product)
    views = sorted({depth for depth in (100, 1_000, 10_000) if depth < layer[-1]} | {layer[-1]})
    return {"w": gl.lesson.exact(data.w), "layer": layer, "log10": log10, "views": views}


def ends(data: xr.Dataset) -> gl.lesson.FormatEnds:
    """The depths at which formats fail over the grid."""
    return {
        "formats": data.format.values.tolist(),
        "w": gl.lesson.exact(data.w),
        "first_zero": gl.lesson.exact(data.first_zero),
        "first_infinite": gl.lesson.exact(data.first_infinite),
        "first_wrong": gl.lesson.exact(data.first_wrong),
        "edges": [
            {
                "format": str(name),
                "floor": typical(data, data.first_zero.sel(format=name)),
                "ceiling": typical(data, data.first_infinite.sel(format=name)),
            }
            for name in data.format.values
        ],
    }


def typical(data: xr.Dataset, depth: xr.DataArray) -> float | None:
    """The median over the grid of the true magnitude at which a format failed, log10, or None."""
    seen = (depth * np.log10(data.w)).values[np.isfinite(depth)]
    return float(np.median(seen)) if seen.size else None


LESSON = gl.lesson.Offer(
    figures={"chain": chain, "format ends": ends},
    numbers={
        "weight of zero depths": gl.lesson.at("w", w=0.9),
        "weight of infinite depths": gl.lesson.at("w", w=1.1),
        "zero depths": gl.lesson.at("first_zero", along="format", w=0.9),
        "infinite depths": gl.lesson.at("first_infinite", along="format", w=1.1),
    },
    claims={"formats end as predicted": "the product is first"},
)


if __name__ == "__main__":
    gl.run(__file__)
