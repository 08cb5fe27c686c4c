"""How large may attention's logits be, and what holds them there?

Giorlandino and Goldt 2026 (arXiv:2505.24333; abstract read) map a softmax over T
random tokens to Derrida's random energy model (1981): below a standard deviation s_c = √(2 log T)
of the logits attention is spread over many tokens, above it rests on one (entropy collapse, Zhai et
al. 2023, arXiv:2303.06296). Here the means at every finite T are exact, and stand under the draws.
The limit's sentence "the entropy is log T - s²/2, and 0 from s_c on" fails at any T in use: at s_c
and 1024 tokens 2.5 nats are left, since corrections fall slowly with log T. The softmax's Jacobian,
through which queries and keys learn, is small on both sides. A norm of queries and keys holds
logits at 1; a soft cap holds them below itself: no help where it is above s_c, as caps are.

Answers: attention entropy collapse; qk norm why; attn logit softcapping 50 vs qk norm; qk-clip tau
100; max attention logit growing during training; softmax saturates vanishing gradient query key.
"""

from __future__ import annotations

from collections.abc import Iterator

import gradlab as gl
from gradlab.lazy import jax, jnp, np, xr

GROUP = "attention"
DERRIDA = "Derrida 1981; exact at finite T: gradlab.theory.attention"
HEAD = "E (q·k)² of independent projections; derived"
BOUND = "Cauchy and Schwarz"
NORM = "Zhang and Sennrich 2019, equation 4, without gain"
FORMAT = "bfloat16 has 8 digits"
HEADS = ("plain", "QK norm", "soft cap")


@gl.config
class Config:
    """Rows of logits, and heads of attention that make theirs."""

    num_tokens: gl.Ints = gl.key("tokens of a row", at_least=2, at_most=2**16)
    ratio: gl.Floats = gl.key("deviation of the logits over the critical", above=0, at_most=5)
    num_draws: int = gl.key("rows of logits, and heads", at_least=8, at_most=10**5)
    gain: gl.Floats = gl.key("√(fan-in) times the weights of queries, keys", above=0, at_most=100)
    width: int
    head_size: int = gl.key("dimensions of a head", at_least=2, at_most=1024)
    cap: float = gl.key("of the soft cap", above=0, at_most=1e4)


def compute(cfg: Config, key: jax.Array) -> dict[str, gl.Named]:
    """Entropy and Jacobian of softmaxes with their laws, and what heads make of their weights."""
    key_rows, key_heads = jax.random.split(key)
    theory, most = gl.theory.attention, max(cfg.num_tokens)
    drawn, laws = [], []
    for count in cfg.num_tokens:
        std = cfg.ratio * theory.critical_std(count)

        def one(key: jax.Array, std: jax.Array = std, count: int = count) -> jax.Array:
            x = jax.random.normal(key, (most,))[:count]
            return jax.lax.map(lambda s: softmax(s * x), std)

        drawn.append(gl.grid.over_draws(one, key_rows, cfg.num_draws))
        row = jax.lax.map(lambda s, count=count: theory.softmax_row(s, count), std)
        limit = theory.limit_entropy(std, count)
        laws.append(jnp.stack([row.entropy, row.jacobian_square, limit], -1))
    found, law = jnp.stack(drawn, 1), jnp.stack(laws)
    made = gl.grid.over_draws(lambda key: heads(key, cfg), key_heads, cfg.num_draws)
    sizes, largest, entries, norm = made
    return {
        "head": gl.named(list(HEADS), "head"),
        "entropy": gl.named(
            found[..., 0], "draw num_tokens ratio", long_name="entropy", units="nats"
        ),
        "jacobian": gl.named(found[..., 1], "draw num_tokens ratio", long_name="|diag(p) - ppᵀ|²"),
        "entropy_law": gl.named(law[..., 0], "num_tokens ratio", units="nats"),
        "jacobian_law": gl.named(law[..., 1], "num_tokens ratio"),
        "entropy_limit": gl.named(law[..., 2], "num_tokens ratio", long_name="of many tokens"),
        "log_tokens": gl.named(jnp.log(1.0 * jnp.array(cfg.num_tokens)), "num_tokens"),
        "square": gl.named(sizes, "draw gain head", long_name="mean square of the logits"),
        "largest": gl.named(largest, "draw gain head", long_name="largest |logit|"),
        "entries": gl.named(entries, "draw matrix moment", long_name="of W_q and W_k"),
        "norm": gl.named(norm, "draw", long_name="the norm's mean square, off"),
        "square_law": gl.named(jnp.stack([cfg.gain**4, cfg.gain**0], -1), "gain law_head"),
        "critical": gl.named(theory.critical_std(most), "", long_name="s_c at the most tokens"),
        "spacing": gl.named(spacing(64.0), "", long_name="of bfloat16 at 64"),
    }


