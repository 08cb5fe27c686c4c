"""How deep may a network be and still train, and can theory tell before step 1 which one will?

Poole et al. 2016 (arXiv:1606.05340), sections 2 and 3: lengths and correlations follow maps from
layer to layer. Schoenholz et al. 2017 (arXiv:1611.01232): correlations settle within xi_c layers,
which bounds the depth of training; the 6 of figure 5 (from a second source) is fitted here. Then a
forecast, from scales, phi, depth and rate alone: does it learn the digits in its budget? By the
tangent kernel (Jacot et al. 2018; Xiao et al. 2020, arXiv:1912.13053), a rule fixed on other seeds.

Answers: deep tanh network loss stays at 2.303; how deep without skip connections; will it train?
"""

from __future__ import annotations

from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
POOLE = "Poole et al. 2016, sections 2 and 3; gradlab.theory.meanfield"
DEPTHS = "Schoenholz et al. 2017, abstract and figure 5; gradlab.theory.meanfield.xi_c"
BRIER = "Brier 1950; rule: Xiao et al. 2020, section 3; gradlab.theory.tangent_kernel.outlook"
AXES = {
    "outcome": ("learns", "stalls", "diverges"),
    "feature": ("learned", "beyond the edge", "if phi grows", "depth over width"),
    "forecaster": ("theory", "plain numbers", "plain guess"),
}
GRID = ("activation", "variance", "depth", "rate")
NUM_CLASSES, IN_PRACTICE = 10, "float32"  # networks are trained in it, whatever the laws are in


@gl.config
class Config:
    """The maps; the networks, in all combinations; their training; and the rule."""

    map_sigma_w: gl.Floats = gl.key("sigma_w of the maps", above=0, at_most=100)
    map_sigma_b: float = gl.key("sigma_b of the maps", at_least=0, at_most=100)
    map_width: int = gl.key("neurons of the maps' layer", at_least=8, at_most=2**12)
    num_draws: int = gl.key("draws of the maps' layer", at_least=8, at_most=10**5)
    num_states: int = gl.key("states through each of them", at_least=1, at_most=2**12)
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
    made = len(cfg.activation), jnp.sqrt(cfg.variance), cfg.depth, cfg.rate, cfg.sigma_b
    networks = gl.trials.grid(2, *made)  # one set fixes the rule, the other is forecast
    loss, moments, first = losses(cfg, networks, key_runs)
    fixing, fate = gl.trials.fates(loss, NUM_CLASSES)
    known = jnp.stack([features(cfg), gl.trials.plain_numbers(networks)[1]])
    num, theory = len(AXES["outcome"]), gl.theory.meanfield
    found = gl.forecast.contest(known, fixing, fate, num, cfg.prior, cfg.num_bins)
    reliable = found.reliability._asdict()
    phi, at = gl.activations.PHI[cfg.activation[0]], " ".join(GRID)
    sigma_w = jnp.concatenate([cfg.map_sigma_w, jnp.sqrt(cfg.variance)])
    is_map = jnp.arange(sigma_w.size) < cfg.map_sigma_w.size
    q = theory.q_star(phi, sigma_w, jnp.where(is_map, cfg.map_sigma_b, cfg.sigma_b))
    q_map, q = jnp.split(q, [cfg.map_sigma_w.size])
    chi, xi_c = (f(phi, q, jnp.sqrt(cfg.variance)) for f in (theory.chi, theory.xi_c_at))
    return {
        **maps(cfg, key_maps, q_map[:, None]),
        **{axis: gl.named(list(names), axis) for axis, names in AXES.items()},
        "moments": gl.named(moments, f"seeds {at} moment", long_name="of the networks' weights"),
        "first": gl.named(first, "activation way first_step number"),
        "loss": gl.named(loss, f"seeds {at}", long_name="loss at the end", units="nats"),
        "features": gl.named(known[0], f"{at} feature", units="nats"),
        "fate": gl.named(fate, at, long_name="what came about"),
        "probability": gl.named(found.probability, f"{at} outcome"),
        "brier": gl.named(found.brier, f"forecaster {at}"),
        "weights": gl.named(found.weights[:, 1:], "outcome feature"),
        **{f"bin_{name}": gl.named(part, "outcome bin") for name, part in reliable.items()},
        "xi_c": gl.named(xi_c, "variance", units="layers"),
        "chi_1": gl.named(chi, "variance"),
    }


