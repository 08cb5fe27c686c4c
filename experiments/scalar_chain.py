"""How far does a product of equal numbers get before it is 0 or infinity?

Step one of the argument for vanishing and exploding gradients: a chain of L linear layers, one
number each and the same number w in all of them, has the derivative w^L (Pascanu, Mikolov and
Bengio 2013, section 2). On a log axis that is a straight line of slope log10|w|: a floating point
format sees only a piece of it, and the experiment marks where each one stops telling the truth.
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

# The numbers of the source text, which stay whatever the configuration: 0.9^50 and 1.1^50, and the
# limits, carried so far that float64 itself cannot follow.
TEXTBOOK_W = (0.9, 1.0, 1.1, -1.0)
TEXTBOOK_DEPTH = (50, 9_999, 10_000)
SOURCE = "Pascanu, Mikolov and Bengio 2013, section 2"
LN10 = math.log(10)


@gl.config
class Config:
    """The weights of the lines and of the fine grid that can be dragged through."""

    w: gl.Floats
    depth: int
    dtypes: gl.Strings
    num_fine: int = gl.key("points of the fine grid over w", at_least=2, at_most=2001)
    fine_from: float = gl.key("smallest w of the fine grid", above=0, at_most=10)
    fine_to: float = gl.key("largest w of the fine grid", above=0, at_most=10)


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """The products by the Jacobians of a chain, the predictions w^L, and where formats fail."""
    del key  # nothing is drawn
    layers = recorded_layers(cfg.depth)
    layer = jnp.array(layers)
    fine = jnp.linspace(cfg.fine_from, cfg.fine_to, cfg.num_fine)
    textbook = jnp.array(TEXTBOOK_W)

    log10_product, sign = jax.vmap(lambda w: product(w, layers))(cfg.w)
    log10_fine, _ = jax.vmap(lambda w: product(w, layers))(fine)
    log10_textbook, sign_textbook = jax.vmap(lambda w: product(w, TEXTBOOK_DEPTH))(textbook)
    return {
        "layer": gl.named(layer, "layer", long_name="depth L"),
        "w_fine": gl.named(fine, "w_fine", long_name="weight w"),
        "w_textbook": gl.named(textbook, "w_textbook", long_name="weight w"),
        "depth_textbook": gl.named(jnp.array(TEXTBOOK_DEPTH), "depth_textbook"),
        "log10_product": gl.named(log10_product, "w", "layer", long_name="log10 |J_L ... J_1|"),
        "sign": gl.named(sign, "w", "layer", long_name="sign of J_L ... J_1"),
        "log10_predicted": gl.named(
            gl.theory.scalar.log10_product(cfg.w[:, None], layer),
            "w",
            "layer",
            long_name="L log10 |w|",
        ),
        "log10_fine": gl.named(log10_fine, "w_fine", "layer", long_name="log10 |J_L ... J_1|"),
        "log10_textbook": gl.named(log10_textbook, "w_textbook", "depth_textbook"),
        "sign_textbook": gl.named(sign_textbook, "w_textbook", "depth_textbook"),
        "derivative": gl.named(
            jax.vmap(shared_derivative)(cfg.w), "w", long_name="dz_50/dw, one shared w, z_0 = 1"
        ),
        "derivative_predicted": gl.named(
            gl.theory.scalar.derivative(cfg.w, 50, 1.0), "w", long_name="50 w^49"
        ),
        **limits_of_formats("w", cfg.w, cfg.depth, cfg.dtypes),
        **limits_of_formats("w_fine", fine, cfg.depth, cfg.dtypes),
    }


def recorded_layers(depth: int) -> tuple[int, ...]:
    """The depths that are kept: every one up to 100, then 200 evenly spread ones up to `depth`."""
    spread = (round(depth * i / 200) for i in range(201))
    return tuple(sorted({*range(1, min(depth, 100) + 1), *spread} - {0}))


def product(w: Array, layers: tuple[int, ...]) -> tuple[Array, Array]:
    """`log10 |J_L ... J_1|` and its sign for each depth in `layers`, `(len(layers),)` each."""
    model = gl.ensembles.scalar(w, max(layers))
    jacobians = gl.chain.linear(gl.chain.jacobians(model, jnp.ones(1)))

    def measure(P: gl.scaled.Scaled) -> tuple[Array, Array]:
        return gl.scaled.log_magnitude(P)[0, 0], gl.scaled.sign(P)[0, 0]

    log_magnitude, sign = gl.jacobians.along(jacobians, jnp.ones(1), measure)
    at = jnp.array(layers) - 1
    return log_magnitude[at] / LN10, sign[at]


def shared_derivative(w: Array) -> Array:
    """`dz_50/dw` for one shared weight: the sum of what every layer's own weight contributes."""
    model = gl.ensembles.scalar(w, 50)
    return jnp.sum(gl.jacobians.weight_gradients(model, jnp.ones(1), jnp.sum))