def softmax(logits: jax.Array) -> jax.Array:
    """Entropy, and the squared Frobenius norm of diag(p) - p pᵀ, `(2,)`."""
    p = jax.nn.softmax(logits)
    square = jnp.sum(p**2)
    entropy = -jnp.sum(jax.scipy.special.xlogy(p, p))
    return jnp.stack([entropy, square - 2 * jnp.sum(p**3) + square**2])


def heads(key: jax.Array, cfg: Config) -> tuple[jax.Array, ...]:
    """Mean square and largest size of the logits of 64 tokens, `(gain, head)`; weights; norms."""
    key_q, key_k, key_x = jax.random.split(key, 3)
    W_q, W_k = (
        gl.ensembles.unit_gaussian(k, (cfg.head_size, cfg.width), float) for k in (key_q, key_k)
    )
    x = rooted(jax.random.normal(key_x, (64, cfg.width)))

    def one(gain: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, k = gain * x @ W_q.T, gain * x @ W_k.T
        plain = product(q, k)
        logits = jnp.stack([plain, product(rooted(q), rooted(k)), capped(plain, cfg.cap)])
        return jnp.mean(logits**2, (1, 2)), jnp.max(jnp.abs(logits), (1, 2))

    entries = jnp.stack([gl.ensembles.realised(W) for W in (W_q, W_k)])
    return *jax.lax.map(one, cfg.gain), entries, jnp.max(jnp.abs(jnp.mean(x**2, -1) - 1))


def product(q: jax.Array, k: jax.Array) -> jax.Array:
    """The logits of every pair, `(num_tokens, num_tokens)`."""
    return q @ k.T / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))


def rooted(x: jax.Array) -> jax.Array:
    """Vectors over their root mean square: a norm without gain."""
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True))


def capped(logits: jax.Array, cap: float) -> jax.Array:
    """The soft cap: linear at 0, below the cap everywhere."""
    return cap * jnp.tanh(logits / cap)


def spacing(x: float) -> jax.Array:
    """From a number to the next one that bfloat16 has."""
    here = jnp.asarray(x, jnp.bfloat16)
    return (jnp.nextafter(here, jnp.asarray(jnp.inf, here.dtype)) - here).astype(float)


def figure(data: xr.Dataset) -> gl.Figure:
    """Entropy and Jacobian over s/s_c on their exact laws, and what heads make of their weights."""
    fig, (entropy, jacobian, head) = gl.figures.panels(1, 3, height=2.7)
    looks = list(gl.figures.shades(data.sizes["num_tokens"]))
    for count, look in zip(data.num_tokens.values, looks, strict=True):
        row = data.sel(num_tokens=count)
        gl.figures.measured(entropy, data.ratio, row.entropy.mean("draw") / row.log_tokens, look)
        gl.figures.predicted(entropy, data.ratio, row.entropy_law / row.log_tokens)
        size = np.sqrt(row.jacobian.mean("draw"))
        gl.figures.measured(jacobian, data.ratio, size, look, label=f"{count} tokens")
        gl.figures.predicted(jacobian, data.ratio, np.sqrt(row.jacobian_law))
    limit = (data.entropy_limit / data.log_tokens).isel(num_tokens=0)
    gl.figures.bound(entropy, data.ratio, limit)
    gl.figures.words(entropy, 0.36, 0.72, "dashed: the limit of\nmany tokens")
    for axes in (entropy, jacobian):
        gl.figures.rule(axes, x=1)
        axes.set(xlabel="deviation of the logits / s_c", xlim=(0, float(data.ratio[-1]) * 1.02))
    entropy.set(ylabel="entropy / log T", ylim=(0, 1.05))
    jacobian.set(ylabel="root mean square |diag(p) − ppᵀ|", ylim=(0, None))
    jacobian.legend(loc="lower right")
    deviation = np.sqrt(data.square)
    for name, look in zip(HEADS, gl.figures.series(len(HEADS)), strict=True):
        label = f"{name} at {data.attrs['cap']:g}" if name == "soft cap" else name
        gl.figures.band(head, data.gain, deviation.sel(head=name), look, label=label)
    for law in np.sqrt(data.square_law.values.T):
        gl.figures.predicted(head, data.gain, law)
    gl.figures.bound(head, data.gain, 0 * data.gain + float(data.critical))
    gl.figures.words(head, 0.03, 0.5, "s_c")
    head.set(xscale="log", yscale="log", xlabel="weights of q and k × √fan-in")
    head.set(ylabel="deviation of the logits")
    head.legend(loc="upper left")
    gl.figures.titles(fig, "entropy", "gradient to the logits", "heads")
    return fig


