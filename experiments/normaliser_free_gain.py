"""Can scaled activations replace batch normalisation, and are the published gains right?

Brock, De and Smith 2021 (arXiv:2101.08692): blocks z + alpha f(z/beta), activations times gamma =
1/std phi(z), weights of mean 0 and length 1. The variance is then 1 + i alpha² in a stage and
starts anew at a transition; without the centred weights the mean of each channel grows with the
depth instead. Forwards that is exact; backwards each activation multiplies the mean squared
gradient by E phi'²/Var phi, which is pi/(pi - 1) = 1.467 for relu. The table of gamma that every
port copies (deepmind-research, nfnets/base.py) is an estimate from draws: elu and celu, one
function, have two values, and every entry is too high, by 5e-4 in the mean, as if variances were
taken over 1024 draws without Bessel's factor 1024/1023 (how it was made was not read).

Answers: nfnets nonlinearity magic constants gamma 1.7139588594436646; scaled weight standardization
why gamma; NFNet signal propagation plot; remove batch norm resnet alpha 0.2 beta expected_std.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "depth"
BROCK = "Brock, De and Smith 2021, sections 3 and 4; gradlab.theory.normalisation"
KERNEL = "Poole et al. 2016, equation 5: the covariance of two examples, block by block"
TABLE = "deepmind-research, nfnets/base.py, commit 68a1754"
BESSEL = "derived: E of a variance over N draws without Bessel's factor is 1 - 1/N"
NETWORKS = ("batch norm", "nothing", "normaliser-free")
NUM_LAYERS = 2  # activations in a branch
PUBLISHED = {
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "leaky_relu": 1.70590341091156,
    "gelu": 1.7015043497085571,
    "silu": 1.7881293296813965,
    "elu": 1.2716004848480225,
    "celu": 1.270926833152771,
    "selu": 1.0008515119552612,
    "tanh": 1.5939117670059204,
    "logistic": 4.803835391998291,
    "softplus": 1.9203323125839233,
    "log_sigmoid": 1.9193484783172607,
    "softsign": 2.338853120803833,
}
# The same function; of relu6 to 5e-9.
SAME = {"celu": "elu", "log_sigmoid": "softplus", "relu6": "relu"}


@gl.config
class Config:
    """The blocks, the batch whose channels are watched, and a depth for the gains' error."""

    activation: str = gl.key("phi of every block", choices=("relu", "leaky_relu"))
    alpha: float = gl.key("factor of a branch", above=0, at_most=2)
    stage: gl.Ints = gl.key("blocks in each stage", at_least=1, at_most=200)
    width: int = gl.key("number of channels", at_least=16, at_most=2**12)
    batch_size: int = gl.key("examples in a batch", at_least=16, at_most=2**12)
    num_draws: int = gl.key("draws of weights, batch and loss", at_least=8, at_most=10**5)
    depth: int


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Channel statistics by block with their laws, the gradient, and the gains."""
    theory, phi = gl.theory.normalisation, gl.activations.PHI[cfg.activation]
    seen, gradient, entries, ends = gl.grid.over_draws(lambda k: one(cfg, k), key, cfg.num_draws)
    made = cfg.alpha, cfg.stage
    laws = [theory.channel_statistics(phi, kind, *made, cfg.batch_size) for kind in NETWORKS]
    left = theory.channel_mean_left(phi, *made, NUM_LAYERS, cfg.width)
    back, short = theory.skip_gradient(phi, *made, NUM_LAYERS, cfg.width)
    phis = [gl.activations.PHI[SAME.get(name, name)] for name in PUBLISHED]
    exact = jnp.stack([theory.unit_gain(phi) for phi in phis])
    excess = jnp.array(list(PUBLISHED.values())) / exact - 1
    num, by_block = sum(cfg.stage), "network part block"
    return {
        "network": gl.named(list(NETWORKS), "network"),
        "part": gl.named(["variance", "squared mean", "branch"], "part"),
        "block": gl.named(jnp.arange(1, num + 1), "block", long_name="blocks"),
        "channel": gl.named(seen, f"draw {by_block}", long_name="mean over channels"),
        "channel_law": gl.named(jnp.stack(laws), by_block),
        "state": gl.named(jnp.arange(num + 1), "state", long_name="blocks in front"),
        "skip_law": gl.named(theory.skip_variances(cfg.alpha, cfg.stage), "state"),
        "log_gradient": gl.named(gradient, "draw state", long_name="log |dL/dz|²", units="nats"),
        "log_gradient_law": gl.named(back, "state", units="nats"),
        "log_gradient_short": gl.named(short, "state", long_name="what the width takes"),
        "left_out": gl.named(left, "block", long_name="squared mean that the width leaves"),
        "entries": gl.named(entries, "draw moment", long_name="of weights not standardised"),
        "ends": gl.named(ends, "draw end", long_name="log |dL/dz| less that of jax.grad"),
        "phi": gl.named(list(PUBLISHED), "phi"),
        "gain": gl.named(exact, "phi", long_name="1/std phi(z)"),
        "excess": gl.named(excess, "phi", long_name="published over exact, less 1"),
        "factor": gl.named((1 + excess) ** cfg.depth, "phi", long_name="of the norm, all layers"),
    }


def blocks(cfg: Config, key: jax.Array, kind: str) -> tuple[Any, Any]:
    """The function of a block, and the parameters of all, of a network of that kind."""
    theory, phi = gl.theory.normalisation, gl.activations.PHI[cfg.activation]
    free, num, one = kind == "normaliser-free", sum(cfg.stage), jnp.ones(())
    gain = theory.unit_gain(phi) if free else gl.theory.gauss.moments(phi).square(one) ** -0.5
    W = gl.ensembles.unit_gaussian(key, (num, 3, cfg.width, cfg.width), float)
    W = gl.networks.standardised_rows(W) if free else W
    deviation = jnp.sqrt(theory.skip_variances(cfg.alpha, cfg.stage)[:-1])
    block = gl.networks.skip_block(phi, kind, gain, cfg.alpha if free else 1.0)
    return block, (W, deviation, theory.first_of_stage(cfg.stage))


def one(cfg: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """Statistics `(network, part, block)`, log squared gradients `(state,)`, weights, ends."""
    key_W, key_batch, key_loss = jax.random.split(key, 3)
    batch = jax.random.normal(key_batch, (cfg.batch_size, cfg.width))
    v = jax.random.normal(key_loss, (cfg.width,))

    def watched(kind: str) -> jax.Array:
        block, params = blocks(cfg, key_W, kind)

        def step(Z: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
            Z, branch = block(params, Z)
            variance, added = (jnp.var(part, axis=0, ddof=1) for part in (Z, branch))
            square = jnp.mean(Z, axis=0) ** 2 - variance / cfg.batch_size  # without its bias
            return Z, jnp.stack([jnp.mean(part) for part in (variance, square, added)])

        return jax.lax.scan(step, batch, params)[1].T

    block, params = blocks(cfg, key_W, "normaliser-free")
    model = gl.chain.Chain(lambda params, z: block(params, z[None])[0][0], params)
    logs = gl.jacobians.log_gradient_norms(model, batch[0], lambda z: v @ z)
    entries = gl.ensembles.realised(blocks(cfg, key_W, "nothing")[1][0])
    slope = jax.grad(  # of the loop by itself: the chain is what is judged
        lambda z: v @ jax.lax.scan(lambda z, W: (model.layer(W, z), None), z, params)[0]
    )(batch[0])
    ends = logs[jnp.array([0, -1])] - jnp.log(jnp.linalg.norm(jnp.stack([slope, v]), axis=1))
    return jnp.stack([watched(kind) for kind in NETWORKS]), 2 * (logs - logs[-1]), entries, ends


def figure(data: xr.Dataset) -> gl.Figure:
    """Channels by block in three networks; signal and gradient of one; the table of gains."""
    fig, (channels, both, gains) = gl.figures.panels(1, 3, height=3.0)
    looks = list(gl.figures.series(data.sizes["network"]))
    for name, look in zip(data.network.values, looks, strict=True):
        row, law = (part.sel(network=name) for part in (data.channel, data.channel_law))
        for part, style in (("variance", {}), ("squared mean", {"fillstyle": "none"})):
            if name == "normaliser-free" and part == "squared mean":
                continue  # 0 but for its sampling: not on a log axis
            gl.figures.band(channels, data.block, row.sel(part=part), look | style)
            gl.figures.predicted(channels, data.block, law.sel(part=part))
    key = {name: look | {"linestyle": "none"} for name, look in zip(NETWORKS, looks, strict=True)}
    grey = {"linestyle": "none", "color": "0.4", "marker": "o"}
    key |= {"variance": grey, "squared mean": grey | {"fillstyle": "none"}}
    gl.figures.key(channels, key, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    channels.set(yscale="log", xlabel="block", ylabel="mean over channels")
    free = data.channel.sel(network="normaliser-free", part="variance")
    gl.figures.band(both, data.block, free, looks[2], "variance of the signal")
    gl.figures.predicted(both, data.state, data.skip_law)
    back = looks[1] | {"marker": "D"}
    gl.figures.band(both, data.state, np.exp(data.log_gradient), back, "|dL/dz|² over the last")
    gl.figures.predicted(both, data.state, np.exp(data.log_gradient_law))
    both.set(yscale="log", xlabel="blocks in front", ylabel=" ")
    both.legend(loc="upper right")
    order, at = np.argsort(data.excess.values), np.arange(data.sizes["phi"])
    gains.plot(1e4 * data.excess[order], at, "o", color=looks[0]["color"])
    gl.figures.rule(gains, x=0.0)
    gl.figures.bound(gains, np.full(2, 1e4 / 2048), [-0.5, at[-1] + 0.5])
    gl.figures.words(gains, 0.6, 0.1, "dashed: 1/2048")
    gains.set(yticks=at, yticklabels=data.phi.values[order], xlim=(-0.5, None))
    gains.set(xlabel="excess over exact, 1e-4", ylabel=" ")
    gl.figures.titles(fig, "channels", "normaliser-free, both ways", "every gain is too high")
    return fig


def caption(data: xr.Dataset) -> str:
    """The three networks at their last block, the gradient, and the gains."""
    end = data.channel.mean("draw").isel(block=-1)
    told = "; ".join(
        "{}: {:.3g} and {:.2g}".format(name, *end.sel(network=name).values[:2]) for name in NETWORKS
    )
    grown, relu = float(np.exp(data.log_gradient[:, 0]).mean()), data.sel(phi="relu")
    return f"""Variance and squared mean of a channel behind {data.sizes["block"]} blocks: {told}.
        Without a normaliser the signal's variance stays by its law while the squared gradient
        grows {grown:.3g} times on its way back. Every published gain is above the exact one, by
        {1e4 * float(data.excess.mean()):.1f}e-4 in the mean: for relu a factor
        {float(relu.factor):.3g} of the norm over {data.attrs["depth"]} layers. Bands: all draws."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The variance and the gradient of the normaliser-free network; the gains' excess."""
    free = data.sel(network="normaliser-free").isel(block=-1).sel(part="variance")
    yield gl.headline.mean("variance", free.channel, law=float(free.channel_law))
    grown = float((data.log_gradient_law + data.log_gradient_short).isel(state=0))
    yield gl.headline.mean("growth of |dL/dz|²", data.log_gradient.isel(state=0), "nats", grown)
    yield gl.Headline("published gains, excess", float(data.excess.mean()), law=1 / 2048)
    yield gl.Headline("factor of relu's over all layers", float(data.sel(phi="relu").factor))


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The channels of each network, the gradient, and the published gains."""
    variance, mean, branch = (data.channel.sel(part=part) for part in data.part.values)
    law_variance, law_mean, law_branch = (data.channel_law.sel(part=p) for p in data.part.values)
    free = data.network == "normaliser-free"
    yield gl.claim.mean(
        "a channel's mean square follows its law in each network, block by block",
        *(variance + mean, law_variance + law_mean, BROCK),
        # Exact by the symmetry of the weights, but for the mean that centred weights take away.
        left_out=data.left_out.where(free, 0.0),
    )
    yield gl.claim.weights(data.entries, BROCK)
    sentence = "centred weights keep every channel's mean at 0"
    yield gl.claim.mean(sentence, mean, law_mean, BROCK, where=free, left_out=data.left_out)
    yield gl.claim.mean(
        "a branch adds variance 1 without a normaliser, and 1 - 1/pi of relu behind batch norm",
        *(branch, law_branch, KERNEL),
        where=data.network != "nothing",
        left_out=NUM_LAYERS * data.left_out[0],
    )
    last = {"network": "nothing", "block": data.block[-1]}
    if law_mean.sel(last) > 2 * law_variance.sel(last):
        sentence = "without either, the mean of a channel outgrows its variance"
        yield gl.claim.mean(sentence, (mean - variance).sel(last), 0.0, KERNEL, relation=">=")
    yield gl.claim.mean(
        "an activation multiplies the squared gradient by E phi'²/Var phi, in log, block by block",
        *(data.log_gradient, data.log_gradient_law + data.log_gradient_short, BROCK),
        finite_width=np.abs(data.log_gradient_short),
    )
    eps = float(np.finfo(data.ends.dtype).eps) * data.attrs["width"]
    sentence = "both ends of the gradient are those of jax.grad through the whole chain"
    yield gl.claim.everywhere(sentence, data.ends, 0.0, KERNEL, rounding=eps * data.sizes["state"])
    yield gl.claim.at_least("every published gain is above the exact one", data.excess, 0.0, TABLE)
    error = float(data.excess.std(ddof=1)) / data.sizes["phi"] ** 0.5
    yield gl.claim.everywhere(
        "their mean excess is what 1024 draws a variance lack without Bessel's factor",
        *(data.excess.mean(), 1 / 2048, BESSEL),
        sampling=gl.estimate.Sampling(error, data.sizes["phi"]),
    )


FAULTS = {
    "weights not centred": gl.fault.replace("networks.standardised_rows", lambda W: W),
    "weights 3 % too large": gl.fault.scale("networks.standardised_rows", 1.03),
    "weights 3 % too large where drawn": gl.fault.scale("ensembles.unit_gaussian", 1.03),
    "batch norm forgotten": gl.fault.replace("networks.standardised", lambda h: h),
    "read backwards": gl.fault.result("jacobians.log_gradient_norms", lambda logs: logs[::-1]),
    "gains exact": gl.fault.result(
        "compute", lambda out: out | {"excess": gl.named(jnp.zeros(len(PUBLISHED)) - 1e-9, "phi")}
    ),
    "a normaliser everywhere": gl.fault.argument("blocks", kind=lambda _: "batch norm"),
}


if __name__ == "__main__":
    gl.run(__file__)
