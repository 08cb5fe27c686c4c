"""Does a step change a wide network as much as a narrow one, and which check is fooled?

Tensor Programs V (Yang, Hu et al. 2022, arXiv:2203.03466) scales weights and rates by the width so
that one step changes every activation by as much at any width; its coordinate check looks whether
it does. Here the change has exponents, held against theory (Yang and Hu 2021, arXiv:2011.14522).
Two statements fail: a saturated network passes with the wrong parametrisation, since tanh has no
farther to go; and the standard one's logits do not change as n in a small step of Adam's sign but
as n^(3/2): only the readout's own part goes as n. (The paper's tables: from a second source.)

Answers: muP coord check standard parametrization flatter than muP (EleutherAI/gpt-neox #956);
interpreting coord checks (microsoft/mup #42); which step of the coordinate check to look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "width"
LAW = "Yang and Hu 2021; Yang and Littwin 2023; gradlab.theory.parametrisation"
CHECK = "Yang, Hu et al. 2022: coordinate check, transfer of rates; |tanh| stays below 1"
HAND = "Rumelhart, Hinton and Williams 1986; gradlab.measuring.passes"
RULES = ("gradient", "sign")
WAYS = ("standard", "maximal update")
LAYERS = ("first", "hidden", "logits")
PASSES = 0.25  # half of the least exponent but 0 of scales that are powers of √n


@gl.config
class Config:
    """A tanh network of two hidden layers on the digits, one step or a few."""

    width: gl.Ints = gl.key("neurons of both hidden layers", at_least=4, at_most=2**13, fewest=2)
    width_trained: gl.Ints = gl.key("those that are trained", at_least=4, at_most=2**12)
    learning_rate: gl.Floats
    num_draws: int = gl.key("draws of weights and batch", at_least=4, at_most=10**4)
    batch_size: int = gl.key("examples of the checked batch", at_least=1, at_most=300)
    num_steps: int = gl.key("steps after which users look", at_least=1, at_most=100)
    num_trained: int = gl.key("steps of the training, of 16 examples", at_least=1, at_most=10**4)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Logs of changes by width, of one layer moved and of all, their law, and losses."""
    (key_check, key_train), laws = jax.random.split(key), gl.theory.parametrisation
    alone = [(rule, way, moved) for rule in RULES for way in WAYS for moved in range(3)]
    found, hand, num, base = [], [], len(alone), min(cfg.width)
    first_check, first_train = (
        jax.random.split(k, cfg.num_draws)[0] for k in (key_check, key_train)
    )
    numbers = cfg.batch_size, cfg.num_steps
    for n in cfg.width:
        rows = [setting(rule, way, n / base, jnp.eye(3)[k]) for rule, way, k in alone]
        task = gl.wide.ManySettings(n, jnp.stack(rows + settings(cfg, n / base)), *numbers)
        one = partial(gl.wide.moves_in_all, task=task)
        found.append(gl.grid.over_draws(one, key_check, cfg.num_draws))
        hand.append(gl.wide.moves_by_hand(first_check, task))
    logs, entries = jax.tree.map(lambda *parts: jnp.stack(parts, -1), *found)
    shape = cfg.num_draws, len(RULES), len(WAYS), 3, 3, -1
    law = [laws.change_exponents(rule, laws.scaling(way, rule), k) for rule, way, k in alone]
    loss = gl.grid.over_draws(
        partial(trained, cfg, base, gl.wide.losses_of_signs), key_train, cfg.num_draws
    )
    begun = jnp.moveaxis(trained(cfg, base, gl.wide.first_losses_by_hand, first_train), -1, 0)
    by_hand = jax.tree.map(lambda *parts: jnp.stack(parts, -1), *hand)
    ways = jnp.stack([jnp.stack(logs, 2)[0, :, :, :3], *by_hand])
    later = logs.later[:, num:, :3].reshape(cfg.num_draws, len(WAYS), -1, 3, len(cfg.width))
    change = logs.first[:, :num]
    rates = [[laws.factors(way, "sign", n / base)[2] for n in cfg.width] for way in WAYS]
    return {
        **{name: gl.named(list(kinds), name) for name, kinds in (("rule", RULES), ("way", WAYS))},
        **{name: gl.named(list(LAYERS), name) for name in ("moved", "layer")},
        "change": gl.named(change[:, :, :3].reshape(shape), "draw rule way moved layer width"),
        "start": gl.named(logs.start[:, :6:3, 2], "draw way width", long_name="log rms of logits"),
        "later": gl.named(later, "draw way learning_rate layer width", long_name="log change"),
        "step": gl.named(change[:, 7::3, 3], "draw way width", long_name="log rms, hidden weights"),
        "step_law": gl.named(jnp.log(jnp.array(rates)), "way width", long_name="log of their rate"),
        "entries": gl.named(entries, "draw matrix moment width", long_name="of all three"),
        "law": gl.named(jnp.array(law).reshape(shape[1:-1]), "rule way moved layer"),
        "loss": gl.named(
            jnp.mean(loss[..., 3 * cfg.num_trained // 4 :], -1),
            "draw way width_trained learning_rate",
            units="nats",
        ),
        "by_hand": gl.named(ways, "of setting time layer width", long_name="logs, of one draw"),
        "begun": gl.named(
            jnp.stack([loss[0, ..., :2], *begun]), "of way width_trained learning_rate step"
        ),
    }


def setting(rule: str, way: str, wider: float, rates: Any) -> jax.Array:
    """Whether steps are signs, the readout's factor, and rates: all ways are alike at wider = 1."""
    readout, *factors = gl.theory.parametrisation.factors(way, rule, wider)
    return jnp.array([rule == "sign", readout, *(rates * jnp.array(factors))])


def settings(cfg: Config, wider: float) -> list[jax.Array]:
    """Steps by the sign, at every rate, in both ways."""
    return [setting("sign", way, wider, rate) for way in WAYS for rate in cfg.learning_rate]


def trained(cfg: Config, base: int, run: Any, key: jax.Array) -> jax.Array:
    """What `run` makes of each network that is trained by signs, `(way, width, rate, ...)`."""
    key_W, key_batch = jax.random.split(key)
    data = gl.wide.unit_digits()
    batches = gl.training.schedule(key_batch, data.y.size, 16, cfg.num_trained)

    def of_width(n: int) -> jax.Array:
        rows = jnp.stack(settings(cfg, n / base))
        found = jax.lax.map(
            lambda row: run(gl.wide.matrices(key_W, n, row[1]), row, data, batches), rows
        )
        return found.reshape(len(WAYS), -1, *found.shape[1:])

    return jnp.stack([of_width(n) for n in cfg.width_trained], 1)


def figure(data: xr.Dataset) -> gl.Figure:
    """The change over the width with its law; how a rate hides it; and what it is good for."""
    fig, (change, check, loss) = gl.figures.panels(1, 3, height=2.7)
    n, rate = data.width.values, data.learning_rate
    found = gl.estimate.log_slopes(data.later.sel(layer="hidden"))
    check.axhspan(-PASSES, PASSES, color="0.9", linewidth=0)
    for way, colour in zip(WAYS, (gl.figures.EXPLODING, gl.figures.VANISHING), strict=True):
        for layer, mark in (("hidden", "o"), ("logits", "s")):
            row = data.sel(rule="sign", way=way, moved="hidden", layer=layer)
            law = (n / n[0]) ** float(row.law)
            look = {"color": colour, "marker": mark}
            gl.figures.band(change, n, np.exp(row.change - row.change[:, 0].mean()), look)
            gl.figures.predicted(change, n, law)
            at = law[-1] * (0.75 if law[-1] > 1 or layer == "logits" else 0.98)  # apart at 1
            gl.figures.named(change, n[-1], at, layer, colour)
        gl.figures.words(change, 0.05, 0.9 if way == "standard" else 0.82, way, color=colour)
        gl.figures.band(check, rate, found.sel(way=way), {"color": colour, "marker": "o"})
        for size, dash in zip(data.width_trained.values, gl.figures.DASHES, strict=False):
            mean = data.loss.sel(way=way, width_trained=size).mean("draw")
            label = f"width {size}" if way == "maximal update" else None
            loss.plot(rate, mean, color=colour, linestyle=dash, label=label)
    change.set(xscale="log", yscale="log", xlabel="width", ylabel="relative change")
    change.set(xticks=n, xticklabels=n, xlim=(n[0] / 1.2, n[-1] * 3.2))
    change.minorticks_off()
    gl.figures.words(check, 0.04, 0.12, "passes the check", style="italic")
    check.set(xscale="log", xlabel="learning rate", ylabel="exponent of the width")
    loss.set(xscale="log", xlabel="learning rate", ylabel="loss (nats)", ylim=(0, 3))
    loss.legend(loc="upper left")
    after = f"hidden layer after {data.attrs['num_steps']} steps"
    gl.figures.titles(fig, "one small step of signs", after, "trained")
    return fig


def caption(data: xr.Dataset) -> str:
    """The exponents of the logits, how far the check is fooled, and the transfer."""
    found = gl.estimate.log_slopes(data.change).mean("draw").sel(rule="sign", layer="logits")
    hidden, own = (float(found.sel(way="standard", moved=k)) for k in ("hidden", "logits"))
    fooled = gl.estimate.log_slopes(data.later).mean("draw").sel(way="standard", layer="hidden")
    worse = [float(excess(data).sel(way=way).mean()) for way in WAYS]
    return f"""In one small step of signs the logits of the standard parametrisation change as
        n^{hidden:.2f} by what the hidden layer moves and as n^{own:.2f} by the readout's own; with
        the maximal update by as much at any width. After {data.attrs["num_steps"]} steps the
        hidden layer's falls from {float(fooled[0]):.2f} at the smallest rate to
        {float(fooled[-1]):.2f} at the largest, where tanh saturates: the check passes. The best
        rate of the smallest costs the largest {worse[0]:.2g} and {worse[1]:.2g} nats."""


def excess(data: xr.Dataset) -> xr.DataArray:
    """The largest network's loss at the smallest one's best rate, over its own best; by draw."""
    best = data.loss.mean("draw").argmin("learning_rate")
    small, large = (best.isel(width_trained=k, drop=True) for k in (0, -1))
    last = data.loss.isel(width_trained=-1)
    return last.isel(learning_rate=small) - last.isel(learning_rate=large)


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The logits' exponents, and the hidden layer's where the check is fooled."""
    found = gl.estimate.log_slopes(data.change).sel(rule="sign", moved="hidden", layer="logits")
    for way in WAYS:
        law = data.law.sel(rule="sign", way=way, moved="hidden", layer="logits")
        yield gl.headline.mean(f"logits, {way}", found.sel(way=way), law=float(law))
    last = data.later.isel(learning_rate=-1).sel(way="standard", layer="hidden")
    yield gl.headline.mean("hidden, saturated", gl.estimate.log_slopes(last))


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The exponents of one layer moved; where the check is fooled; that rates transfer."""
    n = data.width.values
    # A step is aligned with each example only in part: the others add their number over n, times
    # pi/2 for signs, to the mean square; as much does the overlap of their gradients. A log of a
    # root has half of both.
    others = np.pi / 2 * data.attrs["batch_size"] / n
    width = abs(float(gl.estimate.slope(np.log(n), others).value))
    yield gl.claim.mean(
        "one step changes each layer by the power of the width that the law gives, in small steps",
        *(gl.estimate.log_slopes(data.change), data.law, LAW),
        where=np.isfinite(data.law),
        examples_over_the_width=width,
    )
    yield gl.claim.mean(
        "at the start the logits are of one size, and as n^(-1/2) with the maximal update",
        *(gl.estimate.log_slopes(data.start), xr.DataArray([0.0, -0.5], dims="way"), LAW),
        examples_over_the_width=width,
    )
    yield gl.claim.weights(data.entries, LAW)
    rounding = 64 * float(np.finfo(data.step.dtype).eps) * (1 + np.abs(data.step_law))
    sentence = "a step by the sign moves the hidden weights by their rate, at every width"
    yield gl.claim.everywhere(sentence, data.step, data.step_law, LAW, rounding=rounding)
    # The sign of an entry whose slope is nothing but rounding is that of chance: eps n of them.
    entries = data.by_hand.size * float((n * (n + 74)).max())
    few = min(0.5, float(np.finfo(data.step.dtype).eps) * n.max() * entries)
    words = "logs of what steps do to each layer", "losses before the first two steps of a training"
    for name, (seen, hand, rounding) in zip(words, (data.by_hand, data.begun), strict=True):
        sentence = f"the {name} are those of backpropagation by hand"
        yield gl.claim.everywhere(sentence, seen, hand, HAND, chance=few, rounding=rounding)
    hidden = gl.estimate.log_slopes(data.later).sel(layer="hidden", way="standard")
    if data.learning_rate[-1] * n[0] > 1:  # one step moves each sum by more than its size
        sentence = "saturated, the standard parametrisation passes the check that it should fail"
        first, last = (hidden.isel(learning_rate=k) for k in (0, -1))
        yield gl.claim.mean(sentence, last, PASSES, CHECK, relation="<=")
        yield gl.claim.gain("its exponent is smaller at the largest rate", first - last, CHECK)
    gained = excess(data).sel(way="standard") - excess(data).sel(way="maximal update")
    sentence = "the smallest network's best rate serves the largest better with the maximal update"
    better = gl.claim.gain(sentence, gained, CHECK)
    if better.chance < 0.01:  # else too few draws, or steps, to tell
        yield better


HARMLESS = {"the loss halved": "a factor is no power of the width, and no sign"}
FAULTS = {
    "the other readout's scale": gl.fault.argument("wide.matrices", readout=lambda scale: scale**0),
    "states 1 % too large": gl.fault.scale("wide.states", 1.01),
    "uniform weights": gl.fault.replace("ensembles.unit_gaussian", gl.ensembles.unit_uniform),
    "wider taken for narrower": gl.fault.argument("setting", wider=lambda wider: 1 / wider),
    "rates in reverse": gl.fault.argument(
        "settings", cfg=lambda c: c.__class__(**vars(c) | {"learning_rate": c.learning_rate[::-1]})
    ),
}
if __name__ == "__main__":
    gl.run(__file__)
