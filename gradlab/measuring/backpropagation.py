"""Backpropagation as it was written down: by matrices, no chain; what a training is held against.

Of layers W phi(z) + b by slopes, nothing differentiated (Rumelhart, Hinton and Williams 1986); of
a transformer by pulling softmax less the label back through plain sums and products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import formats, precision, scaled
from gradlab.measuring import one_block
from gradlab.measuring.training import Data, Schedule, Trajectory
from gradlab.models.activations import Activation
from gradlab.models.chain import Chain
from gradlab.models.ensembles import Affine
from gradlab.models.transformer import Design, ImageReader, Weights


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


class Rule(NamedTuple):
    """What makes a step of gradients: descent, or Adam (Kingma and Ba 2015, algorithm 1).

    Attributes:
        rate: the learning rate.
        tau: the threshold of a clip of each gradient before, `()` or `(num_steps,)`; inf for none.
        beta_1: of the mean of gradients; 0 for the last one.
        beta_2: of the mean of squares; None of descent, which divides by no root of it.
        eps: what is added to that root.
    """

    rate: float | Array
    tau: ArrayLike = jnp.inf
    beta_1: float = 0.0
    beta_2: float | None = None
    eps: float = 1e-8


def adam(rate: float | Array) -> Rule:
    """Adam with the constants of its paper."""
    return Rule(rate, beta_1=0.9, beta_2=0.999)


@precision.highest
def first_steps(
    ran: Trajectory,
    one_pass: Callable[[Any, Data], Pass],
    rule: Rule,
    data: Data,
    batches: Schedule,
) -> Array:
    """A training's first losses, norms of gradients and steps, `(3, num_steps, num_norms + 2)`.

    As the training has them, by hand, and by how much rounding can make the two differ. Each step
    by hand is at the parameters that the training had there, of a batch taken from the data not by
    way of `training`: so nothing accumulates but the moments of Adam. Of the entries of a step only
    that is looked at which differs most, in units of what it may.

    Args:
        ran: a training, of which the first `training.FIRST` steps are looked at, or all.
        one_pass: from parameters and a batch to the pass, whose gradient has leaves in their order.
        rule: what its optimiser ought to do.
        data: what the schedule's indices point into.
        batches: its schedule.
    """
    now = jax.tree.map(lambda kept: kept[:-1], ran.first)
    later = jax.tree.map(lambda kept: kept[1:], ran.first)
    num_steps = len(jax.tree.leaves(now)[0])
    early = jax.tree.map(lambda part: part[:num_steps], batches)

    def by_hand(at: tuple[Any, Schedule]) -> Pass:
        params, (chosen, gain) = at
        return one_pass(params, Data(data.x[chosen] * gain.astype(data.x.dtype), data.y[chosen]))

    passes = jax.lax.map(by_hand, (now, early))
    G, before, after = map(_in_rows, (passes.gradient, now, later))
    step, moved = _update(rule, G, jax.lax.cummax(passes.rounding)[:, None])
    moved += 4 * scaled.eps(G.dtype) * (jnp.abs(before) + jnp.abs(after) + jnp.abs(step))
    worst = jnp.argmax(jnp.abs(after - before - step) / moved, axis=1)[:, None]

    def row(norms: Array, loss: Array, steps: Array) -> Array:
        at_worst = jnp.take_along_axis(steps, worst, axis=1)
        return jnp.concatenate([norms, loss[:, None], at_worst], axis=1)

    allowed = jnp.broadcast_to(passes.rounding[:, None], passes.norms.shape)
    seen = row(ran.gradient[:num_steps], ran.loss[:num_steps], after - before)
    hand = row(passes.norms, passes.loss, step)
    return jnp.stack([seen, hand, row(allowed, passes.rounding, moved)])


def _in_rows(tree: Any) -> Array:
    """All entries of a pytree whose leaves begin with the axis of steps, `(num_steps, n)`."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _update(rule: Rule, G: Array, rounding: Array) -> tuple[Array, Array]:
    """The steps that gradients `(num_steps, n)` make, and by how much their rounding moves them.

    A clip moves an entry by its own rounding and by that of the norm. A mean whose weights add up
    to 1 moves by no more than what it is of, and so does the root of a mean square. So
    u = m / (r + eps) moves by no more than (1 + |u|) / (r + eps) as much, and where r itself is
    rounding by no more than twice the largest that it can be.
    """
    norms = jnp.sqrt(jnp.sum(G**2, axis=1, keepdims=True))
    tau = jnp.asarray(rule.tau, G.dtype).reshape(-1, 1)
    G, rounding = jnp.where(norms > tau, G * tau / norms, G), rounding * (1 + (norms > tau))
    age = jnp.arange(len(G))[:, None] - jnp.arange(len(G))[None]

    def weights(beta: float) -> Array:
        w = jnp.where(age < 0, 0.0, jnp.asarray(beta, G.dtype) ** jnp.maximum(age, 0))
        return w / jnp.sum(w, axis=1, keepdims=True)

    m = weights(rule.beta_1) @ G
    if rule.beta_2 is None:
        return -rule.rate * m, rule.rate * jnp.broadcast_to(rounding, m.shape)
    root = jnp.sqrt(weights(rule.beta_2) @ G**2) + rule.eps
    squares = weights(rule.beta_1) ** 2 / jnp.where(age < 0, 1.0, weights(rule.beta_2))
    most = 2 * jnp.sqrt(jnp.sum(squares, axis=1, keepdims=True))  # Cauchy and Schwarz
    moved = jnp.minimum(rounding * (1 + jnp.abs(m) / root) / root, most)
    return -rule.rate * m / root, rule.rate * moved