def limits_of_formats(
    axis: str, w: Array, depth: int, dtypes: tuple[str, ...]
) -> dict[str, gl.Named]:
    """The depths at which each format's plain product fails, measured and predicted, over `w`."""
    # Without 64-bit mode float64 is not there to be measured.
    names = [name for name in dtypes if jax.dtypes.canonicalize_dtype(name).name == name]
    measured = [jax.vmap(lambda v, name=name: failures(v, depth, name))(w).T for name in names]
    expected = [jnp.stack(expected_failures(w, name)) for name in names]
    suffix = axis.removeprefix("w")
    columns = {
        f"first_zero{suffix}": "first depth at which the product is 0",
        f"first_infinite{suffix}": "first depth at which the product is infinite",
        f"first_wrong{suffix}": "first depth at which the product is 1 % wrong",
    }
    predicted = {f"{name}_predicted": f"{text}, predicted" for name, text in columns.items()}
    predicted[f"uncertainty{suffix}"] = "layers by which rounding can move a first depth"
    stacked = {
        **dict(zip(columns, jnp.stack(measured, axis=1), strict=True)),
        **dict(zip(predicted, jnp.stack(expected, axis=1), strict=True)),
    }
    texts = columns | predicted
    return {"format": gl.named(names, "format")} | {
        name: gl.named(values, "format", axis, long_name=texts[name], units="layers")
        for name, values in stacked.items()
    }


def failures(w: Array, depth: int, dtype: str) -> Array:
    """The first depths at which the plain product in `dtype` is 0, infinite and 1 % wrong, `(3,)`.

    The truth is w^L for the w asked for, so that rounding w to the format counts as well.
    """
    model = gl.ensembles.scalar(w, depth, dtype)
    factors = gl.chain.jacobians(model, jnp.ones(1, dtype))[:, 0, 0]
    _, magnitude = jax.lax.scan(multiply, jnp.ones((), factors.dtype), factors)
    truth = gl.theory.scalar.log10_product(w, jnp.arange(1, depth + 1))
    wrong = ~(jnp.abs(jnp.log10(magnitude) - truth) <= math.log10(1.01))
    return jnp.stack([first(magnitude == 0), first(jnp.isinf(magnitude)), first(wrong)])


def multiply(product: Array, factor: Array) -> tuple[Array, Array]:
    """The next product, in its own format, and its magnitude in the default one.

    XLA on CPU copies a whole stack of bfloat16 for each entry that it writes: 500 times slower.
    """
    product = product * factor
    return product, jnp.abs(product).astype(float)


def first(happens: Array) -> Array:
    """The first depth, from 1, at which something happens; infinite where it never does."""
    return jnp.where(jnp.any(happens), 1.0 + jnp.argmax(happens), jnp.inf)


