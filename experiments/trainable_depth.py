"""How deep may a network be and still train, and can theory say before step 1 which one will?

Poole et al. 2016 (arXiv:1606.05340), sections 2 and 3: from layer to layer lengths and correlations
follow maps, with a transition from order to chaos. Schoenholz et al. 2017 (arXiv:1611.01232):
correlations settle within xi_c layers, "these depth scales provide bounds on how deep a network may
be trained" (abstract). The multiple 6 of their figure 5 (not read; from a second source) is an
observation: here it is fitted, for each learning rate. Then a forecast, which nobody had published:
from weights' scales, activation, depth and learning rate alone, by eigenvalues of the tangent
kernel (Jacot et al. 2018, arXiv:1806.07572; Xiao et al. 2020, arXiv:1912.13053), fixed on other
seeds, whether each of some 300 networks learns the digits within its budget, stalls or diverges.

Answers: deep tanh network does not train, loss stays at 2.303; how deep can an MLP be without
skip connections or batch norm; predict before training whether a network will train or give nan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "depth"
POOLE = "Poole et al. 2016, sections 2 and 3; gradlab.theory.meanfield"
DEPTHS = "Schoenholz et al. 2017, abstract and figure 5; gradlab.theory.meanfield.xi_c"
BRIER = "Brier 1950; rule: Xiao et al. 2020, Cohen et al. 2021; gradlab.theory.tangent_kernel"
OUTCOMES = ("learns", "stalls", "diverges")
FEATURES = ("learned within the budget", "beyond the edge", "if it may grow", "depth over width")
NUM_CLASSES = 10
IN_PRACTICE = "float32"  # networks are trained in it whatever the precision of the laws


@gl.config
class Config:
    """The maps; the networks, in all combinations; their training; and the rule."""

    map_sigma_w: gl.Floats = gl.key("sigma_w of the maps", above=0, at_most=100)
    map_sigma_b: float = gl.key("sigma_b of the maps", at_least=0, at_most=100)
    map_width: int = gl.key("neurons of the maps' layer", at_least=8, at_most=2**12)
    num_draws: int = gl.key("draws of the maps' layer", at_least=8, at_most=10**5)
    activation: gl.Strings
    variance: gl.Floats = gl.key("sigma_w² of the networks", above=0, at_most=100)
    sigma_b: float
    depth: gl.Ints
    rate: gl.Floats = gl.key("learning rates", above=0, at_most=1e6)
    width: int
    num_steps: int = gl.key("steps of the budget", at_least=10, at_most=10**5)
    batch_size: int = gl.key("digits in a batch", at_least=2, at_most=1438)
    prior: float = gl.key("spread of the rule's weights beforehand", above=0, at_most=1e3)
    num_bins: int = gl.key("intervals of probability", at_least=1, at_most=100)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The maps; the boundary of trainability; the forecast and what came about."""
    key_maps, key_runs = jax.random.split(key)
    loss = losses(cfg, key_runs)  # of the networks that fix the rule, and of those forecast
    known = features(cfg)
    fates = jax.vmap(lambda one: outcome(one).ravel())(loss)
    flat = known.reshape(-1, len(FEATURES))
    rule = gl.forecast.fit(flat, fates[0], len(OUTCOMES), cfg.prior)
    plain = plain_numbers(cfg).reshape(flat.shape[0], -1)
    by_numbers = gl.forecast.fit(plain, fates[0], len(OUTCOMES), cfg.prior)
    share = jnp.mean(jax.nn.one_hot(fates[0], len(OUTCOMES)), axis=0)
    made = gl.forecast.probabilities(rule, flat)
    forecasts = {
        "rule": made,
        "plain guess": jnp.broadcast_to(share, made.shape),
        "same rule on plain numbers": gl.forecast.probabilities(by_numbers, plain),
    }
    scores = jnp.stack([gl.forecast.brier(one, fates[1]) for one in forecasts.values()])
    reliable = gl.forecast.reliability(rule, flat, fates[1], cfg.num_bins)
    at, grid = "activation variance depth rate", known.shape[:-1]
    phi = gl.activations.PHI[cfg.activation[0]]
    scales = (jnp.sqrt(cfg.variance), cfg.sigma_b)
    return {
        **maps(cfg, key_maps),
        "outcome": gl.named(list(OUTCOMES), "outcome"),
        "feature": gl.named(list(FEATURES), "feature"),
        "forecaster": gl.named(list(forecasts), "forecaster"),
        "loss": gl.named(loss, f"seeds {at}", long_name="loss at the end", units="nats"),
        "features": gl.named(known, f"{at} feature", units="nats"),
        "fate": gl.named(fates[1].reshape(grid), at, long_name="what came about"),
        "probability": gl.named(made.reshape(*grid, -1), f"{at} outcome"),
        "brier": gl.named(scores.reshape(-1, *grid), f"forecaster {at}", long_name="Brier score"),
        "weights": gl.named(rule.weights[:, 1:], "outcome feature"),
        **{
            f"bin_{name}": gl.named(part, "outcome bin")
            for name, part in reliable._asdict().items()
        },
        "boundary": gl.named(
            boundary(cfg, jnp.mean(loss[:, 0], axis=0)),
            "variance rate",
            long_name="depth at which half of guessing's loss is left",
            units="layers",
        ),
        "xi_c": gl.named(gl.theory.meanfield.xi_c(phi, *scales), "variance", units="layers"),
        "xi_grad": gl.named(gl.theory.meanfield.xi_grad(phi, *scales), "variance", units="layers"),
        "chi_1": gl.named(gl.theory.meanfield.chi_1(phi, *scales), "variance"),
        "critical": gl.named(gl.theory.meanfield.sigma_w_critical(phi, cfg.sigma_b) ** 2, ""),
    }


