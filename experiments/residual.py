"""Does a residual branch keep the gradient from vanishing, and where does it not?

He, Zhang, Ren and Sun 2016: a layer z + F(z) has the Jacobian I + F', so each factor of the product
keeps the identity. Often said: it never vanishes. Exactly: it cannot while every ‖F'‖ is below 1
(no singular value is then below the product of 1 - ‖F'‖), but does where F' has an eigenvalue -1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "the textbook"
KINDS, EDGES = ("plain", "residual"), ("scalar", "one direction of many")
HE, WEYL = "He, Zhang, Ren and Sun 2016", "Weyl's inequality for singular values"
FIELD = "Schoenholz et al. 2017, section 4; Yang and Schoenholz 2017; gradlab.theory.finite_width"
MOMENT = "E over G of |v + s G v/√width|² = (1 + s²)|v|², layer by layer"
DET = "the product of all singular values is |det J|, and |det J| that of the layers'"


@gl.config
class Config:
    """One chain with and without the branch z +, a linear residual chain, and the edge."""

    activation: str
    depth: int
    width: int
    sigma_w: float
    sigma_b: float
    factor: float
    num_draws: int = gl.key("draws of both chains", at_least=8, at_most=10**5)
    s: float = gl.key("size of the branch of the linear chain I + s G/√width", above=0, at_most=2)
    num_linear: int = gl.key("draws of the linear chain", at_least=8, at_most=10**6)
    depth_edge: int = gl.key("layers of the chain at the edge", at_least=1, at_most=10**5)
    w: gl.Floats = gl.key("eigenvalues of F', among them -1", at_least=-10, at_most=10)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Spectra and gradients of both chains, the bound, the linear law, and the edge at -1."""
    key_both, key_linear, key_edge, key_few = jax.random.split(key, 4)
    depths = gl.grid.depths(cfg.depth, 8, every=1)  # the first, which both chains share, and 8
    one, to_here = partial(both, cfg, depths), jnp.tri(cfg.depth, dtype=bool)
    values, gradient, norm, log_det, size = gl.grid.over_draws(one, key_both, cfg.num_draws)
    bound = gl.theory.residual.log_lower_bound(jnp.where(to_here, norm[:, 0, None, :], 0.0))
    (law, beyond), squares = laws(cfg), linear_squares(cfg, depths, key_linear)
    sizes = cfg.width, gl.activations.PHI[cfg.activation], cfg.sigma_w, cfg.sigma_b, cfg.factor
    few = gl.certificate.of_few_layers(
        key_few, lambda k, depth: gl.ensembles.residual(k, depth, *sizes), cfg.width, cfg.depth
    )
    fine = jnp.linspace(jnp.min(cfg.w), jnp.max(cfg.w), 400)
    edge, nats = gl.theory.residual.log10_scalar_product, {"units": "nats"}
    at = "draw kind depths direction", "draw kind layer", "kind layer", "draw layer"
    return {
        "kind": gl.named(list(KINDS), "kind"),
        "depths": gl.named(jnp.array(depths), "depths", long_name="depth L"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="depth L"),
        "log_singular_values": gl.named(values, at[0], long_name="of J_L ... J_1", **nats),
        "log_gradient": gl.named(gradient, at[1], long_name="log |v J_L ... J_1|, |v| = 1", **nats),
        "log_gradient_law": gl.named(law, at[2], long_name="to first order in 1/width", **nats),
        "log_gradient_beyond": gl.named(beyond, at[2], long_name="the next order", **nats),
        "log_bound": gl.named(bound, at[3], **nats),
        "branch_norm": gl.named(norm, "draw way layer", long_name="|F'_k|, spectral norm"),
        "log_size": gl.named(size, "draw kind part", long_name="log |P|, its rounding", **nats),
        "log_det": gl.named(log_det, at[3], long_name="log |det| of the residual product"),
        **{way: gl.named(part, "of few", **nats) for way, part in few._asdict().items()},
        "square": gl.named(squares, "linear depths", long_name="|Jv|² / (1 + s²)^L"),
        "edge": gl.named(list(EDGES), "edge"),
        "log10_edge": gl.named(left(cfg, key_edge), "w edge", long_name="log10 of what is left"),
        "log10_edge_law": gl.named(edge(cfg.w, cfg.depth_edge), "w", long_name="L log10 |1 + w|"),
        "w_fine": gl.named(fine, "w_fine", long_name="eigenvalue of F'"),
        "log10_edge_fine": gl.named(edge(fine, cfg.depth_edge), "w_fine"),
    }


