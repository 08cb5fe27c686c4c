"""Does a step change a wide network as much as a narrow one, and which check is fooled?

Tensor Programs V (Yang, Hu et al. 2022, arXiv:2203.03466) scales weights and learning rates by the
width so that one step changes every activation by as much at any width; then a rate found on a
small model holds for a large one. Its coordinate check looks at the change over the width. Here it
has exponents, held against theory, layer by layer moved (Yang and Hu 2021, arXiv:2011.14522). Two
statements fail. A saturated network passes with the wrong parametrisation: at a large rate tanh
has no farther to go. And the logits of the standard one do not grow as n in one step of Adam's
sign but as n^(3/2), where the step is small: only the readout's own part grows as n.

Answers: muP coord check standard parametrization flatter than muP (EleutherAI/gpt-neox #956);
interpreting coord checks (microsoft/mup #42); logits shrink at initialisation 1/sqrt(width) muP;
which step of the coordinate check to look at. The paper's tables: not read; from a second source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "training"
LAW = "Yang and Hu 2021; Yang and Littwin 2023; gradlab.theory.parametrisation"
CHECK = "Yang, Hu et al. 2022, coordinate check; |tanh| stays below 1"
TRANSFER = "Yang, Hu et al. 2022, figure 1"
RULES = ("gradient", "sign")
WAYS = ("standard", "maximal update")
LAYERS = ("first", "hidden", "logits")
PASSES = 0.25  # half of the least exponent but 0 of scales that are powers of √n


@gl.config
class Config:
    """A tanh network of two hidden layers on the digits, one step or a few."""

    width: gl.Ints = gl.key("neurons of both hidden layers", at_least=4, at_most=2**13)
    width_trained: gl.Ints = gl.key("those that are trained", at_least=4, at_most=2**12)
    learning_rate: gl.Floats
    num_draws: int = gl.key("draws of weights and batch", at_least=4, at_most=10**4)
    batch_size: int = gl.key("examples of the checked batch", at_least=1, at_most=300)
    num_steps: int = gl.key("steps after which users look", at_least=1, at_most=100)
    num_trained: int = gl.key("steps of the training, of 16 examples", at_least=1, at_most=10**4)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Logs of changes by width, of one layer moved and of all, their law, and losses."""
    key_check, key_train = jax.random.split(key)
    alone = [(rule, way, moved) for rule in RULES for way in WAYS for moved in range(3)]
    found, num, base = [], len(alone), min(cfg.width)
    for n in cfg.width:
        rows = [setting(rule, way, n / base, jnp.eye(3)[k]) for rule, way, k in alone]
        rows += settings(cfg, n / base)
        found.append(gl.grid.over_draws(checked(cfg, n, jnp.stack(rows)), key_check, cfg.num_draws))
    logs = jax.tree.map(lambda *parts: jnp.stack(parts, -1), *found)
    shape = cfg.num_draws, len(RULES), len(WAYS), 3, 3, -1
    p = [(rule, parametrisation(rule, way), moved) for rule, way, moved in alone]
    law = jnp.array([gl.theory.parametrisation.change_exponents(*one) for one in p])
    loss = gl.grid.over_draws(lambda key: trained(key, cfg, base), key_train, cfg.num_draws)
    lists = {"rule": RULES, "way": WAYS, "moved": LAYERS, "layer": LAYERS}
    later = logs.later[:, num:].reshape(cfg.num_draws, len(WAYS), -1, *logs.later.shape[2:])
    by = "draw rule way moved layer width"
    return {
        **{name: gl.named(list(values), name) for name, values in lists.items()},
        "change": gl.named(
            logs.first[:, :num].reshape(shape), by, long_name="log change to first order"
        ),
        "start": gl.named(logs.start[:, :6:3, 2], "draw way width", long_name="log rms of logits"),
        "later": gl.named(later, "draw way learning_rate layer width", long_name="log change"),
        "law": gl.named(law.reshape(shape[1:-1]), "rule way moved layer"),
        "loss": gl.named(loss, "draw way width_trained learning_rate", units="nats"),
    }


def parametrisation(rule: str, way: str) -> Any:
    """The exponents of a way to scale with the width, for a rule of steps."""
    theory = gl.theory.parametrisation
    return theory.STANDARD if way == "standard" else theory.maximal_update(rule)


def setting(rule: str, way: str, wider: float, rates: Any) -> jax.Array:
    """A network as numbers: whether steps are signs, the readout's factor, three rates.

    It is `wider` times as wide as one in which all ways are alike.
    """
    p = parametrisation(rule, way)
    factors = jnp.array([wider**-c for c in (p.first_rate, p.hidden_rate, p.last_rate)])
    return jnp.array([rule == "sign", wider ** (0.5 - p.readout), *(rates * factors)])


