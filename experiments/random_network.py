"""How does a gradient fare on its way back through a deep random network?

In a wide random network every layer multiplies the mean squared gradient by chi_1, which depends
on sigma_w and on the activation alone: below 1 the gradient vanishes, above 1 it explodes, and at
1 lies the edge of chaos (Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 4). The log
of a typical gradient falls short of that by a known term in 1/width (Hanin and Nica 2020). Adding
the layer's input to its output (He, Zhang, Ren and Sun 2016) moves the edge: such a network's
typical gradient does not vanish at any sigma_w.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "width"
KINDS = ("plain", "residual")
SCHOENHOLZ = "Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017"
WIDTH = f"{SCHOENHOLZ}, equation 19; Hanin and Nica 2020 and gradlab.theory.finite_width"
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

    def one(key: jax.Array) -> jax.Array:  # the same unit weights in every network
        return stacked(lambda *of: jax.vmap(partial(decades, key, cfg, *of))(cfg.sigma_w))

    first = jax.random.split(key, cfg.num_draws)[0]
    by_hand = stacked(lambda *of: decades(first, cfg, *of, cfg.sigma_w[0], literal=True)[-1])
    draws, entries = gl.grid.over_draws(lambda key: (one(key), drawn(key, cfg)), key, cfg.num_draws)
    low, median, high = jnp.quantile(draws, jnp.array([0.25, 0.5, 0.75]), axis=0)
    finite, beyond = jnp.moveaxis(stacked(partial(laws, cfg)), -1, 0) / gl.LN10
    by_back, law = "activation kind sigma_w back", "activation kind sigma_w"
    relative, predicted = "log10 |dL/dz_l| / |dL/dz_L|", back * jnp.log10(chi_1)[..., None] / 2
    return {
        "activation": gl.named(list(cfg.activation), "activation"),
        "kind": gl.named(list(KINDS), "kind"),
        "back": gl.named(back, "back", long_name="layers back from the last"),
        "log10_median": gl.named(median, by_back, long_name=f"{relative}, median"),
        "log10_low": gl.named(low, by_back, long_name="its lower quartile over draws"),
        "log10_high": gl.named(high, by_back, long_name="its upper quartile over draws"),
        "rate": gl.named(draws[..., -1] / cfg.depth, "draw", law, long_name="decades a layer back"),
        "rate_law": gl.named(finite, law, long_name="its law at this width"),
        "rate_beyond": gl.named(beyond, law, long_name="the size of what that leaves out"),
        "log10_fast": gl.named(draws[0, :, :, 0, -1], "activation kind", long_name="one network"),
        "log10_literal": gl.named(by_hand, "activation kind", long_name="by all J_k"),
        "entries": gl.named(entries, "draw moment", long_name="moments of W √width / σ_w"),
        "chi_1": gl.named(chi_1, "activation sigma_w", long_name="chi_1"),
        "log10_predicted": gl.named(predicted, "activation sigma_w back", long_name="by chi_1"),
    }


def decades(*drawn: Any, literal: bool = False) -> jax.Array:
    """`log10 |dL/dz_l| / |dL/dz_L|`, backwards in l, `(depth + 1,)`; by every J_k, or fast."""
    model, x, direction = network(*drawn)
    read = model, x, lambda z: direction @ z
    by_all, fast = gl.chain_rule.log_norms_back, gl.jacobians.log_gradient_norms
    norms = by_all(*read).logs if literal else fast(*read)
    return (norms - norms[-1])[::-1] / gl.LN10


def network(key: jax.Array, cfg: Config, phi: Any, kind: str, sigma_w: jax.Array) -> Any:
    """A plain or a residual chain with Gaussian weights, its input, and dL/dz_L."""
    key_chain, key_input, key_loss = jax.random.split(key, 3)
    drawn = key_chain, cfg.depth, cfg.width, phi, sigma_w, cfg.sigma_b
    model = gl.ensembles.gaussian(*drawn) if kind == "plain" else gl.ensembles.residual(*drawn, 1.0)
    square = gl.theory.meanfield.input_square(phi, sigma_w, cfg.sigma_b)
    x = gl.ensembles.inputs(key_input, cfg.width, square)
    return model, x, jax.random.normal(key_loss, (cfg.width,))


def drawn(key: jax.Array, cfg: Config) -> jax.Array:
    """The moments of the weights that all networks of a draw have, over σ_w, `(6,)`."""
    model = network(key, cfg, gl.activations.PHI["tanh"], "plain", jnp.ones(()))[0]
    return gl.ensembles.realised(model.params.W)


def laws(cfg: Config, phi: Any, kind: str) -> jax.Array:
    """The mean growth at this width, and what that leaves out, nats a layer, `(sigma_w, 2)`."""
    theory, sizes = gl.theory.finite_width, (cfg.width, cfg.depth)

    def one(sigma_w: jax.Array) -> jax.Array:
        deviations = sigma_w, cfg.sigma_b
        square = gl.theory.meanfield.input_square(phi, *deviations)
        if kind == "plain":
            q_1 = sigma_w**2 * square + cfg.sigma_b**2
            infinite, first, second = theory.plain(phi, q_1, *deviations, *sizes)
        else:
            infinite, first, second = theory.residual_branch(phi, square, *deviations, 1.0, *sizes)
            # Of a branch that is not linear the first order is known in size alone.
            second += (phi is not gl.activations.PHI["linear"]) * jnp.abs(first)
        return jnp.stack([infinite + first, second]).mean(axis=1)

    return jax.lax.map(one, cfg.sigma_w)


def figure(data: xr.Dataset) -> gl.Figure:
    """A layer's factor over sigma_w (medians, quartiles) on its laws, one panel an activation."""
    fig, panels = gl.figures.panels(1, data.sizes["activation"], height=2.6, sharey=True)
    looks = {"plain": {"color": "0.25", "marker": "o"}, "residual": {"color": "C3", "marker": "^"}}
    low, high = 10.0 ** data.rate.min().item() / 1.3, 10.0 ** data.rate.max().item() * 1.4
    for axes, name in zip(panels, data.activation.values, strict=True):
        gl.figures.regions(axes, min(low, 0.5), max(high, 2.0))
        for kind, look in looks.items():
            row = data.sel(activation=name, kind=kind)
            gl.figures.predicted(axes, data.sigma_w, 10.0**row.rate_law, color=look["color"])
            gl.figures.band(axes, data.sigma_w, 10.0**row.rate, look, share=0.5)
        axes.set_xlabel(r"$\sigma_w$")
        gl.figures.title(axes, str(name))
        if not np.isfinite(row.rate_law).all():
            gl.figures.words(axes, 0.03, 0.86, "residual: no law known")
    gl.figures.key(panels[0], looks, title="marks on their laws", loc="lower left")
    panels[0].set_ylabel("what a layer multiplies\nthe typical gradient by")
    return fig