def both(cfg: Config, depths: tuple[int, ...], key: jax.Array) -> tuple[jax.Array, ...]:
    """Log singular values and gradients of both chains, all |F'| and log |det|: one draw."""
    key_chain, key_input, key_loss = jax.random.split(key, 3)
    x = gl.ensembles.inputs(key_input, cfg.width, 1.0)
    v = gl.ensembles.inputs(key_loss, cfg.width, 1 / cfg.width)  # of length 1
    phi = gl.activations.PHI[cfg.activation]
    sizes = (key_chain, cfg.depth, cfg.width, phi, cfg.sigma_w, cfg.sigma_b)  # the same weights
    models = gl.ensembles.gaussian(*sizes), gl.ensembles.residual(*sizes, cfg.factor)
    plain, residual = (gl.chain_rule.products(model, x) for model in models)
    J = jnp.stack([plain.jacobians, residual.jacobians])
    values = jax.vmap(lambda J: gl.spectra.log_singular_values(gl.chain.linear(J), x, depths))(J)
    gradient = [gl.chain_rule.log_lengths(v, chain.products) for chain in (plain, residual)]
    layer, states = models[0].layer, gl.chain.states(models[1], x)[:-1]
    A = cfg.factor * jax.vmap(jax.jacfwd(layer, 1))(models[0].params, states)
    norms = jnp.linalg.norm(residual.jacobians - jnp.eye(cfg.width), ord=2, axis=(1, 2))
    norms = jnp.stack([norms, jnp.sqrt(jnp.linalg.eigvalsh(A.mT @ A)[:, -1])])
    few = [gl.chain.linear(J[: depths[min(1, len(depths) - 1)]]) for J in J]
    size = jnp.stack([gl.certificate.multiplied_out(model, x) for model in few])
    return values, jnp.stack(gradient), norms, gl.jacobians.log_abs_det(models[1], x), size


def laws(cfg: Config) -> tuple[jax.Array, jax.Array]:
    """The mean log gradient to first order in 1/width, and what is left out, `(2, depth)` each."""
    # The input has mean square 1, and for the residual chain phi must be odd, as tanh is.
    theory, phi = gl.theory.finite_width, gl.activations.PHI[cfg.activation]
    sigmas, sizes = (cfg.sigma_w, cfg.sigma_b), (cfg.width, cfg.depth)
    plain = theory.plain(phi, cfg.sigma_w**2 + cfg.sigma_b**2, *sigmas, *sizes)
    branch = theory.residual_branch(phi, 1.0, *sigmas, cfg.factor, *sizes)
    law = jnp.stack([growth.infinite + growth.first for growth in (plain, branch)])
    beyond = jnp.stack([plain.second, branch.second - branch.first])  # there a size is known alone
    return jnp.cumsum(law, axis=1), jnp.cumsum(beyond, axis=1)


def linear_squares(cfg: Config, depths: tuple[int, ...], key: jax.Array) -> jax.Array:
    """The mean over v of `|Jv|² / (1 + s²)^L`, J = I + s G/√width, `(num_linear, num_depths)`."""
    linear, at = gl.activations.PHI["linear"], jnp.array(depths)

    def one(key: jax.Array) -> jax.Array:
        model = gl.ensembles.residual(key, cfg.depth, cfg.width, linear, cfg.s, 0.0, 1.0)
        logs = 2 * gl.jacobians.log_norms(model, jnp.ones(cfg.width))[at - 1] - jnp.log(cfg.width)
        return jnp.exp(logs - gl.theory.residual.log_linear_second_moment(cfg.s, at))

    return gl.grid.over_draws(one, key, cfg.num_linear)


def left(cfg: Config, key: jax.Array) -> jax.Array:
    """log10 of what is left where F' has the eigenvalue w: alone, or beside others, `(w, 2)`."""
    rest = jax.random.normal(key, (cfg.depth_edge, cfg.width, cfg.width)) / cfg.width**0.5
    rest, first = cfg.s * rest.at[:, 0].set(0).at[:, :, 0].set(0), jnp.eye(cfg.width)[0]

    def one(w: jax.Array) -> jax.Array:
        wide = gl.chain.linear(jnp.eye(cfg.width) + rest.at[:, 0, 0].set(w))
        along = gl.jacobians.log_norms([lambda t: t * first, wide], jnp.ones(1))
        alone = gl.jacobians.log_norms(gl.ensembles.scalar_residual(w, cfg.depth_edge), jnp.ones(1))
        return jnp.stack([alone[-1], along[-1]]) / gl.LN10

    return jax.lax.map(one, cfg.w)