def maps(cfg: Config, key: jax.Array, q: jax.Array) -> dict[str, gl.Named]:
    """Length and correlation behind one drawn layer, and their laws, for lengths q*."""
    theory, phi = gl.theory.meanfield, gl.activations.PHI[cfg.activation[0]]
    length, c = jnp.linspace(0.5, 15.0, 9), jnp.linspace(0.0, 1.0, 9)
    scales = cfg.map_sigma_w[:, None], cfg.map_sigma_b
    moved = jax.vmap(gl.one_layer.moved, (None, None, 0, *4 * (None,), 0, None))
    made = phi, cfg.map_sigma_w, cfg.map_sigma_b, cfg.map_width, length, c, q[:, 0], cfg.num_states
    drawn = gl.grid.over_draws(lambda key: moved(key, *made), key, cfg.num_draws)
    laws = theory.V(phi, length[None], *scales), theory.C(phi, c[None], q, *scales)
    return {
        "length": gl.named(length, "length", long_name="q"),
        "correlation": gl.named(c, "correlation", long_name="c"),
        "next_length": gl.named(drawn[0], "draw map_sigma_w length"),
        "next_length_law": gl.named(laws[0], "map_sigma_w length"),
        "next_correlation": gl.named(drawn[1] / q[None], "draw map_sigma_w correlation"),
        "next_correlation_law": gl.named(laws[1], "map_sigma_w correlation"),
        "entries": gl.named(drawn[2][:, 0], "draw moment", long_name="of W's, standardised"),
    }