def settings(cfg: Config, wider: float) -> list[jax.Array]:
    """Steps by the sign, at every rate, in both ways."""
    return [setting("sign", way, wider, rate) for way in WAYS for rate in cfg.learning_rate]


def drawn(key: jax.Array, n: int, readout: jax.Array) -> list[jax.Array]:
    """The three matrices, of variance 1/in but for the readout's factor."""
    draw, keys = gl.ensembles.unit_gaussian, jax.random.split(key, 3)
    W = [draw(k, s, float) for k, s in zip(keys, ((n, 64), (n, n), (10, n)), strict=True)]
    return [*W[:2], readout * W[2]]


def states(params: Any, x: jax.Array) -> list[jax.Array]:
    """Both activations and the logits of inputs `(..., 64)`."""
    phi = gl.activations.PHI["tanh"]
    first = phi(x @ params[0].T)
    hidden = phi(first @ params[1].T)
    return [first, hidden, hidden @ params[2].T]


def checked(cfg: Config, n: int, rows: jax.Array) -> Any:
    """From a key to the moves under every setting, of the same unit weights and batch."""
    data = gl.training.projected(gl.training.digits(float)[0], jnp.eye(64))

    def one(key: jax.Array) -> Any:
        key_W, key_batch = jax.random.split(key)
        batch = gl.training.schedule(key_batch, data.y.size, cfg.batch_size, 1).indices[0]
        x, y = data.x[batch], data.y[batch]

        def moves(row: jax.Array) -> Any:
            return gl.coordinates.moves(
                lambda params: states(params, x),
                lambda params: gl.training.cross_entropy(states(params, x)[-1], y),
                drawn(key_W, n, row[1]),
                gl.coordinates.by_layer(row[0], row[2:]),
                cfg.num_steps,
            )

        return jax.lax.map(moves, rows)

    return one


