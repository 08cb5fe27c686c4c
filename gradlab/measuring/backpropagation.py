"""Backpropagation as it was written down: by matrices, no chain; what a training is held against.

Of layers W phi(z) + b by slopes, nothing differentiated (Rumelhart, Hinton and Williams 1986); of
a transformer by pulling softmax less the label back through plain sums and products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import precision, scaled
from gradlab.measuring.training import Data, Schedule, Trajectory
from gradlab.models.activations import Activation
from gradlab.models.ensembles import Affine
from gradlab.models.transformer import Design, ImageReader


class Pass(NamedTuple):
    """One way forward and back.

    Attributes:
        loss: the mean cross-entropy over the batch, `()` (nats).
        gradient: of every parameter, shaped as they are.
        norms: its norm in each layer, `(depth,)`; of a reader in each leaf, `(num_leaves,)`.
        rounding: by how much rounding can make another way to the loss and the norms differ, `()`.
    """

    loss: Array
    gradient: Any
    norms: Array
    rounding: Array


def with_training(ran: Trajectory, by_hand: Pass) -> Array:
    """Norms of gradients, then the loss, of a training's first batch, `(3, num_norms + 1)`.

    As the training has them, by hand, and by how much rounding can make the two differ.
    """
    seen = jnp.append(ran.gradient[0], ran.loss[0])
    hand = jnp.append(by_hand.norms, by_hand.loss)
    return jnp.stack([seen, hand, jnp.full_like(seen, by_hand.rounding)])


def first_batch(data: Data, batches: Schedule) -> Data:
    """The examples of a schedule's first step, `(batch_size, ...)`, not by way of `training`."""
    chosen, gain = batches.indices[0], batches.gain[0].astype(data.x.dtype)
    return Data(data.x[chosen] * gain, data.y[chosen])


@precision.highest
def by_matrices(layers: Affine, phi: Activation, batch: Data, num_classes: int) -> Pass:
    """The pass of a batch through layers W phi(z) + b of one width, the first outputs being logits.

    Args:
        layers: W `(depth, width, width)` and b `(depth, width)`.
        phi: the activation, whose `dphi` is taken for its slope.
        batch: inputs `(batch_size, num_pixels)`, followed by zeros up to the width, and labels.
        num_classes: how many of the outputs are logits.
    """
    width = layers.b.shape[1]
    z_0 = jnp.pad(batch.x, ((0, 0), (0, width - batch.x.shape[1])))

    def ahead(z: Array, layer: Affine) -> tuple[Array, Array]:
        return phi(z) @ layer.W.T + layer.b[None], z

    def back(delta: Array, at: tuple[Affine, Array]) -> tuple[Array, Affine]:
        layer, z = at
        own = Affine(delta.T @ phi(z), jnp.sum(delta, axis=0))
        return (delta @ layer.W) * phi.dphi(z), own

    z_L, states = jax.lax.scan(ahead, z_0, layers)
    loss, off = loss_and_slope(z_L[:, :num_classes], batch.y)
    delta = jnp.pad(off, ((0, 0), (0, width - num_classes)))
    gradient = jax.lax.scan(back, delta, (layers, states), reverse=True)[1]
    return _with_rounding(loss, gradient, _by_layer(gradient), len(layers.b), width, len(batch.y))


@precision.highest
def of_readout(
    layers: Affine,
    readout: Array,
    phi: Activation,
    batch: Data,
    skip: ArrayLike = 0.0,
    factor: ArrayLike = 1.0,
) -> Pass:
    """The pass of a batch through layers phi(W z + b) of one width, and a linear read-out.

    Or through residual layers `skip z + factor phi(W z + b)`.

    Args:
        layers: W `(depth, width, width)` and b `(depth, width)`.
        readout: `(num_classes, width)`; its gradient, and that one's norm, is the last.
        phi: the activation, whose `dphi` is taken for its slope.
        batch: inputs `(batch_size, width)` and labels.
        skip: factor of the identity beside each layer; 0 for none.
        factor: of each layer.
    """
    kept, taken = (jnp.asarray(number, batch.x.dtype) for number in (skip, factor))

    def ahead(z: Array, layer: Affine) -> tuple[Array, tuple[Array, Array]]:
        h = z @ layer.W.T + layer.b[None]
        return kept * z + taken * phi(h), (z, h)

    def back(delta: Array, at: tuple[Affine, tuple[Array, Array]]) -> tuple[Array, Affine]:
        layer, (z, h) = at
        at_h = taken * delta * phi.dphi(h)
        return kept * delta + at_h @ layer.W, Affine(at_h.T @ z, jnp.sum(at_h, axis=0))

    z_L, states = jax.lax.scan(ahead, batch.x, layers)
    loss, off = loss_and_slope(z_L @ readout.T, batch.y)
    own = jax.lax.scan(back, off @ readout, (layers, states), reverse=True)[1]
    last = off.T @ z_L
    depth, width = layers.b.shape
    norms = jnp.append(_by_layer(own), jnp.sqrt(jnp.sum(last**2)))
    return _with_rounding(loss, (own, last), norms, depth + 1, width, len(batch.y))