def expected_failures(w: Array, dtype: str) -> tuple[Array, Array, Array, Array]:
    """The predicted depths of 0, infinity and 1 % error, and the uncertainty of the first two."""
    scalar = gl.theory.scalar
    flushed = scalar.depth_of_zero(w, dtype, flushed=True)
    zero = jnp.where(flushes(w, dtype), flushed, scalar.depth_of_zero(w, dtype, flushed=False))
    infinite = scalar.depth_of_inf(w, dtype)
    left = jnp.minimum(flushed, infinite)
    uncertainty = scalar.depth_uncertainty(w, dtype, left)
    left = jnp.where(jnp.isfinite(left), left - uncertainty, jnp.inf)
    wrong = jnp.minimum(scalar.depth_of_error(w, dtype, 0.01), left)
    return zero, infinite, wrong, uncertainty


def flushes(w: Array, dtype: str) -> Array:
    """Whether this device turns half of the smallest normal number into 0, with the shape of `w`.

    Measured, with a factor that the compiler cannot know, because it depends on the device.
    """
    half = (0.5 * w / w).astype(dtype)
    smallest_normal = 2.0 ** gl.theory.scalar.FORMATS[dtype].log2_smallest_normal
    return half * jnp.asarray(smallest_normal, dtype) == 0


def figure(data: xr.Dataset) -> gl.Figure:
    """The lines, their slopes, and the depths at which formats fail: points on predictions."""
    fig, (lines, slopes, limits) = gl.figures.panels(1, 3, height=2.6, width_ratios=(1.25, 1, 1.25))
    draw_lines(lines, data)
    draw_slopes(slopes, data)
    draw_limits(limits, data)
    return fig


def draw_lines(axes: gl.Axes, data: xr.Dataset) -> None:
    """log10 of the product against depth, and on each line the depth at which formats fail."""
    shown = data.sel(layer=data.layer <= 1100)
    positive = shown.isel(w=np.flatnonzero(shown.w > 0))  # the others have the same magnitude
    for i, look in enumerate(gl.figures.shades(positive.sizes["w"])):
        line = positive.isel(w=i)
        axes.plot(line.layer, line.log10_predicted, **gl.figures.THEORY)
        look |= {"markevery": (101 + i, 5), "linestyle": "none"}
        axes.plot(line.layer, line.log10_product, label=f"{float(line.w):g}", **look)
    for name, mark in zip(data.format.values, "1+x2", strict=False):
        ends = positive.sel(format=name)
        depth = np.minimum(ends.first_zero, ends.first_infinite)
        axes.plot(
            depth,
            depth * np.log10(np.abs(ends.w)),
            mark,
            color=gl.figures.COLOURS[1],
            markersize=6,
            markeredgewidth=1.1,
            zorder=3,
        )
        axes.plot([], [], mark, color=gl.figures.COLOURS[1], markersize=6, label=f"{name} ends")
    axes.set(xlim=(0, 1150), ylim=(-350, 350), xlabel="depth L")
    axes.set_ylabel(r"$\log_{10}\,|J_L \cdots J_1|$")
    handles, labels = axes.get_legend_handles_labels()
    num_lines = positive.sizes["w"]
    weights = axes.legend(
        handles[:num_lines],
        labels[:num_lines],
        title="w",
        ncols=4,
        loc="upper left",
        fontsize=5.5,
        columnspacing=0.8,
        handletextpad=0.1,
    )
    axes.add_artist(weights)
    axes.legend(handles[num_lines:], labels[num_lines:], loc="lower left", fontsize=5.5)
    gl.figures.title(axes, "the product is a straight line")


