"""The networks that the tricks of deep learning made trainable, each as a chain, by name.

And a perceptron of any widths. Batch normalisation and an LSTM's cell have more than one vector of
neurons for a state: a whole batch, and the output with the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby, pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from gradlab.errors import BadInput
from gradlab.models import ensembles
from gradlab.models.activations import PHI, Phi
from gradlab.models.chain import Chain, Layer
from gradlab.models.ensembles import Affine

SkipBlock = Callable[[tuple[Array, Array, Array], Array], tuple[Array, Array]]

# What keeps the signal of a skip block from growing.
SKIP_KINDS = ("normaliser-free", "batch norm", "nothing")

# ---- batch normalisation: the state is a batch of `batch_size` vectors, one after another


@cache
def batch_normalised_layer(phi: Phi, width: int) -> Layer:
    """The layer `phi(h)`, each neuron of `W z + b` less its mean and over its deviation in a batch.

    Ioffe and Szegedy 2015, algorithm 1, without gain and bias, and without a small constant in the
    denominator: a neuron that is equal for all examples gives nan.
    """
    return lambda affine, z: phi(standardised(jax.vmap(affine)(z.reshape(-1, width)))).ravel()


def standardised(h: Array) -> Array:
    """Each neuron of a batch `(batch_size, width)` less its mean, over its deviation."""
    centred = h - jnp.mean(h, axis=0, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred * centred, axis=0, keepdims=True))


def batch_normalised(
    key: Array, depth: int, width: int, phi: Phi, sigma_w: ArrayLike, dtype: DTypeLike = float
) -> Chain:
    """A chain of layers `phi(N(W z))` over batches: states `(batch_size * width,)`.

    W_ij ~ N(0, sigma_w²/width); N takes the mean over the batch away and divides by the deviation.
    """
    drawn = ensembles.gaussian(key, depth, width, phi, sigma_w, 0.0, dtype=dtype)
    return Chain(batch_normalised_layer(phi, width), drawn.params)


# ---- without a normaliser


def standardised_rows(W: Array) -> Array:
    """Weights `(..., out, in)` with rows of mean 0 and length 1.

    Scaled weight standardisation, Brock, De and Smith 2021, equation 1, without a small constant
    in the denominator.
    """
    centred = W - jnp.mean(W, axis=-1, keepdims=True)
    return centred / jnp.linalg.norm(centred, axis=-1, keepdims=True)


def skip_block(phi: Phi, kind: str, gain: ArrayLike, factor: ArrayLike) -> SkipBlock:
    """The block Z + factor f(Z), f of two activations and two weights, on a batch.

    From a block's parameters and `(batch_size, width)` to the next batch and what f adds, before
    its factor. Parameters are the weights `(3, width, width)`, the deviation that a
    "normaliser-free" branch divides Z by ("batch norm" standardises instead, "nothing" does
    neither), and whether the block is the first of its stage: then its shortcut is a layer too.
    Activations are multiplied by `gain`. Brock, De and Smith 2021, section 3 and appendix.

    Raises:
        BadInput: there is no such kind.
    """
    if kind not in SKIP_KINDS:
        raise BadInput(f"kind is {kind!r}; allowed: one of {', '.join(SKIP_KINDS)}")

    def activated(Z: Array) -> Array:
        return jnp.asarray(gain) * phi(standardised(Z) if kind == "batch norm" else Z)

    def block(params: tuple[Array, Array, Array], Z: Array) -> tuple[Array, Array]:
        W, deviation, is_first = params
        x = activated(Z / deviation if kind == "normaliser-free" else Z)
        branch = activated(x @ W[0].T) @ W[1].T
        return jnp.where(is_first > 0, x @ W[2].T, Z) + jnp.asarray(factor) * branch, branch

    return block


# ---- an LSTM: the state is its output h and its memory c, one after the other


def lstm_layer(affine: Callable[[Array], Array], state: Array) -> Array:
    """One step of an LSTM, `(2 width,)`: `c' = f c + i g`, `h' = o tanh(c')`.

    `affine` gives the sums into f, i, o and g, one block after another, of h. Hochreiter and
    Schmidhuber 1997; the forget gate f of Gers, Schmidhuber and Cummins 2000.
    """
    h, c = jnp.split(state, 2)
    *gates, candidate = jnp.split(affine(h), 4)
    f, i, o = map(jax.nn.sigmoid, gates)
    c = f * c + i * jnp.tanh(candidate)
    return jnp.concatenate([o * jnp.tanh(c), c])


def lstm(
    key: Array,
    depth: int,
    width: int,
    sigma_w: ArrayLike,
    forget_bias: ArrayLike,
    dtype: DTypeLike = float,
) -> Chain:
    """A chain of `depth` LSTM steps, each with weights of its own: states `(2 width,)`, h and c.

    Weights are N(0, sigma_w²/width), biases 0 but for the forget gate's.
    """
    W = jnp.asarray(sigma_w, dtype) * ensembles.unit_gaussian(key, (depth, 4 * width, width), dtype)
    b = jnp.zeros((depth, 4 * width), dtype).at[:, :width].set(forget_bias)
    return Chain(lstm_layer, Affine(W, b))


# ---- any widths


def perceptron(
    key: Array, sizes: Sequence[int], phi: Phi, sigma_w: ArrayLike, sigma_b: ArrayLike
) -> list[Chain]:
    """Layers phi(W z + b) from `sizes[0]` on, the last one linear: a read-out.

    Hidden layers of one shape that follow each other are one chain, which compiles one of them.
    """
    *hidden, readout = pairwise(sizes)
    runs = [(shape, len(list(alike)), phi) for shape, alike in groupby(hidden)]
    runs += [(readout, 1, PHI["linear"])]
    return [
        ensembles.gaussian(key, depth, shape[0], phi, sigma_w, sigma_b)
        if depth > 1
        else ensembles.network(key, shape, phi, sigma_w, sigma_b)[0]
        for key, (shape, depth, phi) in zip(jax.random.split(key, len(runs)), runs, strict=True)
    ]


def realised_in_pairs(model: Sequence[Chain]) -> Array:
    """`ensembles.realised` of weights and of biases, by pairs of layers, `(part, 2, 6)`.

    Args:
        model: a perceptron; of a chain with an odd number of layers the last is left out.
    """
    both = [(chain.params.W, chain.params.b[..., None]) for chain in model]
    parts = [[ensembles.realised_in_parts(leaf, 2) for leaf in pair] for pair in both]
    return jnp.concatenate([jnp.stack(pair, axis=1) for pair in parts])


# ---- by name


class Made(NamedTuple):
    """What a network is made of, where its name does not say it.

    Attributes:
        sigma_w: the factor of the unit weights of a plain or a normalised chain.
        factor: the factor of a residual branch.
        forget_bias: the bias of an LSTM's forget gate.
    """

    sigma_w: ArrayLike
    factor: ArrayLike
    forget_bias: ArrayLike


def _drawn(name: str, sigma_w: float | None, draw: str, layer: str) -> Callable[..., Chain]:
    """A chain of `ensembles.random` without biases; its sigma_w is `Made`'s where it has none."""

    def make(key: Array, depth: int, width: int, made: Made) -> Chain:
        weight = made.sigma_w if sigma_w is None else sigma_w
        return ensembles.random(key, depth, width, PHI[name], weight, 0.0, draw=draw, layer=layer)

    return make


