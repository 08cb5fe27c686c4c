"""What does clipping do when descent runs into a wall?

One recurrent neuron over many steps has a loss with a wall: flat on both sides, so steep between
that one plain step throws the weights far away (Pascanu, Mikolov and Bengio 2013, figure 6).
"""

from __future__ import annotations

from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "clipping"
SOURCE = "Pascanu, Mikolov and Bengio 2013, figure 6 and algorithm 1"
CLIPPED, PLAIN, PRODUCT, NORM = "C0", "C1", "C2", "C3"


@gl.config
class Config:
    """The neuron, the wall, where descent starts, and the thresholds."""

    depth: int = gl.key("steps of the recurrent neuron", at_least=2, at_most=1000)
    start: float = gl.key("state x_0 of the neuron", at_least=-10, at_most=10)
    target: float = gl.key("what phi of the last state should be", at_least=-10, at_most=10)
    w_from: float = gl.key("smallest w at which x_0 is made a fixed point", above=0, below="w_to")
    w_to: float = gl.key("largest w at which x_0 is made a fixed point", at_most=100)
    first_w: float = gl.key("w where descent starts", at_least=-100, at_most=100)
    first_b: float = gl.key("b where descent starts", at_least=-100, at_most=100)
    learning_rate: float
    num_steps: int
    tau_from: float = gl.key("smallest threshold", above=0, below="tau_to")
    tau_to: float = gl.key("largest threshold", at_most=1e30)
    num_tau: int = gl.key("thresholds, evenly spread over the logarithm", at_least=2, at_most=1001)
    tau_shown: float = gl.key("threshold whose path is drawn, or the nearest", above=0)
    num_w: int = gl.key("points from w_from to w_to, and along the map", at_least=2, at_most=201)
    map_size: float = gl.key("side of the map around the start", above=0, at_most=100)


def compute(cfg: Config, _: jax.Array) -> dict[str, gl.Named]:
    """The wall's steepness, one descent for each threshold, and a map of the loss."""
    wall = gl.theory.clipping
    w, side = (jnp.linspace(*ends, cfg.num_w) for ends in ((cfg.w_from, cfg.w_to), (-0.5, 0.5)))
    steep = jax.vmap(lambda w, b: steepness(cfg, w, b))(w, wall.wall_offset(w, cfg.start))
    moved = wall.wall_state(w, wall.wall_offset(w, cfg.start), cfg.start, cfg.depth)[1]
    norm_law = wall.wall_gradient(w, cfg.start, cfg.target, cfg.depth)
    laws = jnp.log10(norm_law), cfg.depth * jnp.log10(wall.wall_factor(w, cfg.start))
    tau = jnp.append(jnp.geomspace(cfg.tau_from, cfg.tau_to, cfg.num_tau), jnp.inf)
    sides = [first + cfg.map_size * side for first in (cfg.first_w, cfg.first_b)]
    plane = jnp.meshgrid(*sides, indexing="ij")
    loss_map = jnp.vectorize(lambda w, b: at_point(cfg, w, b)[0])(*plane)
    loss_law, loss_off = wall.wall_loss(*plane, cfg.start, cfg.target, cfg.depth)
    descents = jax.vmap(lambda tau: descend(cfg, tau))(tau)
    return {
        "tau": gl.named(tau, "tau", long_name="clipping threshold"),
        "w_line": gl.named(w, "w_line", long_name="weight w, x_0 being a fixed point"),
        "what": gl.named(["gradient", "product"], "what"),
        "log10_steepness": gl.named(steep, "w_line what"),
        "log10_law": gl.named(jnp.stack(laws, axis=1), "w_line what"),
        "moved": gl.named(moved, "w_line", long_name="what rounding moves x by"),
        "w_map": gl.named(sides[0], "w_map", long_name="weight w"),
        "b_map": gl.named(sides[1], "b_map", long_name="bias b"),
        "loss_map": gl.named(loss_map, "w_map b_map", long_name="loss"),
        "loss_law": gl.named(loss_law, "w_map b_map", long_name="loss, step by step"),
        "loss_off": gl.named(loss_off, "w_map b_map", long_name="rounding of either"),
        "rate": gl.named(cfg.learning_rate, "", long_name="learning rate"),
        **{name: gl.named(descents.pop(name), "tau step entry") for name in ("gradient", "change")},
        **{name: gl.named(values, "tau step") for name, values in descents.items()},
    }