def caption(data: xr.Dataset) -> str:
    """What the figure shows, in numbers."""
    name = str(data.activation.values[0])
    ends = data.sel(activation=name, kind="plain").isel(back=-1).log10_median
    return f"""The typical gradient through {data.attrs["depth"]} layers of {data.attrs["width"]}
        {name} neurons is 10^{float(ends[0]):.0f} of the last layer's at
        σ_w = {float(data.sigma_w[0]):g} and 10^{float(ends[-1]):.0f} at
        σ_w = {float(data.sigma_w[-1]):g}; with a residual branch it vanishes nowhere. Marks and
        bands: medians and quartiles of {data.sizes["draw"]} draws; lines: √χ_1 a layer less what
        the width takes, and √(1 + χ) for residual layers whose activation has an even slope."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The growth of both networks, at the first activation and sigma_w."""
    for kind in KINDS:
        row = data.sel(kind=kind).isel(activation=0, sigma_w=0)
        yield gl.headline.mean(f"growth, {kind}", row.rate, "decades a layer back", row.rate_law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The rates and where they are 0, what the identity changes, and the chain rule."""
    # A draw in which all of a layer is off has no log; the laws are of the others.
    data = data.isel(draw=np.isfinite(data.rate).all(("activation", "kind", "sigma_w")).values)
    plain, residual = (data.sel(kind=kind) for kind in KINDS)
    # Where lengths grow for ever (gelu at a large sigma_w) there is no q*, and no prediction.
    for sentence, row, source in (
        ("at every sigma_w the log gradient grows by log chi_1 / 2 a layer", plain, WIDTH),
        ("residual: it grows by log(1 + chi)/2 where a slope is even", residual, YANG),
    ):
        known = np.isfinite(row.rate_law)
        if bool(known.any()):
            yield gl.claim.mean(
                f"{sentence}, but for what the width takes, with each activation",
                *(row.rate, row.rate_law, source),
                where=known,
                beyond_the_law=row.rate_beyond,
            )
    for name in data.activation.values:
        yield from edge_claim(plain.sel(activation=name), str(name))
    yield gl.claim.mean(
        "residual: at no sigma_w, with no activation, does the typical gradient vanish",
        *(residual.rate, 0.0, "He, Zhang, Ren and Sun 2016, section 2"),
        relation=">=",
    )
    yield gl.claim.weights(data.entries, WIDTH)
    sizes = data.attrs["depth"] * data.attrs["width"] * float(np.finfo(data.chi_1.dtype).eps)
    yield gl.claim.everywhere(
        "every J_k by jax.jacfwd, multiplied, gives the same gradient, in decades",
        *(data.log10_literal, data.log10_fast, CHAIN_RULE),
        # n eps a factor (Higham 2002, sections 3.5 and 3.7); a state that is off by a rounding
        # goes on as a gradient does.
        rounding_of_products=sizes * np.maximum(1, 10**data.log10_fast) / gl.LN10,
    )


def edge_claim(row: xr.Dataset, name: str) -> Iterator[gl.Claim]:
    """The sigma_w at which the rate of one activation is 0, where the grid has it."""
    edge = gl.estimate.crossing(row.sigma_w, row.rate_law)
    if np.isnan(edge):
        return
    there = row.assign(slope=row.rate_law.differentiate("sigma_w")).interp(sigma_w=edge)
    yield gl.claim.mean(
        f"{name}: the gradient neither vanishes nor explodes where chi_1 is 1, but for the width",
        edge - there.rate / there.slope,  # one step of Newton's from where the law is 0
        *(edge, SCHOENHOLZ),
        beyond_the_law=there.rate_beyond / there.slope,
    )


FAULTS = {
    "weights 30 % too large": gl.fault.argument("ensembles.gaussian", sigma_w=lambda s: 1.3 * s),
    "weights 3 % too large": gl.fault.argument("ensembles.gaussian", sigma_w=lambda s: 1.03 * s),
    "read backwards": gl.fault.result("jacobians.log_gradient_norms", lambda logs: logs[::-1]),
    "identity branch dropped": gl.fault.no_identity(),
    "branch 3 % too large": gl.fault.argument("ensembles.residual", factor=lambda a: 1.03 * a),
    "another input": gl.fault.argument("chain_rule.log_norms_back", x=lambda x: 0.99 * x),
}
HARMLESS = {"the loss halved": "a rate is a ratio of gradients"}
NAMES = {name: f"log10_{name}" for name in ("median", "low", "high", "predicted")}
NAMES |= {"activations": "activation", "kinds": "kind"}
SCALES = {"small sigma_w": 0.5, "weight scale of the quartiles": 1.4, "large sigma_w": 2.5}
FIRST_LAYER = {  # the array, the activation, the kind of network and sigma_w
    "gradient at small sigma_w": ("median", "tanh", "plain", 0.5),
    "gradient at large sigma_w": ("median", "tanh", "plain", 2.5),
    "gradient of the logistic": ("median", "logistic", "plain", 2.5),
    "low quartile": ("low", "relu", "plain", 1.4),
    "high quartile": ("high", "relu", "plain", 1.4),
    "residual relu at 1": ("median", "relu", "residual", 1.0),
    "residual relu at 2.5": ("median", "relu", "residual", 2.5),
}
at = gl.lesson.at
LESSON = gl.lesson.Offer(
    figures={"network": gl.lesson.read("network", **NAMES)},
    numbers={"network depth": at("depth"), "network width": at("width")}
    | {"largest chi_1 of the logistic": at("chi_1", how="max", activation="logistic")}
    | {name: at("sigma_w", sigma_w=value) for name, value in SCALES.items()}
    | {
        name: at(NAMES[part], activation=phi, kind=kind, sigma_w=value, back="last")
        for name, (part, phi, kind, value) in FIRST_LAYER.items()
    },
    claims={
        "no gain at the edge": "tanh: the gradient neither",
        "slope at every sigma_w": "at every sigma_w the log",
        "typical gradient does not vanish": "residual: at no sigma_w",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
