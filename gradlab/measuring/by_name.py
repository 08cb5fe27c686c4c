"""The networks with a name, held against each other: what arrives of a gradient, and a training.

Each of `networks.NETWORKS`, from the same key: a row on its way back through Gaussian inputs, and
gradient descent on handwritten digits, clipped or not; and both with all layers written out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import scaled
from gradlab.measuring import backpropagation, clipping, jacobians, passes, training
from gradlab.measuring.training import Data, Schedule, Trajectory
from gradlab.models import ensembles, networks
from gradlab.models.chain import Chain
from gradlab.models.networks import Made


class ByName(NamedTuple):
    """A network and how it is trained.

    Attributes:
        name: a name of `networks.NETWORKS`.
        made: what the name does not say.
        depth: number of layers.
        width: number of neurons in each.
        batch_size: number of examples in a batch.
        num_steps: number of steps of gradient descent.
        rate: its learning rate.
        tau: the threshold of its clip, inf for none.
    """

    name: str
    made: Made
    depth: int
    width: int
    batch_size: int
    num_steps: int
    rate: float | Array
    tau: ArrayLike


class Probe(NamedTuple):
    """A network, a batch `(batch_size, width)`, and a row that comes back from its output."""

    model: Chain
    x: Array
    row: Array


class Reading(NamedTuple):
    """A network with its read-out, the digits that it reads, `(num_examples, width)`, by steps."""

    params: tuple[Chain, Array]
    digits: Data
    batches: Schedule


def weights(params: Any) -> Array:
    """W of a chain's parameters, `(depth, width, width)`, an LSTM's `(depth, 4 width, width)`."""
    W: Array = getattr(params, "affine", params).W
    return W


def _drawn(key: Array, case: ByName) -> Chain:
    """The network, its weights drawn."""
    return networks.NETWORKS[case.name](key, case.depth, case.width, case.made)


def probe(key: Array, case: ByName) -> Probe:
    """The network, and inputs and a row that are normal."""
    key_chain, key_batch, key_row = jax.random.split(key, 3)
    x = jax.random.normal(key_batch, (case.batch_size, case.width))
    row = jax.random.normal(key_row, networks.states(case.name, x)[0].shape)
    return Probe(_drawn(key_chain, case), x, row)


def log_arriving(case: ByName, given: Probe) -> Array:
    """Log of the row's norm behind the input and behind each layer, `(depth + 1,)` (nats).

    From the output of the first example, or of the batch where that is one state; all norms
    together clipped to tau.
    """
    z = networks.states(case.name, given.x)[0]
    norms = jacobians.log_gradient_norms(given.model, z, lambda z: jnp.vdot(given.row, z))
    return clipping.log_norms_after(norms, case.tau)


def arriving_written_out(case: ByName, given: Probe) -> passes.Pulled:
    """The same with all layers written out, and not clipped."""
    x = given.x if case.name == "batch norm" else given.x[:1]
    return passes.pulled_back(case.name, given.model.params, x, given.row)


def reading(key: Array, case: ByName) -> Reading:
    """The network with a read-out, digits that are projected at random, and the steps' batches."""
    key_chain, key_project, key_readout, key_batches = jax.random.split(key, 4)
    digits = training.digits_of_width(key_project, case.width, float)
    size = case.width * (2 if case.name == "LSTM" else 1)
    readout = ensembles.unit_gaussian(key_readout, (10, size), float)
    batches = training.schedule(key_batches, len(digits.y), case.batch_size, case.num_steps)
    return Reading((_drawn(key_chain, case), readout), digits, batches)


def descent(key: Array, case: ByName) -> Trajectory:
    """The trajectory of `reading`; watched after each step: log10 |dW_1| / |W_1|."""
    start = reading(key, case)
    W = weights(start.params[0].params)[0]
    clip = optax.clip_by_global_norm(case.tau)

    def logits(params: Any, x: Array) -> Array:
        ends = jax.vmap(params[0])(networks.states(case.name, x))
        return ends.reshape(len(x), -1) @ params[1].T

    def moved(params: Any) -> Array:
        change = jnp.linalg.norm(weights(params[0].params)[0] - W)
        return jnp.log10(change / jnp.linalg.norm(W))

    run = training.train(
        *(logits, start.params, optax.chain(clip, optax.sgd(case.rate))),
        *training.whole_batches(start.digits, start.batches),
        moved,
    )
    return run._replace(watched=jnp.append(run.watched[1:], moved(run.params)))


def first_steps_by_hand(key: Array, run: Trajectory, case: ByName) -> Array:
    """`descent` held by hand, `(3, num_steps, depth + 4)`: `backpropagation.first_steps`, watched.

    All layers are written out, for inputs of mean square 1. The last number is log10 of how far W_1
    has gone, relative, of the parameters that were kept.
    """
    _, digits, batches = reading(key, case)

    def one_pass(params: Any, batch: Data) -> backpropagation.Pass:
        model, readout = params
        return passes.of_network(case.name, model.params, readout, passes.rescaled(batch))

    rule = backpropagation.Rule(case.rate, case.tau)
    found = backpropagation.first_steps(run, one_pass, rule, digits, batches)
    W = weights(run.first[0].params)[:, 0]
    gone, size = (jnp.sqrt(jnp.sum(part**2, axis=(1, 2))) for part in (W[1:] - W[:1], W[1:]))
    far = jnp.log10(gone) - jnp.log10(jnp.sqrt(jnp.sum(W[0] ** 2)))
    # Of sums of squares, and of weights that are rounded as they move.
    rounding = scaled.eps(far.dtype) * (W[0].size + size / gone)
    ways = jnp.stack([run.watched[: len(far)], far, rounding])
    return jnp.concatenate([found, ways[..., None]], axis=-1)
