"""Many small networks, each trained once, in one compiled program: any depth, any activation.

Plain stochastic gradient descent of phi(W z + b) layers with a linear read-out. One after another,
so that a network costs what its own layers cost, and memory is that of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from gradlab.measuring import backpropagation, training
from gradlab.measuring.training import Data, Schedule, Trajectory
from gradlab.models import ensembles
from gradlab.models.activations import Activation, Phi
from gradlab.models.chain import Chain, linear


class Candidate(NamedTuple):
    """What a network is, or `(num_networks,)` of each.

    Attributes:
        kind: which of the activations.
        depth: number of layers.
        sigma_w: standard deviation of W √width.
        sigma_b: of the biases.
        rate: the learning rate.
    """

    kind: Array
    depth: Array
    sigma_w: Array
    sigma_b: Array
    rate: Array


# What becomes of a network, and as it is counted by `fates`.
OUTCOMES = ("learns", "stalls", "diverges")


class Budget(NamedTuple):
    """What all networks share: the largest depth, the width, and what they are trained for."""

    deepest: int
    width: int
    num_classes: int
    batch_size: int
    num_steps: int


def grid(
    num_draws: int,
    num_kinds: int,
    sigma_w: Array,
    depth: Sequence[int],
    rate: Array,
    sigma_b: ArrayLike,
) -> Candidate:
    """All combinations, `(num_draws, num_kinds, num_sigma_w, num_depths, num_rates)` of each."""
    axes = jnp.arange(num_draws), jnp.arange(num_kinds), sigma_w, jnp.asarray(depth), rate
    _, kind, weight, deep, step = jnp.meshgrid(*axes, indexing="ij")
    return Candidate(kind, deep, weight, jnp.broadcast_to(sigma_b, kind.shape), step)


def plain_numbers(networks: Candidate) -> Array:
    """What is known of networks without theory, `(..., 4)`: kind, sigma_w², log depth, log rate."""
    logs = jnp.log(networks.depth), jnp.log(networks.rate)
    return jnp.stack([networks.kind + 0.0, networks.sigma_w**2, *logs], axis=-1)


def losses(
    key: Array, networks: Candidate, phis: Sequence[Phi], data: Data, budget: Budget
) -> tuple[Array, Array]:
    """The loss before each step, `(..., num_steps)` (nats), and the weights' moments, `(..., 6)`.

    `...` is as of the networks. Every one has weights and batches of its own. The format is that
    of the data, whose inputs are `(num_examples, width)`.
    """
    flat = jax.tree.map(jnp.ravel, networks)

    def one(network: tuple[Array, Candidate]) -> tuple[Array, Array]:
        ran, _ = trained(*network, phis, data, budget)
        return ran.loss, ensembles.realised(ran.first[0].params.W[0])

    every = jax.lax.map(one, (jax.random.split(key, flat.kind.size), flat))
    loss, moments = (part.reshape(*networks.kind.shape, -1) for part in every)
    return loss, moments


def trained(
    key: Array, network: Candidate, phis: Sequence[Phi], data: Data, budget: Budget
) -> tuple[Trajectory, Schedule]:
    """The training of one network, of a chain and its linear read-out, and its batches."""
    key_chain, key_readout, key_batches = jax.random.split(key, 3)
    dtype, width = data.x.dtype, budget.width
    scales = (jnp.asarray(scale, dtype) for scale in (network.sigma_w, network.sigma_b))
    model = ensembles.gaussian(key_chain, budget.deepest, width, phis[0], *scales, dtype=dtype)
    readout = ensembles.unit_gaussian(key_readout, (1, budget.num_classes, width), dtype)
    is_there = jnp.arange(budget.deepest) < network.depth
    kind = jnp.broadcast_to(network.kind, is_there.shape)  # a layer closes over no traced number

    def layer(params: Any, z: Array) -> Array:
        affine, there, kind = params
        return jax.lax.cond(there, lambda: jax.lax.switch(kind, phis, affine(z)), lambda: z)

    def logits(params: Any, x: Array) -> Array:
        layers, read = params
        return read(Chain(layer, (layers.params, is_there, kind))(x))

    batches = training.schedule(key_batches, data.y.size, budget.batch_size, budget.num_steps)
    descent = optax.sgd(jnp.asarray(network.rate, dtype))
    return training.train(logits, (model, linear(readout)), descent, data, batches), batches


def first_steps(
    key: Array, networks: Candidate, phis: Sequence[Activation], data: Data, budget: Budget
) -> Array:
    """The `backpropagation.first_steps` of networks, `(..., 3, num_steps, deepest + 3)`.

    `...` is as of the networks, which are trained for no more than these steps. The rounding of
    short formats hides much in deep ones.
    """
    budget = budget._replace(num_steps=min(training.FIRST, budget.num_steps))

    def one(at: tuple[Array, Candidate]) -> Array:
        key, network = at
        ran, batches = trained(key, network, phis, data, budget)
        is_there = jnp.arange(budget.deepest) < network.depth
        phi, dphi, d2phi = (
            partial(jax.lax.switch, network.kind, [getattr(phi, name) for phi in phis])
            for name in ("phi", "dphi", "d2phi")
        )
        own = Activation("its own", phi, dphi, d2phi)
        hand = partial(backpropagation.of_readout, own, skip=~is_there, factor=is_there)
        rule = backpropagation.Rule(network.rate)
        return backpropagation.first_steps(ran, hand, rule, data, batches)

    flat = jax.tree.map(jnp.ravel, networks)
    found = jax.lax.map(one, (jax.random.split(key, flat.kind.size), flat))
    return found.reshape(*networks.kind.shape, *found.shape[1:])


def fates(loss: Array, num_classes: int) -> Array:
    """Which of `OUTCOMES` losses at the end are, by that of who guesses, log num_classes.

    Below half of it a network learns; above twice of it, or where it is no number, it diverges.
    """
    guess = jnp.log(num_classes)
    return jnp.where(loss < guess / 2, 0, jnp.where(loss <= 2 * guess, 1, 2))