def at_point(cfg: Config, w: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient in (w, b), `(2,)`: the sum of what every step contributes."""
    model, phi = gl.recurrent.neuron(w, b, cfg.depth), gl.activations.PHI["logistic"]
    x = jnp.full(1, cfg.start)
    parts = gl.jacobians.weight_gradients(model, x, lambda z: jnp.sum((phi(z) - cfg.target) ** 2))
    return jnp.sum((phi(model(x)) - cfg.target) ** 2), jnp.stack([jnp.sum(part) for part in parts])


def steepness(cfg: Config, w: jax.Array, b: jax.Array) -> jax.Array:
    """log10 of the gradient's norm, and of the product of the neuron's Jacobians, `(2,)`."""
    model = gl.recurrent.neuron(w, b, cfg.depth)
    products = gl.chain_rule.products(model, jnp.full(1, cfg.start)).products
    log10_products = gl.scaled.log_magnitude(products).ravel() / gl.LN10
    return jnp.stack([jnp.log10(gl.clipping.norm(at_point(cfg, w, b)[1])), log10_products[-1]])


def descend(cfg: Config, tau: jax.Array) -> dict[str, jax.Array]:
    """Gradient descent clipped at tau: what it saw before each step, `(num_steps,)` each."""

    def step(point: jax.Array, _: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, grad = at_point(cfg, *point)
        clipped = gl.clipping.formula(grad, tau)
        move = cfg.learning_rate * clipped
        vectors = {"gradient_norm": grad, "clipped_norm": clipped, "step_size": move}
        seen = {name: gl.clipping.norm(vector) for name, vector in vectors.items()}
        seen |= {"w": point[0], "b": point[1], "loss": loss, "gradient": grad}
        return point - move, seen | {"change": -move}

    return jax.lax.scan(step, jnp.stack([cfg.first_w, cfg.first_b]), length=cfg.num_steps)[1]


def two(data: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The plain descent and the clipped one that is drawn."""
    return data.isel(tau=-1), data.sel(tau=data.attrs["tau_shown"], method="nearest")


def figure(data: xr.Dataset) -> gl.Figure:
    """Two descents on the map of the loss, their loss by step, and how steep the wall is."""
    fig, (chart, losses, steep) = gl.figures.panels(1, 3, height=2.5, width_ratios=(1.4, 1, 1))
    gl.figures.surface(chart, data.loss_map, "loss", norm="log", vmin=1e-3)
    for run, colour in zip(two(data), (PLAIN, CLIPPED), strict=True):
        for axes, x, y in ((chart, run.w, run.b), (losses, data.step, run.loss)):
            axes.plot(x, y, color=colour, marker="o", markersize=2, linewidth=0.9)
    draw_ends(chart, *two(data))
    gl.figures.words(losses, 0.97, 0.86, "plain", color=PLAIN, ha="right")
    gl.figures.words(losses, 0.05, 0.1, "clipped", color=CLIPPED)
    losses.set(yscale="log", xlabel="step", ylabel="loss")
    for what, (colour, mark) in enumerate(((NORM, "s"), (PRODUCT, "^"))):
        found, law = (10 ** data[f"log10_{kind}"][:, what] for kind in ("steepness", "law"))
        gl.figures.predicted(steep, data.w_line, law)
        gl.figures.measured(steep, data.w_line, found, {"color": colour, "marker": mark})
    gl.figures.words(steep, 0.05, 0.52, "norm of the\ngradient", color=NORM)
    gl.figures.words(steep, 0.45, 0.12, "product of the\nJacobians", color=PRODUCT)
    steep.set(yscale="log", xlabel="weight w, x₀ a fixed point")
    steep.set_ylabel("on the wall (lines: closed forms)")
    gl.figures.titles(fig, "descent into the wall", "what comes of it", "why it is steep")
    return fig


def draw_ends(axes: gl.Axes, plain: xr.Dataset, clipped: xr.Dataset) -> None:
    """Where the two begin, where they end, and which is which."""
    axes.plot(plain.w[0], plain.b[0], "o", color="black", markersize=5)
    axes.plot(clipped.w[-1], clipped.b[-1], "*", color=CLIPPED, markersize=9, mec="white")
    for text, run, at, side in (("start", plain, 0, 7), ("end", clipped, -1, -22)):
        axes.annotate(text, (run.w[at], run.b[at]), (side, -3), textcoords="offset points")
    far = f"plain: thrown\nto ({plain.w[-1]:.3g}, {plain.b[-1]:.3g})"
    gl.figures.words(axes, 0.98, 0.66, far, color=PLAIN, ha="right")
    gl.figures.words(axes, 0.03, 0.93, f"clipped, τ = {clipped.tau:.2g}", color=CLIPPED)


def caption(data: xr.Dataset) -> str:
    """What the figure says, with its numbers."""
    plain, clipped = two(data)
    return (
        f"On the wall one plain step is {plain.step_size.max():.3g} long. The loss, "
        f"{plain.loss[0]:.2g} at the start, ends at {plain.loss[-1]:.2g} without clipping and at "
        f"{clipped.loss[-1]:.2g} with τ = {clipped.tau:.2g}."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The steepest place of the wall, and how far one step throws the weights."""
    steep = data.isel(what=0).max("w_line")
    yield gl.Headline("steepest gradient", steep.log10_steepness, "decades", steep.log10_law)
    yield gl.Headline("longest step, plain", data.step_size[-1].max())


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The wall's closed forms, the formula at every step, and what comes of it."""
    eps, depth = float(np.finfo(data.loss.dtype).eps), data.attrs["depth"]
    level = 1 / (1 + np.exp(-data.attrs["start"]))
    # What moves x changes log sigma' by no more at every step, since |sigma''| <= sigma', and
    # log |sigma - target| by sigma' / |sigma - target|. Far off there is no fixed point.
    off = data.moved * (depth + level * (1 - level) / abs(level - data.attrs["target"])) / gl.LN10
    if (data.moved < 0.1).any():
        yield gl.claim.everywhere(
            "where x_0 is a fixed point, the gradient and the product have their closed form",
            *(data.log10_steepness, data.log10_law, SOURCE),
            where=data.moved < 0.1,
            rounding=eps * (5 * depth / gl.LN10 + 2 * np.abs(data.log10_law)),  # 10 half ulps each
            a_fixed_point_to_rounding=off,
        )
    sentence = "everywhere on the map the loss is that of the neuron run step by step"
    maps = data.loss_map, data.loss_law
    yield gl.claim.everywhere(sentence, *maps, SOURCE, rounding=data.loss_off)
    law = -data.rate * data.gradient * np.minimum(1, data.tau / data.gradient_norm)
    yield gl.claim.everywhere(
        "every step is the learning rate times g tau/max(|g|, tau): it has the gradient's "
        "direction, a gradient up to tau is left as it is, and a longer one gets the norm tau",
        *(data.change, law, SOURCE),
        rounding=4 * eps * np.abs(law),  # entry and norm by an ulp, four operations by half of one
    )
    plain, clipped = data.isel(tau=-1), data.isel(tau=slice(-1))
    way = plain.step_size[: (met := int((plain.loss.diff("step") > 0).argmax("step")) + 1)].sum()
    if data.rate * plain.gradient_norm.max() <= way:  # no wall that throws is met
        return
    yield gl.claim.at_least(
        "not clipped, one step throws the weights farther than all the steps to the wall together",
        *(plain.step_size.max(), way, SOURCE),
    )
    if (short := data.rate * clipped.tau <= way).any():
        yield gl.claim.at_most(
            "clipped so that no step is longer, descent goes below its start again after the wall",
            *(clipped.loss[:, met:].min("step"), clipped.loss[:, 0], SOURCE),
            where=short,
        )


FAULTS = {
    "clips nothing": gl.fault.replace("clipping.formula", lambda grads, tau: grads),
    "threshold 1 % too large": gl.fault.argument("clipping.formula", tau=lambda tau: 1.01 * tau),
    "always clipped at 0.5": gl.fault.argument("clipping.formula", tau=lambda tau: 0.5),
    "gradient 1 % too short": gl.fault.scale("jacobians.weight_gradients", 0.99),
    "loss from elsewhere": gl.fault.argument("chain.Chain.__call__", x=lambda x: x + 0.1),
    "product from elsewhere": gl.fault.argument("chain_rule.products", x=lambda x: x + 0.1),
}
HARMLESS = {"a Jacobian transposed": "a matrix of one number is its own transpose"}


def payload(data: xr.Dataset) -> gl.lesson.Payload:
    """One descent for each tau: where it goes, its gradient and the step that is left of it."""
    names = "tau", "w", "b", "loss", "gradient_norm", "clipped_norm", "step_size"
    ends = {axis: data[f"{axis}_map"].values[[0, -1]].tolist() for axis in "wb"}
    return {
        **{name: gl.lesson.exact(data[name]) for name in names},
        "num_steps": data.sizes["step"],
        "map": ends | {"loss": gl.lesson.decimals(data.loss_map.transpose("b_map", "w_map"), 3)},
        "meets": int(data.gradient_norm[-1].argmax("step")),
    }


at = gl.lesson.at
LESSON = gl.lesson.Offer(
    figures={"clipping": payload},
    numbers={
        "steepest gradient": at("log10_steepness", how="max", what="gradient"),
        "steep gradient on the map": at("log10_steepness", what="gradient", w_line=4.8),
        "longest gradient": at("gradient_norm", how="max", tau="last"),
        "longest step": at("step_size", how="max", tau="last"),
        "loss without clipping": at("loss", tau="last", step="last"),
        "loss with clipping": at("loss", tau=0.3, step="last"),
        "longest clipped step": at("step_size", how="max", tau=0.3),
    }
    | {"first weight": at("first_w"), "first bias": at("first_b"), "descent steps": at("num_steps")}
    | {"recurrent steps": at("depth"), "threshold": at("tau", tau=0.3)}
    | {"learning rate": at("learning_rate"), "weight of the steepest": at("w_line", how="max")},
    claims={
        "clipping keeps the direction": "the gradient's direction",
        "short gradients stay": "a gradient up to tau is left as it is",
        "no step is longer": "gets the norm tau",
        "gradient in closed form": "closed form",
        "plain step throws": "one step throws",
        "clipping ends lower": "descent goes below its start",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
