"""Does adaptive gradient clipping clip the units that it should?

Brock, De, Smith and Simonyan 2021 (equation 3) hold each output unit's gradient against the unit's
own weights. optax takes the norm over axis 0: right for weights stored as (in, out), as Flax does,
and the norm of an *input* unit's weights for those stored as (out, in), as Equinox does. There one
wild output unit drags the gradients of all the others down with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "clipping"
BROCK = "Brock, De, Smith and Simonyan 2021, equation 3"
OPTAX = "optax.adaptive_grad_clip: rank 2 is reduced over axis 0"
LAYOUTS = ("(in, out)", "(out, in)", "(out, in), axis=1")


@gl.config
class Config:
    """A layer, the gradient of one of its units, and the clip."""

    wild: gl.Floats = gl.key("factor of one unit's gradient", at_least=1, at_most=1e8)
    ratio: float = gl.key("largest gradient over the weights, unit by unit", above=0, at_most=1)
    num_out: int = gl.key("output units", at_least=2, at_most=1000)
    num_in: int = gl.key("inputs", at_least=2, at_most=1000)
    batch_size: int


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """What is left of each unit's gradient, by layout and by how wild unit 0 is."""
    key_weight, key_input, key_output = jax.random.split(key, 3)
    weight = jax.random.normal(key_weight, (cfg.num_out, cfg.num_in)) / jnp.sqrt(cfg.num_in)
    x = jax.random.normal(key_input, (cfg.batch_size, cfg.num_in))
    back = jax.random.normal(key_output, (cfg.batch_size, cfg.num_out))
    # The healthy units' gradients are near half of what the clip lets through.
    calm = back.T @ x
    longest = cfg.ratio * jnp.linalg.norm(weight, axis=1, keepdims=True)
    calm *= 0.5 * longest / jnp.linalg.norm(calm, axis=1, keepdims=True)
    wild = jnp.where(jnp.arange(cfg.num_out) == 0, cfg.wild[:, None], 1.0)
    grads = wild[..., None] * calm[None]
    after = {layout: clipped(layout, grads, weight, cfg.ratio) for layout in LAYOUTS}
    size = jnp.linalg.norm(grads, axis=2)
    factor = gl.theory.clipping.unit_factor(
        size, jnp.linalg.norm(weight, axis=1)[None], cfg.ratio, FLOOR
    )
    columns = gl.theory.clipping.unit_factor(
        jnp.linalg.norm(grads, axis=1), jnp.linalg.norm(weight, axis=0)[None], cfg.ratio, FLOOR
    )
    across = jnp.linalg.norm(grads * columns[:, None], axis=2) / size
    left = jnp.stack([jnp.linalg.norm(each, axis=2) / size for each in after.values()])
    same = jnp.stack([jnp.all(each == grads, axis=2) for each in after.values()])
    axes = "wild unit"
    return {
        "layout": gl.named(list(LAYOUTS), "layout"),
        "wild": gl.named(cfg.wild, "wild", long_name="factor of unit 0's gradient"),
        "left": gl.named(left, f"layout {axes}", long_name="gradient after over before"),
        "same": gl.named(same, f"layout {axes}", long_name="every bit kept"),
        "left_unit": gl.named(factor, axes, long_name="by output unit"),
        "left_input": gl.named(across, axes, long_name="by input unit"),
    }


FLOOR = 1e-3  # Brock et al. 2021, section 4.1, and optax's default


def clipped(layout: str, grads: jax.Array, weight: jax.Array, ratio: float) -> jax.Array:
    """Optax's clip of a layer stored in a layout, `(wild, num_out, num_in)` whatever that is."""
    turned = layout == "(in, out)"
    rule = adaptive(ratio, axis=1 if layout.endswith("axis=1") else None)

    def one(gradient: jax.Array) -> jax.Array:
        stored = (gradient.T, weight.T) if turned else (gradient, weight)
        done, _ = rule.update(stored[0], rule.init(stored[1]), stored[1])
        return done.T if turned else done

    return jax.vmap(one)(grads)


def adaptive(ratio: float, axis: int | None) -> Any:
    """`optax.adaptive_grad_clip`, with its default for the smallest norm of weights."""
    import optax

    return optax.adaptive_grad_clip(ratio, FLOOR, axis)


LOOKS: dict[str, dict[str, Any]] = {
    "(in, out)": {"color": "C0", "marker": "o"},
    "(out, in)": {"color": "C1", "marker": "v"},
    "(out, in), axis=1": {"color": "C0", "marker": "+", "markersize": 7},
}


