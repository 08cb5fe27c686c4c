"""Why does clipped descent beat every fixed step, the farther away it starts?

Where the curvature grows with the gradient, ‖∇²f‖ <= L0 + L1 ‖∇f‖ (Zhang, He, Sra and Jadbabaie
2020, definition 1), a fixed step has to be small enough for the steepest place on the way, and is
too small everywhere else. f = Σ x_i⁴ is such a function, with L0 = 16/L1² for every L1.
"""

from __future__ import annotations

from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "clipping"
DEFINITION = "Zhang, He, Sra and Jadbabaie 2020, definition 1, at x⁴: gradlab.theory.clipping"
DERIVED = "Zhang et al. 2020, section 4, with bounds of our own: gradlab.theory.clipping"


@gl.config
class Config:
    """The starts, the steps tried from each, and what clipping does instead."""

    start: gl.Floats = gl.key("largest coordinate at the start", at_least=1, at_most=1e4)
    share: gl.Floats = gl.key("fixed step size times the square of that", above=0, at_most=10)
    learning_rate: float
    tau: float
    gradient: float = gl.key("norm of the gradient at the end", above=0, at_most=1)
    slope: gl.Floats = gl.key("the constant L1", above=0, at_most=100)
    num_entries: int = gl.key("coordinates", at_least=2, at_most=1000)
    num_draws: int = gl.key("directions of each start", at_least=1, at_most=1000)
    max_steps: int = gl.key("steps after which a descent is given up", at_least=10, at_most=10**6)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Steps to the end by fixed steps and clipped, with their bounds; and the curvature of x⁴."""
    draws = jax.random.uniform(key, (cfg.num_draws, cfg.num_entries), minval=-1.0)
    draws /= jnp.max(jnp.abs(draws), axis=1, keepdims=True)
    x = cfg.start[:, None, None] * draws[None]
    rate = cfg.share[None] / cfg.start[:, None] ** 2

    def over_draws(x: jax.Array, rate: jax.Array, tau: jax.Array | float) -> jax.Array:
        return jax.vmap(lambda x: steps(cfg, x, rate, tau))(x)

    fixed = jax.vmap(lambda x, rates: jax.vmap(lambda h: over_draws(x, h, jnp.inf))(rates))(x, rate)
    clipped = jax.vmap(lambda x: over_draws(x, jnp.asarray(cfg.learning_rate), cfg.tau))(x)
    ends = by_hand(x[:, None], rate[..., None], jnp.inf, fixed)
    theory = gl.theory.clipping
    largest = jnp.max(jnp.abs(x), axis=-1)
    most = theory.quartic_clipped_steps(
        cfg.start, cfg.num_entries, cfg.learning_rate, cfg.tau, cfg.gradient
    )
    where = jnp.linspace(0, 2, 33)[None] * 2 / cfg.slope[:, None]
    first, second = jax.vmap(jax.vmap(derivatives))(where)
    return {
        "start": gl.named(cfg.start, "start", long_name="largest coordinate at the start"),
        "share": gl.named(cfg.share, "share", long_name="fixed step × start²"),
        "fixed": gl.named(fixed, "start share draw", long_name="steps with a fixed step"),
        "clipped": gl.named(clipped, "start draw", long_name="steps, clipped"),
        "fixed_end": gl.named(ends, "start share draw side", long_name="gradient before, behind"),
        "clipped_end": gl.named(by_hand(x, cfg.learning_rate, cfg.tau, clipped), "start draw side"),
        "fixed_least": gl.named(
            theory.quartic_fixed_steps(largest, jnp.abs(x), cfg.gradient), "start draw"
        ),
        "clipped_most": gl.named(most, "start", long_name="at most, clipped"),
        "slope": gl.named(cfg.slope, "slope", long_name="L1"),
        "needed": gl.named(second - cfg.slope[:, None] * jnp.abs(first), "slope x"),
        "needed_law": gl.named(theory.quartic_smoothness(cfg.slope), "slope", long_name="L0"),
        "textbook": gl.named(textbook(cfg), "rule step", long_name="|x| from 3, step 0.1"),
    }


def quartic(x: jax.Array) -> jax.Array:
    """Σ x_i⁴, `()`."""
    return jnp.sum(x**4)


def derivatives(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and the second derivative of x⁴ at one x, by jax."""
    slope = jax.grad(quartic)
    return slope(x), jax.grad(slope)(x)


