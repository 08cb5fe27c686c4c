"""Can clipping make the healthy part of a gradient vanish?

The formula g <- g tau / max(|g|, tau) (Pascanu, Mikolov and Bengio 2013, algorithm 1) scales all
layers by one number. One wild layer makes it small, and the gradients of the healthy ones fall
under the epsilon of Adam (Kingma and Ba 2015, algorithm 1), which then stands still along them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "clipping"
ADAM = "Kingma and Ba 2015, algorithm 1: its moments are means; gradlab.theory.clipping.adam_left"
ALONE = "Kingma and Ba 2015, section 2.1: a step is of one entry's gradients, whatever their scale"
RULES = ("clipped", "layer by layer", "clipped, smaller ε", "not clipped")
MOST = 0.1 / 0.001**0.5  # (1 - beta_1)/√(1 - beta_2), the longest step of Adam over its rate


@gl.config
class Config:
    """A healthy layer, a wild one beside it, and Adam."""

    wild: gl.Floats = gl.key("gradient of the wild layer", at_least=1e3, at_most=1e14)
    tau: float
    epsilon: float = gl.key("Adam's epsilon", above=0, at_most=1)
    learning_rate: float
    num_steps: int
    num_entries: int = gl.key("weights of the healthy layer", at_least=2, at_most=10**5)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """How much of each healthy weight's error is left, by rule and wild gradient."""
    key_size, key_sign = jax.random.split(key)
    shape = (cfg.num_entries,)
    error = jax.random.uniform(key_size, shape, minval=0.5, maxval=1.5)
    start = error * jnp.sign(jax.random.uniform(key_sign, shape, minval=-1.0))

    def left(rule: str) -> jax.Array:
        def one(wild: jax.Array) -> jax.Array:
            return trained(cfg, rule, wild, start)

        return jax.vmap(one)(cfg.wild) * jnp.sign(start)[None]

    norm = jnp.hypot(cfg.wild, jnp.linalg.norm(start) / cfg.num_entries)
    kept = gl.theory.clipping.factor(norm, cfg.tau)
    slope = kept[:, None] / cfg.num_entries * jnp.ones_like(error)[None]
    errors = jnp.broadcast_to(error[None], slope.shape)
    law = gl.theory.clipping.adam_left(errors, slope, cfg.epsilon, cfg.learning_rate, cfg.num_steps)
    axes = "wild entry"
    return {
        "rule": gl.named(list(RULES), "rule"),
        "wild": gl.named(cfg.wild, "wild", long_name="gradient of the wild layer"),
        "error": gl.named(error, "entry", long_name="error of a healthy weight at the start"),
        "left": gl.named(jnp.stack([left(rule) for rule in RULES]), f"rule {axes}"),
        "left_low": gl.named(law.low, axes, long_name="at least left"),
        "left_steady": gl.named(law.steady, axes, long_name="left with steady moments"),
        "left_high": gl.named(law.high, axes, long_name="at most left"),
        "kept": gl.named(kept, "wild", long_name="factor of the clip at the start"),
        "change": gl.named(norm / cfg.wild - 1, "wild", long_name="what the healthy norm adds"),
    }


def trained(cfg: Config, rule: str, wild: jax.Array, start: jax.Array) -> jax.Array:
    """The healthy weights' errors after all steps, `(num_entries,)`.

    The loss is the mean of the squared errors over 2, and linear in the one wild weight.
    """
    tau = jnp.inf if rule == "not clipped" else cfg.tau
    kept = gl.theory.clipping.factor(wild, tau)
    epsilon = cfg.epsilon * kept if rule == "clipped, smaller ε" else cfg.epsilon
    optimizer = adam(cfg.learning_rate, epsilon)

    def step(carry: tuple[jax.Array, Any], _: None) -> tuple[tuple[jax.Array, Any], None]:
        error, state = carry
        grads = {"healthy": error / cfg.num_entries, "wild": wild[None]}
        updates, state = optimizer.update(clipped(rule, grads, tau), state)
        return (error + updates["healthy"], state), None

    first = (start, optimizer.init({"healthy": start, "wild": wild[None]}))
    (end, _), _ = jax.lax.scan(step, first, None, length=cfg.num_steps)
    return end


def adam(learning_rate: float, epsilon: jax.Array | float) -> Any:
    """Adam as optax has it."""
    import optax

    return optax.adam(learning_rate, eps=epsilon)


def clipped(rule: str, grads: dict[str, jax.Array], tau: float) -> dict[str, jax.Array]:
    """The gradient as a rule hands it to Adam."""
    if rule == "not clipped":
        return grads
    if rule == "layer by layer":
        return {name: gl.clipping.clip(leaf, tau) for name, leaf in grads.items()}
    return gl.clipping.clip(grads, tau)


LOOKS: dict[str, dict[str, Any]] = {
    "clipped": {"color": "C1", "marker": "o"},
    "layer by layer": {"color": "C0", "marker": "s", "markersize": 6, "markerfacecolor": "none"},
    "clipped, smaller ε": {"color": "C2", "marker": "x"},
    "not clipped": {"color": "0.45", "marker": "+", "markersize": 6},
}