def trained(key: jax.Array, cfg: Config, base: int) -> jax.Array:
    """The mean loss of the last quarter of a training by signs, `(way, width, rate)`."""
    key_W, key_batch = jax.random.split(key)
    data = gl.training.projected(gl.training.digits(float)[0], jnp.eye(64))
    batches = gl.training.schedule(key_batch, data.y.size, 16, cfg.num_trained)

    def run(n: int) -> jax.Array:
        def one(row: jax.Array) -> jax.Array:
            params, step = drawn(key_W, n, row[1]), gl.coordinates.by_layer(row[0], row[2:])
            path = gl.training.train(lambda p, x: states(p, x)[-1], params, step, data, batches)
            return jnp.mean(path.loss[3 * cfg.num_trained // 4 :])

        return jax.lax.map(one, jnp.stack(settings(cfg, n / base))).reshape(len(WAYS), -1)

    return jnp.stack([run(n) for n in cfg.width_trained], 1)


def figure(data: xr.Dataset) -> gl.Figure:
    """The change over the width with its law; how a rate hides it; and what it is good for."""
    fig, (change, check, loss) = gl.figures.panels(1, 3, height=2.7)
    n, rate = data.width.values, data.learning_rate
    found = gl.estimate.exponents(data.later.sel(layer="hidden"))
    check.axhspan(-PASSES, PASSES, color="0.9", linewidth=0)
    for way, colour in zip(WAYS, (gl.figures.EXPLODING, gl.figures.VANISHING), strict=True):
        for layer, mark in (("hidden", "o"), ("logits", "s")):
            row = data.sel(rule="sign", way=way, moved="hidden", layer=layer)
            law = (n / n[0]) ** float(row.law)
            look = {"color": colour, "marker": mark}
            gl.figures.band(change, n, np.exp(row.change - row.change[:, 0].mean()), look)
            gl.figures.predicted(change, n, law)
            at = 1.5 ** ((layer == "logits") - 0.5) if way == "maximal update" else 1
            gl.figures.named(change, n[-1], law[-1] * at, layer, colour)
        gl.figures.band(check, rate, found.sel(way=way), {"color": colour, "marker": "o"})
        for size, dash in zip(data.width_trained.values, gl.figures.DASHES, strict=False):
            mean = data.loss.sel(way=way, width_trained=size).mean("draw")
            label = f"width {size}" if way == "maximal update" else None
            loss.plot(rate, mean, color=colour, linestyle=dash, label=label)
    change.set(xscale="log", yscale="log", xlabel="width", xlim=(n[0] / 1.2, n[-1] * 3.2))
    change.set(ylabel="change to first order, relative")
    change.set_xticks(n, [str(k) for k in n], minor=False)
    change.minorticks_off()
    gl.figures.words(change, 0.05, 0.9, "standard", color=gl.figures.EXPLODING)
    gl.figures.words(change, 0.05, 0.82, "maximal update", color=gl.figures.VANISHING)
    gl.figures.words(check, 0.04, 0.12, "passes the check", style="italic")
    check.set(xscale="log", xlabel="learning rate", ylabel="exponent of the width")
    loss.set(xscale="log", xlabel="learning rate", ylabel="loss (nats)", ylim=(0, 3))
    loss.legend(loc="upper left")
    after = f"hidden layer after {data.attrs['num_steps']} steps"
    gl.figures.titles(fig, "one step of signs", after, "trained")
    return fig


def caption(data: xr.Dataset) -> str:
    """The exponents of the logits, how far the check is fooled, and the transfer."""
    found = gl.estimate.exponents(data.change).mean("draw").sel(rule="sign", layer="logits")
    hidden, own = (float(found.sel(way="standard", moved=k)) for k in ("hidden", "logits"))
    fooled = gl.estimate.exponents(data.later).mean("draw").sel(way="standard", layer="hidden")
    worse = {way: float(excess(data).sel(way=way).mean()) for way in WAYS}
    return f"""In one small step of signs the logits of the standard parametrisation change as
        n^{hidden:.2f} by what the hidden layer moves and as n^{own:.2f} by the readout's own; with
        the maximal update by as much at any width. After {data.attrs["num_steps"]} steps the
        hidden layer's exponent falls from {float(fooled[0]):.2f} at the smallest rate to
        {float(fooled[-1]):.2f} at the largest, where tanh saturates: the check passes. The
        smallest network's best rate costs the largest {worse["standard"]:.2g} nats in the standard
        and {worse["maximal update"]:.2g} in the other. Lines: laws; bands: all draws."""


def excess(data: xr.Dataset) -> xr.DataArray:
    """The largest network's loss at the smallest one's best rate, over its own best; by draw."""
    best = data.loss.mean("draw").argmin("learning_rate")
    small, large = (best.isel(width_trained=k, drop=True) for k in (0, -1))
    last = data.loss.isel(width_trained=-1)
    return last.isel(learning_rate=small) - last.isel(learning_rate=large)


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The logits' exponents, and the hidden layer's where the check is fooled."""
    for way in WAYS:
        row = data.sel(rule="sign", way=way, moved="hidden", layer="logits")
        yield gl.headline.mean(
            f"logits, {way}", gl.estimate.exponents(row.change), law=float(row.law)
        )
    fooled = (
        gl.estimate.exponents(data.later).sel(way="standard", layer="hidden").isel(learning_rate=-1)
    )
    yield gl.headline.mean("hidden, saturated", fooled)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The exponents of one layer moved; where the check is fooled; that rates transfer."""
    n = data.width.values
    # Of a batch a step is aligned with each example only in part: what the others add to its mean
    # square is their number over n times at most pi/2, the square of a sign's share in a normal
    # number; as much is added by the overlap of their gradients. A log rms has half of both.
    others = np.pi / 2 * data.attrs["batch_size"] / n
    width = abs(float(gl.estimate.slope(np.log(n), others).value))
    moves = np.isfinite(data.law)
    yield gl.claim.mean(
        "one step changes each layer by the power of the width that the law gives, in small steps",
        *(gl.estimate.exponents(data.change), data.law.where(moves, 0.0), LAW),
        where=moves,
        examples_over_the_width=width,
    )
    starts = gl.estimate.exponents(data.start)
    law = xr.DataArray([0.0, -0.5], dims="way")
    yield gl.claim.mean(
        "at the start the logits are of one size, and as n^(-1/2) with the maximal update",
        *(starts, law, LAW),
        examples_over_the_width=width,
    )
    hidden = gl.estimate.exponents(data.later).sel(layer="hidden", way="standard")
    yield gl.claim.mean(
        "saturated, the standard parametrisation passes the check that it should fail",
        *(hidden.isel(learning_rate=-1), PASSES, CHECK),
        relation="<=",
    )
    fallen = hidden.isel(learning_rate=0) - hidden.isel(learning_rate=-1)
    yield gl.claim.gain(
        "its exponent is smaller at a large rate than at a small one", fallen, CHECK
    )
    worse = excess(data)
    yield gl.claim.gain(
        "the smallest network's best rate serves the largest better with the maximal update",
        *(worse.sel(way="standard") - worse.sel(way="maximal update"), TRANSFER),
    )


FAULTS = {
    "readout's scale of the other parametrisation": gl.fault.argument(
        "drawn", readout=lambda readout: readout**0
    ),
    "rates of another width": gl.fault.argument("setting", wider=lambda wider: wider**0.5),
    "rates a thousand times too small": gl.fault.argument("setting", rates=lambda r: 1e-3 * r),
    "rates a thousand times too large": gl.fault.argument("setting", rates=lambda r: 1e3 * r),
}


if __name__ == "__main__":
    gl.run(__file__)
