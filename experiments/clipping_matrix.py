"""What does every clipper do at its edges?

Clipping by the global norm, and its kin, are given gradients that the formula g tau/max(|g|, tau)
(Pascanu, Mikolov and Bengio 2013, algorithm 1) has no trouble with, and some that it has no value
for. A rule is right there, or wrong and loud (nan, infinity), or wrong in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "clipping"
INF, NAN = math.inf, math.nan
RIGHT, LOUD, SILENT = range(3)
LETTERS = "rls"
# Input to a gradient and its threshold.
FLOAT32 = {
    "3, 4": ((3.0, 4.0), 1.0),
    "|g|² overflows": ((3e20, 4e20), 1.0),
    "|g|² underflows": ((3e-25, 4e-25), 1e-25),
    "subnormal": ((3e-40, 4e-40), 1e-40),
    "|g| = τ": ((3.0, 4.0), 5.0),
    "zero": ((0.0, 0.0), 1.0),
    "zero, τ = 0": ((0.0, 0.0), 0.0),
    "τ = ∞, |g|² overflows": ((3e20, 4e20), INF),
    "one inf": ((INF, 4.0), 1.0),
    "one nan": ((NAN, 4.0), 1.0),
    "all nan": ((NAN, NAN), 1.0),
}
SHORT = {
    "float16, 300 each": ((300.0,) * 4, "float16"),
    "bfloat16, 1000 ones": ((1.0,) * 1000, "bfloat16"),
}
SLOPES = {"derivative": (3.0, 4.0), "derivative at 0": (0.0, 0.0)}
INPUTS = (*FLOAT32, *SHORT, "float16 and float32", *SLOPES, "second derivative")
# What each rule does with each input, in that order: right, loud, silent; seen on a CPU, with optax
# 0.2.8. Another release that does otherwise breaks a claim.
KNOWN = {
    "gradlab clip": "rrrrrrrrrrrrrrrrr",
    "gradlab formula": "rrrrrrrrrrrrrrrrr",
    "optax global norm": "rsslrrllrrrsrrrlr",
    "optax value": "rrrsrrrrrrrrrrrrr",
    "optax block rms": "rsslrrllrrrrrrrlr",
    "optax adaptive": "rsssrrrlrrrsrrrlr",
    "optax per example": "rsssrrrrrlrsrrrlr",
    "optax if finite": "rsslrrllrrrsrrrlr",
    "PyTorch": "rsssrrrlrrrrrrrlr",
    "TensorFlow": "rlslrrlllrrlrlrlr",
    "sentinel of -1": "rsssrrrlllrsrrrlr",
    "norm in bfloat16": "rsssrrrrrlrrsrsls",
}


@gl.config
class Config:
    """Which rules are looked at."""

    rule: gl.Strings = gl.key("the rules, by their names in gradlab.clip_rules")
    allowed: float = gl.key("floats that roundings may put between", at_least=1, at_most=1000)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The outcome and the error of each rule at each input."""
    # A compiler that knew the inputs would work out the results itself, by other arithmetic.
    is_known = jax.random.uniform(key) < 2
    cells = [cell_row(gl.clip_rules.RULES[name].apply, name, is_known, cfg) for name in cfg.rule]
    outcome, factor = (jnp.stack(part) for part in zip(*cells, strict=True))
    models = [gl.clip_rules.RULES[name].is_model for name in cfg.rule]
    return {
        "rule": gl.named(list(cfg.rule), "rule"),
        "input": gl.named(list(INPUTS), "input"),
        "outcome": gl.named(outcome, "rule input", long_name="0 right, 1 loud, 2 silent"),
        "factor": gl.named(factor, "rule input", long_name="norm of the result over the right one"),
        "is_model": gl.named(jnp.array(models), "rule", long_name="a model, not the library"),
    }