def figure(data: xr.Dataset) -> gl.Figure:
    """What is left over the wild gradient: the clip stalls the healthy layer, and its remedies."""
    fig, (axes,) = gl.figures.panels(width=gl.figures.COLUMN, height=2.6)
    share = part(data)
    band = [(data[name] / data.error).mean("entry") for name in ("left_low", "left_high")]
    known = (data.left_low > 0).all("entry")
    axes.fill_between(
        data.wild, *(each.where(known) for each in band), color="0.8", linewidth=0, zorder=0
    )
    law = (data.left_steady / data.error).mean("entry")
    # Near 0 the steady step is no longer small beside what is left.
    gl.figures.predicted(axes, data.wild, law.where(law > 0.05))
    for name, look in LOOKS.items():
        gl.figures.measured(axes, data.wild, share.sel(rule=name), look)
    axes.set(xscale="log", yscale="log", xlabel="gradient of the wild layer")
    axes.set(ylabel="error left in the healthy layer", ylim=(float(share.min()) / 4, 2))
    looks = {name: look | {"linestyle": "none"} for name, look in LOOKS.items()}
    looks["proved bounds"] = {"color": "0.8", "marker": "s", "markersize": 7, "linestyle": "none"}
    gl.figures.key(axes, looks, loc="center right", bbox_to_anchor=(1, 0.6))
    gl.figures.title(axes, "one wild layer, clipped, stops a healthy one")
    return fig


def part(data: xr.Dataset) -> xr.DataArray:
    """The error that is left over that at the start, means over the weights, `(rule, wild)`."""
    return np.abs(data.left).mean("entry") / data.error.mean("entry")


def caption(data: xr.Dataset) -> str:
    """What is left at the wildest, with its remedies."""
    share = part(data)
    told = ", ".join(
        f"{float(share.sel(rule='clipped')[i]):.2g} at {float(data.wild[i]):.0e}"
        for i in range(0, data.sizes["wild"], max(1, data.sizes["wild"] // 4))
    )
    return (
        f"After {data.attrs['num_steps']} steps of Adam the part of the healthy layer's error that "
        f"is left, clipped together with a wild layer: {told}; clipped layer by layer, with a "
        f"smaller epsilon, or not clipped {float(share.sel(rule='not clipped').max()):.1g}. "
        "Line: the law for steady moments; grey: between the bounds that are proved."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What is left at the wildest, and where half is."""
    share = part(data)
    law = (data.left_steady / data.error).mean("entry")
    yield gl.Headline("left, clipped", float(share.sel(rule="clipped")[-1]), law=float(law[-1]))
    yield gl.Headline("left, not clipped", float(share.sel(rule="not clipped")[-1]))
    yield gl.Headline("wild gradient that leaves half", half(data, share[0]), law=half(data, law))


def half(data: xr.Dataset, share: xr.DataArray) -> float:
    """The wild gradient at which half of the error is left; nan where it is never."""
    return float(10 ** gl.estimate.crossing(np.log10(data.wild.values), share.values, 0.5))


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Between its bounds where it stalls, and right with each remedy."""
    eps, steps = float(np.finfo(data.left.dtype).eps), int(data.attrs["num_steps"])
    # A step is a moment over a root: some ten roundings, of a length of one rate; and the factor of
    # the clip grows by at most what the healthy norm adds to the wild one, to first order.
    rate = data.attrs["learning_rate"] * steps
    causes = {"rounding": 32 * eps * rate, "change_of_the_factor": 2 * data.change * rate}
    stalls = data.left_low > 0
    clipped = data.left.sel(rule="clipped")
    if bool(stalls.any()):
        yield gl.claim.at_least(
            "clipped, Adam moves a healthy weight no farther than its first gradient over epsilon",
            *(clipped, data.left_low, ADAM),
            where=stalls,
            **causes,
        )
        yield gl.claim.at_most(
            "and no less far than its last one says: where clipping stalls, the law holds",
            *(clipped, data.left_high, ADAM),
            where=stalls,
            **causes,
        )
    alone = data.left.sel(rule="not clipped")
    for rule, sentence in (
        ("layer by layer", "clipped layer by layer, the healthy layer learns as if alone"),
        ("clipped, smaller ε", "with an epsilon as much smaller as the gradient, too"),
    ):
        # Adam's longest step, times the relative error of both moments, and no feedback lessens it.
        yield gl.claim.everywhere(
            sentence,
            *(data.left.sel(rule=rule), alone, ALONE),
            **{name: MOST * amount for name, amount in causes.items()},
        )


FAULTS = {
    "clip forgotten": gl.fault.replace("clipping.clip", lambda grads, tau: grads),
    "threshold ten times too low": gl.fault.argument("clipping.clip", tau=lambda tau: tau / 10),
    "epsilon a tenth too large": gl.fault.argument("adam", epsilon=lambda epsilon: 1.1 * epsilon),
    "epsilon a tenth too small": gl.fault.argument("adam", epsilon=lambda epsilon: 0.9 * epsilon),
    "always clipped together": gl.fault.change(
        "clipped", lambda honest: lambda rule, grads, tau: honest("clipped", grads, tau)
    ),
}


if __name__ == "__main__":
    gl.run(__file__)