NETWORKS: dict[str, Callable[[Array, int, int, Made], Chain]] = {
    "plain": _drawn("relu", None, "gaussian", "plain"),
    "Xavier": _drawn("tanh", 1.0, "glorot", "plain"),  # Glorot and Bengio 2010
    "He": _drawn("relu", 1.0, "he", "plain"),  # He et al. 2015
    "orthogonal": _drawn("linear", 1.0, "orthogonal", "plain"),  # Saxe et al. 2014
    "layer norm": _drawn("relu", None, "gaussian", "normalised"),
    "batch norm": lambda key, depth, width, made: batch_normalised(
        key, depth, width, PHI["relu"], made.sigma_w
    ),
    "residual": lambda key, depth, width, made: ensembles.residual(
        key, depth, width, PHI["tanh"], 1.0, 0.0, made.factor
    ),
    # Bachlechner et al. 2020: the branch's factor is 0 at first, and learned.
    "ReZero": lambda key, depth, width, _: ensembles.residual(
        key, depth, width, PHI["relu"], 1.0, 0.0, 0.0, draw="he"
    ),
    "LSTM": lambda key, depth, width, made: lstm(key, depth, width, 1.0, made.forget_bias),
}


def states(name: str, batch: Array) -> Array:
    """What a batch `(batch_size, width)` starts as: a state for each example, or one for all.

    An LSTM's output and memory both start as the example; batch normalisation's state is the batch.
    """
    if name == "LSTM":
        return jnp.concatenate([batch, batch], axis=1)
    return batch.reshape(1, -1) if name == "batch norm" else batch