def figure(data: xr.Dataset) -> gl.Figure:
    """What is left of the wild unit, which is right in one layout, and of the healthy ones."""
    fig, (wild, healthy) = gl.figures.panels(1, 2, height=2.5, sharey=True)
    for axes, units in (
        (wild, data.isel(unit=slice(1))),
        (healthy, data.isel(unit=slice(1, None))),
    ):
        mean = units.mean("unit")
        gl.figures.predicted(axes, data.wild, mean.left_unit)
        for name, look in LOOKS.items():
            gl.figures.measured(axes, data.wild, mean.left.sel(layout=name), look)
        axes.set(xscale="log", yscale="log", xlabel=data.wild.long_name)
    gl.figures.bound(healthy, data.wild, data.left_input.isel(unit=slice(1, None)).mean("unit"))
    wild.set(ylabel="gradient after over before", ylim=(float(data.left.min()) / 2, 2))
    looks = {f"optax, {name}": look | {"linestyle": "none"} for name, look in LOOKS.items()}
    gl.figures.key(wild, looks, loc="lower left")
    gl.figures.words(
        healthy, 0.04, 0.05, "dashed: by input unit\nline: by output unit, as it should"
    )
    gl.figures.title(wild, "the wild unit is clipped")
    gl.figures.title(healthy, "(out, in): the healthy ones, too")
    return fig


def caption(data: xr.Dataset) -> str:
    """What is left of the healthy units' gradients at the wildest."""
    last = data.isel(wild=-1, unit=slice(1, None)).left.mean("unit")
    return (
        f"One output unit's gradient is {float(data.wild[-1]):g} times too large. optax's adaptive "
        f"clip leaves {float(last.sel(layout='(in, out)')):.3g} of the others' where weights are "
        f"stored as (in, out), and {float(last.sel(layout='(out, in)')):.2g} where they are stored "
        "as (out, in), because it takes its units from axis 0; with axis=1 it is right there too."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What is left of the healthy units at the wildest."""
    last = data.isel(wild=-1, unit=slice(1, None)).mean("unit")
    for name, law in (("(in, out)", last.left_unit), ("(out, in)", last.left_input)):
        yield gl.Headline(f"left of the others, {name}", last.left.sel(layout=name), law=law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """By output unit in one layout, by input unit in the other, and right again with its axis."""
    eps, num_in = float(np.finfo(data.left.dtype).eps), int(data.attrs["num_in"])
    # Three norms of rounded squares, and a few roundings of quotients and products.
    rounding = (1.5 * max(num_in, int(data.attrs["num_out"])) + 8) * eps
    right = ["(in, out)", "(out, in), axis=1"]
    yield gl.claim.everywhere(
        "stored as (in, out), or told its axis, a unit is clipped by its own weights",
        *(data.left.sel(layout=right), data.left_unit, BROCK),
        rounding=rounding * data.left_unit,
    )
    healthy = data.isel(unit=slice(1, None))
    yield gl.claim.always(
        "and a healthy unit keeps every bit", healthy.same.sel(layout=right), BROCK
    )
    yield gl.claim.everywhere(
        "stored as (out, in) it is clipped by input unit, over all output units",
        *(data.left.sel(layout="(out, in)"), data.left_input, OPTAX),
        rounding=rounding * data.left_input,
    )
    # A column is clipped, and every healthy entry of it, unless its wild one, which is wild |n|/2
    # of what one unit of the column is let through, n normal, is below √num_out. No column is only
    # where all such n are: each with a probability below its interval's length, 4 √num_out / wild,
    # over √(2 pi), and 2.5 times that bounds it for the norms of as few as two weights too.
    share = 4 * float(data.attrs["num_out"]) ** 0.5 / float(data.wild[-1])
    if (chance := share**num_in) < 0.01:
        left = healthy.left.sel(layout="(out, in)").isel(wild=-1)
        sentence = "there one wild unit takes a part of the gradient from every other"
        yield gl.claim.always(sentence, left < 1, OPTAX, chance=chance)


FAULTS = {
    "axis forgotten": gl.fault.argument("adaptive", axis=lambda axis: None),
    "axis of the others": gl.fault.argument("adaptive", axis=lambda axis: 1),
    "ratio 1 % too large": gl.fault.argument("clipped", ratio=lambda ratio: 1.01 * ratio),
    "layouts mixed up": gl.fault.argument("clipped", layout=lambda layout: "(out, in)"),
    "not clipped": gl.fault.replace("clipped", lambda layout, grads, weight, ratio: grads),
}


if __name__ == "__main__":
    gl.run(__file__)
