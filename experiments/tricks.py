"""Which tricks keep the product of Jacobians near 1, and what does a first layer learn by them?

The source text ends with it: every modern trick is a way to keep the product of Jacobians near 1.
Xavier (Glorot and Bengio 2010), He (2015), orthogonal weights (Saxe, McClelland and Ganguli 2014),
layer and batch normalisation (Ba et al. 2016; Ioffe and Szegedy 2015), a residual branch (He et al.
2016), ReZero (Bachlechner et al. 2020), an LSTM's forget gate (Gers et al. 2000), and clipping,
which does nothing to it: each against its law, and then in training on handwritten digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import gradlab as gl
from gradlab.lazy import jax, jnp, np, optax, xr

GROUP = "the textbook"
PLAIN, CLIPPING = NO_TRICK = ("plain", "clipping")  # one chain, its weights too small
FIELD = ("Xavier", "layer norm", "batch norm", "residual")
KINDS = dict.fromkeys((*NO_TRICK, "He", "orthogonal", "ReZero"), "exact") | {"LSTM": "bound"}
KINDS |= dict.fromkeys(FIELD, "mean field")  # of law
SOURCE = "the source text: every trick is a way to keep the product of Jacobians near 1"
LAWS = "Hanin and Nica 2020 (relu); Schoenholz 2017; Yang 2017, 2019; gradlab.theory.normalisation"
GERS = "Gers et al. 2000: dc'/dc = f, the logistic of its bias where the weights are 0"
ONE = "one factor for all (Pascanu et al. 2013); one in each layer, as relu(a z) = a relu(z)"
RULE = "Rumelhart, Hinton and Williams 1986; gradlab.measuring.passes"
VARIANCE = {"Xavier": 1.0, "residual": 1.0, "LSTM": 1.0, "He": 2.0, "ReZero": 2.0}  # width Var W
SAME = {CLIPPING: "clipping changes no product", "He": "He's is the plain product, √2/σ_w larger"}


@gl.config
class Config:
    """The networks beside the plain chain, what they are made of, and the training."""

    trick: gl.Strings = gl.key("networks beside the plain one", choices=tuple(KINDS)[1:])
    depth: int
    width: int = gl.key("number of neurons in a layer", at_least=8, at_most=2**12)
    sigma_w: float
    factor: float
    forget_bias: float = gl.key("bias of the LSTM's forget gate", at_least=-100, at_most=100)
    tau: float
    num_draws: int = gl.key("draws of each network", at_least=8, at_most=10**5)
    num_runs: int = gl.key("draws of each network that are trained", at_least=1, at_most=10**4)
    num_steps: int
    batch_size: int = gl.key("digits in a batch", at_least=4, at_most=1438)
    learning_rate: float


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The gradient that arrives, by layers, with its law; and what training makes of it."""
    key_product, key_half, key_runs = jax.random.split(key, 3)
    starts, last = jax.random.split(key_runs, cfg.num_runs), max(1, cfg.num_steps // 10)
    names, laws, rows = list(dict.fromkeys((PLAIN, *cfg.trick))), log_laws(cfg), []
    for name in names:
        logs, *about = arriving(name, cfg, key_product, cfg.width)
        half = arriving(name, cfg, key_half, cfg.width // 2)[0] if name in FIELD else jnp.nan * logs
        one = case(name, cfg)
        runs = gl.grid.over_draws(partial(gl.by_name.descent, case=one), key_runs, cfg.num_runs)
        first = jax.vmap(partial(gl.by_name.first_steps_by_hand, case=one))(starts, runs)
        trained = runs.watched[:, -1], jnp.mean(runs.loss[:, -last:], axis=1), first
        steps = runs.step_size, jnp.linalg.norm(runs.gradient, axis=2)
        rows.append((half, logs, *about, *trained, *steps, laws[name]))
    stacked = (jnp.stack(each) for each in zip(*rows, strict=True))
    half, logs, hand, rounding, entries, moved, loss, first, step_size, gradient, law = stacked
    label, at = "log10 |dL/dz_(L-m)| / |dL/dz_L|", "network draw layer"
    return {
        "network": gl.named(names, "network"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="layers back, m"),
        "log10": gl.named(logs, at, long_name=label),
        "log10_half": gl.named(half, at, long_name=label + ", half the width"),
        "log10_by_hand": gl.named(hand, at, long_name=label + ", layers written out"),
        "log10_law": gl.named(law, "network layer"),
        "rounding": gl.named(rounding, "network draw", long_name="of a way to it, relative"),
        "entries": gl.named(entries, "network draw moment", long_name="of all weights"),
        "log10_moved": gl.named(moved, "network run", long_name="log10 |dW_1| / |W_1|"),
        "loss": gl.named(loss, "network run", units="nats"),
        "step_size": gl.named(step_size, "network run step"),
        "gradient": gl.named(gradient, "network run step", long_name="of all layers"),
        "first": gl.named(first, "network run way first_step number"),
    }


def case(name: str, cfg: Config) -> gl.by_name.ByName:
    """The network of that name, and how it is trained."""
    chain, tau = (PLAIN, cfg.tau) if name == CLIPPING else (name, jnp.inf)
    made = gl.networks.Made(cfg.sigma_w, cfg.factor, cfg.forget_bias)
    steps = cfg.batch_size, cfg.num_steps, cfg.learning_rate, tau
    return gl.by_name.ByName(chain, made, cfg.depth, cfg.width, *steps)


def arriving(name: str, cfg: Config, key: jax.Array, width: int) -> tuple[jax.Array, ...]:
    """`log10 |v J_L ... J_(L-m+1)| / |v|`, v through one more layer; by hand; weights' moments."""
    one = case(name, cfg)._replace(depth=cfg.depth + 1, width=width)

    def of_draw(key: jax.Array) -> tuple[jax.Array, ...]:
        probe = gl.by_name.probe(key, one)
        hand, norms = (
            gl.by_name.arriving_written_out(one, probe),
            gl.by_name.log_arriving(one, probe),
        )
        logs = ((ln - ln[-2])[-3::-1] / gl.LN10 for ln in (norms, hand.logs))
        W = gl.by_name.weights(probe.model.params)
        return *logs, hand.rounding, gl.ensembles.realised(W)

    return gl.grid.over_draws(of_draw, key, cfg.num_draws)


def log_laws(cfg: Config) -> dict[str, jax.Array]:
    """The law of what arrives, log10, by network, `(depth,)`: a layer's log, summed up."""
    theory, phi, sizes = gl.theory, gl.activations.PHI, (cfg.width, cfg.depth)
    he = theory.products.relu_log_mean(cfg.width) / 2
    layer_norm = theory.normalisation.layer_norm_factor
    batch_norm = theory.normalisation.batch_norm_factor
    tanh = (phi["tanh"], 1.0, 1.0, 0.0)  # an input of mean square 1, sigma_w and sigma_b
    logs = {
        **dict.fromkeys(NO_TRICK, he + jnp.log(cfg.sigma_w / jnp.sqrt(2.0))),
        "He": he,
        **dict.fromkeys(("orthogonal", "ReZero"), 0.0),
        "Xavier": theory.finite_width.plain(*tanh, *sizes).infinite,
        "residual": theory.finite_width.residual_branch(*tanh, cfg.factor, *sizes).infinite,
        "layer norm": jnp.log(layer_norm(phi["relu"])) / 2,
        "batch norm": jnp.log(batch_norm(phi["relu"], cfg.batch_size)) / 2,
        "LSTM": jax.nn.log_sigmoid(cfg.forget_bias),
    }
    last_first = {name: jnp.broadcast_to(log, cfg.depth)[::-1] for name, log in logs.items()}
    return {name: jnp.cumsum(log) / gl.LN10 for name, log in last_first.items()}


def figure(data: xr.Dataset) -> gl.Figure:
    """What arrives by layers with its law; how far the first layer moves; the loss at the end."""
    data = data.isel(network=data.log10.median("draw").isel(layer=-1).argsort().values)
    last, names = data.attrs["depth"], data.network.values
    fig, (product, moved, loss) = gl.figures.panels(1, 3, height=3.0, width_ratios=[1.5, 1, 1])
    product.set(xlim=(0, last), xlabel="layers back from the last", ylabel="decades")
    seen = data.isel(layer=slice(last // 20, None, max(1, last // 10)))
    for row, name in enumerate(names):
        one, none = data.sel(network=name), name in NO_TRICK
        look = {"color": gl.figures.COLOURS[none], "marker": "os"[none], "markersize": 2.6}
        gl.figures.band(product, seen.layer, seen.log10.sel(network=name), look)
        gl.figures.predicted(product, data.layer, one.log10_law)
        for axes, values in ((moved, one.log10_moved), (loss, one.loss)):
            gl.figures.measured(axes, values, np.full(values.size, row), look)
    ends = data.log10.median("draw").isel(layer=-1)
    labels = {"network": [f"{name} ({KINDS[name]})" for name in names]}
    gl.figures.ends(product, last, ends.assign_coords(labels))
    gl.figures.rule(loss, x=gl.LN10)  # of who guesses one of ten digits
    moved.set(yticks=range(len(names)), yticklabels=names, ylabel=" ", xlabel="log10 |ΔW|/|W|")
    loss.set(yticks=[], ylabel=" ", xlabel="nats; grey: guessing")
    gl.figures.titles(fig, "the gradient on its way back", "layer 1 moves", "loss at the end")
    return fig


def caption(data: xr.Dataset) -> str:
    """What is left of a gradient with and without a trick, and what the first layer makes of it."""
    trick, end = ~data.network.isin(NO_TRICK), data.log10.mean("draw").isel(layer=-1)
    moved = data.log10_moved.median("run")
    found = end[~trick], end[trick].min(), end[trick].max(), moved[~trick], moved[trick].min()
    plain, low, high, still, least = (f"10^{float(np.max(x)):.1f}" for x in found)
    return f"""Through {data.attrs["depth"]} layers {plain} of a gradient arrives where weights are
        too small, clipped or not, and {low} to {high} with a trick. In {data.attrs["num_steps"]}
        steps the first layer changes by {still} of itself without one, by {least} or more with
        one. Bands hold all draws; black lines are laws, of the kind in brackets."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """What arrives through the plain chain, and through the one that keeps it nearest to 1."""
    end = data.isel(layer=-1).where(data.network != "LSTM")  # of which a bound is known alone
    best = int(np.abs(end.log10.mean("draw")).argmin("network"))
    for name, place in ((PLAIN, 0), ("best", best)):
        row = end.isel(network=place)
        yield gl.headline.mean(f"arrives, {name}", row.log10, "decades", row.log10_law)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The laws; clipping; and what the plain chain does less than every other."""
    # A draw in which all of a layer is off has no log; the law is of the others.
    data = data.isel(draw=np.isfinite(data.log10).all(("network", "layer")).values)
    mean, half, plain = data.log10.mean("draw"), data.log10_half, data.sel(network=PLAIN)
    half_error = half.std("draw", ddof=1).fillna(0.0) / half.sizes["draw"] ** 0.5
    eps, none = np.finfo(data.log10.dtype).eps, data.network.isin(NO_TRICK)
    # Of a batch the first layers are not yet those that batch_norm_factor is about.
    settled = (data.network != "batch norm") | (data.layer <= data.attrs["depth"] // 2)
    law, gated = (data.log10, data.log10_law), data.network == "LSTM"
    rounding = 2 * eps * data.attrs["width"] ** 1.5 * data.layer / gl.LN10  # Higham 2002, 3.5, 19.3
    yield gl.claim.mean(
        *("what arrives follows its law at every depth", *law, LAWS),
        where=settled & ~gated,
        rounding=rounding,
        finite_width=np.abs(half.mean("draw") - mean).fillna(0.0),  # c/width, as half of it has 2c
        half_width_sampling=gl.estimate.Sampling(half_error, half.sizes["draw"]),
    )
    if gated.any():
        bound = "an LSTM lets its forget gate's share through", *law, GERS
        yield gl.claim.mean(*bound, relation=">=", where=gated)
    # The same draws: clipped, or with larger weights, which relu passes on unless a sign changes.
    taken = rounding + 4 * eps * (np.abs(plain.log10) + np.abs(np.log10(data.attrs["tau"])) + 1)
    signs = min(0.5, float(eps * data.attrs["width"] ** 1.5 * plain.log10.size))
    for name, factor, chance in (CLIPPING, 1.0, 0.0), ("He", 2**0.5 / data.attrs["sigma_w"], signs):
        if name in data.network:
            logs = data.log10.sel(network=name), plain.log10 + data.layer * np.log10(factor)
            yield gl.claim.everywhere(SAME[name], *logs, ONE, rounding=taken, chance=chance)
    sizes = data.attrs["batch_size"], data.attrs["width"], data.attrs["width"]
    written_out = "what arrives is what each layer's chain rule, written out, makes of it"
    yield gl.claim.everywhere(
        *(written_out, data.log10, data.log10_by_hand, RULE),
        chance=min(0.5, float(eps) * data.log10.size * math.prod(sizes)),  # of a relu on in one
        rounding=2 * data.rounding / gl.LN10,
    )
    kinked = data.loss.size, data.attrs["depth"], *sizes
    yield gl.claim.backpropagated(data["first"], kinked=kinked)
    limit = data.network.copy(data=np.where(data.network == CLIPPING, data.attrs["tau"], np.inf))
    terms = 4 * data.attrs["depth"] * (data.attrs["width"] + 1) ** 2  # of an LSTM, which has most
    steps = data.step_size, data.gradient, limit, data.attrs["learning_rate"], terms, ONE
    yield gl.claim.step_lengths(*steps)
    random = data.isel(network=(data.network != "orthogonal").values)  # whose entries are not
    variance = [VARIANCE.get(name, data.attrs["sigma_w"] ** 2) for name in random.network.values]
    uniform = {"excess": -1.2 * (random.network == "Xavier")}
    moments = xr.DataArray(variance, dims="network")
    yield gl.claim.weights(random.entries, LAWS, variance=moments, **uniform)
    allowed = gl.claim.guessing(10, data.attrs["batch_size"], data.attrs["num_steps"] // 10)
    guessing = "without a trick the loss stays that of guessing", data.loss, gl.LN10, SOURCE
    yield gl.claim.everywhere(*guessing, where=none, **allowed)
    if not none.all():  # the plain chain comes first
        far, moved = np.abs(mean.isel(layer=-1)), data.log10_moved
        error = data.log10.isel(layer=-1).std("draw", ddof=1) / half.sizes["draw"] ** 0.5
        sampling = gl.estimate.Sampling(np.hypot(error[0], error[~none]), half.sizes["draw"])
        sentence, nearer = "every trick's product is nearer to 1, in decades", far[0] - far[~none]
        yield gl.claim.at_least(sentence, nearer, 0.0, SOURCE, sampling=sampling)
        more = "by every trick layer 1 moves more on the same batches, in decades, in the mean"
        gained = moved[~none] - moved[none].max("network")
        yield gl.claim.gain(more, gained, SOURCE, over="run")


FAULTS = {
    "weights 1 % too large": gl.fault.argument("ensembles.random", sigma_w=lambda s: 1.01 * s),
    "batch norm by row": gl.fault.change("networks.standardised", lambda f: lambda h: f(h.T).T),
    "identity of the residual branch dropped": gl.fault.no_identity(),
    "forget gates half open": gl.fault.argument("networks.lstm", forget_bias=lambda b: 0 * b),
    "each clipped": gl.fault.replace(
        "clipping.log_norms_after", lambda log, tau: jnp.minimum(log, jnp.log(tau))
    ),
    "plain: a residual": gl.fault.argument("case", name=lambda n: {PLAIN: "residual"}.get(n, n)),
    "signs": gl.fault.argument("training.train", optimizer=lambda _: optax.sign_sgd(1e-3)),
}
HARMLESS = {"the loss halved": "what arrives is a ratio"}

if __name__ == "__main__":
    gl.run(__file__)