@precision.highest
def by_matrices(phi: Activation, num_classes: int, model: Chain, batch: Data) -> Pass:
    """The pass of a batch through layers W phi(z) + b of one width, the first outputs being logits.

    Args:
        phi: the activation, whose `dphi` is taken for its slope.
        num_classes: how many of the outputs are logits.
        model: its parameters are W `(depth, width, width)` and b `(depth, width)`.
        batch: inputs `(batch_size, num_pixels)`, followed by zeros up to the width, and labels.
    """
    layers: Affine = model.params
    width = layers.b.shape[1]
    z_0 = _padded(batch.x, width)

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
    phi: Activation,
    model: Sequence[Chain],
    batch: Data,
    skip: ArrayLike = 0.0,
    factor: ArrayLike = 1.0,
) -> Pass:
    """The pass of a batch through layers phi(W z + b) of one width, and a linear read-out.

    Or through residual layers `skip z + factor phi(W z + b)`, the same in all, or one for each.

    Args:
        phi: the activation, whose `dphi` is taken for its slope.
        model: a chain of W `(depth, width, width)` and b `(depth, width)`, and a linear one of the
            read-out `(1, num_classes, width)`, whose gradient, and its norm, is the last.
        batch: inputs `(batch_size, num_pixels)`, followed by zeros up to the width, and labels.
        skip: factor of the identity beside each layer, `()` or `(depth,)`; 0 for none.
        factor: of each layer, likewise.
    """
    layers, (readout,) = (part.params for part in model)
    depth, width = layers.b.shape
    factors = [jnp.broadcast_to(jnp.asarray(f, batch.x.dtype), depth) for f in (skip, factor)]

    def ahead(z: Array, at: tuple[Affine, list[Array]]) -> tuple[Array, tuple[Array, Array]]:
        layer, (kept, taken) = at
        h = z @ layer.W.T + layer.b[None]
        return kept * z + taken * phi(h), (z, h)

    def back(delta: Array, at: Any) -> tuple[Array, Affine]:
        (layer, (kept, taken)), (z, h) = at
        at_h = taken * delta * phi.dphi(h)
        return kept * delta + at_h @ layer.W, Affine(at_h.T @ z, jnp.sum(at_h, axis=0))

    every = layers, factors
    z_L, states = jax.lax.scan(ahead, _padded(batch.x, width), every)
    loss, off = loss_and_slope(z_L @ readout.T, batch.y)
    own = jax.lax.scan(back, off @ readout, (every, states), reverse=True)[1]
    last = off.T @ z_L
    norms = jnp.append(_by_layer(own), jnp.sqrt(jnp.sum(last**2)))
    return _with_rounding(loss, (own, last[None]), norms, depth + 1, width, len(batch.y))


def _padded(x: Array, width: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, width - x.shape[1])))


def _by_layer(gradient: Affine) -> Array:
    return jnp.sqrt(jnp.sum(gradient.W**2, axis=(1, 2)) + jnp.sum(gradient.b**2, axis=1))


@precision.highest
def of_reader(design: Design, reader: ImageReader, batch: Data) -> Pass:
    """The pass of a batch of images through a transformer, its equations written out once more.

    Args:
        design: the same in all blocks, or one for each.
        reader: its embedding, blocks and read-out.
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
    """The logits, `(num_classes,)`, by `one_block`'s equations."""
    num_tokens, depth = len(reader.places), len(reader.weights.V)

    def block(x: Array, at: tuple[Weights, Design]) -> tuple[Array, None]:
        return one_block.block_by_hand(*at, x), None

    parts = image[: num_tokens * reader.E.shape[1]].reshape(num_tokens, -1)
    each = Design(*(jnp.broadcast_to(jnp.asarray(one, float), (depth,)) for one in design))
    x = one_block.norm_by_hand(parts @ reader.E.T + reader.places)
    x = jax.lax.scan(block, x, (reader.weights, each))[0]
    return reader.W @ jnp.mean(one_block.norm_by_hand(x), axis=0)


def _with_rounding(
    loss: Array, gradient: Any, norms: Array, num_products: int, width: int, batch_size: int
) -> Pass:
    """The pass with its rounding: of as many products back as forwards, in either of two ways.

    Each is off by n^1.5 eps where signs are random (Higham 2002, sections 3.5 and 3.7), and a mean
    over examples that cancel by the root of their number more. A state that is off is so much
    farther off at the end as the gradient is larger before it, and moves what is there as much.
    """
    most, eps = jnp.max(norms), scaled.eps(norms.dtype)
    last = jnp.maximum(norms[-1], formats.finfo(norms.dtype).tiny)  # which is 0 if all of them are
    relative = 4 * num_products * width**1.5 * batch_size**0.5 * eps * most / last
    return Pass(loss, gradient, norms, relative * jnp.maximum(loss, most))


def loss_and_slope(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The mean cross-entropy, `()`, and its slope by the logits: softmax less the label."""
    log_p = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return -jnp.mean(jnp.sum(is_label * log_p, axis=1)), (jnp.exp(log_p) - is_label) / len(labels)