def draw_slopes(axes: gl.Axes, data: xr.Dataset) -> None:
    """The slope that was fitted to the fine grid, on the prediction."""
    slopes = gl.estimate.slope(data.layer, data.log10_fine).value
    axes.plot(data.w_fine, np.log10(data.w_fine), **gl.figures.THEORY, label=r"$\log_{10} w$")
    axes.plot(
        data.w_fine[::10],
        slopes[::10],
        gl.figures.MARKS[0],
        color=gl.figures.COLOURS[0],
        label="fitted",
    )
    axes.axhline(0, color="0.75", linewidth=0.6, zorder=0)
    axes.axvline(1, color="0.75", linewidth=0.6, zorder=0)
    axes.set_xlabel("weight w")
    axes.set_ylabel("decades a layer")
    axes.legend(loc="lower right")
    gl.figures.title(axes, "its slope is 0 at w = 1")


def draw_limits(axes: gl.Axes, data: xr.Dataset) -> None:
    """The first depth at which each format has 0 or infinity, and the first that is 1 % wrong."""
    every = max(1, data.sizes["w_fine"] // 33)
    looks = gl.figures.series(data.sizes["format"])
    for name, look in zip(data.format.values, looks, strict=True):
        row = data.sel(format=name)
        left = np.minimum(row.first_zero_fine_predicted, row.first_infinite_fine_predicted)
        gone = np.minimum(row.first_zero_fine, row.first_infinite_fine)
        wrong = row.first_wrong_fine
        axes.plot(data.w_fine, left.where(np.isfinite(left)), **gl.figures.THEORY)
        look |= {"linestyle": "none"}
        axes.plot(data.w_fine[::every], gone.where(np.isfinite(gone))[::every], **look)
        axes.plot(data.w_fine[::every], wrong[::every], **look, markerfacecolor="none", alpha=0.7)
        axes.plot([], [], **look, label=str(name))
    axes.set(yscale="log", ylim=(1, 2e6), xlabel="weight w")
    axes.plot([], [], "o", color="0.4", markerfacecolor="none", label="1 % wrong")
    axes.set_ylabel("first depth of 0 or infinity")
    axes.legend(loc="upper left", fontsize=5.5, ncols=2, columnspacing=0.8, handletextpad=0.1)
    gl.figures.title(axes, "where each format ends")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The statements of the source, then theory against measurement, then the formats."""
    yield from textbook_claims(data)
    yield from line_claims(data)
    yield from format_claims(data)


def textbook_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The printed numbers, and the three limits and the one that does not exist."""
    eps = float(np.finfo(data.log10_textbook.dtype).eps)
    for w, printed, digit in ((0.9, 0.00515378, 5e-9), (1.1, 117.391, 5e-4)):
        line = data.log10_textbook.isel(w_textbook=TEXTBOOK_W.index(w))
        value = 10.0 ** float(line[TEXTBOOK_DEPTH.index(50)])
        yield gl.Claim(
            f"{w:g}^50 is {printed:g}",
            measured=value,
            expected=printed,
            tolerance={"digits printed": digit, "rounding": 200 * eps * value},
            source=SOURCE,
        )
    deep = data.log10_textbook.isel(depth_textbook=-1)
    double = gl.theory.scalar.FORMATS["float64"]
    yield gl.Claim(
        "0.9^L tends to 0: at L = 10^4 log10 of it is below anything float64 can hold",
        measured=deep.isel(w_textbook=0),
        expected=double.log2_smallest * math.log10(2),
        tolerance={},
        source=SOURCE,
        relation="<=",
    )
    yield gl.Claim(
        "1^L tends to 1: at L = 10^4 log10 of it is 0",
        measured=deep.isel(w_textbook=1),
        expected=0.0,
        tolerance={},
        source=SOURCE,
    )
    yield gl.Claim(
        "1.1^L tends to infinity: at L = 10^4 log10 of it is above anything float64 can hold",
        measured=deep.isel(w_textbook=2),
        expected=double.log2_overflow * math.log10(2),
        tolerance={},
        source=SOURCE,
        relation=">=",
    )
    signs = data.sign_textbook.isel(w_textbook=3, depth_textbook=slice(1, 3))
    yield gl.Claim(
        "(-1)^L has no limit: from L = 9999 to L = 10^4 it goes from -1 to 1",
        measured=float(signs[1] - signs[0]),
        expected=2.0,
        tolerance={},
        source=SOURCE,
    )


def line_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Every recorded depth, the slope and the derivative, for each weight that was asked for."""
    eps = float(np.finfo(data.log10_product.dtype).eps)
    depth = int(data.layer[-1])
    for i, w in enumerate(data.w.values):
        line = data.isel(w=i)
        if w == 0:  # the line is minus infinity from the first layer on
            yield gl.Claim(
                "w = 0: the product is exactly 0 at every depth",
                measured=float(np.max(line.log10_product)),
                expected=-math.inf,
                tolerance={},
                source=SOURCE,
            )
            continue
        # Each of L products rounds once; their sum of logs has digits of its own size.
        rounding = eps * (depth / LN10 + 2 * abs(float(line.log10_predicted[-1])))
        yield gl.Claim(
            f"w = {w:g}: log10 of the product is L log10|w| at every depth up to {depth}",
            measured=float(np.max(np.abs(line.log10_product - line.log10_predicted))),
            expected=0.0,
            tolerance={"rounding": rounding},
            source=SOURCE,
        )
        yield gl.Claim(
            f"w = {w:g}: the sign of the product is sign(w)^L",
            measured=float(np.mean(line.sign == np.sign(w) ** line.layer)),
            expected=1.0,
            tolerance={},
            source=SOURCE,
        )
        if depth > 1:
            yield gl.Claim(
                f"w = {w:g}: the slope of the line is log10|w|",
                measured=gl.estimate.slope(line.layer, line.log10_product).value,
                expected=math.log10(abs(w)),
                tolerance={"rounding": 4 * rounding / depth + eps},
                source=SOURCE,
            )
        predicted = float(line.derivative_predicted)
        yield gl.Claim(
            f"w = {w:g}: the derivative for the shared weight at L = 50 is 50 w^49",
            measured=line.derivative,
            expected=predicted,
            tolerance={"rounding": 150 * eps * abs(predicted)},
            source="Pascanu, Mikolov and Bengio 2013, section 2.3",
        )


def format_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The depth of the first 0, the first infinity and the first 1 % error, over the fine grid."""
    beyond = float(data.layer[-1]) + 1
    for name in data.format.values:
        row = data.sel(format=name)
        for kind, noun in (("zero", "0"), ("infinite", "infinite")):
            measured = np.minimum(row[f"first_{kind}_fine"], beyond)
            predicted = np.minimum(row[f"first_{kind}_fine_predicted"], beyond)
            allowed = 1 + np.minimum(row.uncertainty_fine, beyond)
            yield gl.Claim(
                f"{name}: the product is first {noun} at the predicted depth, "
                "in units of what rounding can move it",
                measured=float(np.max(np.abs(measured - predicted) / allowed)),
                expected=1.0,
                tolerance={},
                source="IEEE 754-2019, section 3.3",
                relation="<=",
            )
        held = np.minimum(row.first_wrong_fine_predicted, beyond)
        yield gl.Claim(
            f"{name}: the product is not 1 % wrong before the bound on rounding allows it",
            measured=float(np.min(np.minimum(row.first_wrong_fine, beyond) - held)),
            expected=0.0,
            tolerance={"whole layers": 1.0},
            source="Higham 2002, lemma 3.1",
            relation=">=",
        )


def with_weight(change: Callable[[Array], Array]) -> Callable[..., Any]:
    """A fault of the ensemble: the weight is not the one asked for."""
    return lambda honest: lambda w, depth, dtype=float: honest(change(w), depth, dtype)


def unscaled(s: gl.scaled.Scaled) -> Array:
    """The log of the plain product, which has no exponent of its own to fall back on."""
    return jnp.log(jnp.abs(gl.scaled.unscale(s).value))


FAULTS = {
    "weights 1 % too large": gl.fault.change("ensembles.scalar", with_weight(lambda w: 1.01 * w)),
    "weights 1 % too small": gl.fault.change("ensembles.scalar", with_weight(lambda w: 0.99 * w)),
    "weights inverted": gl.fault.change("ensembles.scalar", with_weight(lambda w: 1 / w)),
    "weights negated": gl.fault.change("ensembles.scalar", with_weight(lambda w: -w)),
    "one layer too few": gl.fault.change(
        "chain.jacobians", lambda honest: lambda model, x: honest(model, x).at[0].set(1)
    ),
    "sign lost": gl.fault.change(
        "chain.jacobians", lambda honest: lambda model, x: abs(honest(model, x))
    ),
    "product not rescaled": gl.fault.change("scaled.log_magnitude", lambda honest: unscaled),
    "first layer's share forgotten": gl.fault.change(
        "jacobians.weight_gradients",
        lambda honest: lambda model, x, loss: honest(model, x, loss).at[0].set(0),
    ),
    "every format computed in float32": gl.fault.change(
        "failures", lambda honest: lambda w, depth, dtype: honest(w, depth, "float32")
    ),
}


def chain_payload(data: xr.Dataset) -> gl.lesson.Chain:
    """The line of every weight of the fine grid."""
    deepest = int(data.layer[-1])
    return {
        "w": gl.lesson.exact(data.w_fine),
        "layer": data.layer.values.tolist(),
        "log10": gl.lesson.exact(data.log10_fine),
        "views": sorted({depth for depth in (100, 1_000, 10_000) if depth < deepest} | {deepest}),
    }


def format_ends_payload(data: xr.Dataset) -> gl.lesson.FormatEnds:
    """The depths at which formats fail over the fine grid."""
    return {
        "formats": data.format.values.tolist(),
        "w": gl.lesson.exact(data.w_fine),
        "first_zero": gl.lesson.exact(data.first_zero_fine),
        "first_infinite": gl.lesson.exact(data.first_infinite_fine),
        "first_wrong": gl.lesson.exact(data.first_wrong_fine),
        "edges": [
            {
                "format": str(name),
                "floor": typical(data, data.first_zero_fine.sel(format=name)),
                "ceiling": typical(data, data.first_infinite_fine.sel(format=name)),
            }
            for name in data.format.values
        ],
    }


def typical(data: xr.Dataset, depth: xr.DataArray) -> float | None:
    """The median over the grid of the true magnitude at which a format failed, log10, or None."""
    seen = (depth * np.log10(data.w_fine)).values[np.isfinite(depth)]
    return float(np.median(seen)) if seen.size else None


LESSON = gl.lesson.Offer(
    figures={"chain": chain_payload, "format ends": format_ends_payload},
    numbers={
        "textbook depth": gl.lesson.at("depth_textbook", depth_textbook=50),
        "weight below one": gl.lesson.at("w_textbook", w_textbook=0.9),
        "weight above one": gl.lesson.at("w_textbook", w_textbook=1.1),
        "left below one": gl.lesson.at(
            "log10_textbook", scale="log10", w_textbook=0.9, depth_textbook=50
        ),
        "grown above one": gl.lesson.at(
            "log10_textbook", scale="log10", w_textbook=1.1, depth_textbook=50
        ),
        "weight of zero depths": gl.lesson.at("w", w=0.9),
        "weight of infinite depths": gl.lesson.at("w", w=1.1),
        "zero depths": gl.lesson.at("first_zero", along="format", w=0.9),
        "infinite depths": gl.lesson.at("first_infinite", along="format", w=1.1),
    },
    claims={
        "left below one": "0.9^50",
        "grown above one": "1.1^50",
        "limit below one": "0.9^L tends",
        "limit at one": "1^L tends to 1",
        "limit above one": "1.1^L tends",
        "no limit at minus one": "(-1)^L",
        "slope below one": "w = 0.9: the slope",
        "slope above one": "w = 1.1: the slope",
        "formats end as predicted": "float32: the product is first",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