def _by_layer(gradient: Affine) -> Array:
    return jnp.sqrt(jnp.sum(gradient.W**2, axis=(1, 2)) + jnp.sum(gradient.b**2, axis=1))


@precision.highest
def of_reader(reader: ImageReader, design: Design, batch: Data) -> Pass:
    """The pass of a batch of images through a transformer, its equations written out once more.

    Args:
        reader: its embedding, blocks and read-out.
        design: the same in all blocks, or one for each; no norm inside a branch.
        batch: images `(batch_size, num_pixels)` and labels.
    """

    def logits(reader: ImageReader) -> Array:
        return jax.vmap(lambda image: _written_out(reader, design, image))(batch.x)

    seen, back = jax.vjp(logits, reader)
    loss, off = loss_and_slope(seen, batch.y)
    (gradient,) = back(off)
    norms = jnp.stack([jnp.sqrt(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)])
    depth, _, width = reader.weights.V.shape
    # A block multiplies by eight matrices: five of weights, attention twice, and its norms' sums.
    return _with_rounding(loss, gradient, norms, 8 * depth, width, len(batch.y))


def _written_out(reader: ImageReader, design: Design, image: Array) -> Array:
    """The logits, `(num_classes,)`: Vaswani et al. 2017, equations 1 and 2, and a norm by moments.

    A norm that stands nowhere is the mean 0 and the deviation 1.
    """
    num_tokens, width = reader.places.shape
    depth = len(reader.weights.V)

    def norm(x: Array, on: ArrayLike = 1.0) -> Array:
        spread = jnp.std(x, axis=1, keepdims=True)
        return (x - on * jnp.mean(x, axis=1, keepdims=True)) / (on * spread + (1 - on))

    def block(x: Array, at: Any) -> tuple[Array, None]:
        (Q, K, V, W_1, W_2), (before, _, after, gain, skip, branch) = at

        def summed(x: Array, added: Array) -> Array:
            return norm(skip * x + branch * added, after)

        into = gain * norm(x, before)
        e = jnp.exp(into @ Q.T @ K @ into.T / width**0.5)
        x = summed(x, (e / jnp.sum(e, axis=1, keepdims=True)) @ into @ V.T)
        ahead = gain * norm(x, before) @ W_1.T
        return summed(x, jnp.where(ahead > 0, ahead, 0.0) @ W_2.T), None

    parts = image[: num_tokens * reader.E.shape[1]].reshape(num_tokens, -1)
    each = Design(*(jnp.broadcast_to(jnp.asarray(one, float), (depth,)) for one in design))
    x = norm(parts @ reader.E.T + reader.places)
    x = jax.lax.scan(block, x, (reader.weights, each))[0]
    return reader.W @ jnp.mean(norm(x), axis=0)


def _with_rounding(
    loss: Array, gradient: Any, norms: Array, num_products: int, width: int, batch_size: int
) -> Pass:
    """The pass with its rounding: of as many products back as forwards, in either of two ways.

    Each is off by n^1.5 eps where signs are random (Higham 2002, sections 3.5 and 3.7), and a mean
    over examples that cancel by the root of their number more. A state that is off is so much
    farther off at the end as the gradient is larger before it, and moves what is there as much.
    """
    most, eps = jnp.max(norms), scaled.eps(norms.dtype)
    relative = 4 * num_products * width**1.5 * batch_size**0.5 * eps * most / norms[-1]
    return Pass(loss, gradient, norms, relative * jnp.maximum(loss, most))


def loss_and_slope(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The mean cross-entropy, `()`, and its slope by the logits: softmax less the label."""
    log_p = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return -jnp.mean(jnp.sum(is_label * log_p, axis=1)), (jnp.exp(log_p) - is_label) / len(labels)
