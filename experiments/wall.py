"""What does clipping do when descent runs into a wall?

One recurrent neuron, followed for many steps, has a loss with a wall in it: flat on both sides,
and so steep in between that one plain step of gradient descent throws the weights far away
(Pascanu, Mikolov and Bengio 2013, figure 6). Clipping the gradient to a norm of tau keeps the
direction and bounds the step, so that descent stays at the foot of the wall and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np

if TYPE_CHECKING:
    import xarray as xr
    from jax import Array

SOURCE = "Pascanu, Mikolov and Bengio 2013, figure 6"
ALGORITHM = "Pascanu, Mikolov and Bengio 2013, algorithm 1"
MAP = ((3.7, 5.1), (-2.7, -1.3))  # of (w, b): the wall, its foot and the first point


@gl.config
class Config:
    """The neuron, where descent starts, and the thresholds that can be dragged through."""

    depth: int = gl.key("steps of the recurrent neuron", at_least=2, at_most=1000)
    start: float = gl.key("state x_0 of the neuron", at_least=-10, at_most=10)
    target: float = gl.key("what phi of the last state should be", at_least=-10, at_most=10)
    w_from: float = gl.key("smallest w at which x_0 is made a fixed point", above=0, at_most=100)
    w_to: float = gl.key("largest w at which x_0 is made a fixed point", above=0, at_most=100)
    num_w: int = gl.key("points between w_from and w_to", at_least=2, at_most=1001)
    first_w: float = gl.key("w where descent starts", at_least=-100, at_most=100)
    first_b: float = gl.key("b where descent starts", at_least=-100, at_most=100)
    learning_rate: float
    num_steps: int
    tau_from: float = gl.key("smallest threshold", above=0, at_most=1e30)
    tau_to: float = gl.key("largest threshold", above=0, at_most=1e30)
    num_tau: int = gl.key("thresholds, evenly spread over the logarithm", at_least=2, at_most=1001)
    num_map: int = gl.key("points of the map of the loss, each way", at_least=2, at_most=201)


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """The gradient on the wall, one descent for each threshold, and a map of the loss."""
    del key  # nothing is drawn
    w_line = jnp.linspace(cfg.w_from, cfg.w_to, cfg.num_w)
    b_line = gl.theory.clipping.wall_offset(w_line, cfg.start)
    on_line: Callable[..., Array] = jax.vmap(
        lambda *point: gl.clipping.norm(gradient(cfg, jnp.stack(point))[1])
    )
    exponents = jnp.linspace(jnp.log10(cfg.tau_from), jnp.log10(cfg.tau_to), cfg.num_tau)
    tau = jnp.append(10**exponents, jnp.inf)
    seen = jax.vmap(lambda tau: descend(cfg, tau))(tau)
    w_map, b_map = (jnp.linspace(*ends, cfg.num_map) for ends in MAP)
    over_map: Callable[..., Array] = jax.vmap(
        jax.vmap(lambda w, b: loss(cfg, w, b), (None, 0)), (0, None)
    )
    texts = {
        "w": "weight before the step",
        "b": "bias before the step",
        "loss": "loss before the step",
        "gradient_norm": "norm of the gradient",
        "clipped_norm": "norm after clipping",
        "step_size": "length of the step",
        "bend": "1 - cosine of the angle between gradient and step",
    }
    return {
        "tau": gl.named(tau, "tau", long_name="clipping threshold"),
        "w_line": gl.named(w_line, "w_line", long_name="weight w"),
        "norm_on_line": gl.named(
            on_line(w_line, b_line), "w_line", long_name="norm of the gradient, x_0 a fixed point"
        ),
        "norm_on_line_predicted": gl.named(
            gl.theory.clipping.wall_gradient(w_line, cfg.start, cfg.target, cfg.depth), "w_line"
        ),
        "w_map": gl.named(w_map, "w_map", long_name="weight w"),
        "b_map": gl.named(b_map, "b_map", long_name="bias b"),
        "loss_map": gl.named(over_map(w_map, b_map), "w_map", "b_map", long_name="loss"),
        **{
            name: gl.named(values, "tau", "step", long_name=texts[name])
            for name, values in seen.items()
        },
    }


def phi(x: Array) -> Array:
    """The logistic function, as in the source."""
    return gl.activations.PHI["logistic"](x)


def neuron(cfg: Config, w: Array, b: Array) -> gl.chain.Chain:
    """The recurrent neuron as a chain: the same (w, b) in every layer."""
    params = (jnp.full((cfg.depth,), w), jnp.full((cfg.depth,), b))
    return gl.chain.Chain(lambda at, x: at[0] * phi(x) + at[1], params)


def loss(cfg: Config, w: Array, b: Array) -> Array:
    """The squared error of phi of the neuron's last state."""
    return error(cfg, neuron(cfg, w, b)(jnp.full(1, cfg.start)))


def error(cfg: Config, x: Array) -> Array:
    """`(phi(x) - target)²` of the last state, `(1,)`."""
    return jnp.sum((phi(x) - cfg.target) ** 2)


