"""How weights are drawn: a key, sizes and standard deviations go in, a `Chain` comes out.

Unit weights are drawn first and multiplied by `sigma_w` afterwards, so one key gives the same
unit weights for every `sigma_w` (common random numbers: under `jax.vmap` over `sigma_w` they are
drawn once, and curves over `sigma_w` are smooth). A layer function is one object for each phi, so
that `jax.jit` compiles two chains of equal sizes once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from gradlab.models.activations import Phi
from gradlab.models.chain import Chain, Layer

T = TypeVar("T")
Draw = Callable[[Array, tuple[int, ...], DTypeLike], Array]

# φ(2)/erf(√2): what the moments of a normal cut at two standard deviations are made of.
_CUT = math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
TRUNCATED_VARIANCE = 1 - 4 * _CUT
"""What the cut leaves of a normal's variance: 0.7737."""
TRUNCATED_EXCESS = (3 - 28 * _CUT) / TRUNCATED_VARIANCE**2 - 3
"""Its excess kurtosis: -0.6345."""


class Affine(NamedTuple):
    """The parameters of a layer: `W`, `(out, in)`, and `b`, `(out,)`."""

    W: Array
    b: Array

    def __call__(self, x: Array) -> Array:
        """`W x + b`, `(out,)`."""
        return self.W @ x + self.b


class Branch(NamedTuple):
    """The parameters of a residual layer: those of its branch F, and the factor in front of F."""

    affine: Affine
    factor: Array


# ---- unit weights `(..., out, in)`: what sigma_w = 1 means in each scheme


