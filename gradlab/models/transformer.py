"""Transformer blocks, attention and then a feed-forward layer, with norms where one puts them.

A state is the tokens `(num_tokens, width)`, raveled, so that a block is a layer of a chain. Norms
have neither gain nor bias, nor a small constant in the denominator: equal entries give nan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models import ensembles
from gradlab.models.activations import PHI
from gradlab.models.chain import Chain

_Branch = Callable[[Array], Array]


class Weights(NamedTuple):
    """The matrices of a block, `(width, width)` each: one head, no biases."""

    Q: Array
    K: Array
    V: Array
    W_1: Array
    W_2: Array


class Design(NamedTuple):
    """How a sublayer is put together: `after(skip x + branch inside(f(gain before(x))))`.

    Attributes:
        before: 1 where a norm stands in front of the branch, else 0.
        inside: 1 where one stands at the branch's end.
        after: 1 where one stands behind the sum.
        gain: the factor of what goes into the branch.
        skip: the factor of the identity.
        branch: the factor of the branch.
    """

    before: ArrayLike = 0.0
    inside: ArrayLike = 0.0
    after: ArrayLike = 0.0
    gain: ArrayLike = 1.0
    skip: ArrayLike = 1.0
    branch: ArrayLike = 1.0


# Post: Vaswani et al. 2017; Pre: Xiong et al. 2020; Peri: Kim et al. 2025, a sandwich as in Ding et
# al. 2021; reordered: the norm at the branch's end alone, as in Swin v2 (Liu et al. 2022).
DESIGNS: dict[str, Design] = {
    "Post": Design(after=1.0),
    "Pre": Design(before=1.0),
    "Peri": Design(before=1.0, inside=1.0),
    "reordered": Design(inside=1.0),
}


def weights(key: Array, depth: int, width: int, sigma_q: ArrayLike) -> Weights:
    """N(0, 1/width) weights of `depth` blocks, `(depth, width, width)` each; Q has `sigma_q` times.

    Normalised tokens then have logits of deviation `sigma_q`; with 0 attention is uniform.
    """
    size = depth, width, width
    Q, *rest = (ensembles.unit_gaussian(key, size, float) for key in jax.random.split(key, 5))
    return Weights(jnp.asarray(sigma_q) * Q, *rest)


def correlated(key: Array, num_tokens: int, width: int, correlation: ArrayLike) -> Array:
    """Tokens of mean square 1, any two of that correlation, exactly, `(num_tokens, width)`."""
    drawn = ensembles.unit_orthogonal(key, (num_tokens + 1, width), float)
    own, shared = drawn[:-1], drawn[-1]
    c = jnp.asarray(correlation, float)
    return width**0.5 * (jnp.sqrt(1 - c) * own + jnp.sqrt(c) * shared[None])


def apartness(x: Array) -> Array:
    """1 less the mean correlation of two tokens of mean square 1, `()`: without cancellation."""
    num_tokens, width = x.shape
    return jnp.sum(jnp.square(x - jnp.mean(x, axis=0, keepdims=True))) / ((num_tokens - 1) * width)


def encoder(weights: Weights, design: Design) -> Chain:
    """The chain of blocks; an entry of the design is one number or one for each block."""
    depth = weights.V.shape[0]
    parts = Design(*(jnp.broadcast_to(jnp.asarray(one, float), (depth,)) for one in design))
    return Chain(block, (weights, parts))


def block(params: tuple[Weights, Design], z: Array) -> Array:
    """The tokens behind both sublayers, `(num_tokens * width,)`."""
    return feed(params, attend(params, z))


def attend(params: tuple[Weights, Design], z: Array) -> Array:
    """The tokens behind the sublayer of attention, `(num_tokens * width,)`."""
    weights, design = params
    return _sublayer(lambda x: attention(weights, x), design, _tokens(weights, z))


def feed(params: tuple[Weights, Design], z: Array) -> Array:
    """The tokens behind the feed-forward sublayer, `(num_tokens * width,)`."""
    weights, design = params
    return _sublayer(lambda x: hidden(weights, x) @ weights.W_2.T, design, _tokens(weights, z))


def layer_norm(x: Array, on: ArrayLike = 1.0) -> Array:
    """Each row less its mean, over its deviation: Ba, Kiros and Hinton 2016; x where `on` is 0."""
    on = jnp.asarray(on)
    centred = x - on * jnp.mean(x, axis=-1, keepdims=True)
    square = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.where(on > 0, square, 1.0))


def seen(design: Design, x: Array) -> Array:
    """What goes into a branch, `(num_tokens, width)`: x, normalised or not, times the gain."""
    return jnp.asarray(design.gain) * layer_norm(x, design.before)


def attention(weights: Weights, x: Array) -> Array:
    """`softmax(Q x · K x / √width) V x` over the tokens x: Vaswani et al. 2017, equation 1."""
    return attention_matrix(weights, x) @ (x @ weights.V.T)


def attention_matrix(weights: Weights, x: Array) -> Array:
    """How much each token takes of each, `(num_tokens, num_tokens)`; rows add up to 1."""
    logits = (x @ weights.Q.T) @ (x @ weights.K.T).T / x.shape[-1] ** 0.5
    return jax.nn.softmax(logits, axis=-1)


def overlaps(weights: Weights, x: Array) -> tuple[Array, Array]:
    """`sum_j p_ij²` of a token's row of attention, `sum_j p_ij p_kj` of two's: means, `()` each."""
    p = attention_matrix(weights, x)
    num_tokens = len(p)
    own, all_pairs = jnp.sum(jnp.square(p)), jnp.sum(jnp.square(jnp.sum(p, axis=0)))
    return own / num_tokens, (all_pairs - own) / (num_tokens * (num_tokens - 1))


def hidden(weights: Weights, x: Array) -> Array:
    """`relu(W_1 x)` of each token."""
    return PHI["relu"](x @ weights.W_1.T)


# ---- a classifier of images


class ImageReader(NamedTuple):
    """A transformer that reads images: `E` and `places` make tokens, `W` the logits at the end."""

    E: Array
    places: Array
    weights: Weights
    W: Array


def reader(
    key: Array,
    depth: int,
    width: int,
    num_tokens: int,
    num_pixels: int,
    num_classes: int,
    *,
    sigma_q: ArrayLike = 0.0,
) -> ImageReader:
    """A reader of images of so many pixels in `num_tokens` equal parts; without queries at 0."""
    key_E, key_places, key_weights, key_W = jax.random.split(key, 4)
    return ImageReader(
        ensembles.unit_gaussian(key_E, (width, num_pixels // num_tokens), float),
        jax.random.normal(key_places, (num_tokens, width)),
        weights(key_weights, depth, width, sigma_q),
        ensembles.unit_gaussian(key_W, (num_classes, width), float),
    )


def embedded(reader: ImageReader, image: Array) -> Array:
    """The tokens of an image `(num_pixels,)`, normalised, `(num_tokens, width)`.

    Pixels that are over after as many equal parts are not read.
    """
    num_tokens, size = len(reader.places), reader.E.shape[1]
    parts = image[: num_tokens * size].reshape(num_tokens, size)
    return layer_norm(parts @ reader.E.T + reader.places)


def classify(design: Design, reader: ImageReader, image: Array) -> Array:
    """The logits of an image, `(num_classes,)`: of the mean of the last tokens, normalised."""
    x = embedded(reader, image)
    z = encoder(reader.weights, design)(x.ravel())
    return reader.W @ jnp.mean(layer_norm(z.reshape(x.shape)), axis=0)


def _sublayer(f: _Branch, design: Design, x: Array) -> Array:
    branch = layer_norm(f(seen(design, x)), design.inside)
    total = jnp.asarray(design.skip) * x + jnp.asarray(design.branch) * branch
    return layer_norm(total, design.after).ravel()


def _tokens(weights: Weights, z: Array) -> Array:
    return z.reshape(-1, weights.V.shape[-1])
