"""What does clipping do when descent runs into a wall?

One recurrent neuron, followed for many steps, has a loss with a wall in it: flat on both sides,
and so steep in between that one plain step of gradient descent throws the weights far away
(Pascanu, Mikolov and Bengio 2013, figure 6). The wall is a product of Jacobians above 1. Clipping
the gradient to a norm of tau keeps its direction and bounds the step, so that descent goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

SOURCE = "Pascanu, Mikolov and Bengio 2013, figure 6"
ALGORITHM = "Pascanu, Mikolov and Bengio 2013, algorithm 1"


PHI = gl.activations.PHI["logistic"]


@gl.config
class Config:
    """The neuron, the wall, where descent starts, and the thresholds."""

    depth: int = gl.key("steps of the recurrent neuron", at_least=2, at_most=1000)
    start: float = gl.key("state x_0 of the neuron", at_least=-10, at_most=10)
    target: float = gl.key("what phi of the last state should be", at_least=-10, at_most=10)
    w_from: float = gl.key("smallest w at which x_0 is made a fixed point", above=0, below="w_to")
    w_to: float = gl.key("largest w at which x_0 is made a fixed point", at_most=100)
    num_w: int = gl.key("points between w_from and w_to", at_least=2, at_most=1001)
    first_w: float = gl.key("w where descent starts", at_least=-100, at_most=100)
    first_b: float = gl.key("b where descent starts", at_least=-100, at_most=100)
    learning_rate: float
    num_steps: int
    tau_from: float = gl.key("smallest threshold", above=0, below="tau_to")
    tau_to: float = gl.key("largest threshold", at_most=1e30)
    num_tau: int = gl.key("thresholds, evenly spread over the logarithm", at_least=2, at_most=1001)
    tau_shown: float = gl.key("threshold whose path is drawn, or the nearest", above=0)
    map_size: float = gl.key("side of the map around the start", above=0, at_most=100)
    num_map: int = gl.key("points of the map of the loss, each way", at_least=2, at_most=201)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The wall's steepness, one descent for each threshold, and a map of the loss."""
    del key  # nothing is drawn
    wall = gl.theory.clipping
    w = jnp.linspace(cfg.w_from, cfg.w_to, cfg.num_w)
    steep = jax.vmap(lambda w, b: steepness(cfg, w, b))(w, wall.wall_offset(w, cfg.start))
    law = jnp.log10(wall.wall_gradient(w, cfg.start, cfg.target, cfg.depth))
    product_law = cfg.depth * jnp.log10(wall.wall_factor(w, cfg.start))
    exponents = jnp.linspace(jnp.log10(cfg.tau_from), jnp.log10(cfg.tau_to), cfg.num_tau)
    tau = jnp.append(10**exponents, jnp.inf)
    side = cfg.map_size * jnp.linspace(-0.5, 0.5, cfg.num_map)
    plane = jnp.meshgrid(cfg.first_w + side, cfg.first_b + side, indexing="ij")
    loss_map = jnp.vectorize(lambda w, b: at_point(cfg, w, b)[0])(*plane)
    descents = jax.vmap(lambda tau: descend(cfg, tau))(tau)
    return {
        "tau": gl.named(tau, "tau", long_name="clipping threshold"),
        "w_line": gl.named(w, "w_line", long_name="weight w, x_0 being a fixed point"),
        "what": gl.named(["norm of the gradient", "product of the Jacobians"], "what"),
        "log10_steepness": gl.named(steep, "w_line what"),
        "log10_law": gl.named(jnp.stack([law, product_law], axis=1), "w_line what"),
        "growth": gl.named(wall.wall_growth(w, cfg.start, cfg.depth), "w_line", long_name="dx/db"),
        "w_map": gl.named(cfg.first_w + side, "w_map", long_name="weight w"),
        "b_map": gl.named(cfg.first_b + side, "b_map", long_name="bias b"),
        "loss_map": gl.named(loss_map, "w_map b_map", long_name="loss"),
        "rate": gl.named(cfg.learning_rate, "", long_name="learning rate"),
    } | {name: gl.named(values, "tau step") for name, values in descents.items()}


def neuron(cfg: Config, w: jax.Array, b: jax.Array) -> gl.chain.Chain:
    """The recurrent neuron as a chain: the same (w, b) in every layer."""
    params = gl.ensembles.Affine(jnp.full((cfg.depth, 1, 1), w), jnp.full((cfg.depth, 1), b))
    return gl.chain.Chain(gl.ensembles.preactivation_layer(PHI), params)