def caption(data: xr.Dataset) -> str:
    """The entropy at s_c, the Jacobian's peak, and the heads at the largest weights."""
    row = data.sel(num_tokens=data.num_tokens[-1])
    near = row.isel(ratio=int(np.abs(row.ratio - 1).argmin("ratio")))
    peak = float(row.ratio[row.jacobian.mean("draw").argmax("ratio")])
    ends = np.sqrt(data.square.mean("draw").isel(gain=-1))
    heads = ", ".join(f"{float(ends.sel(head=name)):.3g} ({name})" for name in HEADS)
    return f"""Where logits have {float(near.ratio):.2g} times the critical deviation,
        {int(row.num_tokens)} tokens have an entropy of {float(near.entropy.mean()):.2f} nats; in
        the limit of many it is {float(near.entropy_limit):.2f}. The softmax's Jacobian peaks at
        {peak:.2g} times it and is smaller on both sides. At the largest weights the logits'
        deviations are {heads}, and s_c is {float(data.critical):.2f}. Marks: means of
        {data.sizes["draw"]} draws; lines: exact laws."""


def headline(data: xr.Dataset) -> Iterator[gl.Headline]:
    """The entropy nearest to s_c, and the capped logits' deviation."""
    row = data.isel(num_tokens=-1, ratio=int(np.abs(data.ratio - 1).argmin("ratio")))
    yield gl.headline.mean("entropy at s_c", row.entropy, "nats", float(row.entropy_law))
    last = np.sqrt(data.square.isel(gain=-1))
    yield gl.headline.mean("deviation, QK norm", last.sel(head="QK norm"), law=1.0)
    yield gl.headline.mean("deviation, soft cap", last.sel(head="soft cap"))


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """Exact means at every T; the peak of the Jacobian; what norm and cap do."""
    eps = float(np.finfo(data.entropy.dtype).eps)
    # A sum over the tokens of a row, and one over the nodes of the law's integral: some thousand.
    terms = 1000 + data.num_tokens
    for name in ("entropy", "jacobian"):
        law = data[f"{name}_law"]
        yield gl.claim.mean(
            f"the mean {name} is the exact law's at every number of tokens and size of logits",
            *(data[name], law, DERRIDA),
            rounding=terms * eps * (1 + law),
        )
    peak = data.jacobian_law.argmax("ratio")
    sides = np.maximum(data.jacobian.isel(ratio=0), data.jacobian.isel(ratio=-1))
    yield gl.claim.gain(
        "the softmax's Jacobian is smaller on both sides of the peak that the law has",
        *(data.jacobian.isel(ratio=peak) - sides, DERRIDA),
    )
    known = data.square.isel(head=slice(0, 2)).rename(head="law_head").drop_vars("law_head")
    yield gl.claim.mean(
        "logits have the mean square gain⁴, and 1 where queries and keys are normalised",
        *(known, data.square_law, HEAD),
        rounding=4 * data.attrs["width"] * eps * data.square_law,
    )
    yield gl.claim.weights(data.entries, HEAD)
    sentence, sums = "a norm leaves the mean square 1", 4 * data.attrs["width"]
    yield gl.claim.everywhere(sentence, data.norm, 0.0, NORM, rounding_of_sums=sums * eps)
    normed, cap = np.sqrt(data.attrs["head_size"]), data.attrs["cap"]
    yield gl.claim.at_most(
        "no normalised logit is above √(head size)",
        *(data.largest.sel(head="QK norm"), normed, BOUND),
        rounding=2 * data.attrs["head_size"] * eps * normed,
    )
    yield gl.claim.at_most(
        "no capped logit is above the cap",
        *(data.largest.sel(head="soft cap"), cap, "|tanh| is at most 1"),
        rounding=4 * eps * cap,
    )
    sentence = "between 64 and 128 a logit in bfloat16 is a multiple of one half"
    yield gl.claim.equal(sentence, data.spacing, 0.5, FORMAT)


FAULTS = {
    "logits 3 % too large": gl.fault.argument("softmax", logits=lambda logits: 1.03 * logits),
    "Jacobian without ppᵀ": gl.fault.change(
        "softmax",
        lambda honest: (
            lambda logits: honest(logits).at[1].set(jnp.sum(jax.nn.softmax(logits) ** 2))
        ),
    ),
    "weights 10 % too large": gl.fault.scale("ensembles.unit_gaussian", 1.1),
    "norm forgotten": gl.fault.replace("rooted", lambda x: x),
    "cap forgotten": gl.fault.replace("capped", lambda logits, cap: logits),
    "spacing of the next binade": gl.fault.argument("spacing", x=lambda x: 2 * x),
}


if __name__ == "__main__":
    gl.run(__file__)
