"""How does a gradient fare on its way back through a deep random network?

In a wide random network every layer multiplies the mean squared gradient by chi_1, which depends
on sigma_w and on the activation alone: below 1 the gradient vanishes, above 1 it explodes, and at
1 lies the edge of chaos (Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 4). The log
of a typical gradient falls short of that by a known term in 1/width (Hanin and Nica 2020). Adding
the layer's input to its output (He, Zhang, Ren and Sun 2016) moves the edge: such a network's
typical gradient does not vanish at any sigma_w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

KINDS = ("plain", "residual")
SCHOENHOLZ = "Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, equation 19"
HANIN = f"{SCHOENHOLZ}; Hanin and Nica 2020 for 1/width"
EDGE = "Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 4"
HE = "He, Zhang, Ren and Sun 2016, section 2"
YANG = "Yang and Schoenholz 2017: a layer's factor is 1 + chi"
CHAIN_RULE = "Pascanu, Mikolov and Bengio 2013, equations 3 to 5"


@gl.config
class Config:
    """The activations, and the standard deviations that can be dragged through."""

    activation: gl.Strings
    sigma_w: gl.Floats
    sigma_b: float
    depth: int
    width: int
    num_draws: int = gl.key("number of independent draws", at_least=2, at_most=10**4)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Gradient norms over the layers, in decades from the last one's, and the laws of both."""
    phis = [gl.activations.PHI[name] for name in cfg.activation]
    chi_1 = jnp.stack([gl.theory.meanfield.chi_1(phi, cfg.sigma_w, cfg.sigma_b) for phi in phis])
    back = jnp.arange(cfg.depth + 1)

    def stacked(of: Any) -> jax.Array:
        return jnp.stack([jnp.stack([of(phi, kind) for kind in KINDS]) for phi in phis])

    decades = stacked(partial(over_draws, cfg, key))  # (activation, kind, draw, sigma_w, back)
    low, median, high = jnp.quantile(decades, jnp.array([0.25, 0.5, 0.75]), axis=2)
    infinite, first, second = jnp.moveaxis(stacked(partial(laws, cfg)), -1, 0) / gl.LN10
    by_back, law = "activation kind sigma_w back", "activation kind sigma_w"
    return {
        "activation": gl.named(list(cfg.activation), "activation"),
        "kind": gl.named(list(KINDS), "kind"),
        "back": gl.named(back, "back", long_name="layers back from the last"),
        "log10_median": gl.named(median, by_back, long_name="log10 |dL/dz_l| / |dL/dz_L|, median"),
        "log10_low": gl.named(low, by_back, long_name="its lower quartile over draws"),
        "log10_high": gl.named(high, by_back, long_name="its upper quartile over draws"),
        "rate": gl.named(
            decades[..., -1] / cfg.depth,
            "activation kind draw sigma_w",
            long_name="decades that the gradient grows by a layer back",
        ),
        "rate_infinite": gl.named(infinite, law, long_name="its law at infinite width"),
        "rate_first": gl.named(first, law, long_name="what the first order of 1/width adds to it"),
        "rate_second": gl.named(second, law, long_name="the size of what that leaves out"),
        "log10_fast": gl.named(
            decades[:, :, 0, 0, -1], "activation kind", long_name="growth in one network"
        ),
        "log10_literal": gl.named(
            stacked(
                lambda phi, kind: literal(cfg, jax.random.split(key, cfg.num_draws)[0], phi, kind)
            ),
            "activation kind",
            long_name="the same by the product of all J_k, each by jax.jacfwd",
        ),
        "chi_1": gl.named(chi_1, "activation sigma_w", long_name="chi_1"),
        "log10_predicted": gl.named(
            back * jnp.log10(chi_1)[..., None] / 2,
            "activation sigma_w back",
            long_name="(L - l) log10(chi_1) / 2",
        ),
    }


