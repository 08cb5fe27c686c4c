"""Why can a recurrent net not both remember and learn, and what do gates change?

A unit latches a bit where x = w tanh x has a stable fixed point, and there its Jacobian is below 1
(Bengio et al. 1994). A largest singular value of W below 1/max|phi'| suffices for vanishing, above
it does not for exploding (Pascanu et al. 2013). Gates multiply the gradient (Gers et al. 2000).

Answers: rnn vanishing gradient spectral radius or singular value; lstm forget gate bias init 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "recurrence"
BENGIO = "Bengio, Simard and Frasconi 1994, section IV"
PASCANU = "Pascanu, Mikolov and Bengio 2013, section 2.1"
GERS = "Gers, Schmidhuber and Cummins 2000; derived: the mean log of a gate that reads inputs alone"


@gl.config
class Config:
    """A cell that latches, weights of a known largest singular value, and cells with gates."""

    w: gl.Floats = gl.key("weight of the latch x = w tanh x", above=0, at_most=100)
    num_latched: int = gl.key("steps of the latch", at_least=1, at_most=10**6)
    singular_value: gl.Floats = gl.key("largest singular value of W", above=0, at_most=100)
    num_lags: int = gl.key("time steps that a gradient goes back", at_least=2, at_most=10**4)
    width: int
    sigma_w: float
    sigma_u: float = gl.key("size of what the inputs add, its deviation", above=0, at_most=10)
    bias: float = gl.key("bias of the gate that keeps the state", at_least=-20, at_most=20)
    cell: gl.Strings = gl.key("cells with gates, beside the plain one", choices=("GRU", "LSTM"))
    num_draws: int = gl.key("draws of weights and inputs", at_least=8, at_most=10**5)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The latch and its Jacobian, products by largest singular value, and gradients by lag."""
    key_plain, key_cells, key_gates, key_few = jax.random.split(key, 4)
    state, slope = jax.lax.map(lambda w: latched(w, cfg), cfg.w)
    state_law, slope_law = jax.lax.map(gl.theory.clipping.latch, cfg.w)
    fine = jnp.linspace(0.02, jnp.max(cfg.w), 200)
    curve = jax.lax.map(gl.theory.clipping.latch, fine)
    growth = gl.grid.over_draws(lambda key: products(cfg, key), key_plain, cfg.num_draws)
    cells = ["plain", *dict.fromkeys(cfg.cell)]
    over = partial(gl.grid.over_draws, num_draws=cfg.num_draws)
    backs = [over(partial(by_lag, cfg, name), key_cells) for name in cells]
    gates = jnp.stack([over(partial(gated, cfg, name), key_gates) for name in cfg.cell])
    short, back = replace(cfg, num_lags=gl.certificate.FEW), []  # so few that no wrong step hides
    for name in cells:
        ways = gl.certificate.both_ways(*begun(short, name, key_few))
        lags = by_lag(short, name, key_few)[::-1]
        back.append(jnp.stack(ways._replace(fast=ways.fast.at[0].set(lags))))
    plain = partial(begun, short, "plain", key_few)
    ways = jax.lax.map(lambda s: gl.certificate.both_ways(*plain(s)), cfg.singular_value)
    ways = ways._replace(fast=ways.fast.at[:, 1].set(products(short, key_few)))
    few = jnp.concatenate([jnp.stack(back), jnp.stack(ways, axis=1)])
    lag, tanh = jnp.arange(1, cfg.num_lags + 1), gl.activations.PHI["tanh"]
    chi = gl.theory.meanfield.chi_1(tanh, cfg.sigma_w, cfg.sigma_u)
    gate = gl.theory.clipping.gate_log_mean(cfg.bias, cfg.sigma_u**2)
    drawn = over(lambda key: begun(cfg, cells[-1], key)[0].params[0].W[0], key_cells)
    halved = over(partial(by_lag, replace(cfg, width=cfg.width // 2), "plain"), key_cells)
    # The largest singular value of a square Gaussian matrix is 2 (Geman 1980): sigma_w is half.
    wide = gl.theory.meanfield.chi_1(tanh, cfg.singular_value / 2, cfg.sigma_u)
    return {
        "lag": gl.named(lag, "lag", long_name="time steps back"),
        "state": gl.named(state, "w", long_name="x after the last step"),
        "slope": gl.named(slope, "w", long_name="Jacobian of a step there"),
        "state_law": gl.named(state_law, "w"),
        "slope_law": gl.named(slope_law, "w", long_name="w sech²(x*)"),
        "w_fine": gl.named(fine, "w_fine", long_name="weight w of the cell"),
        "curve": gl.named(jnp.stack(curve), "part w_fine", long_name="x*, and the Jacobian there"),
        "log_product": gl.named(growth, "draw singular_value lag", units="nats"),
        "log_rate_wide": gl.named(jnp.log(wide) / 2, "singular_value", long_name="√chi_1, log"),
        "log_half": gl.named(halved, "draw lag", long_name="plain, half the width", units="nats"),
        "cells": gl.named(cells, "cells"),
        "entries": gl.named(jax.vmap(gl.ensembles.realised)(drawn), "draw moment"),
        "log_gradient": gl.named(jnp.stack(backs), "cells draw lag", units="nats"),
        "log_gradient_law": gl.named(lag * jnp.log(chi) / 2, "lag", long_name="plain, wide"),
        "log_gate": gl.named(gates[:, :, 0], "cell draw lag", long_name="mean over the state"),
        "log_gate_read": gl.named(gates[:, :, 1], "cell draw lag", long_name="by gates alone"),
        "few": gl.named(few, "network way of step", long_name="in a few steps", units="nats"),
        "log_gate_law": gl.named(lag * gate, "lag", long_name="gates alone", units="nats"),
    }


def latched(w: jax.Array, cfg: Config) -> tuple[jax.Array, jax.Array]:
    """Where x = w tanh x ends from x = w, and the Jacobian of a step there, by JAX."""
    x = gl.ensembles.recurrent(gl.recurrent.latch(w), cfg.num_latched)(jnp.ones(1) * w)
    return x[0], gl.jacobians.product(gl.recurrent.latch(w), x)[0, 0]


def products(cfg: Config, key: jax.Array) -> jax.Array:
    """Log of the largest singular value of dh_T/dh_(T-k), by that of W, `(singular_value, lag)`."""
    norms = gl.jacobians.log_spectral_norms
    return jax.lax.map(lambda s: norms(*begun(cfg, "plain", key, s)[:2]), cfg.singular_value)


def by_lag(cfg: Config, name: str, key: jax.Array) -> jax.Array:
    """Log |dL/dstate_(T-k)| over that of the last step, L random in the state, `(num_lags,)`."""
    model, state, v = begun(cfg, name, key)
    logs = gl.jacobians.log_gradient_norms(model, state, lambda z: v @ z)
    return (logs - logs[-1])[-2::-1]


def begun(cfg: Config, name: str, key: jax.Array, largest: Any = None) -> tuple[Any, ...]:
    """Steps of a cell (W scaled to a `largest` singular value), its state after as many, a row."""
    key_weights, key_inputs, key_loss = jax.random.split(key, 3)
    drawn = gl.recurrent.weights(key_weights, name, cfg.width, cfg.sigma_w, cfg.sigma_u, cfg.bias)
    if largest is not None:
        drawn = drawn._replace(W=drawn.W * (largest / jnp.linalg.norm(drawn.W, ord=2)))
    inputs = jax.random.normal(key_inputs, (2 * cfg.num_lags, cfg.width))
    before, after = (gl.recurrent.unrolled(name, drawn, part) for part in jnp.split(inputs, 2))
    state = before(jnp.zeros(cfg.width * gl.recurrent.CELLS[name].num_states))
    return after, state, jax.random.normal(key_loss, state.shape)


def gated(cfg: Config, name: str, key: jax.Array) -> jax.Array:
    """Mean log of |dL/dc|, by lag, gates reading inputs alone; and of those gates, `(2, lag)`."""
    key_weights, key_inputs = jax.random.split(key)
    drawn = gl.recurrent.weights(key_weights, name, cfg.width, 0.0, cfg.sigma_u, cfg.bias)
    of_key = partial(gl.ensembles.inputs, width=cfg.width, mean_square=1.0)
    inputs = jax.vmap(of_key)(jax.random.split(key_inputs, cfg.num_lags))
    size = cfg.width * gl.recurrent.CELLS[name].num_states
    J = gl.chain.jacobians(gl.recurrent.unrolled(name, drawn, inputs), jnp.zeros(size))
    at_end = jnp.zeros(size).at[-cfg.width :].set(1.0)  # in an LSTM's memory
    first, rows = gl.chain_rule.rows_through(at_end, J)
    back = jnp.concatenate([first[None], rows[:-1]])[::-1, -cfg.width :]
    read = (inputs @ drawn.U.T + drawn.b)[::-1, : cfg.width]  # the gate that keeps stands first
    gates = jnp.cumsum(jax.nn.log_sigmoid(read), axis=0)
    return jnp.mean(jnp.stack([jnp.log(back), gates]), axis=2)


def figure(data: xr.Dataset) -> gl.Figure:
    """The latch; growth by the largest singular value, under its bound; gradients by lag."""
    fig, (latch, growth, lags) = gl.figures.panels(1, 3, height=2.9)
    remembers, passes, grown = gl.figures.series(3)
    for part in data.curve:
        gl.figures.predicted(latch, data.w_fine, part)
    gl.figures.measured(latch, data.w, data.state, remembers, "what it holds: x*")
    gl.figures.measured(latch, data.w, data.slope, passes, "what it passes back: Jacobian")
    gl.figures.rule(latch, y=1.0)
    latch.legend(loc="upper left")
    steps = data.sizes["lag"]
    seen = np.exp(data.log_product.isel(lag=-1) / steps)
    gl.figures.regions(growth, float(seen.min()) / 1.5, float(data.singular_value.max()) * 1.3)
    gl.figures.bound(growth, data.singular_value, data.singular_value)
    gl.figures.band(growth, data.singular_value, seen, grown)
    gl.figures.predicted(growth, data.singular_value, np.exp(data.log_rate_wide))
    for name, style in zip(data.cells.values, gl.figures.series(3), strict=False):
        gl.figures.band(lags, data.lag, data.log_gradient.sel(cells=name) / gl.LN10, style)
    gl.figures.predicted(lags, data.lag, data.log_gradient_law / gl.LN10)
    gl.figures.bound(lags, data.lag, data.log_gate_law / gl.LN10)
    lags.set(xlim=(0, steps), xlabel="time steps back", ylabel="decades of the gradient")
    ends = [*data.log_gradient.median("draw").isel(lag=-1).values, float(data.log_gate_law[-1])]
    named = xr.DataArray(ends, {"row": [*data.cells.values, "gate alone"]}, "row")
    gl.figures.ends(lags, steps, named / gl.LN10)
    latch.set(xlabel="weight w", ylabel=" ", ylim=(None, 1.35 * float(data.curve[0].max())))
    growth.minorticks_off()
    growth.set(yticks=[0.25, 0.5, 1, 2, 4], yticklabels=["¼", "½", "1", "2", "4"])
    growth.set(xlabel="largest singular value of W", ylabel="largest growth a step")
    gl.figures.titles(fig, "one unit latches", "many: dashed, the bound", "the gradient by lag")
    return fig


def caption(data: xr.Dataset) -> str:
    """The latch's best Jacobian, where products really grow, and what is left at the last lag."""
    edge = gl.estimate.crossing(data.singular_value, data.log_product.isel(lag=-1).median("draw"))
    left = data.log_gradient.isel(lag=-1).median("draw") / gl.LN10
    names = ", ".join(f"10^{float(left.sel(cells=n)):.1f} ({n})" for n in data.cells.values)
    return f"""A latch x = w tanh x that holds passes back less than it gets: at w =
        {float(data.w[-1]):g} its Jacobian is {float(data.slope[-1]):.2g}. A product of
        {data.sizes["lag"]} steps is bounded by the largest singular value, and grows only from
        {edge:.2g} on, not from 1. After as many steps {names} of a gradient is left.
        Bands: all draws; lines: laws of wide nets; dashed: bound, and the gate alone."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What is left of a gradient at the last lag, by cell."""
    for last in data.log_gradient.isel(lag=-1) / gl.LN10:
        yield gl.headline.mean(f"left, {last.cells.item()}", last, "decades")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The latch, the bound and how far it is from sufficient, the plain law, and the gates."""
    eps, width = float(np.finfo(data.state.dtype).eps), data.attrs["width"]
    settled = data.slope_law ** data.attrs["num_latched"] < eps  # what is left of the way there
    # x = w tanh x is solved to some ulps over 1 - J, and J moves by 2 tanh x times that.
    rounding = 8 * eps * np.maximum(data.w, 1) ** 2 / np.abs(1 - data.slope_law).where(settled, 1.0)
    if settled.any():
        sentence = "x = w tanh x ends at its latch, and the Jacobian there is w sech²(x*)"
        ends = data.slope + data.state, data.slope_law + data.state_law
        yield gl.claim.everywhere(sentence, *ends, BENGIO, where=settled, rounding=rounding)
    sentence = "no latch passes a gradient on undiminished"
    yield gl.claim.at_most(sentence, data.slope, 1.0, BENGIO, rounding=4 * eps)
    sentence = "k steps multiply a gradient by the k-th power of W's largest singular value"
    # A product of n x n matrices: n^1.5 eps of its norm (Higham 2002, section 3.5), and W's.
    rounding = 4 * eps * width**1.5 * data.lag
    bound = data.lag * np.log(data.singular_value)  # |tanh'| is 1 at most
    yield gl.claim.at_most(sentence, data.log_product, bound, PASCANU, rounding=rounding)
    lags, last = data.sizes["lag"], data.log_product.isel(lag=-1)  # whose peak is log √(e k)
    vain = (data.singular_value > 1) & (lags * data.log_rate_wide + (1 + np.log(lags)) / 2 < 0)
    if vain.any():
        sentence = "a largest singular value above 1 does not suffice: such products vanish too"
        yield gl.claim.mean(sentence, last, 0.0, PASCANU, relation="<=", where=vain)
    yield gl.claim.weights(data.entries, "the normal law", variance=data.attrs["sigma_w"] ** 2)
    plain, half = data.log_gradient.sel(cells="plain"), data.log_half
    error = half.std("draw", ddof=1) / half.sizes["draw"] ** 0.5
    yield gl.claim.mean(
        "plain: a step multiplies the gradient by √chi_1, in log, but for the width",
        *(plain, data.log_gradient_law, "Schoenholz et al. 2017, section 4; Chen et al. 2018"),
        # A mean log is off its limit by c/width: by what half the width changes.
        finite_width=np.abs(half.mean("draw") - plain.mean("draw")),
        half_width_sampling=gl.estimate.Sampling(error, half.sizes["draw"]),
    )
    sentence = "a gradient and two norms, at each of a few steps, are those of J_k multiplied out"
    fast, literal, rounding = data.few.transpose("way", ...)
    yield gl.claim.everywhere(sentence, fast, literal, PASCANU, rounding=rounding)
    sentence = "LSTM, GRU: gates that read inputs alone multiply the gradient by themselves, in log"
    # A gate is the logistic of a sum of n, off by n^1.5 eps, and a row has one entry in its place.
    rounding = 4 * eps * (width**1.5 * data.lag + np.abs(data.log_gate_read))
    yield gl.claim.everywhere(sentence, data.log_gate, data.log_gate_read, GERS, rounding=rounding)
    sentence = "in the mean a gate multiplies it by what its bias and the inputs say, in log"
    yield gl.claim.mean(sentence, data.log_gate, data.log_gate_law, GERS)


FAULTS = {
    "no slope": gl.fault.result("recurrent.latch", lambda c: gl.chain.linear(1.01 * c.params.W)),
    "W times 4": gl.fault.argument("recurrent.unrolled", weights=lambda w: w._replace(W=4 * w.W)),
    "lags counted from the wrong end": gl.fault.result("by_lag", lambda logs: logs[::-1]),
    "Jacobians 0.1 % off": gl.fault.argument("chain_rule.rows_through", J=lambda J: 1.001 * J),
    "gates biased by 0.1 more": gl.fault.argument("recurrent.weights", bias=lambda b: b + 0.1),
}
HARMLESS = {
    "the loss halved": "what is left of a gradient is a ratio",
    "chain.Chain.__call__": "what has settled is where it was: a step more or less moves no law",
}

if __name__ == "__main__":
    gl.run(__file__)