def at_point(cfg: Config, w: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient in (w, b), `(2,)`: the sum of what every step contributes."""

    def error(x: jax.Array) -> jax.Array:
        return jnp.sum((PHI(x) - cfg.target) ** 2)

    model, x = neuron(cfg, w, b), jnp.full(1, cfg.start)
    parts = gl.jacobians.weight_gradients(model, x, error)
    return error(model(x)), jnp.stack([jnp.sum(part) for part in parts])


def steepness(cfg: Config, w: jax.Array, b: jax.Array) -> jax.Array:
    """log10 of the gradient's norm, and of the product of the neuron's Jacobians, `(2,)`."""
    products = gl.chain_rule.products(neuron(cfg, w, b), jnp.full(1, cfg.start)).products
    logs = gl.scaled.log_magnitude(products).ravel()
    norm = gl.clipping.norm(at_point(cfg, w, b)[1])
    return jnp.stack([jnp.log10(norm), logs[-1] / gl.LN10])


def descend(cfg: Config, tau: jax.Array) -> dict[str, jax.Array]:
    """Gradient descent clipped at tau: what it saw before each step, `(num_steps,)` each."""

    def step(point: jax.Array, _: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, grad = at_point(cfg, *point)
        clipped = gl.clipping.clip(grad, tau)
        move = cfg.learning_rate * clipped
        vectors = {"gradient_norm": grad, "clipped_norm": clipped, "step_size": move}
        seen = {name: gl.clipping.norm(vector) for name, vector in vectors.items()}
        seen |= {"w": point[0], "b": point[1], "loss": loss}
        return point - move, seen | {"bend": 1 - gl.clipping.cosine(grad, clipped)}

    first = jnp.stack([cfg.first_w, cfg.first_b])
    return jax.lax.scan(step, first, None, length=cfg.num_steps)[1]


# ---- the figure

CLIPPED, PLAIN, PRODUCT, NORM = gl.figures.COLOURS[:4]
PATH: dict[str, Any] = {"marker": "o", "markersize": 2, "linewidth": 0.9}


def two(data: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The plain descent and the clipped one that is drawn."""
    return data.isel(tau=-1), data.sel(tau=data.attrs["tau_shown"], method="nearest")


def figure(data: xr.Dataset) -> gl.Figure:
    """Two descents on the map of the loss, their loss by step, and how steep the wall is."""
    fig, (chart, losses, steep) = gl.figures.panels(1, 3, height=2.5, width_ratios=(1.4, 1, 1))
    gl.figures.surface(
        chart, data.w_map, data.b_map, data.loss_map, "loss", norm="log", vmin=1e-3, alpha=0.6
    )
    for run, colour in zip(two(data), (PLAIN, CLIPPED), strict=True):
        chart.plot(run.w, run.b, color=colour, **PATH)
        losses.plot(data.step, run.loss, color=colour, **PATH)
    draw_ends(chart, *two(data))
    chart.set(xlim=data.w_map[[0, -1]], ylim=data.b_map[[0, -1]])
    chart.set(xlabel="weight w", ylabel="bias b")
    gl.figures.title(chart, "descent into the wall")
    gl.figures.words(losses, 0.97, 0.86, "plain", color=PLAIN, ha="right")
    gl.figures.words(losses, 0.05, 0.1, "clipped", color=CLIPPED)
    losses.set(yscale="log", xlabel="step", ylabel="loss")
    gl.figures.title(losses, "what comes of it")
    for what, (colour, mark) in enumerate(((NORM, "s"), (PRODUCT, "^"))):
        look = {"color": colour, "marker": mark}
        gl.figures.predicted(steep, data.w_line, 10 ** data.log10_law[:, what])
        gl.figures.measured(steep, data.w_line, 10 ** data.log10_steepness[:, what], look)
    gl.figures.words(steep, 0.05, 0.93, "lines: closed forms")
    gl.figures.words(steep, 0.05, 0.52, "norm of the\ngradient", color=NORM)
    gl.figures.words(steep, 0.45, 0.12, "product of the\nJacobians", color=PRODUCT)
    steep.set(yscale="log", xlabel="weight w, x₀ a fixed point", ylabel="on the wall")
    gl.figures.title(steep, "why it is steep")
    return fig


def draw_ends(axes: gl.Axes, plain: xr.Dataset, clipped: xr.Dataset) -> None:
    """Where the two begin, where they end, and which is which."""
    axes.plot(plain.w[0], plain.b[0], "o", color="black", markersize=5)
    axes.plot(clipped.w[-1], clipped.b[-1], "*", color=CLIPPED, markersize=9, mec="white")
    for text, run, at, side in (("start", plain, 0, 7), ("end", clipped, -1, -22)):
        axes.annotate(text, (run.w[at], run.b[at]), (side, -3), textcoords="offset points")
    far = f"plain: thrown\nto ({float(plain.w[-1]):.3g}, {float(plain.b[-1]):.3g})"
    gl.figures.words(axes, 0.98, 0.66, far, color=PLAIN, ha="right")
    gl.figures.words(axes, 0.03, 0.93, f"clipped, τ = {float(clipped.tau):.2g}", color=CLIPPED)


def caption(data: xr.Dataset) -> str:
    """What the figure says, with its numbers."""
    plain, clipped = two(data)
    return (
        f"On the wall one plain step is {float(plain.step_size.max()):.3g} long, and descent ends "
        f"at a loss of {float(plain.loss[-1]):.2g}, having begun at {float(plain.loss[0]):.2g}; "
        f"clipped at τ = {float(clipped.tau):.2g} it bounces, goes on and ends at "
        f"{float(clipped.loss[-1]):.2g}. The wall is a product of Jacobians above 1."
    )


# ---- the claims


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The wall's closed forms, the clip's promises, and what comes of them."""
    eps, depth = float(np.finfo(data.loss.dtype).eps), data.attrs["depth"]
    level = 1 / (1 + math.exp(-data.attrs["start"]))
    # w sigma(x) + b is rounded by less than eps (4 w + |x_0|) a step, which grows with the steps
    # as b does. That changes log sigma' by no more at every step, since |sigma''| <= sigma', and
    # log |sigma - target| by sigma' / |sigma - target|. Far off there is no fixed point.
    moved = eps * (4 * data.w_line + abs(data.attrs["start"])) * data.growth
    if (moved < 0.1).any():
        yield gl.claim.everywhere(
            "where x_0 is a fixed point, the gradient and the product have their closed form",
            data.log10_steepness,
            data.log10_law,
            SOURCE,
            where=moved < 0.1,
            rounding=5 * depth * eps / gl.LN10,  # a factor by eight half ulps, its sum by one
            rounding_of_the_law=2 * eps * np.abs(data.log10_law),
            a_fixed_point_to_rounding=moved
            * (depth + level * (1 - level) / abs(level - data.attrs["target"]))
            / gl.LN10,
        )
    plain, clipped = data.isel(tau=-1), data.isel(tau=slice(None, -1))
    yield gl.claim.everywhere(
        "a step is the learning rate times the gradient's norm, or times tau if that is smaller",
        clipped.step_size,
        clipped.rate * np.minimum(clipped.gradient_norm, clipped.tau),
        ALGORITHM,
        # The clipped entries and the norms are less than an ulp low; the other roundings are half.
        rounding=4 * eps * clipped.step_size,
    )
    yield gl.claim.everywhere(
        "a clipped step has the direction of the gradient (1 - cosine)",
        *(clipped.bend, 0.0, ALGORITHM),
        rounding=10 * eps,  # of gl.clipping.cosine; of the entries its square
    )
    meets = int(plain.step_size.argmax("step"))
    way = plain.step_size[:meets].sum()
    yield gl.claim.at_least(
        "not clipped, one step throws the weights farther than all the steps before it together",
        *(plain.step_size[meets], way, SOURCE),
    )
    # A bounce that is no longer than the way to the wall goes back to the start at most.
    if (short := clipped.rate * clipped.tau <= way).any():
        yield gl.claim.at_most(
            "clipped so that no step is longer than the way to the wall, descent ends below it",
            *(clipped.loss[:, -1], clipped.loss[:, 0], SOURCE),
            where=short,
        )


def without(part: slice) -> Callable[[Any], Any]:
    """Contributions to the gradient with those of some steps set to 0."""
    return lambda parts: jax.tree.map(lambda one: one.at[part].set(0), parts)


FAULTS = {
    "clips nothing": gl.fault.replace("clipping.clip", lambda grads, tau: grads),
    "clips each entry": gl.fault.replace("clipping.clip", lambda g, tau: jnp.clip(g, -tau, tau)),
    "threshold 1 % too large": gl.fault.argument("clipping.clip", tau=lambda tau: 1.01 * tau),
    "last step forgotten": gl.fault.result("jacobians.weight_gradients", without(slice(-1, None))),
    "no wall: last step alone": gl.fault.result("jacobians.weight_gradients", without(slice(-1))),
    "product from elsewhere": gl.fault.argument("chain_rule.products", x=lambda x: x + 0.1),
}


if __name__ == "__main__":
    gl.run(__file__)