def figure(data: xr.Dataset) -> gl.Figure:
    """Gradients with their laws, the direction that is kept least with the bound, and the edge."""
    fig, (gradients, least, edge) = gl.figures.panels(1, 3, height=2.6)
    depth, bound = data.attrs["depth"], data.log_bound.median("draw") / gl.LN10
    seen = data.isel(layer=slice(0, None, max(1, depth // 12)))
    smallest = data.log_singular_values.isel(direction=-1) / gl.LN10
    for kind, look in zip(KINDS, gl.figures.series(2), strict=True):
        gl.figures.band(gradients, seen.layer, seen.log_gradient.sel(kind=kind) / gl.LN10, look)
        gl.figures.predicted(gradients, data.layer, data.log_gradient_law.sel(kind=kind) / gl.LN10)
        gl.figures.band(least, data.depths, smallest.sel(kind=kind), look)
    gl.figures.bound(least, data.layer, bound)
    for axes in (gradients, least):
        axes.set(xlim=(0, depth), xlabel="depth L", ylabel="decades")
    gl.figures.ends(gradients, depth, data.log_gradient.median("draw").isel(layer=-1) / gl.LN10)
    ends = [*smallest.isel(depths=-1).median("draw").values, bound[-1]]
    gl.figures.ends(least, depth, xr.DataArray(ends, {"row": [*KINDS, "bound"]}, "row"))
    gl.figures.predicted(edge, data.w_fine, data.log10_edge_fine)
    for name, fill, size in zip(EDGES, ("none", "full"), (5.5, 2.5), strict=True):
        look = {"color": gl.figures.COLOURS[2], "marker": "o", "fillstyle": fill, "ms": size}
        gl.figures.measured(edge, data.w, data.log10_edge.sel(edge=name), look, label=name)
    edge.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handletextpad=0.1)
    edge.set(xlabel="eigenvalue w of F'", ylabel="decades")
    gl.figures.titles(fig, "what arrives", "the direction kept least", "w = -1: nothing is left")
    return fig


def caption(data: xr.Dataset) -> str:
    """What arrives with and without the identity, and what is left at the edge."""
    end = data.log_gradient.isel(layer=-1).median("draw") / gl.LN10
    plain, residual = (f"10^{float(end.sel(kind=kind)):.1f}" for kind in KINDS)
    return f"""Through {data.attrs["depth"]} layers {plain} of a gradient arrives without the
        identity, {residual} with it, and no direction falls below the product of 1 - ‖F'‖ (dashed);
        but one in which F' has the eigenvalue w keeps |1 + w|^{data.attrs["depth_edge"]}: nothing
        at w = -1. Bands hold all draws, black lines are laws."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What is left through both chains, and of the residual one's least direction."""
    for kind in KINDS:
        row = data.sel(kind=kind).isel(layer=-1, depths=-1, direction=-1) / gl.LN10
        yield gl.headline.mean(f"left, {kind}", row.log_gradient, "decades", row.log_gradient_law)
    yield gl.headline.mean("kept least, residual", row.log_singular_values, "decades")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The promise, the growth, the linear law, and the edge."""
    eps, here = float(np.finfo(data.log_gradient.dtype).eps), data.sel(layer=data.depths)
    width, (found, by_hand) = data.attrs["width"], data.branch_norm.transpose("way", ...)
    norm = found.where(found < 1, 0.0)
    # J is known to width eps |J|, which moves no singular value of the product by more, relatively,
    # than that over the smallest one of J (Ostrowski 1959); |F'| is off by width eps (1 + |F'|), by
    # AᵀA and its root by three times as much.
    rounding = (2 * width * eps * (1 + norm) / (1 - norm)).cumsum("layer").sel(layer=data.depths)
    sentence = "z + F(z): no singular value of the product is below the product of 1 - |F'|"
    plain, kept = (data.log_singular_values.sel(kind=kind) for kind in KINDS)
    yield gl.claim.at_least(sentence, kept[..., -1], here.log_bound, WEYL, rounding=rounding)
    sentence = "|F'| of every layer is that of the branch alone, differentiated by itself"
    yield gl.claim.everywhere(sentence, found, by_hand, HE, rounding=4 * width * eps * (1 + found))
    sentence = "squared singular values sum to the squared entries of the product multiplied out"
    squares, few = 2 * data.log_singular_values, min(1, data.sizes["depths"] - 1)
    size = np.log(np.exp(squares.isel(depths=few)).sum("direction")) / 2, data.log_size[..., 0]
    yield gl.claim.everywhere(sentence, *size, "Frobenius' norm", rounding=data.log_size[..., 1])
    sentence = "without the identity the smallest singular value is, in the mean, below that bound"
    if np.isfinite(here.log_bound).all():  # else nothing is promised
        gap = plain[:, -1, -1] - here.log_bound[:, -1]
        yield gl.claim.mean(sentence, gap, 0.0, HE, relation="<=")
        known = {"rounding": width * rounding, "of_states": 2 * (width + 8) * data.depths**2 * eps}
        sentence = "z + F(z): all singular values together multiply to the product of |det J_k|"
        yield gl.claim.everywhere(sentence, kept.sum("direction"), here.log_det, DET, **known)
    sentence = "z + F(z): rows, back and through, and norms are those of the J_k multiplied out"
    yield gl.claim.everywhere(sentence, data.fast, data.literal, HE, rounding=data.rounding)
    sentence = "the gradient at layer 1 follows its law at every depth, plain and residual, in log"
    law, beyond = data.log_gradient_law, data.log_gradient_beyond
    known = np.isfinite(law)  # there is no law where phi is not odd
    yield gl.claim.mean(sentence, data.log_gradient, law, FIELD, where=known, finite_width=beyond)
    sentence = "J = I + s G/√width: E|Jv|² is (1 + s²)^L at every depth, over (1 + s²)^L"
    yield gl.claim.mean(sentence, data.square, 1.0, MOMENT, over="linear")
    law, left, inside = data.log10_edge_law, data.log10_edge, np.isfinite(data.log10_edge_law)
    # 1 + w is rounded once, by eps relative to its summands, and every layer rounds once more.
    relative = eps * (1 + np.abs(data.w)) / np.abs(1 + data.w).where(inside, 1.0) + eps
    rounding = data.attrs["depth_edge"] * relative / gl.LN10 + 4 * eps * np.abs(law)
    if inside.any():
        sentence = "of a direction with the eigenvalue w of F', |1 + w|^L is left, for every w"
        yield gl.claim.everywhere(sentence, left, law, "(1 + w)^L", where=inside, rounding=rounding)
    if not inside.all():
        sentence = "at the eigenvalue -1 of F' nothing is left: 'never' ends here"
        yield gl.claim.everywhere(sentence, left, -np.inf, DET, where=~inside)


FAULTS = {
    "identity dropped": gl.fault.no_identity(),
    "weights 10 % too large": gl.fault.argument("ensembles.gaussian", sigma_w=lambda s: 1.1 * s),
    "norms 1 % off": gl.fault.result("jacobians.log_norms", lambda log_norms: log_norms + 0.01),
    "singular values cubed": gl.fault.scale("spectra.log_singular_values", 3.0),
    "singular values 1 % of them": gl.fault.scale("spectra.log_singular_values", 0.01),
    "eigenvalue 1 % off": gl.fault.argument("ensembles.scalar_residual", w=lambda w: 0.99 * w),
}
HARMLESS = {"jacobians.log_abs_det": "a matrix has the determinant of its transpose"}
ARRIVING = {"how": "median", "scale": "ln", "layer": "last"}
LESSON = gl.lesson.Offer(
    numbers={
        "identity depth": gl.lesson.at("depth"),
        "gradient without identity": gl.lesson.at("log_gradient", kind="plain", **ARRIVING),
        "gradient with identity": gl.lesson.at("log_gradient", kind="residual", **ARRIVING),
    },
    claims={
        "no direction below the bound": "no singular value of the product",
        "nothing left at minus one": "nothing is left",
        "linear residual grows": "E|Jv|² is (1 + s²)^L",
    },
)

if __name__ == "__main__":
    gl.run(__file__)