def over_draws(cfg: Config, key: jax.Array, phi: Any, kind: str) -> jax.Array:
    """`log10 |dL/dz_l| / |dL/dz_L|`, `(num_draws, num_sigma_w, depth + 1)`, backwards in l."""

    def one(key: jax.Array, sigma_w: jax.Array) -> jax.Array:
        model, x, direction = network(key, cfg, phi, sigma_w, kind)
        norms = gl.jacobians.log_gradient_norms(model, x, lambda z: direction @ z)
        return (norms - norms[-1])[::-1] / gl.LN10

    # One draw serves every sigma_w, so that the curves over sigma_w are smooth.
    over_sigma_w = lambda key: jax.vmap(partial(one, key))(cfg.sigma_w)  # noqa: E731
    decades: jax.Array = gl.grid.over_draws(over_sigma_w, key, cfg.num_draws)
    return decades


def literal(cfg: Config, key: jax.Array, phi: Any, kind: str) -> jax.Array:
    """`log10 |dL/dz_0| / |dL/dz_L|` of one draw at the first sigma_w, by the chain rule, `()`."""
    model, x, direction = network(key, cfg, phi, cfg.sigma_w[0], kind)
    P = gl.chain_rule.products(model, x).products
    row = direction @ P.mantissa[-1]
    growth = jnp.linalg.norm(row) / jnp.linalg.norm(direction)
    return jnp.log10(growth) + P.exponent[-1, 0, 0] * math.log10(2)


def network(
    key: jax.Array, cfg: Config, phi: Any, sigma_w: jax.Array, kind: str
) -> tuple[gl.chain.Chain, jax.Array, jax.Array]:
    """A plain or a residual chain with Gaussian weights, its input, and dL/dz_L."""
    key_chain, key_input, key_loss = jax.random.split(key, 3)
    shape, deviations = (cfg.depth, cfg.width), (sigma_w, cfg.sigma_b)
    model = (
        gl.ensembles.gaussian(key_chain, *shape, phi, *deviations)
        if kind == "plain"
        else gl.ensembles.residual(key_chain, *shape, phi, *deviations, 1.0)
    )
    x = gl.ensembles.inputs(key_input, cfg.width, input_square(phi, *deviations))
    return model, x, jax.random.normal(key_loss, (cfg.width,))


def input_square(phi: Any, sigma_w: jax.Array, sigma_b: float) -> jax.Array:
    """The mean square of an input whose first pre-activation already has the length q*.

    1 where there is no q*: there the activation is homogeneous, and chi_1 the same at every q.
    """
    square = (gl.theory.meanfield.q_star(phi, sigma_w, sigma_b) - sigma_b**2) / sigma_w**2
    return jnp.where(jnp.isfinite(square) & (square > 0), square, 1.0)


def laws(cfg: Config, phi: Any, kind: str) -> jax.Array:
    """Infinite width, first order and the size of the second, nats a layer, `(sigma_w, 3)`."""
    theory = gl.theory.finite_width

    def one(sigma_w: jax.Array) -> jax.Array:
        square, deviations = input_square(phi, sigma_w, cfg.sigma_b), (sigma_w, cfg.sigma_b)
        shape = cfg.width, cfg.depth
        if kind == "plain":
            q_1 = sigma_w**2 * square + cfg.sigma_b**2
            growth = theory.plain(phi, q_1, *deviations, *shape)
        else:
            growth = theory.residual_branch(phi, square, *deviations, 1.0, *shape)
        return jnp.mean(jnp.stack(growth, axis=1), axis=0)

    found: jax.Array = jax.lax.map(one, cfg.sigma_w)
    return found


def figure(data: xr.Dataset) -> gl.Figure:
    """The rate over sigma_w (points, quartiles) on its laws, one panel an activation."""
    fig, panels = gl.figures.panels(1, data.sizes["activation"], height=2.6, sharey=True)
    looks = dict(zip(KINDS, gl.figures.series(len(KINDS)), strict=True))
    for axes, name in zip(panels, data.activation.values, strict=True):
        gl.figures.rule(axes, y=0)
        for kind, look in looks.items():
            row = data.sel(activation=name, kind=kind)
            gl.figures.predicted(axes, data.sigma_w, row.rate_infinite + row.rate_first)
            gl.figures.band(axes, data.sigma_w, row.rate, look, share=0.5)
        axes.set_xlabel(r"$\sigma_w$")
        gl.figures.title(axes, str(name))
        if not np.isfinite(data.rate_infinite.sel(activation=name, kind="residual")).all():
            gl.figures.words(axes, 0.97, 0.03, "residual: no law known", ha="right")
    marks = {name: look | {"linestyle": "none"} for name, look in looks.items()}
    gl.figures.key(panels[0], marks | {"law": gl.figures.THEORY}, loc="lower right")
    panels[0].set_ylabel("decades of gradient a layer back\n(below 0 it vanishes)")
    return fig