def unit_gaussian(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Independent N(0, 1/in), `shape`."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[-1])


def unit_orthogonal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Haar orthogonal matrices, `shape`; orthonormal columns or rows where not square."""
    *stack, num_out, num_in = shape
    wide = jnp.promote_types(jnp.zeros((), dtype).dtype, jnp.float32)  # LAPACK has none shorter
    return jax.random.orthogonal(key, num_out, tuple(stack), m=num_in, dtype=wide).astype(dtype)


def unit_truncated(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """A normal cut at two standard deviations, `shape`, rescaled to variance 1/in."""
    W = jax.random.truncated_normal(key, -2, 2, shape, dtype)
    return W / math.sqrt(TRUNCATED_VARIANCE * shape[-1])


def unit_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Uniform of mean 0 and variance 1/in, `shape`: LeCun et al. 1998, equation 16."""
    edge = math.sqrt(3 / shape[-1])
    return jax.random.uniform(key, shape, dtype, -edge, edge)


def unit_glorot(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Uniform of variance 2/(in + out), `shape`: Glorot and Bengio 2010, equation 16."""
    edge = math.sqrt(6 / (shape[-1] + shape[-2]))
    return jax.random.uniform(key, shape, dtype, -edge, edge)


def unit_he(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Independent N(0, 2/in), `shape`: He et al. 2015, equation 10."""
    return math.sqrt(2) * unit_gaussian(key, shape, dtype)


DRAWS: dict[str, Draw] = {
    "gaussian": unit_gaussian,
    "orthogonal": unit_orthogonal,
    "truncated": unit_truncated,
    "uniform": unit_uniform,
    "lecun": unit_uniform,
    "glorot": unit_glorot,
    "he": unit_he,
}


# ---- layers, one function for each phi


@cache
def plain_layer(phi: Phi) -> Layer:
    """The layer `phi(W z + b)`."""
    return lambda affine, z: phi(affine(z))


@cache
def preactivation_layer(phi: Phi) -> Layer:
    """The layer `W phi(z) + b`: its states are the pre-activations h."""
    return lambda affine, z: affine(phi(z))


@cache
def normalised_layer(phi: Phi) -> Layer:
    """The layer `phi(h)`, h being `W z + b` less its mean, over its standard deviation.

    Ba, Kiros and Hinton 2016, section 3, without gain and bias, and without a small constant
    in the denominator: equal pre-activations give nan.
    """
    return lambda affine, z: phi(_standardised(affine(z)))


@cache
def residual_layer(phi: Phi) -> Layer:
    """The layer `z + factor * phi(W z + b)`: He et al. 2016."""
    return lambda branch, z: z + branch.factor * phi(branch.affine(z))


def _standardised(h: Array) -> Array:
    centred = h - jnp.mean(h)
    return centred / jnp.sqrt(jnp.mean(centred * centred))


def _times(w: Array, z: Array) -> Array:
    return w * z


def _plus_times(w: Array, z: Array) -> Array:
    return z + w * z


LAYERS: dict[str, Callable[[Phi], Layer]] = {
    "plain": plain_layer,
    "preactivation": preactivation_layer,
    "normalised": normalised_layer,
}


# ---- chains


def random(
    key: Array,
    depth: int,
    width: int,
    phi: Phi,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    *,
    draw: str,
    layer: str,
    dtype: DTypeLike = float,
) -> Chain:
    """A chain of independent layers, weights by `DRAWS[draw]`, each layer by `LAYERS[layer]`.

    Args:
        key: the randomness.
        depth: the number of layers.
        width: the number of neurons, the same in each layer.
        phi: an activation.
        sigma_w: the factor of the unit weights (for most draws, the standard deviation of
            W √width).
        sigma_b: the standard deviation of the biases, normal in every scheme.
        draw: a name in `DRAWS`.
        layer: a name in `LAYERS`.
        dtype: the type of the parameters.

    Raises:
        ValueError: for a size below 1, an unknown name, a negative or infinite deviation.
        TypeError: for a phi that cannot be called.
    """
    make = _entry(LAYERS, layer, "layer")
    return Chain(make(_phi(phi)), _affines(key, depth, width, width, sigma_w, sigma_b, draw, dtype))


# W_ij ~ N(0, sigma_w²/width); and W sigma_w times a Haar orthogonal matrix. b_i ~ N(0, sigma_b²).
gaussian = partial(random, draw="gaussian", layer="plain")
orthogonal = partial(random, draw="orthogonal", layer="plain")


def residual(
    key: Array,
    depth: int,
    width: int,
    phi: Phi,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    factor: ArrayLike,
    *,
    draw: str = "gaussian",
    dtype: DTypeLike = float,
) -> Chain:
    """A chain of layers `z + factor * phi(W z + b)`; arguments as for `random`."""
    affines = _affines(key, depth, width, width, sigma_w, sigma_b, draw, dtype)
    factors = jnp.full((depth,), factor, dtype)
    return Chain(residual_layer(_phi(phi)), Branch(affines, factors))


def recurrent(step: Chain, depth: int) -> Chain:
    """A chain of `depth` times the same layer, W and b shared; `step` is a chain of depth 1."""
    _at_least_one(depth, "depth")
    return Chain(step.layer, jax.tree.map(lambda p: jnp.repeat(p, depth, axis=0), step.params))


def network(
    key: Array,
    sizes: Sequence[int],
    phi: Phi,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    *,
    draw: str = "gaussian",
    dtype: DTypeLike = float,
) -> tuple[Chain, ...]:
    """`len(sizes) - 1` layers `phi(W z + b)`, each a chain of depth 1, from `sizes[0]` on.

    The deviations are per layer fan-in. A linear read-out is one more network, appended:
    `network(key_body, (64, 32, 32), ...) + network(key_readout, (32, 10), PHI["linear"], ...)`.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes names the input and each layer: two or more, not {len(sizes)}.")
    keys = jax.random.split(key, len(sizes) - 1)
    layer = plain_layer(_phi(phi))
    return tuple(
        Chain(layer, _affines(key_layer, 1, num_out, num_in, sigma_w, sigma_b, draw, dtype))
        for key_layer, num_in, num_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )


def scalar(w: ArrayLike, depth: int, dtype: DTypeLike = float) -> Chain:
    """The scalar chain `z_k = w z_{k-1}` of width 1, with one shared weight `w`."""
    _at_least_one(depth, "depth")
    return Chain(_times, jnp.full((depth,), w, dtype))


def scalar_residual(w: ArrayLike, depth: int, dtype: DTypeLike = float) -> Chain:
    """The scalar chain `z_k = z_{k-1} + w z_{k-1}` of width 1, with one shared weight `w`."""
    _at_least_one(depth, "depth")
    return Chain(_plus_times, jnp.full((depth,), w, dtype))


# ---- inputs


def inputs(key: Array, width: int, mean_square: ArrayLike, dtype: DTypeLike = float) -> Array:
    """A uniformly random direction, `(width,)`, whose mean over neurons of x² is `mean_square`."""
    _at_least_one(width, "width")
    x = jax.random.normal(key, (width,), dtype)
    return x * jnp.sqrt(jnp.asarray(mean_square, dtype) / jnp.mean(x * x))


def input_pair(
    key: Array, width: int, mean_square: ArrayLike, c: ArrayLike, dtype: DTypeLike = float
) -> Array:
    """Two inputs, `(2, width)`, both of mean square `mean_square` and of correlation exactly `c`.

    The second turns with `c` in one random plane: common random numbers for a sweep over `c`.
    """
    if width < 2:
        raise ValueError(f"width is 2 or more where two inputs differ, not {width}.")
    key_first, key_second = jax.random.split(key)
    first = inputs(key_first, width, 1.0, dtype)
    second = jax.random.normal(key_second, (width,), dtype)
    second = second - jnp.mean(first * second) * first
    second = second / jnp.sqrt(jnp.mean(second * second))
    c = jnp.asarray(c, dtype)
    turned = c * first + jnp.sqrt((1 - c) * (1 + c)) * second
    return jnp.stack([first, turned]) * jnp.sqrt(jnp.asarray(mean_square, dtype))


def realised(W: Array) -> Array:
    """What weights were drawn from: six means over the entries of W √fan_in, `(6,)`.

    The mean, the mean square and the mean fourth power; the mean product with the entry at the same
    place in the layer before, 0 of a single layer; how far two halves of a layer, its even entries
    and its odd ones, are larger than those of other layers together, 0 of a single layer; and the
    mean product with the entry at the mirrored place, 0 of a single row. In the mean 0, s²,
    (3 + k) s⁴, 0, 0 and 0, whatever the size, for independent entries of deviation s/√fan_in and
    excess kurtosis k. The last is nan where a layer has the same row or column twice, which chance
    does not draw of continuous entries and no mean over all pairs would show. They notice a wrong
    size or law, one layer's too, long before any state does, which sees one direction of W.

    Args:
        W: `(layer, out, in)`, or `(out, in)` of a single layer.
    """
    entries = math.sqrt(W.shape[-1]) * W.reshape(-1, *W.shape[-2:])
    powers = [jnp.mean(entries**power) for power in (1, 2, 4)]
    across = entries[1:] * entries[:-1]
    mirrored = jnp.where(_has_twins(entries), jnp.nan, _mean(_mirrored(entries)))
    return jnp.stack([*powers, _mean(across), _layers_apart(entries), mirrored])


def _mean(x: Array) -> Array:
    """The mean of all entries, 0 of none."""
    return jnp.sum(x) / max(1, x.size)


def _layers_apart(entries: Array) -> Array:
    """The covariance over layers of the mean squares of a layer's two halves, unbiased, `()`."""
    squares = entries.reshape(len(entries), -1) ** 2
    halves = [
        jnp.sum(half, axis=1) / max(1, half.shape[1])
        for half in (squares[:, ::2], squares[:, 1::2])
    ]
    even, odd = (half - jnp.mean(half) for half in halves)
    return even @ odd / max(1, len(entries) - 1)


def _mirrored(entries: Array) -> Array:
    """Each product of entries i, j and j, i of a layer's square part, i < j, `(layer, pair)`."""
    i, j = np.triu_indices(min(entries.shape[-2:]), 1)
    return entries[:, i, j] * entries[:, j, i]


def _has_twins(entries: Array) -> Array:
    """Whether any layer has two equal rows or columns, `()`; not of single entries, nor of signs.

    Equal rows begin with equal entries, so that they are neighbours when sorted by these.
    """
    sizes = jnp.abs(entries).reshape(len(entries), -1)
    found = jnp.zeros(len(entries), bool)
    for rows in (entries, entries.swapaxes(1, 2)):
        if rows.shape[2] > 1:
            ordered = jnp.take_along_axis(rows, jnp.argsort(rows[:, :, :1], axis=1), axis=1)
            found |= jnp.any(jnp.all(ordered[:, 1:] == ordered[:, :-1], axis=2), axis=1)
    return jnp.any(found & (jnp.max(sizes, axis=1) > jnp.min(sizes, axis=1)))


def realised_in_parts(W: Array, num_layers: int) -> Array:
    """`realised` of each so many layers that follow each other, `(part, 6)`: samples of one draw.

    Args:
        W: `(layer, out, in)`; those that are left over at the end are left out.
        num_layers: of a part; all, where there are no more.
    """
    num = min(num_layers, len(W))
    return jax.vmap(realised)(W[: len(W) // num * num].reshape(-1, num, *W.shape[1:]))


# ---- at the door


def _affines(
    key: Array,
    depth: int,
    num_out: int,
    num_in: int,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    draw: str,
    dtype: DTypeLike,
) -> Affine:
    """The parameters of `depth` layers from `num_in` to `num_out` neurons, stacked."""
    for name, size in (("depth", depth), ("width", num_out), ("width", num_in)):
        _at_least_one(size, name)
    key_W, key_b = jax.random.split(key)
    W = _entry(DRAWS, draw, "draw")(key_W, (depth, num_out, num_in), dtype)
    b = jax.random.normal(key_b, (depth, num_out), dtype)
    return Affine(
        _deviation("sigma_w", sigma_w, dtype) * W, _deviation("sigma_b", sigma_b, dtype) * b
    )


def _at_least_one(size: int, name: str) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} is an integer, not {size!r}.")
    if size < 1:
        raise ValueError(f"{name} is at least 1, not {size}.")


def _deviation(name: str, sigma: ArrayLike, dtype: DTypeLike) -> Array:
    if isinstance(sigma, int | float) and not 0 <= sigma < math.inf:
        raise ValueError(f"{name} is a standard deviation, finite and not negative, not {sigma}.")
    return jnp.asarray(sigma, dtype)


def _phi(phi: Phi) -> Phi:
    if not callable(phi):
        raise TypeError(f"phi is a function, such as PHI['tanh'], not {phi!r}.")
    return phi


def _entry(table: dict[str, T], name: str, word: str) -> T:
    if name not in table:
        raise ValueError(f"{word} is one of {', '.join(table)}, not {name!r}.")
    return table[name]