def losses(cfg: Config, networks: gl.trials.Candidate, key: jax.Array) -> list[jax.Array]:
    """The loss in the last tenth, `(2, activation, variance, depth, rate)`; moments; by hand."""
    key_data, key_runs = jax.random.split(key)
    data = gl.training.digits_of_width(key_data, cfg.width, IN_PRACTICE)
    phis = [gl.activations.PHI[name] for name in cfg.activation]
    sizes = max(cfg.depth), cfg.width, NUM_CLASSES, cfg.batch_size, cfg.num_steps
    steps, moments = gl.trials.losses(key_runs, networks, phis, data, gl.trials.Budget(*sizes))
    few = jax.tree.map(lambda part: part[0, :, -1, 0, 0], networks), phis  # one of each activation
    data = gl.training.digits_of_width(key_data, cfg.width, float)  # where rounding hides nothing
    first = gl.trials.first_steps(key_runs, *few, data, gl.trials.Budget(*sizes))
    return [jnp.mean(steps[..., -max(1, cfg.num_steps // 10) :], axis=-1), moments, first]


def features(cfg: Config) -> jax.Array:
    """What theory knows beforehand, `(activation, variance, depth, rate, feature)`."""
    digits, _ = gl.training.digits(float)
    data, deepest = gl.training.projected(digits, jnp.eye(digits.x.shape[1])), max(cfg.depth)
    alike = jnp.stack(gl.training.class_correlations(data, NUM_CLASSES))
    known, sizes = gl.theory.tangent_kernel, (NUM_CLASSES, data.y.size, cfg.batch_size)
    problem = known.Problem(alike, *sizes, cfg.num_steps)
    evidence = jax.vmap(known.evidence, (None, None, 0, *4 * (None,)))
    given = problem, jnp.sqrt(cfg.variance), cfg.sigma_b, cfg.width, deepest, cfg.rate
    every = [evidence(gl.activations.PHI[name], *given) for name in cfg.activation]
    return jnp.stack(every)[:, :, jnp.array(cfg.depth) - 1]


def boundary(data: xr.Dataset) -> xr.Dataset:
    """Loss, log depth where half of guessing is left, log xi_c where the multiple is fitted."""
    loss = data.loss.isel(activation=0, rate=data.sizes["rate"] // 2)
    depths, in_order = np.log(data.depth.values), data.chi_1 < 1
    at = [[gl.estimate.crossing(depths, row, gl.LN10 / 2) for row in one] for one in loss.values]
    log_xi = np.log(data.xi_c).where(in_order & (data.xi_c <= data.attrs["xi_most"]))
    return xr.Dataset({"loss": loss, "log_at": (("seeds", "variance"), at), "log_xi": log_xi})


def multiple(data: xr.Dataset) -> gl.Headline:
    """The boundary over xi_c, and two standard errors to either side; nan where it is not found."""
    found = boundary(data)
    ratio = np.exp(found.log_at.mean("seeds", skipna=False) - found.log_xi).dropna("variance")
    return gl.headline.mean("trainable depth over ξ_c", ratio if ratio.size else np.nan)


def figure(data: xr.Dataset) -> gl.Figure:
    """The maps; where networks train, under multiples of the depth scales; the forecast."""
    fig, (maps, grid, forecast) = gl.figures.panels(1, 3, height=2.8, width_ratios=[1, 1.3, 1])
    inset, scales = maps.inset_axes((0.62, 0.12, 0.36, 0.32)), data.map_sigma_w.size
    for axes, name in ((maps, "correlation"), (inset, "length")):
        for sigma_w, look in zip(data.map_sigma_w.values, gl.figures.shades(scales), strict=True):
            row, label = data.sel(map_sigma_w=sigma_w), f"σ_w = {sigma_w:g}"
            gl.figures.predicted(axes, data[name], row[f"next_{name}_law"], color=look["color"])
            gl.figures.measured(axes, data[name], row[f"next_{name}"].mean("draw"), look, label)
        axes.axline((0, 0), slope=1, **gl.figures.GUIDE)
    inset.set(xticks=[], yticks=[], xlabel="length")
    maps.set(xlabel="correlation of a layer", ylabel="of the next", xlim=(-0.02, 1.02))
    found, most, depths = boundary(data), multiple(data).value, np.log2(data.depth)
    shown = found.loss.mean("seeds").assign_coords(depth=depths.assign_attrs(long_name="depth"))
    shown.variance.attrs["long_name"] = "σ_w²"
    look = {"cmap": "cividis", "vmin": 0, "vmax": gl.LN10, "alpha": 1.0}
    gl.figures.surface(grid, shown, "loss at the end, nats (ln 10: guessing)", **look)
    white, xi_grad = {"color": "white", "linewidth": 1.4}, 1 / np.abs(np.log(data.chi_1))
    for name, xi, line in (("ξ_c", data.xi_c, "-"), ("ξ_grad", xi_grad, ":")):
        white |= {"linestyle": line}
        gl.figures.predicted(grid, data.variance, np.log2(most * xi), f"{most:.1f} {name}", **white)
    mark = {"color": gl.figures.EXPLODING, "marker": "o", "markeredgecolor": "white", "ms": 5}
    half = found.log_at.mean("seeds", skipna=False) / np.log(2)
    gl.figures.measured(grid, data.variance, half, mark, "half of guessing")
    grid.set(yticks=depths.values, yticklabels=data.depth.values)
    forecast.axline((0, 0), slope=1, **gl.figures.GUIDE)
    for name, look in zip(data.outcome.values, gl.figures.series(3), strict=True):
        row = data.sel(outcome=name).where(data.bin_number.sel(outcome=name) >= 5)
        bars = look | {"linestyle": "none", "elinewidth": 0.8, "label": name}
        forecast.errorbar(row.bin_forecast, row.bin_observed, 2 * row.bin_error, **bars)
    forecast.set(xlabel="probability forecast", ylabel="share that came about", ylim=(-0.05, 1.3))
    for axes, place in ((maps, 2), (grid, 4), (forecast, 4)):  # upper left, lower right
        axes.legend(loc=place, labelcolor="white" if axes is grid else None)
    scores = [f"{name} {x:.2f}" for name, x in data.brier.mean(GRID).to_series().items()]
    gl.figures.words(forecast, 0.04, 0.8, "\n".join(["Brier score", *scores]))
    gl.figures.titles(fig, "from layer to layer", "what trains", "forecast before step 1")
    return fig


def caption(data: xr.Dataset) -> str:
    """The multiple, the scores, and where the forecast errs most."""
    most, scores = multiple(data), data.brier.mean(GRID).values
    errs = data.brier[0].mean(("variance", "rate")).to_series()
    worst = "{} of depth {:g} ({:.2f})".format(*errs.idxmax(), errs.max())
    return f"""In order, half of a guess's loss is left at {most.value:.1f} ξ_c ({most.low:.1f} to
        {most.high:.1f}) after {data.attrs["num_steps"]} steps; nearer to chaos the budget ends
        first. Brier scores of {data.fate.size} forecasts: {scores[0]:.2f} by theory, fixed on other
        seeds, {scores[1]:.2f} by plain numbers, {scores[2]:.2f} of guessing; worst {worst}."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The multiple, and the scores with and without theory."""
    yield multiple(data)
    yield from (gl.headline.mean(f"Brier score, {s.forecaster.item()}", s) for s in data.brier)


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The maps; the ratio varies less than the boundary; the forecast is better, and calibrated."""
    sentence = "behind a drawn layer the {} is that of the map, from every one and at every σ_w"
    for name in ("length", "correlation"):
        law = data[f"next_{name}_law"]  # exact at any width: of the mean over all weights
        given = sentence.format(name), data[f"next_{name}"], law, POOLE
        yield gl.claim.mean(*given, where=np.isfinite(law))
    yield gl.claim.weights(data.entries, POOLE, of="the maps' weights")
    made = data.moments.stack(draw=("seeds", "activation", "depth", "rate"))
    yield gl.claim.weights(made, POOLE, variance=data.variance)
    sizes = data.depth.max(), *(data.attrs[name] for name in ("batch_size", "width", "width"))
    yield gl.claim.backpropagated(data["first"], kinked=[data.activation.size, *sizes])
    # Var(a) > Var(a - x) where Cov(a, x) > Var(x)/2: where a grows as more than the root of xi_c.
    rows = boundary(data)[["log_at", "log_xi"]].stack(run=("variance", "seeds")).dropna("run")
    freedom = rows.sizes["run"] - 2
    if freedom > 0 and np.ptp(rows.log_xi.values) > 0:
        power = gl.estimate.slope(rows.log_xi, rows.log_at)
        away = (np.array([power.value, 1.0]) - 0.5) / max(float(power.error), 1e-30)
        chance, of_one = gl.estimate.tail(away, freedom)
        if of_one < 0.01:  # else too few to tell 1 from 1/2
            less = "deep in order depth/ξ_c varies less than depth: their logs' slope is above 1/2"
            yield gl.Claim(less, power.value, 0.5, {}, DEPTHS, ">=", chance=min(0.5, chance))
    scores = data.brier.stack(network=GRID)
    better = "theory's forecasts are better than the plain guess, by Brier score in the mean"
    yield gl.claim.gain(better, scores[-1] - scores[0], BRIER, over="network")
    yield gl.claim.everywhere(
        "what is forecast with a probability happens as often, in each interval",
        *(data.bin_observed, data.bin_forecast, BRIER),
        where=data.bin_number > 0,
        sampling=gl.estimate.Sampling(data.bin_error),
        one_network=1 / data.bin_number.clip(1),  # counts are whole
    )


HARMLESS = {"computed in another format": "no digit is claimed"}
FAULTS = {
    "layers 3 % off": gl.fault.argument("ensembles.random", sigma_w=lambda s: 1.03 * s),
    "reversed": gl.fault.argument("trials.fates", loss=lambda x: x.at[1].set(x[1, :, :, ::-1])),
    "networks 3 % off": gl.fault.argument("ensembles.gaussian", sigma_w=lambda s: 1.03 * s),
    "gradients 1 % too long": gl.fault.scale("training.norms_by_layer", 1.01),
    "one scale": gl.fault.result("losses", lambda r: [0 * r[0] + r[0][:, :, :1], *r[1:]]),
}

if __name__ == "__main__":
    gl.run(__file__)