def gradient(cfg: Config, point: Array) -> tuple[Array, Array]:
    """The loss at (w, b) and its gradient `(2,)`: the sum of what every step contributes."""
    model = neuron(cfg, point[0], point[1])
    x = jnp.full(1, cfg.start)
    parts = gl.jacobians.weight_gradients(model, x, lambda last: error(cfg, last))
    return error(cfg, model(x)), jnp.stack([jnp.sum(part) for part in parts])


def descend(cfg: Config, tau: Array) -> dict[str, Array]:
    """Gradient descent clipped at tau: what it saw before each step, `(num_steps,)` each."""

    def step(point: Array, _: None) -> tuple[Array, dict[str, Array]]:
        value, grad = gradient(cfg, point)
        clipped = gl.clipping.clip(grad, tau)
        move = cfg.learning_rate * clipped
        return point - move, {
            "w": point[0],
            "b": point[1],
            "loss": value,
            "gradient_norm": gl.clipping.norm(grad),
            "clipped_norm": gl.clipping.norm(clipped),
            "step_size": gl.clipping.norm(move),
            "bend": 1 - gl.clipping.cosine(grad, clipped),
        }

    first = jnp.stack([jnp.asarray(cfg.first_w), jnp.asarray(cfg.first_b)])
    return jax.lax.scan(step, first, None, length=cfg.num_steps)[1]


def figure(data: xr.Dataset) -> gl.Figure:
    """The map with three descents, the gradient on the wall, and where descents end."""
    fig, (chart, steep, ends) = gl.figures.panels(1, 3, height=2.5)
    draw_map(chart, data)
    steep.plot(data.w_line, data.norm_on_line_predicted, **gl.figures.THEORY, label="closed form")
    steep.plot(data.w_line, data.norm_on_line, "o", label="measured")
    steep.set_yscale("log")
    steep.set_xlabel("weight w, $x_0$ a fixed point")
    steep.set_ylabel("norm of the gradient")
    steep.legend()
    gl.figures.title(steep, "how steep the wall is")
    finite = data.isel(tau=slice(None, -1))
    ends.plot(finite.tau, finite.loss.isel(step=-1), "o", label="clipped")
    plain = float(data.loss.isel(tau=-1, step=-1))
    ends.axhline(plain, color="0.4", linestyle="--", linewidth=0.8, label="not clipped")
    ends.set_xscale("log")
    ends.set_yscale("log")
    ends.set_xlabel(r"threshold $\tau$")
    ends.set_ylabel("loss at the end")
    ends.legend()
    gl.figures.title(ends, "where descent ends")
    return fig


