"""What does a residual layer's 1 + w do that w does not?

Of one number a layer, w^L is left without the identity and (1 + w)^L with it (He, Zhang, Ren and
Sun 2016): the zero moves from w = 0 to -1, and the edges from ±1 to 0 and -2. So a residual chain
explodes at every w above 0. The cure is a small branch: of w/L, (1 + w/L)^L is left, which stays
below e^w however deep the chain is (De and Smith 2020, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "the textbook"
KINDS = PLAIN, RESIDUAL, SMALL = "plain", "residual", "small branch"
FACTORS = dict(zip(KINDS, ("w", "1 + w", "1 + w/L"), strict=True))
POWER = "the chain rule for one number a layer; He, Zhang, Ren and Sun 2016"
EULER = "log(1 + x) <= x; De and Smith 2020, section 2"
BERNOULLI = "(1 - 1/L)^L grows with L, from 1/4 at L = 2"


@gl.config
class Config:
    """The grid of w, on which whole numbers are exact, and the depths."""

    from_w: int = gl.key("smallest w", at_least=-100, below="to_w")
    to_w: int = gl.key("largest w", at_most=100)
    per_unit: int = gl.key("points of the grid from one whole w to the next", at_most=1000)
    depth: gl.Ints


def compute(cfg: Config, _: jax.Array) -> dict[str, gl.Named]:
    """What is left of w, 1 + w and 1 + w/L in every chain, and the powers that it should be."""
    # Divided by numpy: XLA multiplies by 1/per_unit, and -1 would not be -1.
    w = jnp.array(np.arange(cfg.from_w * cfg.per_unit, cfg.to_w * cfg.per_unit + 1) / cfg.per_unit)
    depth, axes = jnp.array(cfg.depth), "w kind depth"
    law = jax.vmap(lambda w: laws(w, depth))(w)
    return {
        "w": gl.named(w, "w", long_name="weight w of the branch"),
        "kind": gl.named(list(KINDS), "kind"),
        "depth": gl.named(depth, "depth", long_name="depth L"),
        "log10_left": gl.named(jax.lax.map(lambda w: left(w, cfg.depth), w), axes),
        "log10_law": gl.named(law, axes, long_name="L log10 of the factor's size"),
    }


def left(w: jax.Array, depths: tuple[int, ...]) -> jax.Array:
    """log10 of what is left through each chain at each depth, `(3, num_depths)`."""
    deepest, depth = max(depths), jnp.array(depths)

    def logs(model: gl.chain.Chain) -> jax.Array:
        return gl.jacobians.log_norms(model, jnp.ones(1))[depth - 1] / gl.LN10

    def one(depth: jax.Array) -> jax.Array:
        return logs(gl.ensembles.scalar_residual(small(w, depth), deepest))

    plain, residual = gl.ensembles.scalar(w, deepest), gl.ensembles.scalar_residual(w, deepest)
    return jnp.stack([logs(plain), logs(residual), jnp.diagonal(jax.vmap(one)(depth))])


def small(w: jax.Array, depth: jax.Array) -> jax.Array:
    """The branch of a chain that is so deep: w over its depth."""
    return w / depth


def laws(w: jax.Array, depth: jax.Array) -> jax.Array:
    """L log10 of |w|, |1 + w| and |1 + w/L|, `(3, num_depths)`."""
    residual = gl.theory.residual.log10_scalar_product
    plain = gl.theory.scalar.log10_product(w, depth)
    return jnp.stack([plain, residual(w, depth), residual(w / depth, depth)])


def figure(data: xr.Dataset) -> gl.Figure:
    """What is left over w, through the deepest chain; and over depth, where w is positive."""
    fig, (over_w, over_depth) = gl.figures.panels(1, 2, height=2.7)
    last, some = data.isel(depth=int(data.depth.argmax("depth"))), first_positive(data)
    seen = last.isel(w=slice(None, None, max(1, data.sizes["w"] // 30)))
    for kind, look in zip(KINDS, gl.figures.series(3), strict=True):
        for axes, x, law, marks in (
            (over_w, "w", last, seen),
            (over_depth, "depth", some, some),
        ):
            gl.figures.predicted(axes, law[x], law.log10_law.sel(kind=kind).where(np.isfinite))
            found = marks.log10_left.sel(kind=kind)
            gl.figures.measured(axes, marks[x], found, look, f"{kind}: {FACTORS[kind]}")
    gl.figures.rule(over_w, y=0)
    most = float(np.abs(data.log10_left.where(np.isfinite)).sel(w=[data.w[0], data.w[-1]]).max())
    over_w.set(xlabel=data.w.long_name, ylabel="decades", ylim=(-1.1 * most, 1.1 * most))
    over_depth.set(xlabel="depth L", ylabel="decades")
    over_depth.legend(loc="lower left")
    gl.figures.titles(fig, f"{int(last.depth)} layers", f"w = {float(some.w):g}")
    return fig


def first_positive(data: xr.Dataset) -> xr.Dataset:
    """The data at a tenth, or at the point of the grid that is nearest to it."""
    return data.sel(w=0.1, method="nearest")


def caption(data: xr.Dataset) -> str:
    """What a tenth becomes through the deepest chain, by kind."""
    some = first_positive(data).isel(depth=int(data.depth.argmax("depth")))
    plain, residual, tamed = (float(some.log10_left.sel(kind=kind)) for kind in KINDS)
    return f"""Through {int(some.depth)} layers a branch of w = {float(some.w):g} leaves
        10^{plain:.0f} without the identity, 10^{residual:.1f} with it, and {10**tamed:.3f} where
        it is divided by the depth. Nothing is left at w = 0 without it, at w = -1 with it."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What a tenth becomes through the deepest chain."""
    some = first_positive(data).isel(depth=int(data.depth.argmax("depth")))
    for kind in KINDS:
        row = some.sel(kind=kind)
        yield gl.Headline(f"left, {kind}", row.log10_left, "decades", row.log10_law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The powers, their zeros, who explodes, and what a small branch keeps."""
    eps, law, found = float(np.finfo(data.log10_left.dtype).eps), data.log10_law, data.log10_left
    inside = np.isfinite(law)
    # A factor is rounded by eps of its summands, 1 and |w| at most, and every layer rounds again.
    relative = eps * (1 + np.abs(data.w)) / 10 ** (law / data.depth).where(inside, 0.0) + eps
    rounding = data.depth * relative / gl.LN10 + 4 * eps * np.abs(law)
    yield gl.claim.everywhere(
        "of w, of 1 + w and of 1 + w/L the L-th power is left, at every w and depth",
        *(found, law, POWER),
        where=inside,
        rounding=rounding,
    )
    if not inside.all():
        sentence = "nothing is left where the factor is 0: at w = 0, 1 + w at w = -1"
        yield gl.claim.everywhere(sentence, found, -math.inf, POWER, where=~inside)
    between = data.w[(data.w > 0) & (data.w < 1)]
    if between.size:
        grown = found.sel(kind=RESIDUAL, w=between) > 0
        shrunk = found.sel(kind=PLAIN, w=between) < 0
        sentence = "a branch between 0 and 1 vanishes alone, and explodes beside the identity"
        yield gl.claim.always(sentence, grown & shrunk, POWER)
    tamed, rounded = found.sel(kind=SMALL), rounding.sel(kind=SMALL).where(inside, 0.0)
    yield gl.claim.at_most(
        "of a branch divided by the depth no more than e^w is left, however deep",
        *(tamed, data.w / gl.LN10, EULER),
        where=data.w > -data.depth,
        rounding=rounded,
    )
    quarter = (np.abs(data.w) <= 1) & (data.depth >= 2)
    if quarter.any():
        sentence = "and of one that is no larger than 1, from two layers on, no less than a quarter"
        least = float(np.log10(0.25))
        yield gl.claim.at_least(sentence, tamed, least, BERNOULLI, where=quarter, rounding=rounded)


FAULTS = {
    "identity dropped": gl.fault.argument("ensembles.scalar_residual", w=lambda w: w - 1),
    "w 1 % off": gl.fault.argument("ensembles.scalar", w=lambda w: 0.99 * w + 0.001),
    "branch not divided": gl.fault.replace("small", lambda w, depth: w + 0 * depth),
    "branch divided twice too much": gl.fault.scale("small", 0.5),
    "log norms 1 % off": gl.fault.scale("jacobians.log_norms", 1.01),
}


def payload(data: xr.Dataset) -> gl.lesson.Payload:
    """What is left of each chain, by kind, depth and w."""
    left = data.log10_left.transpose("kind", "depth", "w")
    return {
        "w": gl.lesson.exact(data.w),
        "depths": data.depth.values.tolist(),
        **{
            name: gl.lesson.decimals(left.sel(kind=kind), 4)
            for name, kind in (("plain", PLAIN), ("residual", RESIDUAL), ("small", SMALL))
        },
    }


DEEP: dict[str, Any] = {"w": 0.1, "depth": 100}
LESSON = gl.lesson.Offer(
    figures={"branch": payload},
    numbers={
        "depth of branches": gl.lesson.at("depth", depth=100),
        "small weight of branches": gl.lesson.at("w", w=0.1),
        "left without identity": gl.lesson.at("log10_left", kind=PLAIN, **DEEP),
        "left with identity": gl.lesson.at("log10_left", kind=RESIDUAL, **DEEP),
        "left with a small branch": gl.lesson.at("log10_left", kind=SMALL, **DEEP),
        "left of the largest branch": gl.lesson.at("log10_left", kind=RESIDUAL, w=1.0, depth=100),
        "left of the largest branch, small": gl.lesson.at(
            "log10_left", kind=SMALL, w=1.0, depth=100
        ),
    },
    claims={
        "power of the factor": "the L-th power is left",
        "zero moves": "nothing is left where the factor is 0",
        "residual explodes": "explodes beside the identity",
        "small branch below e": "no more than e^w",
        "small branch above a quarter": "no less than a quarter",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
