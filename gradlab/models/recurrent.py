"""Recurrent cells that read an input at each step, unrolled into chains whose layers share weights.

A cell takes its weights, a state and an input to the next state. Gates stand in blocks of `width`
rows; an LSTM's state is its output h and its memory c, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models import activations, ensembles
from gradlab.models.chain import Chain, Layer


class Weights(NamedTuple):
    """Of a cell: `W`, `(num_gates * width, width)`, on h; `U`, on the input; `b`, one a row."""

    W: Array
    U: Array
    b: Array


Cell = Callable[[Weights, Array, Array], Array]


def plain(weights: Weights, h: Array, x: Array) -> Array:
    """`tanh(W h + U x + b)`, `(width,)`: Elman 1990."""
    return jnp.tanh(weights.W @ h + weights.U @ x + weights.b)


def lstm(weights: Weights, state: Array, x: Array) -> Array:
    """`c' = f c + i g`, `h' = o tanh(c')`, `(2 width,)`; blocks are f, i, o, g.

    Hochreiter and Schmidhuber 1997; the forget gate f of Gers, Schmidhuber and Cummins 2000.
    """
    h, c = jnp.split(state, 2)
    *gates, candidate = jnp.split(weights.W @ h + weights.U @ x + weights.b, 4)
    f, i, o = map(jax.nn.sigmoid, gates)
    c = f * c + i * jnp.tanh(candidate)
    return jnp.concatenate([o * jnp.tanh(c), c])


def gru(weights: Weights, h: Array, x: Array) -> Array:
    """`h' = z h + (1 - z) n`, `(width,)`; blocks are z, r, n: Cho et al. 2014.

    The reset gate r multiplies W h, as in PyTorch and cuDNN, and not h.
    """
    z, r, n = jnp.split(weights.W @ h, 3)
    z_in, r_in, n_in = jnp.split(weights.U @ x + weights.b, 3)
    z = jax.nn.sigmoid(z + z_in)
    return z * h + (1 - z) * jnp.tanh(jax.nn.sigmoid(r + r_in) * n + n_in)


class Kind(NamedTuple):
    """A cell, how many blocks of gates its weights have, and how many vectors its state."""

    cell: Cell
    num_blocks: int
    num_states: int


CELLS: dict[str, Kind] = {
    "plain": Kind(plain, 1, 1),
    "LSTM": Kind(lstm, 4, 2),
    "GRU": Kind(gru, 3, 1),
}


def weights(
    key: Array, name: str, width: int, sigma_w: ArrayLike, sigma_u: ArrayLike, bias: ArrayLike
) -> Weights:
    """N(0, sigma²/width) weights of `CELLS[name]` for inputs of `width` too.

    The gate that keeps the state, an LSTM's f and a GRU's z, has the bias; all others have 0.
    """
    key_W, key_U = jax.random.split(key)
    rows = CELLS[name].num_blocks * width
    W, U = (ensembles.unit_gaussian(key, (rows, width), float) for key in (key_W, key_U))
    b = jnp.zeros(rows).at[: width if rows > width else 0].set(bias)
    return Weights(jnp.asarray(sigma_w) * W, jnp.asarray(sigma_u) * U, b)


def latch(w: ArrayLike) -> Chain:
    """The one layer x -> w tanh x, `W phi(x) + b` of one neuron: it holds a bit for w > 1."""
    W = jnp.asarray(w) * jnp.ones((1, 1, 1))
    layer = ensembles.preactivation_layer(activations.PHI["tanh"])
    return Chain(layer, ensembles.Affine(W, jnp.zeros_like(W[0])))


def unrolled(name: str, weights: Weights, inputs: Array) -> Chain:
    """The chain of `CELLS[name]` over `inputs`, `(num_steps, num_in)`: a layer for each step."""
    shared = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(inputs), *leaf.shape)), weights)
    return Chain(_step(CELLS[name].cell), (shared, inputs))


@cache
def _step(cell: Cell) -> Layer:
    return lambda at, state: cell(at[0], state, at[1])
