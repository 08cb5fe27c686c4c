"""A tanh network of two hidden layers that reads digits, of any width: what steps do to it.

By signs or gradients, at a rate for each of its three matrices; as a setting `(5,)` says it:
whether steps are signs, the factor of the read-out at the start, and the three rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.measuring import coordinates, passes, training
from gradlab.measuring.training import Data, Schedule
from gradlab.models import ensembles
from gradlab.models.activations import PHI

NUM_PIXELS, NUM_CLASSES = 64, 10


class ManySettings(NamedTuple):
    """What is asked of a network.

    Attributes:
        width: of both hidden layers.
        settings: `(num_settings, 5)`.
        batch_size: number of examples of its batch.
        num_steps: of the later moves.
    """

    width: int
    settings: Array
    batch_size: int
    num_steps: int


def matrices(key: Array, width: int, readout: ArrayLike) -> list[Array]:
    """The three matrices, of variance 1/in but for the read-out's factor."""
    shapes = (width, NUM_PIXELS), (width, width), (NUM_CLASSES, width)
    keys = jax.random.split(key, 3)
    W = [ensembles.unit_gaussian(k, shape, float) for k, shape in zip(keys, shapes, strict=True)]
    return [*W[:2], jnp.asarray(readout) * W[2]]


def states(params: Sequence[Array], x: Array) -> list[Array]:
    """Both activations and the logits of inputs `(..., 64)`."""
    phi = PHI["tanh"]
    first = phi(x @ params[0].T)
    hidden = phi(first @ params[1].T)
    return [first, hidden, hidden @ params[2].T]


def unit_digits() -> Data:
    """The digits to train on, less their mean, of mean square 1 each, `(num_examples, 64)`."""
    return training.projected(training.digits(float)[0], jnp.eye(NUM_PIXELS))


def moves_in_all(key: Array, task: ManySettings) -> tuple[coordinates.Moves, Array]:
    """The moves under every setting, of the same unit weights and batch; the weights' moments.

    Of `states` and of the hidden matrix, `(num_settings, 4)` each; the moments are `(3, 6)`.
    """
    key_W, key_batch = jax.random.split(key)
    data = unit_digits()
    batch = training.schedule(key_batch, data.y.size, task.batch_size, 1).indices[0]
    x, y = data.x[batch], data.y[batch]

    def one(row: Array) -> coordinates.Moves:
        return coordinates.moves(
            lambda params: [*states(params, x), params[1]],
            lambda params: training.cross_entropy(states(params, x)[-1], y),
            matrices(key_W, task.width, row[1]),
            coordinates.by_layer(row[0], row[2:]),
            task.num_steps,
        )

    entries = [ensembles.realised(W) for W in matrices(key_W, task.width, 1.0)]
    return jax.lax.map(one, task.settings), jnp.stack(entries)


def moves_by_hand(key: Array, task: ManySettings) -> tuple[Array, Array]:
    """The same of the layers with all written out, and its rounding, `(num_settings, 3, 3)` each.

    The rounding is infinite of later moves at a rate at which tanh may be 1 to the last digit.
    """
    key_W, key_batch = jax.random.split(key)
    data = unit_digits()
    chosen = training.schedule(key_batch, data.y.size, task.batch_size, 1).indices[0]
    batch = passes.rescaled(Data(data.x[chosen], data.y[chosen]))

    def one(row: Array) -> tuple[Array, Array]:
        given = matrices(key_W, task.width, row[1]), batch, row[0], row[2:], task.num_steps
        logs, rounding = passes.tanh_moves(*given)
        is_small = jnp.max(row[2:]) * max(task.width, NUM_PIXELS) <= 1  # sums move by less than 1
        return jnp.stack(logs), rounding.at[2].set(jnp.where(is_small, rounding[2], jnp.inf))

    return jax.lax.map(one, task.settings)


def losses_of_signs(params: Any, setting: Array, data: Data, batches: Schedule) -> Array:
    """The loss before each step of a training, `(num_steps,)` (nats)."""
    step = coordinates.by_layer(setting[0], setting[2:])
    return training.train(lambda p, x: states(p, x)[-1], params, step, data, batches).loss


def first_losses_by_hand(params: Any, setting: Array, data: Data, batches: Schedule) -> Array:
    """The first two with all written out, each with its rounding, `(2, 2)` (nats)."""
    two = [passes.rescaled(Data(data.x[step], data.y[step])) for step in batches.indices[:2]]
    return passes.tanh_steps(params, two, setting[0], setting[2:])[1]
