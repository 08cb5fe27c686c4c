"""How fast do signal and gradient grow through residual blocks, and which branch tames them?

Blocks z + a F(z). Unit rectifier branches double the squared norm in each block, whatever the
depth: exp(Theta(L)); tanh branches grow the gradient as exp(Theta(√L)) (Yang and Schoenholz 2017,
arXiv:1712.08969). With a = 1/√L the factor is (1 + 1/L)^L, below e; with a branch that reads a
normalised signal it is L + 1, since block l then carries 1/(l + 1) of the signal (De and Smith
2020, arXiv:2002.10444); with a = 0, learned, every Jacobian is I at first (Bachlechner et al. 2020,
arXiv:2003.04887). But "at first" is the point: while a is 0 the branch has no gradient at all.

Answers: resnet activations explode with depth without batch norm; rezero skipinit alpha zero no
gradient at step 0; scale residual branch 1/sqrt(L); activation norm grows pre-norm transformer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
YANG = "Yang and Schoenholz 2017, theorems for tanh and relu; gradlab.theory.residual"
DE = "De and Smith 2020, section 2; (1 + 1/L)^L < e"
REZERO = "Bachlechner et al. 2020, section 3"
BRANCHES = ("relu", "tanh", "normalised", "1/√L", "ReZero")


@gl.config
class Config:
    """The chain of blocks, and the short training of the factors."""

    branch: gl.Strings = gl.key("what stands in a block beside the identity", choices=BRANCHES)
    depth: int
    width: int = gl.key("number of neurons in a layer", at_least=8, at_most=2**12)
    num_draws: int = gl.key("draws of weights, input and loss", at_least=8, at_most=10**5)
    num_blocks: int = gl.key("blocks of the network that is trained", at_least=1, at_most=1000)
    num_steps: int = gl.key("number of optimiser steps", at_least=2, at_most=10**4)
    learning_rate: float


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Log squared norms of signal and gradient with their laws; and ReZero's first steps."""
    key_chain, key_train = jax.random.split(key)
    made = [look(name, cfg.depth) for name in cfg.branch]
    switches = tuple(jnp.array(column, float) for column in zip(*made, strict=True))

    def one(key: jax.Array) -> tuple[jax.Array, ...]:  # the same unit weights for all
        return jax.lax.map(lambda switch: norms(key, cfg, *switch), switches)

    signal, gradient, step = gl.grid.over_draws(one, key_chain, cfg.num_draws)
    found = [laws(cfg, *switch) for switch in made]
    names = ("signal_law", "signal_added_law", "gradient_law", "gradient_added_law")
    law = dict(zip(names, map(jnp.stack, zip(*found, strict=True)), strict=True))
    keys, sizes = jax.random.split(key_train, 3), (cfg.num_blocks, cfg.width, cfg.width)
    W = gl.ensembles.unit_gaussian(keys[0], sizes, float)
    x, y = (jax.random.normal(key, (16, cfg.width)) for key in keys[1:])
    slope, of_factors, factor = rezero(cfg, W, x, y)
    first = jnp.stack([of_factors[0], factor[1] / cfg.learning_rate])
    branches = jnp.sqrt(2.0) * jnp.einsum("kij,bj->kbi", W, jnp.maximum(x, 0))
    by_hand = jnp.sum(2 * (x - y) / x.size * branches, axis=(1, 2))  # <dL/dz, W_k phi(x)>
    by_hand = jnp.stack([jnp.linalg.norm(by_hand), jnp.max(jnp.abs(by_hand))])
    at, nats = "draw branch block", {"units": "nats"}
    return {
        "block": gl.named(jnp.arange(1, cfg.depth + 1), "block", long_name="blocks"),
        "signal": gl.named(signal, at, long_name="log |z_l|²/|z_0|²", **nats),
        "gradient": gl.named(gradient, at, long_name="log |dL/dz_(L-l)|²/|dL/dz_L|²", **nats),
        "step_square": gl.named(step, "draw branch", long_name="|a W phi|² over |a phi|², mean"),
        **{name: gl.named(part, "branch block", **nats) for name, part in law.items()},
        "step": gl.named(jnp.arange(cfg.num_steps), "step", long_name="step"),
        "weight_gradient": gl.named(slope, "step", long_name="|dL/dW| of all branches"),
        "factor_size": gl.named(factor, "step", long_name="largest |a|"),
        "first": gl.named(jnp.stack([first, by_hand]), "way norm", long_name="of dL/da at a = 0"),
    }


def look(name: str, depth: int) -> tuple[float, float, float]:
    """A branch as numbers: its factor a, whether it is tanh's, whether it is normalised."""
    factor = {"1/√L": depth**-0.5, "ReZero": 0.0}.get(name, 1.0)
    return factor, float(name == "tanh"), float(name == "normalised")


