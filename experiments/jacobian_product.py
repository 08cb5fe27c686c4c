"""Is the gradient that training uses the product of Jacobians that the argument is about?

The argument for vanishing and exploding gradients writes the gradient of layer k's weights as
dL/dz_L · J_L ... J_{k+1} · dz_k/dtheta_k, with J_k = dz_k/dz_{k-1} (Pascanu, Mikolov and Bengio
2013, equations 3 to 5; Glorot and Bengio 2010, section 4.2). That is an identity: here it is held
against jax.grad, to rounding, on the handwritten digits and in networks whose width varies. What
each factor does is chi_1 (Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017): the weight scale
decides whether the product vanishes, holds or explodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import gradlab as gl
from gradlab.lazy import jax, jnp, np

if TYPE_CHECKING:
    import xarray as xr
    from jax import Array

    from gradlab.models.chain import Chain
    from gradlab.models.ensembles import Affine

    Loss = Callable[[Array], Array]

PASCANU = "Pascanu, Mikolov and Bengio 2013, equations 3 to 5"
HIGHAM = "Higham 2002, section 3.7"
SCHOENHOLZ = "Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, equation 19"
NUM_PIXELS, NUM_CLASSES = 64, 10
LN10 = math.log(10)


@gl.config
class Config:
    """The networks: what they are made of, and the scales of their weights."""

    activation: gl.Strings
    dtypes: gl.Strings
    depth: int = gl.key(
        "number of layers, the linear read-out among them", at_least=2, at_most=1000
    )
    width: gl.Ints = gl.key(
        "widths of the hidden layers, in equal shares", at_least=1, at_most=1024
    )
    sigma_w: gl.Floats
    sigma_b: float
    batch_size: int = gl.key("digits in the batch", at_least=1, at_most=1438)
    num_seeds: int = gl.key("number of independent networks", at_least=2, at_most=10**4)


def compute(cfg: Config, key: Array) -> dict[str, gl.Named]:
    """The identity's error for every layer, and the norm of the gradient on its way back."""
    key_weights, key_batch = jax.random.split(key)
    sizes = network_sizes(cfg.depth, cfg.width)
    unit = unit_weights(key_weights, sizes, cfg.num_seeds)
    digits, _ = gl.training.digits(float)
    chosen = jax.random.permutation(key_batch, digits.y.size)[: cfg.batch_size]
    batch = gl.training.Data(digits.x[chosen], digits.y[chosen])

    # Without 64-bit mode float64 is not there to be measured.
    formats = [name for name in cfg.dtypes if jax.dtypes.canonicalize_dtype(name).name == name]
    measured = [
        [measure(cfg, unit, sizes, batch, activation, dtype) for activation in cfg.activation]
        for dtype in formats
    ]
    error, log10_weights, log10_rows = (
        jnp.stack([jnp.stack([part[i].astype(float) for part in row]) for row in measured])
        for i in range(3)
    )
    # The finest format that was measured stands for the gradient itself.
    finest = max(range(len(formats)), key=lambda i: jnp.dtype(formats[i]).itemsize)
    chi = jnp.stack([factors(cfg, batch.x, activation) for activation in cfg.activation])
    return {
        "activation": gl.named(list(cfg.activation), "activation"),
        "format": gl.named(formats, "format"),
        "layer": gl.named(jnp.arange(1, cfg.depth + 1), "layer", long_name="layer k"),
        "size": gl.named(jnp.array(sizes[1:]), "layer", long_name="number of neurons"),
        "hidden": gl.named(jnp.arange(1, cfg.depth), "hidden", long_name="layer k"),
        "error": gl.named(
            error,
            *("format", "activation", "seed", "sigma_w", "layer"),
            long_name="|product - jax.grad| / |jax.grad| of layer k's weights",
            units="eps",
        ),
        "log10_weight_gradient": gl.named(
            log10_weights,
            *("format", "activation", "seed", "sigma_w", "layer"),
            long_name="log10 |jax.grad| of layer k's weights",
        ),
        "log10_gradient": gl.named(
            log10_rows[finest],
            *("activation", "seed", "sigma_w", "hidden"),
            long_name="log10 |dL/dz_k|, median over the batch",
        ),
        "chi": gl.named(
            chi,
            *("activation", "sigma_w", "hidden"),
            long_name="predicted |dL/dz_{k-1}|² / |dL/dz_k|²",
        ),
    }