def caption(data: xr.Dataset) -> str:
    """What the figure shows, in numbers."""
    name = str(data.activation.values[0])
    ends = data.sel(activation=name, kind="plain").isel(back=-1).log10_median
    return (
        f"The typical gradient through {data.attrs['depth']} layers of {data.attrs['width']} "
        f"{name} neurons is 10^{float(ends[0]):.0f} of the last layer's at "
        f"σ_w = {float(data.sigma_w[0]):g} and 10^{float(ends[-1]):.0f} at "
        f"σ_w = {float(data.sigma_w[-1]):g}; with a residual branch it vanishes nowhere. Marks: "
        f"medians and quartiles of {data.sizes['draw']} draws; lines: log χ_1 / 2 a layer less the "
        "known term in 1/width, and log(1 + χ) / 2 for residual layers of an odd activation."
    )


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The rate and its edge for each activation, what the identity changes, and the chain rule."""
    plain, residual = (data.sel(kind=kind) for kind in KINDS)
    for name in data.activation.values:
        row = plain.sel(activation=name)
        # Where lengths grow for ever (gelu at a large sigma_w) there is no q*, and no prediction.
        row = row.isel(sigma_w=np.isfinite(row.rate_infinite.values))
        if row.sizes["sigma_w"]:
            yield gl.claim.mean(
                f"{name}: at every sigma_w the log gradient grows by log chi_1 / 2 a layer, "
                "less the first order of 1/width",
                row.rate,
                row.rate_infinite + row.rate_first,
                HANIN,
                second_order_of_width=row.rate_second,
            )
            yield from edge_claims(row, str(name))
    below = plain.rate_infinite < 0
    if bool(below.any()):
        yield gl.claim.mean(
            "plain: wherever chi_1 is below 1 the typical gradient vanishes, with every activation",
            *(plain.rate, 0.0, SCHOENHOLZ),
            relation="<=",
            where=below,
        )
    yield gl.claim.mean(
        "residual: at no sigma_w, with no activation, does the typical gradient vanish",
        *(residual.rate, 0.0, HE),
        relation=">=",
    )
    known = np.isfinite(residual.rate_infinite)
    if bool(known.any()):
        yield gl.claim.mean(
            "residual: with every odd activation the log gradient grows by log(1 + chi)/2 a layer",
            residual.rate,
            residual.rate_infinite + residual.rate_first,
            YANG,
            where=known,
            first_order_of_width=abs(residual.rate_first) * (data.activation != "linear"),
            second_order_of_width=residual.rate_second,
        )
    eps = float(np.finfo(data.log10_fast.dtype).eps)
    yield gl.claim.everywhere(
        "every J_k by jax.jacfwd, multiplied, gives the same gradient, in decades",
        *(data.log10_literal, data.log10_fast, CHAIN_RULE),
        # n eps a factor (Higham 2002, sections 3.5 and 3.7); a state that is off by a rounding
        # goes on as a gradient does.
        rounding_of_products=data.attrs["depth"]
        * (data.attrs["width"] * eps * np.maximum(1, 10**data.log10_fast) / gl.LN10),
    )


def edge_claims(row: xr.Dataset, name: str) -> Iterator[gl.Claim]:
    """The sigma_w at which the rate of one activation is 0, where the grid has it."""
    law, mean = row.rate_infinite + row.rate_first, row.rate.mean("draw")
    edge = gl.estimate.crossing(row.sigma_w, law) if law.size > 1 else math.nan
    if math.isnan(edge):
        return
    slope = float(np.interp(edge, row.sigma_w, np.gradient(law, row.sigma_w)))
    num_errors = gl.claim.num_errors(row.sizes["draw"])
    sampling = num_errors * gl.estimate.mean(row.rate.transpose("draw", ...)).error
    # Both are crossings of straight lines between the same points. An edge that chance may move
    # off the grid is not looked for.
    near = {
        cause: float(np.interp(edge, row.sigma_w, amount)) / slope
        for cause, amount in (
            ("sampling", sampling),
            ("second order of width", row.rate_second),
        )
    }
    if row.sigma_w[0] < edge - sum(near.values()) and edge + sum(near.values()) < row.sigma_w[-1]:
        yield gl.Claim(
            f"{name}: the gradient neither vanishes nor explodes where chi_1 is 1, but for the "
            "first order of 1/width",
            measured=gl.estimate.crossing(row.sigma_w, mean),
            expected=edge,
            tolerance=near,
            source=EDGE,
        )


def one_left_out(found: Any) -> Any:
    """The products without the last factor."""
    return jax.tree.map(lambda leaf: leaf.at[-1].set(leaf[-2]), found)


FAULTS = {
    "weights 3 % too large": gl.fault.argument(
        "ensembles.gaussian", sigma_w=lambda sigma_w: 1.03 * sigma_w
    ),
    "weights 10 % too small": gl.fault.argument(
        "ensembles.gaussian", sigma_w=lambda sigma_w: 0.9 * sigma_w
    ),
    "weights 50 % too large": gl.fault.argument(
        "ensembles.gaussian", sigma_w=lambda sigma_w: 1.5 * sigma_w
    ),
    "activation forgotten": gl.fault.argument(
        "ensembles.gaussian", phi=lambda phi: gl.activations.PHI["linear"]
    ),
    "gradient read from the wrong end": gl.fault.result(
        "jacobians.log_gradient_norms", lambda norms: norms[::-1]
    ),
    "identity branch dropped": gl.fault.change(
        "ensembles.residual", lambda honest: lambda *args: gl.ensembles.gaussian(*args[:6])
    ),
    "residual branch 3 % too large": gl.fault.argument(
        "ensembles.residual", factor=lambda factor: 1.03 * factor
    ),
    "one Jacobian left out": gl.fault.result("chain_rule.products", one_left_out),
}


def network_payload(data: xr.Dataset) -> gl.lesson.Network:
    """Median and quartiles over draws for each activation and sigma_w, plain and residual."""
    axes = ("activation", "kind", "sigma_w", "back")
    return {
        "activations": data.activation.values.tolist(),
        "kinds": data.kind.values.tolist(),
        "sigma_w": gl.lesson.exact(data.sigma_w),
        "back": data.back.values.tolist(),
        "median": gl.lesson.decimals(data.log10_median.transpose(*axes), 3),
        "low": gl.lesson.decimals(data.log10_low.transpose(*axes), 3),
        "high": gl.lesson.decimals(data.log10_high.transpose(*axes), 3),
        "predicted": gl.lesson.decimals(
            data.log10_predicted.transpose("activation", "sigma_w", "back"), 3
        ),
        "chi_1": gl.lesson.exact(data.chi_1.transpose("activation", "sigma_w")),
        "width": int(data.attrs["width"]),
        "num_draws": int(data.attrs["num_draws"]),
    }


TANH = {"activation": "tanh", "kind": "plain", "back": "last"}
LESSON = gl.lesson.Offer(
    figures={"network": network_payload},
    numbers={
        "network depth": gl.lesson.at("depth"),
        "network width": gl.lesson.at("width"),
        "small sigma_w": gl.lesson.at("sigma_w", sigma_w=0.5),
        "large sigma_w": gl.lesson.at("sigma_w", sigma_w=2.5),
        "gradient at small sigma_w": gl.lesson.at(
            "log10_median", scale="log10", sigma_w=0.5, **TANH
        ),
        "gradient at large sigma_w": gl.lesson.at(
            "log10_median", scale="log10", sigma_w=2.5, **TANH
        ),
        "largest chi_1 of the logistic": gl.lesson.at("chi_1", how="max", activation="logistic"),
    },
    claims={
        "no gain at the edge": "tanh: the gradient neither",
        "slope at every sigma_w": "tanh: at every sigma_w",
        "typical gradient does not vanish": "residual: at no sigma_w",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