def block(params: Any, z: jax.Array) -> jax.Array:
    """The block z + a W phi(z), phi = relu or tanh, of z or of z over its deviation."""
    W, (factor, is_tanh, is_normalised) = params
    x = z / jnp.where(is_normalised > 0, jnp.sqrt(jnp.mean(z * z)), 1.0)
    phi = gl.activations.PHI
    return z + factor * (W @ jnp.where(is_tanh > 0, phi["tanh"](x), 2**0.5 * phi["relu"](x)))


def norms(key: jax.Array, cfg: Config, *switch: jax.Array) -> tuple[jax.Array, ...]:
    """Log squared norms of the signal after each block, and of the gradient behind as many.

    And the mean over blocks of what W does to the squared length of what it is given.
    """
    key_W, key_input, key_loss = jax.random.split(key, 3)
    W = gl.ensembles.unit_gaussian(key_W, (cfg.depth, cfg.width, cfg.width), float)
    params = W, tuple(jnp.broadcast_to(one, cfg.depth) for one in switch)
    x, v = (jax.random.normal(key, (cfg.width,)) for key in (key_input, key_loss))
    model = gl.chain.Chain(block, params)
    states = gl.chain.states(model, x)
    given = jax.vmap(lambda z: block((jnp.eye(cfg.width), switch), z) - z)(states[:-1])
    step = jnp.sum(jnp.diff(states, axis=0) ** 2, axis=1) / jnp.sum(given**2, axis=1)
    squares = jnp.sum(states**2, axis=1)
    logs = gl.jacobians.log_gradient_norms(model, x, lambda z: v @ z)
    back = 2 * (logs - logs[-1])[-2::-1]
    return jnp.log(squares[1:] / squares[0]), back, jnp.mean(step)


def laws(cfg: Config, factor: float, is_tanh: float, is_normalised: float) -> tuple[Any, ...]:
    """The log squared norms at infinite width, and what the width adds, signal then gradient."""
    theory, phi = gl.theory.residual, gl.activations.PHI["tanh" if is_tanh else "relu"]
    sigma_w = 1.0 if is_tanh else 2**0.5
    added = theory.preactivation(
        phi, 1.0, sigma_w, factor, cfg.depth, normalised=bool(is_normalised)
    )
    forward, back = (theory.typical_log(c, 5.0, cfg.width) for c in (added[0], added[1][::-1]))
    return tuple(jnp.cumsum(part) for part in (*forward, *back))


