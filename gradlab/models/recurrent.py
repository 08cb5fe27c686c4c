"""Recurrent cells that read an input at each step, unrolled into chains whose layers share weights.

Cells of this house by their names, and any function that `jax.lax.scan` takes.

A cell takes its weights, a state and an input to the next state. Gates stand in blocks of `width`
rows; an LSTM's state is its output h and its memory c, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.errors import BadInput
from gradlab.models import activations, ensembles, networks
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
    return networks.lstm_layer(lambda h: weights.W @ h + weights.U @ x + weights.b, state)


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

    Raises:
        BadInput: there is no such cell.
    """
    key_W, key_U = jax.random.split(key)
    rows = _kind(name).num_blocks * width
    W, U = (ensembles.unit_gaussian(key, (rows, width), float) for key in (key_W, key_U))
    b = jnp.zeros(rows).at[: width if rows > width else 0].set(bias)
    return Weights(jnp.asarray(sigma_w) * W, jnp.asarray(sigma_u) * U, b)


def latch(w: ArrayLike) -> Chain:
    """The one layer x -> w tanh x, `W phi(x) + b` of one neuron: it holds a bit for w > 1."""
    W = jnp.asarray(w) * jnp.ones((1, 1, 1))
    layer = ensembles.preactivation_layer(activations.PHI["tanh"])
    return Chain(layer, ensembles.Affine(W, jnp.zeros_like(W[0])))


def neuron(w: ArrayLike, b: ArrayLike, depth: int) -> Chain:
    """The chain of so many steps x -> w sigma(x) + b: Pascanu et al. 2013, figure 6."""
    W, b = jnp.asarray(w) * jnp.ones((depth, 1, 1)), jnp.asarray(b) * jnp.ones((depth, 1))
    layer = ensembles.preactivation_layer(activations.PHI["logistic"])
    return Chain(layer, ensembles.Affine(W, b))


def unrolled(name: str, weights: Weights, inputs: Array) -> Chain:
    """The chain of `CELLS[name]` over `inputs`, `(num_steps, num_in)`: a layer for each step.

    Raises:
        BadInput: there is no such cell.
    """
    shared = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(inputs), *leaf.shape)), weights)
    return Chain(_step(_kind(name).cell), (shared, inputs))


def _kind(name: str) -> Kind:
    if name not in CELLS:
        raise BadInput(f"cell is {name!r}; allowed: one of {', '.join(CELLS)}")
    return CELLS[name]


class Loop(NamedTuple):
    """A loop as a chain: its states are the real part of its carries, laid out in one vector.

    Attributes:
        chain: a layer for each step.
        state: the first state, `(size,)`.
        carry: from the last state to the carry that it is a part of.
    """

    chain: Chain
    state: Array
    carry: Callable[[Array], Any]


def of_scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any) -> Loop:
    """The loop `jax.lax.scan(step, carry, inputs)` as a chain.

    What of a carry is not differentiated (counts, masks, keys) takes no part in the states: it is
    what it is in the loop, step by step.
    """
    carry = jax.tree.map(jnp.asarray, carry)
    real, lay = _split(carry)
    state, unravel = jax.flatten_util.ravel_pytree(real)

    def run(carry: Any, x: Any) -> tuple[Any, Any]:
        return step(carry, x)[0], _split(carry)[1].rest

    last, rest = jax.lax.scan(run, carry, inputs)

    def layer(at: Any, z: Array) -> Array:
        x, rest = at
        made, _ = step(lay._replace(rest=rest).joined(unravel(z)), x)
        return jax.flatten_util.ravel_pytree(_split(made)[0])[0].astype(z.dtype)

    end = _split(last)[1]
    return Loop(Chain(layer, (inputs, rest)), state, lambda z: end.joined(unravel(z)))


class _Lay(NamedTuple):
    """How a carry is put together from leaves that are differentiated, and the rest of them."""

    treedef: Any
    is_real: tuple[bool, ...]
    rest: list[Any]

    def joined(self, real: list[Any]) -> Any:
        ones, others = iter(real), iter(self.rest)
        leaves = [next(ones) if is_real else next(others) for is_real in self.is_real]
        return jax.tree.unflatten(self.treedef, leaves)


def _split(carry: Any) -> tuple[list[Any], _Lay]:
    leaves, treedef = jax.tree.flatten(carry)
    is_real = tuple(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    pairs = list(zip(leaves, is_real, strict=True))
    rest = [leaf for leaf, real in pairs if not real]
    return [leaf for leaf, real in pairs if real], _Lay(treedef, is_real, rest)


@cache
def _step(cell: Cell) -> Layer:
    return lambda at, state: cell(at[0], state, at[1])
