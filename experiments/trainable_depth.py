"""How deep may a network be and still train, and can theory tell before step 1 which one will?

Poole et al. 2016 (arXiv:1606.05340), sections 2 and 3: lengths and correlations follow maps from
layer to layer, in order or in chaos. Schoenholz et al. 2017 (arXiv:1611.01232): correlations settle
within xi_c layers, and these scales "provide bounds on how deep a network may be trained"
(abstract). The multiple 6 of figure 5 (not read; from a second source) is an observation: here it
is fitted. Then a forecast: by eigenvalues of the tangent kernel (Jacot et al. 2018; Xiao et al.
2020, arXiv:1912.13053), from weights' scales, activation, depth and learning rate alone, by a rule
that was fixed on other seeds, whether each network learns the digits in its budget.

Answers: deep tanh network loss stays at 2.303; how deep can an MLP be without skip connections or
batch norm; predict before training whether a network will train or give nan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
POOLE = "Poole et al. 2016, sections 2 and 3; gradlab.theory.meanfield"
DEPTHS = "Schoenholz et al. 2017, abstract and figure 5; gradlab.theory.meanfield.xi_c"
BRIER = "Brier 1950; rule: Xiao et al. 2020, section 3; gradlab.theory.tangent_kernel.outlook"
OUTCOMES = ("learns", "stalls", "diverges")
FORECASTERS = ("rule", "plain guess", "rule on plain numbers")
FEATURES = ("learned", "beyond the edge", "if phi grows", "depth over width")
GRID = ("activation", "variance", "depth", "rate")
NUM_CLASSES = 10
IN_PRACTICE = "float32"  # networks are trained in it, whatever the precision of the laws


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
    xi_most: float = gl.key("longest xi_c that the multiple is fitted to", above=0, at_most=1e6)
    prior: float = gl.key("spread of the rule's weights beforehand", above=0, at_most=1e3)
    num_bins: int = gl.key("intervals of probability", at_least=1, at_most=100)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """The maps; the loss that is left, with the depth scales; the forecast and what came about."""
    key_maps, key_runs = jax.random.split(key)
    loss = losses(cfg, key_runs)  # of the networks that fix the rule, and of those forecast
    fixing, fate = fates(loss).reshape(2, -1)
    grid, num, theory = loss.shape[1:], len(OUTCOMES), gl.theory.meanfield
    known = jnp.stack([features(cfg), plain_numbers(cfg)]).reshape(2, fate.size, -1)
    rules = jax.vmap(lambda x: gl.forecast.fit(x, fixing, num, cfg.prior))(known)
    made, other = jax.vmap(gl.forecast.probabilities)(rules, known)
    shares = jnp.mean(jax.nn.one_hot(fixing, num, dtype=made.dtype), axis=0)
    forecasts = made, jnp.broadcast_to(shares, made.shape), other
    brier = jnp.stack([gl.forecast.brier(one, fate) for one in forecasts])
    rule = jax.tree.map(lambda part: part[0], rules)
    reliable = gl.forecast.reliability(rule, known[0], fate, cfg.num_bins)._asdict()
    phi = gl.activations.PHI[cfg.activation[0]]
    scales, at = (phi, jnp.sqrt(cfg.variance), cfg.sigma_b), "activation variance depth rate"
    return {
        **maps(cfg, key_maps),
        "outcome": gl.named(list(OUTCOMES), "outcome"),
        "feature": gl.named(list(FEATURES), "feature"),
        "forecaster": gl.named(list(FORECASTERS), "forecaster"),
        "loss": gl.named(loss, f"seeds {at}", long_name="loss at the end", units="nats"),
        "features": gl.named(known[0].reshape(*grid, -1), f"{at} feature", units="nats"),
        "fate": gl.named(fate.reshape(grid), at, long_name="what came about"),
        "probability": gl.named(made.reshape(*grid, num), f"{at} outcome"),
        "brier": gl.named(brier.reshape(-1, *grid), f"forecaster {at}", long_name="Brier score"),
        "weights": gl.named(rule.weights[:, 1:], "outcome feature"),
        **{f"bin_{name}": gl.named(part, "outcome bin") for name, part in reliable.items()},
        "xi_c": gl.named(theory.xi_c(*scales), "variance", units="layers"),
        "chi_1": gl.named(theory.chi_1(*scales), "variance"),
    }


def maps(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Length and covariance behind one drawn layer, from two lines of states, and their laws."""
    theory, phi, width = gl.theory.meanfield, gl.activations.PHI[cfg.activation[0]], cfg.map_width
    length, c = jnp.linspace(0.5, 15.0, 9), jnp.linspace(0.0, 1.0, 9)
    scales = cfg.map_sigma_w[:, None], cfg.map_sigma_b
    q_star = theory.q_star(phi, *scales)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_layer, key_h = jax.random.split(key)
        kind = {"draw": "gaussian", "layer": "preactivation"}
        first, second = jax.random.normal(key_h, (2, 1, width))
        turned = c[:, None] * first + jnp.sqrt(1 - c**2)[:, None] * second

        def given(sigma_w: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
            sizes = key_layer, 1, width, phi, sigma_w, cfg.map_sigma_b
            layer = jax.vmap(gl.ensembles.random(*sizes, **kind))
            pairs = layer(jnp.sqrt(q) * jnp.concatenate([first, turned]))
            longer = layer(jnp.sqrt(length)[:, None] * first)
            return jnp.mean(longer**2, axis=1), pairs[1:] @ pairs[0] / (width * q)

        return jax.vmap(given)(cfg.map_sigma_w, q_star[:, 0])

    lengths, turned = gl.grid.over_draws(one, key, cfg.num_draws)
    laws = theory.V(phi, length[None], *scales), theory.C(phi, c[None], q_star, *scales)
    return {
        "length": gl.named(length, "length", long_name="q_l"),
        "correlation": gl.named(c, "correlation", long_name="c_l"),
        "next_length": gl.named(lengths, "draw map_sigma_w length"),
        "next_length_law": gl.named(laws[0], "map_sigma_w length"),
        "next_correlation": gl.named(turned, "draw map_sigma_w correlation"),
        "next_correlation_law": gl.named(laws[1], "map_sigma_w correlation"),
    }


def losses(cfg: Config, key: jax.Array) -> jax.Array:
    """The loss over the last tenth of the budget, `(2, activation, variance, depth, rate)`."""
    key_project, key_runs = jax.random.split(key)
    digits, _ = gl.training.digits(IN_PRACTICE)
    P = gl.ensembles.unit_gaussian(key_project, (cfg.width, digits.x.shape[1]), digits.x.dtype)
    kinds, depths = jnp.arange(len(cfg.activation)), jnp.array(cfg.depth)
    axes = jnp.arange(2), kinds, jnp.sqrt(cfg.variance), depths, cfg.rate
    _, kind, sigma_w, depth, rate = jnp.meshgrid(*axes, indexing="ij")
    made = kind, depth, sigma_w, jnp.full(rate.shape, cfg.sigma_b), rate
    networks = gl.trials.Network(*(part.ravel() for part in made))
    sizes = max(cfg.depth), cfg.width, NUM_CLASSES, cfg.batch_size, cfg.num_steps
    phis = [gl.activations.PHI[name] for name in cfg.activation]
    data = gl.training.projected(digits, P)
    steps = gl.trials.losses(key_runs, networks, phis, data, gl.trials.Budget(*sizes))
    return jnp.mean(steps[:, -max(1, cfg.num_steps // 10) :], axis=1).reshape(rate.shape)


def fates(loss: jax.Array) -> jax.Array:
    """0, learns: below half of a guess's loss, ln 10; 2, diverges: above twice, or no number."""
    return jnp.where(loss < gl.LN10 / 2, 0, jnp.where(loss <= 2 * gl.LN10, 1, 2))


def features(cfg: Config) -> jax.Array:
    """What the theory knows beforehand, as logs, `(activation, variance, depth, rate, feature)`.

    How far the classes part in all steps; how far a step is beyond the longest stable one; that
    once more if phi grows as its input, so that outputs may run away; and depth over width, by
    which a kernel differs from that of infinite width (Hanin and Nica 2020, arXiv:1909.05989).
    """
    kernels, deepest, rows = gl.theory.tangent_kernel, max(cfg.depth), []
    digits, _ = gl.training.digits(float)
    data = gl.training.projected(digits, jnp.eye(digits.x.shape[1]))
    alike = jnp.stack(gl.training.class_correlations(data, NUM_CLASSES))
    deep = jnp.log(jnp.arange(1, deepest + 1) / cfg.width)[None, :, None]
    for phi in (gl.activations.PHI[name] for name in cfg.activation):

        def outlook(sigma_w: jax.Array, phi: Any = phi) -> Any:
            sizes = sigma_w, cfg.sigma_b, cfg.width, deepest
            pair = jax.vmap(lambda c: kernels.kernel(phi, c, *sizes))(alike)
            within, between = (jax.tree.map(lambda part: part[i], pair) for i in (0, 1))
            rates = kernels.rates(within, between, NUM_CLASSES, cfg.batch_size, data.y.size)
            by_depth = jax.tree.map(lambda part: part[:, None], rates)
            return kernels.outlook(by_depth, cfg.rate[None], cfg.num_steps, NUM_CLASSES)

        found = jax.vmap(outlook)(jnp.sqrt(cfg.variance))
        beyond = jnp.log1p(found.edge)
        learned = jnp.log(jnp.maximum(found.learned, jnp.finfo(beyond.dtype).tiny))
        grown = gl.theory.gauss.degree(phi) * beyond
        rows.append(jnp.stack([learned, beyond, grown, 0 * beyond + deep], axis=-1))
    return jnp.stack(rows)[:, :, jnp.array(cfg.depth) - 1]


def plain_numbers(cfg: Config) -> jax.Array:
    """As many numbers without theory: which activation, sigma_w², log depth, log rate."""
    kinds, depths = jnp.arange(len(cfg.activation)) + 0.0, jnp.log(jnp.array(cfg.depth))
    grid = jnp.meshgrid(kinds, cfg.variance, depths, jnp.log(cfg.rate), indexing="ij")
    return jnp.stack(grid, axis=-1)


def boundary(data: xr.Dataset) -> xr.Dataset:
    """The first activation at the middle rate: its loss, the mean of both seeds, by variance.

    `depth_at` is where half of a guess's loss is left, between two depths in their logs; `ratio`
    that over xi_c, in logs, where the multiple is fitted: in order, up to the key xi_most.
    """
    loss = data.loss.isel(activation=0, rate=data.sizes["rate"] // 2).mean("seeds")
    loss = loss.transpose("variance", "depth")
    depths = np.log(data.depth.values)
    rows = [gl.estimate.crossing(depths, row, gl.LN10 / 2) for row in loss.values]
    log_at, log_xi = xr.DataArray(rows, dims="variance"), np.log(data.xi_c)
    fitted = (data.chi_1 < 1) & (data.xi_c <= data.attrs["xi_most"])
    parts = {"loss": loss, "log_at": log_at, "log_xi": log_xi.where(fitted)}
    return xr.Dataset(parts).assign(ratio=(log_at - log_xi).where(fitted))


def multiple(data: xr.Dataset) -> gl.Headline:
    """The boundary over xi_c, and two standard errors to either side."""
    found = gl.headline.mean("", boundary(data).ratio.dropna("variance"))
    ends = (float(np.exp(end)) for end in (found.value, found.low, found.high))
    return gl.Headline("trainable depth over ξ_c", next(ends), low=next(ends), high=next(ends))


def exponent(data: xr.Dataset) -> tuple[gl.estimate.Interval, int]:
    """The power of xi_c as which the boundary grows, and from how many boundaries it is known."""
    rows = boundary(data)[["log_at", "log_xi"]].dropna("variance")
    return gl.estimate.slope(rows.log_xi, rows.log_at), rows.sizes["variance"]


def figure(data: xr.Dataset) -> gl.Figure:
    """The maps; where networks train, under multiples of the depth scales; the forecast."""
    fig, (map_, grid, forecast) = gl.figures.panels(1, 3, height=2.9, width_ratios=[1, 1.25, 1])
    inset = map_.inset_axes((0.58, 0.1, 0.4, 0.38))
    looks = list(gl.figures.shades(data.sizes["map_sigma_w"]))
    for axes, name, x in ((map_, "correlation", "c"), (inset, "length", "q")):
        for sigma_w, look in zip(data.map_sigma_w, looks, strict=True):
            row = data.sel(map_sigma_w=sigma_w)
            gl.figures.predicted(axes, data[name], row[f"next_{name}_law"], color=look["color"])
            gl.figures.band(axes, data[name], row[f"next_{name}"], look, f"{sigma_w:g}", share=0.5)
        axes.axline((0, 0), slope=1, **gl.figures.GUIDE)
        axes.set(xlabel=f"{x} of a layer", ylabel=f"{x} of the next")
    map_.legend(title="σ_w", loc="upper left")
    found, most = boundary(data), multiple(data)
    shown = found.loss.assign_coords(depth=np.log2(data.depth)).assign_attrs(long_name="")
    look = {"cmap": "cividis", "vmin": 0, "vmax": gl.LN10, "alpha": 1.0}
    for coord, name in (("variance", "σ_w²"), ("depth", "depth (log2)")):
        shown[coord].attrs["long_name"] = name
    gl.figures.surface(grid, shown, "loss at the end, nats", **look)
    return fig


def caption(data: xr.Dataset) -> str:
    """The multiple, the scores, and where the forecast errs most."""
    most = multiple(data)
    scores = data.brier.mean(GRID)
    areas = data.brier.sel(forecaster=FORECASTERS[0]).mean(("variance", "rate"))
    worst = areas.where(areas == areas.max(), drop=True).isel(activation=0, depth=0)
    return f"""Deep in order half of a guess's loss is left at {most.value:.1f} ξ_c
        ({most.low:.1f} to {most.high:.1f}) after {data.attrs["num_steps"]} steps; from there on to chaos the budget ends it
        before. Of {data.fate.size} networks the theory, fixed on others' seeds, forecasts what
        becomes with a Brier score of {float(scores[0]):.2f}, against {float(scores[1]):.2f} of a
        plain guess and {float(scores[2]):.2f} of the same rule on plain numbers; it errs most at
        {str(worst.activation.item())}, depth {worst.depth.item():.0f} ({float(worst):.2f})."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The multiple, and the scores with and without theory."""
    yield multiple(data)
    for name in FORECASTERS:
        yield gl.headline.mean(f"Brier score, {name}", data.brier.sel(forecaster=name))


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The maps; the ratio varies less than the boundary; the forecast is better, and calibrated."""
    eps = float(np.finfo(data.next_length.dtype).eps) * data.attrs["map_width"]
    for name, value in (("length", "q"), ("correlation", "c")):
        law = data[f"next_{name}_law"]  # exact at any width: of the mean over all weights
        sentence = f"behind a drawn layer the {name} is that of the map, at every {value} and σ_w"
        yield gl.claim.mean(
            sentence, data[f"next_{name}"], law, POOLE, rounding=eps * (1 + np.abs(law))
        )
    # Var(a) > Var(a - x) where Cov(a, x) > Var(x)/2: where a grows as more than the root of xi_c.
    power, num = exponent(data)
    sentence = "deep in order depth/ξ_c varies less than depth: their logs' slope is above 1/2"
    chance = gl.claim.tail((power.value - 0.5) / power.error, max(1, num - 2))
    yield gl.Claim(sentence, power.value, 0.5, {}, DEPTHS, ">=", chance=min(0.5, chance))
    scores = data.brier.stack(network=GRID)
    gained = scores.sel(forecaster=FORECASTERS[1]) - scores.sel(forecaster=FORECASTERS[0])
    better = "the theory's forecasts are better than the plain guess, by Brier score in the mean"
    yield gl.claim.gain(better, gained, BRIER, over="network")
    yield gl.claim.everywhere(
        "what is forecast with a probability happens as often, in each interval",
        *(data.bin_observed, data.bin_forecast, BRIER),
        where=data.bin_number > 0,
        sampling=gl.claim.sampling(data.bin_error),
        one_network=1 / data.bin_number,  # counts are whole
    )


def of_forecast(changed: Any) -> Any:
    """The fault that changes the losses of the networks that are forecast alone."""
    return gl.fault.result("losses", lambda loss: loss.at[1].set(changed(loss[1])))


FAULTS = {
    "map's weights 3 % too large": gl.fault.argument(
        "ensembles.random", sigma_w=lambda s: 1.03 * s
    ),
    "depths reversed": of_forecast(lambda loss: loss[:, :, ::-1]),
    "half of the loss": of_forecast(lambda loss: loss / 2),
    "weights of one scale": gl.fault.result(
        "losses", lambda loss: 0 * loss + loss.mean(2, keepdims=True)
    ),
}


if __name__ == "__main__":
    gl.run(__file__)