def descended(x: jax.Array, rate: jax.Array | float, tau: jax.Array | float) -> jax.Array:
    """One step of descent, clipped at tau."""
    return x - rate * gl.clipping.clip(jax.grad(quartic)(x), tau)


def steps(cfg: Config, x: jax.Array, rate: jax.Array | float, tau: jax.Array | float) -> jax.Array:
    """The steps until the gradient is small enough, `()`; infinite where it never is."""
    tau = jnp.asarray(tau)

    def size(x: jax.Array) -> jax.Array:
        return gl.training.fast_norm(jax.grad(quartic)(x))

    def goes_on(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, step = carry
        # A descent that leaves the start behind never comes back.
        is_near = jnp.max(jnp.abs(x)) <= 2 * farthest
        return (size(x) > cfg.gradient) & is_near & (step < cfg.max_steps)

    farthest = jnp.max(jnp.abs(x))
    x, step = jax.lax.while_loop(
        goes_on, lambda carry: (descended(carry[0], rate, tau), carry[1] + 1), (x, jnp.asarray(0))
    )
    return jnp.where(size(x) <= cfg.gradient, step.astype(float), jnp.inf)


def by_hand(x: jax.Array, rate: jax.Array | float, tau: float, num_steps: jax.Array) -> jax.Array:
    """|4x³| one step before the last of so many, and behind it, `(..., 2)`; nan if none ends."""
    ends = jnp.isfinite(num_steps) & (num_steps > 0)
    last = jnp.where(ends, num_steps, 0.0)
    x, rate = jnp.broadcast_to(x, (*last.shape, x.shape[-1])), jnp.broadcast_to(rate, last.shape)

    def norm(x: jax.Array) -> jax.Array:
        return 4 * jnp.sqrt(jnp.sum(x**6, axis=-1))

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, before = carry
        length = rate * jnp.minimum(1.0, tau / norm(x))
        later = jnp.where((i < last)[..., None], x - length[..., None] * 4 * x**3, x)
        return later, jnp.where(i < last, norm(x), before)

    most = jnp.max(last).astype(int)
    x, before = jax.lax.fori_loop(0, most, step, (x, jnp.full(last.shape, jnp.nan)))
    return jnp.stack([before, jnp.where(ends, norm(x), jnp.nan)], axis=-1)


def textbook(cfg: Config) -> jax.Array:
    """|x| over four steps of 0.1 from x = 3, plain and clipped, `(2, 5)`."""
    rows = []
    for tau in (jnp.inf, cfg.tau):
        row = [jnp.asarray([3.0])]
        for _ in range(4):
            row.append(descended(row[-1], 0.1, jnp.asarray(tau)))
        rows.append(jnp.abs(jnp.concatenate(row)))
    return jnp.stack(rows)


def figure(data: xr.Dataset) -> gl.Figure:
    """Steps to the end over the start: the best fixed step, and clipping."""
    fig, (axes,) = gl.figures.panels(width=gl.figures.COLUMN, height=2.6)
    best, others = data.fixed.min("share"), {"color": "C1", "marker": "o"}
    ended = np.flatnonzero(np.isfinite(best).all("draw"))
    clipped = {"color": "C0", "marker": "s"}
    if ended.size:
        near = best.isel(start=ended)
        gl.figures.band(axes, near.start, near, others, "best fixed step")
    gl.figures.bound(axes, data.start, data.fixed_least.median("draw").where(lambda n: n > 0))
    if np.isfinite(data.clipped).all():
        gl.figures.band(axes, data.start, data.clipped, clipped, "clipped, one setting for all")
    gl.figures.bound(axes, data.start, data.clipped_most)
    axes.set(xscale="log", yscale="log", xlabel=data.start.long_name, ylabel="steps to the end")
    axes.legend(loc="upper left", title="dashed: no fewer, and no more, proved")
    gl.figures.title(axes, "the farther the start, the more clipping saves")
    return fig


def caption(data: xr.Dataset) -> str:
    """How many steps each takes from the farthest start."""
    far = data.isel(start=-1)
    best, clipped = float(far.fixed.min("share").median()), float(far.clipped.median())
    return (
        f"Σ x⁴ from a largest coordinate of {float(far.start):g}: the best of "
        f"{data.sizes['share']} fixed steps, chosen for that start, takes {best:.0f} steps, "
        f"clipped descent with one setting for every start {clipped:.0f}. "
        "Fixed steps grow as the start squared, clipped ones as the start."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """Steps from the farthest start, and how they grow."""
    far = data.isel(start=-1)
    yield gl.Headline("best fixed step", far.fixed.min("share").median(), "steps")
    yield gl.Headline("clipped", far.clipped.median(), "steps")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The condition, what bounds both descents, and where clipping wins."""
    eps = float(np.finfo(data.needed.dtype).eps)
    # Two derivatives and a difference, each of a few roundings of at most 12 (4/L1)².
    rounding = 16 * eps * 12 * (4 / data.slope) ** 2
    yield gl.claim.everywhere(
        "x⁴: the largest of f'' - L1 |f'| is 16/L1², and so L0",
        *(data.needed.max("x"), data.needed_law, DEFINITION),
        rounding_of_derivatives=rounding,
    )
    attrs = data.attrs
    eta, tau, root = attrs["learning_rate"], attrs["tau"], np.sqrt(attrs["num_entries"])
    # What the bound on clipped descent assumes: no entry passes 0 on the way.
    steady = 3 * eta * tau < np.cbrt(tau / (4 * root)) and 12 * eta * np.cbrt(tau / 4) ** 2 < 1
    if steady and bool((data.clipped_most < attrs["max_steps"]).all()):
        yield gl.claim.at_most(
            "clipped descent takes no more steps than a number that grows as the start",
            *(data.clipped, data.clipped_most, DERIVED),
        )
    yield gl.claim.at_least(
        "no fixed step takes fewer than a number that grows as the square of the start",
        *(data.fixed, data.fixed_least, DERIVED),
        # Each 1/x² is rounded at each step, and what they add up to is the bound.
        rounding_of_steps=8 * eps * data.fixed_least * np.minimum(data.fixed, attrs["max_steps"]),
    )
    for name in ("fixed", "clipped"):
        before, behind = data[f"{name}_end"].transpose("side", ...)
        ends = np.isfinite(data[name]) & (data[name] > 0)
        # A step is a few roundings, none of which the later ones make larger.
        away = behind.where(behind > attrs["gradient"], np.minimum(before, attrs["gradient"]))
        if bool(ends.any()):
            yield gl.claim.everywhere(
                f"{name} descent, by hand, is at the end after as many steps, and not one earlier",
                *(away, attrs["gradient"], "x - h 4x³ min(1, τ/|4x³|)"),
                where=ends,
                rounding_of_steps=16 * eps * data[name] * attrs["gradient"],
            )
    too_long = data.share > 0.5 * (1 + 8 * eps)
    if bool(too_long.any()):
        yield gl.claim.equal(
            "every fixed step above 1/(2 start²) leads away for ever",
            *(data.fixed.where(too_long, np.inf), np.inf, DERIVED),
        )
    far = data.isel(start=-1)
    if bool((far.clipped_most < far.fixed_least.min()).all()):
        yield gl.claim.at_most(
            "from the farthest start clipped descent needs fewer steps than the best fixed step",
            *(far.clipped.max(), far.fixed.min(), DERIVED),
        )
    hand = [[3.0], [3.0]]
    for row, most in zip(hand, (np.inf, tau), strict=True):
        for _ in range(4):
            row.append(row[-1] - 0.1 * float(np.clip(4 * row[-1] ** 3, -most, most)))
    law = np.abs(data.textbook.copy(data=np.array(hand)))
    # A step multiplies a relative error by 4 at most, and adds a few roundings.
    yield gl.claim.everywhere(
        "from 3 each of four steps of 0.1, plain or clipped, is where it is by hand",
        *(data.textbook, law, "direct computation"),
        rounding=8 * eps * (3 + law) * 4.0 ** xr.DataArray(np.arange(5), dims="step"),
    )


FAULTS = {
    "clip forgotten": gl.fault.replace("clipping.clip", lambda grads, tau: grads),
    "threshold a tenth": gl.fault.argument("clipping.clip", tau=lambda tau: tau / 10),
    "second derivative 1 % off": gl.fault.result("derivatives", lambda d: (d[0], 1.01 * d[1])),
    "descents said to end early": gl.fault.result("steps", lambda steps: steps / 100),
    "steps ten times too short": gl.fault.argument("descended", rate=lambda rate: rate / 10),
}
HARMLESS = {"computed in another format": "a rounding is far below what a step changes"}

if __name__ == "__main__":
    gl.run(__file__)