def cell_row(
    apply: Any, name: str, is_known: jax.Array, cfg: Config
) -> tuple[jax.Array, jax.Array]:
    """Outcome and factor of one rule at all inputs, `(input,)` each."""

    def hidden(value: Any, dtype: str) -> jax.Array:
        return jnp.where(is_known, jnp.asarray(value, dtype), 0)

    def one(x: jax.Array, tau: jax.Array) -> jax.Array:
        return apply([x], tau)[0]

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(one(x, hidden(1.0, "float32")))

    cells = []
    entries, taus = zip(*FLOAT32.values(), strict=True)
    rows = jax.vmap(one)(hidden(entries, "float32"), hidden(taus, "float32"))
    for row, (case, tau) in zip(rows, FLOAT32.values(), strict=True):
        cells.append(judged([row], exact(name, [np.asarray(case, np.float32)], tau), cfg))
    for many, dtype in SHORT.values():
        short = np.asarray(many, jnp.dtype(dtype))
        found = one(hidden(short, dtype), hidden(1.0, "float32"))
        cells.append(judged([found], exact(name, [short], 1.0), cfg))
    mixed: list[Any] = [np.asarray([3.0, 4.0], name) for name in ("float16", "float32")]
    # A Python number, with which optax keeps every leaf's format.
    found = apply([hidden(leaf, leaf.dtype.name) for leaf in mixed], 1.0)
    cells.append(judged(found, exact(name, mixed, 1.0), cfg))
    slopes = jax.vmap(jax.grad(total))(hidden(list(SLOPES.values()), "float32"))
    three_four = np.array([3.0, 4.0])
    law = gl.theory.clipping.sum_derivatives(three_four, scale(name))
    first = law[0] if scale(name) else np.zeros(2)
    cells.append(judged([slopes[0]], [np.float32(first)], cfg))
    cells.append(judged([slopes[1]], [np.ones(2, np.float32)], cfg))
    bent = jax.hessian(total)(hidden((3.0, 4.0), "float32"))
    cells.append(judged([bent], [np.float32(law[1] if scale(name) else np.zeros((2, 2)))], cfg))
    outcome, factor = zip(*cells, strict=True)
    return jnp.stack(outcome), jnp.stack(factor)


def scale(name: str) -> float:
    """The norm to which a rule brings (3, 4) at tau = 1; 0 where it cuts every entry by itself."""
    return {"optax value": 0.0, "optax block rms": math.sqrt(2)}.get(name, 1.0)


def exact(name: str, leaves: list[Any], tau: float) -> list[Any]:
    """What a rule should give, by its own formula."""
    return gl.theory.clipping.exact_rule(name.removeprefix("optax "), leaves, tau)


def judged(found: list[Any], wanted: list[Any], cfg: Config) -> tuple[jax.Array, jax.Array]:
    """Outcome and factor of one cell."""
    pairs = list(zip(found, wanted, strict=True))
    off = jnp.stack(
        [jnp.max(gl.clipping.ulps(a.astype(b.dtype), jnp.asarray(b))) for a, b in pairs]
    )
    finite = jnp.stack([jnp.all(jnp.isfinite(a)) for a in found])
    wrong = jnp.where(jnp.all(finite), SILENT, LOUD)
    sizes = [
        jnp.sqrt(sum(jnp.sum(jnp.square(jnp.asarray(leaf, float))) for leaf in leaves))
        for leaves in (found, [jnp.asarray(leaf, float) for leaf in wanted])
    ]
    along = sum(jnp.sum(jnp.sign(a) * jnp.sign(jnp.asarray(b, a.dtype))) for a, b in pairs)
    factor = sizes[0] / sizes[1] * jnp.where(along < 0, -1, 1)
    return jnp.where(jnp.max(off) <= cfg.allowed, RIGHT, wrong), factor


SHADES = {RIGHT: "#b7dfc6", LOUD: "#f2c777", SILENT: "#c1440e"}


