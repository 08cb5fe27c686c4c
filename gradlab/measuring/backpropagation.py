"""Backpropagation as it was written down: by matrices and slopes, no chain, nothing differentiated.

What a training by `jax.grad` is held against (Rumelhart, Hinton and Williams 1986).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import precision
from gradlab.measuring.training import Data
from gradlab.models.activations import Activation
from gradlab.models.ensembles import Affine


class Pass(NamedTuple):
    """One way forward and back.

    Attributes:
        loss: the mean cross-entropy over the batch, `()` (nats).
        gradient: of every layer's W and b, shaped as they are.
        norms: its norm in each layer, `(depth,)`.
    """

    loss: Array
    gradient: Affine
    norms: Array


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
    logits = z_L[:, :num_classes]
    log_p = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    is_label = jax.nn.one_hot(batch.y, num_classes, dtype=z_L.dtype)
    off = (jnp.exp(log_p) - is_label) / len(batch.y)
    delta = jnp.pad(off, ((0, 0), (0, width - num_classes)))
    gradient = jax.lax.scan(back, delta, (layers, states), reverse=True)[1]
    squares = jnp.sum(gradient.W**2, axis=(1, 2)) + jnp.sum(gradient.b**2, axis=1)
    return Pass(-jnp.mean(jnp.sum(is_label * log_p, axis=1)), gradient, jnp.sqrt(squares))