def rezero(cfg: Config, W: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Gradients of branches and of factors, and the largest factor, from a = 0, `(num_steps,)`."""

    def loss(params: Any) -> jax.Array:
        W, factor = params
        rest = factor, jnp.zeros_like(factor), jnp.zeros_like(factor)
        ends = jax.vmap(gl.chain.Chain(block, (W, rest)))(x)
        return jnp.mean((ends - y) ** 2)

    def step(params: Any, _: None) -> tuple[Any, tuple[jax.Array, ...]]:
        slopes = jax.grad(loss)(params)
        later = jax.tree.map(lambda p, g: p - cfg.learning_rate * g, params, slopes)
        return later, (*map(jnp.linalg.norm, slopes), jnp.max(jnp.abs(params[1])))

    start = W, jnp.zeros(cfg.num_blocks)
    seen: tuple[jax.Array, ...] = jax.lax.scan(step, start, None, length=cfg.num_steps)[1]
    return seen


def figure(data: xr.Dataset) -> gl.Figure:
    """Signal and gradient by depth, each on its law; and what a = 0 does in the first steps."""
    fig, (signal, gradient, training) = gl.figures.panels(1, 3, height=2.9)
    last = data.sizes["block"]
    looks = list(gl.figures.series(data.sizes["branch"]))
    for axes, name in ((signal, "signal"), (gradient, "gradient")):
        for branch, style in zip(data.branch.values, looks, strict=True):
            row = data.sel(branch=branch)
            gl.figures.band(axes, data.block, row[name] / gl.LN10, style)
            law = row[f"{name}_law"] + row[f"{name}_added_law"]
            gl.figures.predicted(axes, data.block, law / gl.LN10)
        middle = data[name].median("draw").isel(block=-1) / gl.LN10
        top = float(middle.where(data.branch != "relu", 0.0).max())  # relu leaves the panel
        axes.set(xlim=(0, last), xlabel="blocks", ylim=(-0.2, 1.5 * top or None))
        gl.figures.ends(axes, last, data[name].median("draw").isel(block=-1, drop=True) / gl.LN10)
    moved, branches = gl.figures.series(2)
    gl.figures.measured(training, data.step, data.factor_size, moved, "largest factor |a|")
    gl.figures.measured(training, data.step, data.weight_gradient, branches, "gradient of branches")
    training.legend(loc="lower right")
    training.set(xlabel="step", ylabel=" ", ylim=(0, None))
    signal.set(ylabel="decades of the squared norm")
    gradient.set(ylabel=" ")
    gl.figures.titles(fig, "signal", "gradient", "ReZero: nothing at step 0")
    return fig


def caption(data: xr.Dataset) -> str:
    """The squared norms at the last block, and ReZero's first step."""
    ends = data.signal.mean("draw").isel(block=-1) / gl.LN10
    backs = data.gradient.mean("draw").isel(block=-1) / gl.LN10
    rows = ", ".join(
        f"10^{float(ends.sel(branch=name)):.1f} and 10^{float(backs.sel(branch=name)):.1f} ({name})"
        for name in data.branch.values
    )
    return f"""Through {data.attrs["depth"]} blocks z + a F(z) the squared norms of signal and
        gradient grow by {rows}. Where a starts at 0 the branches get a gradient of exactly
        {float(data.weight_gradient[0]):g} at step 0, and of {float(data.weight_gradient[-1]):.2g}
        at step {int(data.step[-1])}. Bands: all draws; lines: laws, less what the width takes."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """By how much the gradient's squared norm grows through all blocks, by branch."""
    for name in data.branch.values[: gl.headline.MOST]:
        row = data.sel(branch=name).isel(block=-1) / gl.LN10
        law = row.gradient_law + row.gradient_added_law
        yield gl.headline.mean(f"growth, {name}", row.gradient, "decades", law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The growth of both, the two bounds, and ReZero's identity and first gradient."""
    for name in ("signal", "gradient"):
        law, added = data[f"{name}_law"], data[f"{name}_added_law"]
        # To first order for rectifiers, whose kurtosis is known; else only its size is.
        exact = data.branch.isin(["relu", "1/√L", "ReZero"])
        rate = np.abs(added) / data.block
        beyond = (data.block * (2 * rate) ** 2).where(exact, np.abs(added))
        moves = data.branch != "ReZero"
        if moves.any():
            yield gl.claim.mean(
                f"{name}: each branch grows the squared norm by its law, at every depth, in log",
                *(data[name], law + added, YANG),
                where=moves,
                beyond_the_law=beyond,
            )
    moving = data.step_square.isel(branch=np.flatnonzero(data.branch != "ReZero"))
    if moving.size:
        sentence = "W keeps the squared length of what it is given, in the mean over blocks"
        yield gl.claim.mean(sentence, moving.mean("branch"), 1.0, YANG)
    if "1/√L" in data.branch:
        row = data.sel(branch="1/√L")
        sentence = "with a = 1/√L the typical squared norm stays below e times what it was"
        yield gl.claim.mean(sentence, row.signal, 1.0, DE, relation="<=")
    if "ReZero" in data.branch:
        row = data.sel(branch="ReZero")
        both, eps = np.abs(row.signal) + np.abs(row.gradient), np.finfo(data.signal.dtype).eps
        sizes = np.log(data.attrs["width"])  # of the logs that are subtracted
        sentence = "with a = 0 signal and gradient pass unchanged"
        yield gl.claim.everywhere(sentence, both, 0.0, REZERO, rounding=4 * eps * (1 + sizes))
    sentence = "at step 0 of a = 0 the branches' weights have no gradient at all"
    yield gl.claim.equal(sentence, data.weight_gradient[0], 0.0, REZERO)
    # A branch is off by n^1.5 eps; of 16 n, times 2/(16 n) |x - y|, below 8 together, twice.
    first, sums = data["first"], 16 * data.attrs["width"] ** 1.5 * data.attrs["num_blocks"] ** 0.5
    rounding = sums * float(np.finfo(first.dtype).eps)
    sentence = "the factors' is what their branches add along dL/dz: its norm, and the first step's"
    yield gl.claim.everywhere(sentence, first[0], first[1], REZERO, rounding=rounding)
    sentence = "from step 1 on the weights have one, as soon as a has moved"
    yield gl.claim.always(sentence, data.weight_gradient[1:] > 0, REZERO)


FAULTS = {
    "branches 3 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.03),
    "identity dropped": gl.fault.change(
        "block", lambda honest: lambda params, z: honest(params, z) - z
    ),
    "a block's factor taken for 0.1 more": gl.fault.change(
        "block", lambda honest: lambda p, z: honest((p[0], (p[1][0] + 0.1, *p[1][1:])), z)
    ),
    "factors held": gl.fault.argument(
        "rezero", cfg=lambda cfg: cfg.__class__(**{**vars(cfg), "learning_rate": 0.0})
    ),
}
HARMLESS = {
    "a Jacobian transposed": "a Gaussian matrix is as likely as its transpose",
    "the loss halved": "what is left of a gradient is a ratio",
    "computed in another format": "a rounding is far below the error of the sampling",
}


if __name__ == "__main__":
    gl.run(__file__)