def draw_map(axes: gl.Axes, data: xr.Dataset) -> None:
    """The loss over (w, b), and descents under a small, a middling and no threshold."""
    axes.pcolormesh(
        data.w_map, data.b_map, data.loss_map.T, cmap="Greys", shading="nearest", rasterized=True
    )
    rows = (0, data.sizes["tau"] // 2, -1)
    for row, look in zip(rows, gl.figures.series(len(rows)), strict=True):
        one = data.isel(tau=row)
        label = "not clipped" if row == -1 else rf"$\tau$ = {float(one.tau):.2g}"
        axes.plot(
            one.w, one.b, color=look["color"], marker=look["marker"], ms=2, lw=0.7, label=label
        )
    axes.set_xlim(*MAP[0])
    axes.set_ylim(*MAP[1])
    axes.set_xlabel("weight w")
    axes.set_ylabel("bias b")
    axes.legend(loc="upper right")
    gl.figures.title(axes, "descents over the loss")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The wall, the clip's two promises, and what comes of them."""
    eps = float(np.finfo(data.loss.dtype).eps)
    off = np.abs(data.norm_on_line / data.norm_on_line_predicted - 1)
    # x_0 is a fixed point up to the rounding of w phi + b, about eps w; the wall makes that grow
    # by dx_T/db, 23 times the norm, and 3 times that is what it changes the error by, relatively.
    depth = int(data.attrs["depth"])
    allowed = eps * (8 * depth + 4 * 23 * 3 * data.w_line * data.norm_on_line_predicted)
    yield gl.Claim(
        "where x_0 is a fixed point the gradient has its closed form, at every w, "
        "in units of what rounding, grown by the wall itself, allows",
        measured=float((off / allowed).max()),
        expected=1.0,
        tolerance={},
        source=SOURCE,
        relation="<=",
    )
    finite = data.isel(tau=slice(None, -1))
    rate = float(data.attrs["learning_rate"])
    yield gl.Claim(
        "no clipped step is longer than the learning rate times tau",
        measured=float((finite.step_size / (rate * finite.tau)).max()),
        expected=1.0,
        tolerance={"rounding": 8 * eps},
        source=ALGORITHM,
        relation="<=",
    )
    yield gl.Claim(
        "a clipped step has the direction of the gradient (1 - cosine)",
        measured=float(np.abs(data.bend).max()),
        expected=0.0,
        tolerance={"rounding": 20 * eps},
        source=ALGORITHM,
    )
    fires = finite.gradient_norm > finite.tau
    yield gl.Claim(
        "a gradient not longer than tau is left as it is, and a longer one gets the norm tau",
        measured=float(
            np.abs(finite.clipped_norm / np.minimum(finite.gradient_norm, finite.tau) - 1).max()
        ),
        expected=0.0,
        tolerance={"rounding": 8 * eps},
        source=ALGORITHM,
    )
    yield gl.Claim(
        "descents run into the wall: some step is clipped, at most thresholds",
        measured=float(fires.any("step").mean()),
        expected=0.5,
        tolerance={},
        source=SOURCE,
        relation=">=",
    )
    plain = data.isel(tau=-1)
    yield gl.Claim(
        "not clipped, one step throws the weights farther than all the steps before it together",
        measured=thrown(plain.step_size.values),
        expected=1.0,
        tolerance={},
        source=SOURCE,
        relation=">=",
    )
    yield gl.Claim(
        "clipped below a norm of 1, the typical descent ends at a tenth of the plain one's loss",
        measured=float(np.median(finite.loss.isel(step=-1)[finite.tau < 1])),
        expected=0.1 * float(plain.loss.isel(step=-1)),
        tolerance={},
        source=SOURCE,
        relation="<=",
    )


def thrown(step_size: Any) -> float:
    """The longest step over the length of the way before it."""
    longest = int(np.argmax(step_size))
    return float(step_size[longest] / np.sum(step_size[:longest])) if longest else math.inf


def of_clip(change: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """A fault of clipping: `change(honest, gradient, tau)` is the result instead."""
    return lambda honest: lambda grads, tau: change(honest, grads, tau)


FAULTS = {
    "clips nothing": gl.fault.change("clipping.clip", of_clip(lambda honest, g, tau: g)),
    "clips each entry by itself": gl.fault.change(
        "clipping.clip", of_clip(lambda honest, g, tau: jnp.clip(g, -tau, tau))
    ),
    "threshold 1 % too large": gl.fault.change(
        "clipping.clip", of_clip(lambda honest, g, tau: honest(g, 1.01 * tau))
    ),
    "last step's share forgotten": gl.fault.change(
        "jacobians.weight_gradients",
        lambda honest: (
            lambda model, x, loss: jax.tree.map(
                lambda part: part.at[-1].set(0), honest(model, x, loss)
            )
        ),
    ),
    "no wall: the gradient of the last step alone": gl.fault.change(
        "jacobians.weight_gradients",
        lambda honest: (
            lambda model, x, loss: jax.tree.map(
                lambda part: part.at[:-1].set(0), honest(model, x, loss)
            )
        ),
    ),
}


def clipping_payload(data: xr.Dataset) -> gl.lesson.Clipping:
    """One descent for each tau: where it goes, its gradient and the step that is left of it."""
    return {
        "tau": gl.lesson.exact(data.tau),
        "num_steps": data.sizes["step"],
        "w": by_step(data.w),
        "b": by_step(data.b),
        "loss": by_step(data.loss),
        "gradient_norm": by_step(data.gradient_norm),
        "clipped_norm": by_step(data.clipped_norm),
        "step_size": by_step(data.step_size),
        "map": {
            "w": [float(data.w_map[0]), float(data.w_map[-1])],
            "b": [float(data.b_map[0]), float(data.b_map[-1])],
            "loss": gl.lesson.decimals(data.loss_map.transpose("b_map", "w_map"), 3),
        },
        "meets": int(np.argmax(data.gradient_norm.isel(tau=-1).values)),
    }


def by_step(values: xr.DataArray) -> gl.lesson.Packed:
    """One row for each threshold."""
    return gl.lesson.exact(values.transpose("tau", "step"))


LESSON = gl.lesson.Offer(
    figures={"clipping": clipping_payload},
    numbers={
        "recurrent steps": gl.lesson.at("depth"),
        "steepest gradient": gl.lesson.at("norm_on_line", how="max"),
        "first weight": gl.lesson.at("first_w"),
        "first bias": gl.lesson.at("first_b"),
        "longest gradient": gl.lesson.at("gradient_norm", how="max", tau="last"),
        "longest step": gl.lesson.at("step_size", how="max", tau="last"),
        "descent steps": gl.lesson.at("num_steps"),
        "loss without clipping": gl.lesson.at("loss", tau="last", step="last"),
        "threshold": gl.lesson.at("tau", tau=0.3),
        "loss with clipping": gl.lesson.at("loss", tau=0.3, step="last"),
    },
    claims={
        "clipping keeps the direction": "has the direction of the gradient",
        "short gradients stay": "a gradient not longer than tau",
        "no step is longer": "no clipped step is longer",
        "gradient in closed form": "closed form",
        "plain step throws": "one step throws",
        "clipping ends lower": "a tenth of the plain",
    },
)


if __name__ == "__main__":
    gl.run(__file__)