def figure(data: xr.Dataset) -> gl.Figure:
    """The matrix."""
    rows = data.sizes["rule"]
    fig, (axes,) = gl.figures.panels(height=1.5 + 0.24 * rows)
    for i in range(rows):
        for j in range(data.sizes["input"]):
            kind, factor = int(data.outcome[i, j]), float(data.factor[i, j])
            model = bool(data.is_model[i])
            shade = "0.9" if model and kind == RIGHT else SHADES[kind]
            pale = 0.45 if model and kind != RIGHT else 1.0
            axes.bar(j, 0.92, 0.92, i - 0.46, facecolor=shade, alpha=pale)
            colour = "white" if kind == SILENT and not model else "0.1"
            text = {RIGHT: "", LOUD: "nan", SILENT: times(factor)}[kind]
            axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color=colour)
    axes.set_xticks(range(data.sizes["input"]), data.input.values, rotation=40, ha="right")
    axes.set_yticks(range(rows), [f"{name}{standing(name)}" for name in data.rule.values])
    axes.set(xlabel="gradient", ylabel="rule", ylim=(rows - 0.5, -0.5))
    axes.set(xlim=(-0.5, data.sizes["input"] - 0.5))
    axes.tick_params(length=0)
    looks: dict[str, dict[str, Any]] = {
        "right": {"marker": "s", "color": SHADES[RIGHT]},
        "wrong, and says so (nan, inf)": {"marker": "s", "color": SHADES[LOUD]},
        "wrong in silence, by this factor": {"marker": "s", "color": SHADES[SILENT]},
        "right in a model": {"marker": "s", "color": "0.9"},
    }
    looks = {name: look | {"linestyle": "none", "markersize": 7} for name, look in looks.items()}
    gl.figures.key(axes, looks, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    return fig


def standing(name: str) -> str:
    """What a rule is beside the library itself: a model, and by which release it was held."""
    rule = gl.clip_rules.RULES[name]
    held = f", held against {rule.held}" if rule.held else ""
    return f" (model{held})" if rule.is_model else ""


def times(factor: float) -> str:
    """A factor in a few characters."""
    if not np.isfinite(factor):
        return "wrong"
    short = f"{factor:.3g}" if 0.01 <= abs(factor) < 100 else f"{factor:.0e}".replace("e+", "e")
    return f"×{short}" if factor else "×0"


def caption(data: xr.Dataset) -> str:
    """How many cells are wrong in silence."""
    silent = (data.outcome == SILENT).sum("input")
    told = ", ".join(
        f"{name} {int(n)}" for name, n in zip(data.rule.values, silent.values, strict=True)
    )
    return (
        f"{data.sizes['rule']} rules at {data.sizes['input']} inputs: wrong in silence: {told}. "
        f"{int(data.is_model.sum())} of the rules (pale) are models of their libraries, written "
        "down from their documentation: none of their cells counts as right, those neither whose "
        "outcomes were all found in the library, too."
    )


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """How often rules that were run are wrong in silence."""
    run = data.isel(rule=np.flatnonzero(~data.is_model))
    yield gl.Headline("wrong in silence", 100 * (run.outcome == SILENT).mean(), "%")


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Every rule does what it was last seen to do, input by input."""
    for name in data.rule.values:
        rule = gl.clip_rules.RULES[name]
        known = data.outcome.sel(rule=name).copy(data=[LETTERS.index(c) for c in KNOWN[name]])
        seen = standing(name) or " (as it was last seen)"
        yield gl.claim.equal(
            f"{name}{seen}: right, loud or silent at each input",
            *(data.outcome.sel(rule=name), known, rule.source),
        )
    # 0 over 0 is no factor, and subnormal numbers may be taken for 0 in the norm.
    right = (data.outcome == RIGHT) & np.isfinite(data.factor) & (data.input != "subnormal")
    if right.any():
        short = data.input.isin([*SHORT, "float16 and float32"])
        floats = data.attrs["allowed"] * (2**-7 * short + 2**-23 * ~short)
        given = "what is right has the norm of the exact result", data.factor, 1.0
        yield gl.claim.everywhere(*given, "direct computation", where=right, floats_allowed=floats)


def scaled(tree: Any, factor: float) -> Any:
    """Every leaf times a number."""
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


FAULTS = {
    "clip 1 % too long": gl.fault.result("clipping.clip", lambda tree: scaled(tree, 1.01)),
    "judged by another rule": gl.fault.argument("exact", name=lambda _: "value"),
    "norms 10 % too large": gl.fault.result("judged", lambda pair: (pair[0], 1.1 * pair[1])),
}


if __name__ == "__main__":
    gl.run(__file__)