def network_sizes(depth: int, widths: Sequence[int]) -> tuple[int, ...]:
    """The number of pixels, the widths of the hidden layers, the number of classes."""
    num_hidden = depth - 1
    hidden = (widths[layer * len(widths) // num_hidden] for layer in range(num_hidden))
    return (NUM_PIXELS, *hidden, NUM_CLASSES)


def unit_weights(key: Array, sizes: Sequence[int], num_seeds: int) -> Affine:
    """Weights of standard deviation 1 for layers of the largest size, to be cut and scaled.

    One draw, `(num_seeds, depth, ...)`, serves every activation, format and sigma_w.
    """
    depth, width = len(sizes) - 1, max(sizes)
    linear = gl.activations.PHI["linear"]
    W, b = gl.ensembles.gaussian(key, num_seeds * depth, width, linear, 1.0, 1.0).params
    return gl.ensembles.Affine(
        (W * width**0.5).reshape(num_seeds, depth, width, width),
        b.reshape(num_seeds, depth, width),
    )


def network(
    unit: Affine, sizes: Sequence[int], phi: Any, sigma_w: Array, sigma_b: float, dtype: str
) -> list[Chain]:
    """The network of the given sizes; layers of one shape that follow each other are one chain."""
    model: list[Chain] = []
    first = 0
    shapes = list(pairwise(sizes))
    for (num_in, num_out), alike in groupby(shapes[:-1]):
        last = first + len(list(alike))
        model.append(cut(unit, slice(first, last), num_in, num_out, phi, sigma_w, sigma_b, dtype))
        first = last
    readout = gl.activations.PHI["linear"]
    return [*model, cut(unit, slice(first, None), *shapes[-1], readout, sigma_w, sigma_b, dtype)]


def cut(
    unit: Affine,
    layers: slice,
    num_in: int,
    num_out: int,
    phi: Any,
    sigma_w: Array,
    sigma_b: float,
    dtype: str,
) -> Chain:
    """Some layers of the network, cut from the unit weights and scaled by their fan-in."""
    W = sigma_w / num_in**0.5 * unit.W[layers, :num_out, :num_in]
    b = sigma_b * unit.b[layers, :num_out]
    params = gl.ensembles.Affine(W.astype(dtype), b.astype(dtype))
    return gl.chain.Chain(gl.ensembles.plain_layer(phi), params)


def measure(
    cfg: Config,
    unit: Affine,
    sizes: Sequence[int],
    batch: gl.training.Data,
    activation: str,
    dtype: str,
) -> tuple[Array, Array, Array]:
    """The identity's error, log10 of what it is relative to, and log10 of |dL/dz_k|.

    `(seed, sigma_w, layer)` twice and `(seed, sigma_w, hidden)`.
    """
    phi = gl.activations.PHI[activation]
    data = batch._replace(x=batch.x.astype(dtype))

    def one(unit: Affine, sigma_w: Array) -> tuple[Array, Array, Array]:
        model = network(unit, sizes, phi, sigma_w, cfg.sigma_b, dtype)
        by_jax = jax.grad(lambda model: gl.training.loss(apply, model, data))(model)
        rows, inputs = jax.vmap(lambda x, y: rows_and_inputs(model, x, y))(data.x, data.y)
        by_product = weight_gradients(model, rows, inputs)
        difference = jax.tree.map(jnp.subtract, by_product, [chain.params for chain in by_jax])
        gradient = norms([chain.params for chain in by_jax])
        error = norms(difference) / gradient / gl.scaled.eps(dtype)
        log10_rows = jnp.log10(norms([row.swapaxes(0, 1) for row in rows], num_axes=2))
        # Where logits explode the softmax is exactly right about some of the batch, and their
        # gradient exactly 0: the median still tells what the layers do to the others'.
        return error, jnp.log10(gradient), jnp.median(log10_rows, axis=1)[:-1]

    return jax.lax.map(
        lambda unit: jax.lax.map(lambda sigma_w: one(unit, sigma_w), cfg.sigma_w), unit
    )


def apply(model: list[Chain], x: Array) -> Array:
    """The logits, `(10,)`."""
    return gl.training.apply_model(model, x)


def rows_and_inputs(model: list[Chain], x: Array, y: Array) -> tuple[list[Array], list[Array]]:
    """dL/dz_k for every layer k, by the explicit product, and the layers' inputs z_{k-1}.

    Each is a list over the chains of the model, `(depth, width)`; L is one example's loss.
    """
    inputs = []
    for chain in model:
        inputs.append(gl.chain.layer_inputs(chain, x))
        x = chain(x)
    dL_dz = jax.grad(lambda z: gl.training.cross_entropy(z[None], y[None]))(x)
    P = jnp.eye(x.size, dtype=x.dtype)
    rows = []
    for chain, z in zip(reversed(model), reversed(inputs), strict=True):
        P, after = product_back(P, gl.chain.jacobians(chain, z[0]))
        rows.append(jnp.einsum("i,kij->kj", dL_dz, after))
    return rows[::-1], inputs


def product_back(P: Array, J: Array) -> tuple[Array, Array]:
    """`P J_n ... J_1`, and what stands left of each factor: `P J_n ... J_{k+1}` for every k."""
    if len(J) == 1:  # one layer alone may change the width
        return P @ J[0], P[None]
    return jax.lax.scan(lambda P, J: (P @ J, P), P, J, reverse=True)


def weight_gradients(model: list[Chain], rows: list[Array], inputs: list[Array]) -> list[Any]:
    """dL/dz_k · dz_k/dtheta_k, the mean over the batch, for the layers of each chain."""

    def one_layer(layer: Any, params: Any, rows: Array, inputs: Array) -> Any:
        def outputs(params: Any) -> Array:
            return jax.vmap(lambda z: layer(params, z))(inputs)

        return jax.vjp(outputs, params)[1](rows / len(rows))[0]

    return [
        jax.vmap(lambda params, row, z, layer=chain.layer: one_layer(layer, params, row, z))(
            chain.params, row.swapaxes(0, 1), z.swapaxes(0, 1)
        )
        for chain, row, z in zip(model, rows, inputs, strict=True)
    ]


def norms(parts: Sequence[Any], num_axes: int = 1) -> Array:
    """The norm of what each layer has, `(depth,)`; with a second axis kept, `(depth, batch)`.

    The parts belong to the chains of the model and have different sizes, so each layer's numbers
    are laid in one row and filled up with zeros.
    """
    rows = [
        jnp.concatenate(
            [leaf.reshape(*leaf.shape[:num_axes], -1) for leaf in jax.tree.leaves(part)], axis=-1
        )
        for part in parts
    ]
    longest = max(row.shape[-1] for row in rows)
    fill = [(0, 0)] * num_axes
    table = jnp.concatenate([jnp.pad(row, [*fill, (0, longest - row.shape[-1])]) for row in rows])
    norm = gl.clipping.norm
    for _ in range(num_axes):
        norm = jax.vmap(norm)
    return norm(table)


def factors(cfg: Config, x: Array, activation: str) -> Array:
    """What each hidden layer does to the mean squared gradient, `(sigma_w, hidden)`.

    The inputs are digits, not draws at the fixed point, so the length of h is followed through
    the layers first.
    """
    phi = gl.activations.PHI[activation]
    square = jnp.mean(jnp.square(x))

    def one(sigma_w: Array) -> Array:
        q_1 = sigma_w**2 * square + cfg.sigma_b**2
        q = gl.theory.meanfield.lengths(phi, q_1, sigma_w, cfg.sigma_b, cfg.depth - 1)
        return gl.theory.meanfield.chi(phi, q, sigma_w)

    return jax.lax.map(one, cfg.sigma_w)


def figure(data: xr.Dataset) -> gl.Figure:
    """The gradient by layer and its factors (points on predictions), and the identity's error."""
    fig, (gradients, factors, errors) = gl.figures.panels(1, 3, height=2.6)
    shown = data.isel(activation=0)
    looks = list(gl.figures.series(data.sizes["sigma_w"]))
    draw_gradients(gradients, shown, looks)
    draw_factors(factors, shown, looks)
    draw_errors(errors, data)
    return fig


def draw_gradients(axes: gl.Axes, data: xr.Dataset, looks: list[dict[str, Any]]) -> None:
    """log10 of |dL/dz_k| by layer, from the last hidden layer's."""
    for sigma_w, look in zip(data.sigma_w.values, looks, strict=True):
        line = data.sel(sigma_w=sigma_w)
        decades = line.log10_gradient - line.log10_gradient.isel(hidden=-1)
        axes.plot(data.hidden, predicted_decades(line.chi), **gl.figures.THEORY)
        axes.plot(
            data.hidden,
            decades.mean("seed"),
            **(look | {"linestyle": "none"}),
            markevery=max(1, data.sizes["hidden"] // 16),
            label=f"{sigma_w:g}",
        )
    axes.set_xlabel("layer k")
    axes.set_ylabel(r"$\log_{10}\,|dL/dz_k|\,/\,|dL/dz_{L-1}|$")
    axes.legend(title=r"$\sigma_w$")
    gl.figures.title(axes, f"the gradient ({data.activation.item()})")


def predicted_decades(chi: Any) -> Any:
    """log10 of |dL/dz_k| / |dL/dz_{L-1}| for every hidden layer k, from the layers' chi."""
    logs = np.log10(np.asarray(chi))[..., ::-1] / 2
    return (np.cumsum(logs, axis=-1) - logs)[..., ::-1]


def draw_factors(axes: gl.Axes, data: xr.Dataset, looks: list[dict[str, Any]]) -> None:
    """What each layer multiplies the norm of the gradient by."""
    for sigma_w, look in zip(data.sigma_w.values, looks, strict=True):
        line = data.sel(sigma_w=sigma_w)
        decades = line.log10_gradient.mean("seed")
        axes.plot(data.hidden[1:], np.sqrt(line.chi[1:]), **gl.figures.THEORY)
        axes.plot(
            data.hidden[1:],
            10 ** -decades.diff("hidden").values,
            **(look | {"linestyle": "none"}),
            alpha=0.8,
        )
    axes.axhline(1, color="0.75", linewidth=0.6, zorder=0)
    axes.set_xlabel("layer k")
    axes.set_ylabel(r"$|dL/dz_{k-1}|\,/\,|dL/dz_k|$")
    gl.figures.title(axes, r"its factors, on $\sqrt{\chi}$")


def draw_errors(axes: gl.Axes, data: xr.Dataset) -> None:
    """The largest error over seeds and sigma_w against the number of Jacobians multiplied."""
    looks = list(gl.figures.series(data.sizes["activation"]))
    worst = data.error.where(held(data)).max(("seed", "sigma_w"))
    count = data.sizes["layer"] - data.layer
    every = max(1, data.sizes["layer"] // 12)
    for i, name in enumerate(data.format.values):
        for activation, look in zip(data.activation.values, looks, strict=True):
            axes.plot(
                count,
                worst.sel(format=name, activation=activation),
                **(look | {"linestyle": "none"}),
                markerfacecolor="white" if i == 0 else look["color"],
                markevery=(i * every // 2, every),
                label=str(activation) if i == data.sizes["format"] - 1 else None,
            )
    axes.axhline(bound(data), **gl.figures.THEORY)
    axes.annotate(
        "10 L",
        (0.02, bound(data)),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=6.5,
    )
    axes.set_yscale("log")
    axes.set_xlabel("Jacobians in the product, L - k")
    axes.set_ylabel("relative difference (eps)")
    axes.legend(loc="lower right", title=f"open: {data.format.values[0]}", ncols=2)
    gl.figures.title(axes, "product and jax.grad")


def held(data: xr.Dataset) -> xr.DataArray:
    """Whether the format holds the gradient to its last digit, and so does not underflow."""
    smallest = [smallest_held(str(name)) for name in data.format.values]
    return data.log10_weight_gradient > data.format.copy(data=smallest)


def smallest_held(dtype: str) -> float:
    """log10 of the smallest norm of which what underflows in an entry is below one rounding."""
    format_ = gl.theory.scalar.FORMATS[dtype]
    return format_.log2_smallest_normal * math.log10(2) - math.log10(format_.unit)


def bound(data: xr.Dataset) -> float:
    """What L products of rounded factors may differ by norm-wise, in eps."""
    return 10.0 * float(data.sizes["layer"])


def claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The identity for the first layer and for all, then what each factor does."""
    # 0 where there is nothing to judge; an error that is nan stays nan, and fails.
    error = data.error.where(held(data), 0.0)
    for name in data.format.values:
        for activation in data.activation.values:
            first = error.sel(format=name, activation=activation).isel(layer=0)
            # A gradient that underflows in every network is not there to be judged.
            if bool((first != 0).any()):
                yield identity_claim(
                    f"{activation}, {name}: the product of Jacobians is jax.grad's gradient of "
                    "the first layer's weights, in eps",
                    *(first, data, PASCANU),
                )
        yield identity_claim(
            f"{name}: with every activation it is the gradient of every layer's weights, in eps",
            *(error.sel(format=name), data, HIGHAM),
        )
    if data.sizes["hidden"] > 1:
        for activation in data.activation.values:
            for sigma_w in data.sigma_w.values:
                yield from growth_claims(data.sel(activation=activation, sigma_w=sigma_w))


def identity_claim(sentence: str, error: xr.DataArray, data: xr.Dataset, source: str) -> gl.Claim:
    """The claim that no error that could be judged is above the bound."""
    return gl.Claim(
        sentence,
        measured=float(error.max(skipna=False)),
        expected=0.0,
        tolerance={"rounding of L products, norm-wise: 10 L eps": bound(data)},
        source=source,
    )


def growth_claims(data: xr.Dataset) -> Iterator[gl.Claim]:
    """The decades by which the gradient of one network grows on its way back to layer 1."""
    predicted = float(predicted_decades(data.chi)[0])
    if not math.isfinite(predicted):  # lengths that grow for ever
        return
    grown = gl.estimate.mean(
        data.log10_gradient.isel(hidden=0) - data.log10_gradient.isel(hidden=-1)
    )
    change = "explodes" if predicted > 0.5 else "vanishes" if predicted < -0.5 else "holds"
    num_factors = data.sizes["hidden"] - 1
    yield gl.Claim(
        f"{data.activation.item()}, sigma_w = {float(data.sigma_w):g}: the gradient {change}: "
        f"decades over {num_factors} layers back, by the product of chi",
        measured=grown.value,
        expected=predicted,
        tolerance={
            # Of a gradient that is 0 there is no log: nan has no error, and fails.
            "sampling: 4 standard errors": max(0.0, 4 * float(grown.error)),
            # Hanin and Nica 2020: a layer's mean log is below the log of its mean by 5/(4n) for
            # relu and 1/(2n) for linear; correlations between layers are of the same order.
            "finite width": 2 * float(np.sum(1 / data.size[:-1])) / LN10,
        },
        source=SCHOENHOLZ,
    )


def with_product(change: Callable[[Any, Array, Array], Any]) -> Callable[..., Any]:
    """A fault of the explicit product: `change(honest, P, J)` is multiplied instead."""
    return lambda honest: lambda P, J: change(honest, P, J)


def in_single(honest: Any, P: Array, J: Array) -> Any:
    """The product in float32, back in its own format."""
    made = honest(P.astype("float32"), J.astype("float32"))
    return jax.tree.map(lambda leaf: leaf.astype(P.dtype), made)


FAULTS = {
    "weights at half their size": gl.fault.change(
        "ensembles.gaussian",
        lambda honest: lambda *args: honest(*args[:4], 0.5, 1.0),
    ),
    "one Jacobian of each chain left out": gl.fault.change(
        "product_back",
        with_product(
            lambda honest, P, J: honest(
                P, J.at[-1].set(jnp.eye(J.shape[1], J.shape[2], dtype=J.dtype))
            )
        ),
    ),
    "product in single precision": gl.fault.change("product_back", with_product(in_single)),
    "layers taken at the wrong states": gl.fault.change(
        "chain.layer_inputs", lambda honest: lambda chain, x: 0.9 * honest(chain, x)
    ),
    "batch summed, not averaged": gl.fault.change(
        "weight_gradients",
        lambda honest: (
            lambda model, rows, inputs: jax.tree.map(
                lambda leaf: len(rows[0]) * leaf, honest(model, rows, inputs)
            )
        ),
    ),
}


LESSON = gl.lesson.Offer(
    claims={"product is the gradient": "it is the gradient of every layer's weights"}
)


if __name__ == "__main__":
    gl.run(__file__)