def maps(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Length and correlation behind one drawn layer, and their laws, Poole et al. 2016."""
    theory, phi = gl.theory.meanfield, gl.activations.PHI[cfg.activation[0]]
    length, c = jnp.linspace(0.5, 15.0, 9), jnp.linspace(0.0, 1.0, 9)
    weight = cfg.map_sigma_w[:, None]
    q_star = theory.q_star(phi, cfg.map_sigma_w, cfg.map_sigma_b)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_chain, key_h = jax.random.split(key)
        h, other = jax.random.normal(key_h, (2, cfg.map_width))

        def given(sigma_w: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
            layer = gl.ensembles.random(
                *(key_chain, 1, cfg.map_width, phi, sigma_w, cfg.map_sigma_b),
                draw="gaussian",
                layer="preactivation",
            )
            long = jax.vmap(layer)(jnp.sqrt(length)[:, None] * h[None])
            turned = c[:, None] * h[None] + jnp.sqrt(1 - c**2)[:, None] * other[None]
            pairs = jax.vmap(layer)(jnp.sqrt(q) * jnp.concatenate([h[None], turned]))
            return jnp.mean(long**2, axis=1), pairs[1:] @ pairs[0] / (cfg.map_width * q)

        return jax.vmap(given)(cfg.map_sigma_w, q_star)

    lengths, correlations = gl.grid.over_draws(one, key, cfg.num_draws)
    return {
        "length": gl.named(length, "length", long_name="q_l"),
        "correlation": gl.named(c, "correlation", long_name="c_l"),
        "next_length": gl.named(lengths, "draw map_sigma_w length"),
        "next_length_law": gl.named(
            theory.V(phi, length[None], weight, cfg.map_sigma_b), "map_sigma_w length"
        ),
        "next_correlation": gl.named(correlations, "draw map_sigma_w correlation"),
        "next_correlation_law": gl.named(
            theory.C(phi, c[None], q_star[:, None], weight, cfg.map_sigma_b),
            "map_sigma_w correlation",
        ),
    }


def losses(cfg: Config, key: jax.Array) -> jax.Array:
    """The loss over the last tenth of the budget, `(2, activation, variance, depth, rate)`.

    Each network has weights and batches of its own; one after another, so that one program takes
    every depth and activation, and layers beyond a network's depth cost nothing.
    """
    digits, _ = gl.training.digits(IN_PRACTICE)
    key_project, key_runs = jax.random.split(key)
    P = gl.ensembles.unit_gaussian(key_project, (cfg.width, digits.x.shape[1]), IN_PRACTICE)
    data = gl.training.projected(digits, P)
    kinds = jnp.arange(len(cfg.activation))
    axes = (jnp.arange(2), kinds, jnp.sqrt(cfg.variance), jnp.array(cfg.depth), cfg.rate)
    grid = jnp.meshgrid(*axes, indexing="ij")

    def one(network: Any) -> jax.Array:
        key, (_, kind, sigma_w, depth, rate) = network
        return jnp.mean(trained(cfg, key, data, kind, sigma_w, depth, rate)[-last_tenth(cfg) :])

    keys = jax.random.split(key_runs, grid[0].size)
    ends = jax.lax.map(one, (keys, tuple(part.ravel() for part in grid)))
    return ends.reshape(grid[0].shape)


def last_tenth(cfg: Config) -> int:
    """The number of steps over which the loss at the end is taken."""
    return max(1, cfg.num_steps // 10)


def trained(
    cfg: Config,
    key: jax.Array,
    data: Any,
    kind: jax.Array,
    sigma_w: jax.Array,
    depth: jax.Array,
    rate: jax.Array,
) -> jax.Array:
    """The loss before each step of plain stochastic gradient descent, `(num_steps,)`."""
    key_chain, key_readout, key_batches = jax.random.split(key, 3)
    phis = [gl.activations.PHI[name] for name in cfg.activation]
    scales = (part.astype(IN_PRACTICE) for part in (sigma_w, jnp.asarray(cfg.sigma_b)))
    model = gl.ensembles.gaussian(
        key_chain, max(cfg.depth), cfg.width, phis[0], *scales, dtype=IN_PRACTICE
    )
    readout = gl.ensembles.unit_gaussian(key_readout, (NUM_CLASSES, cfg.width), IN_PRACTICE)
    is_there = jnp.arange(max(cfg.depth)) < depth

    def layer(params: Any, z: jax.Array) -> jax.Array:
        affine, there = params
        return jax.lax.cond(there, lambda: jax.lax.switch(kind, phis, affine(z)), lambda: z)

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return params[1] @ gl.chain.Chain(layer, (params[0].params, is_there))(x)

    batches = gl.training.schedule(key_batches, len(data.y), cfg.batch_size, cfg.num_steps)
    descent = optax.sgd(rate.astype(IN_PRACTICE))
    return gl.training.train(logits, (model, readout), descent, data, batches).loss
