"""Every singular value of a long product to high relative accuracy, and Lyapunov exponents.

Two quantities with two names. The *singular values* of `P_k` are those of the finite product;
the *Lyapunov exponents* are the rates at which the diagonal of a forward QR grows. Their logs
differ by a fraction of a nat to a few at any depth, which vanishes only in the rate.

The product is kept as `Q diag(d) U Q_0^T`: `Q` orthogonal, `d` with an exponent an entry, `U`
well conditioned (the stratification of Bai, Lee, Li and Xu 2011, after Stewart 1997), so nothing
is ever lost beside a larger number, and `jacobi.svd` ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab import chain, jacobi, jacobians, scaled
from gradlab.chain import Layer, Model
from gradlab.scaled import Scaled

# A pivot of a QR step is made of rounding if it is below this many roundings of its row.
_NOISE = 8


See = Callable[["Factors", "Step", Any], Any]


class Spectrum(NamedTuple):
    """Singular values in descending order, and those of them that rounding has made unknowable.

    Attributes:
        singular_values: `(num_depths, width_0)`, one exponent an entry; zero where a unit is dead
            or the chain has been narrower.
        lost: `(num_depths, width_0)`: the rank was lost other than by a row of zeros, so the true
            value is zero or too small, beside the entries of one layer, to be known.
    """

    singular_values: Scaled
    lost: Array

    @property
    def log(self) -> Array:
        """`log sigma_i` (nats): minus infinity for an exact zero, nan where `lost`."""
        return jnp.where(self.lost, jnp.nan, scaled.log_magnitude(self.singular_values))


class Exponents(NamedTuple):
    """Lyapunov exponents (nats a layer, `(width,)`, descending) and their standard errors."""

    values: Array
    standard_errors: Array


class Factors(NamedTuple):
    """`P_k = Q diag(d) U Q_0^T`, with r columns left.

    Attributes:
        columns: the columns of `Q`, one a row, `(r, width_k)`.
        d: `(r,)`, an exponent an entry, zero where the rank is lost.
        U: `(r, width_0)`.
        lost: `(r,)`, where d was set to zero because it was made of rounding.
        label: `(r,)`, the column of the start that each one descends from.
    """

    columns: Array
    d: Scaled
    U: Array
    lost: Array
    label: Array


class Step(NamedTuple):
    """The QR of one layer: `A = Q R`, the rows' sizes, and which pivots were set to zero."""

    Q: Array
    R: Array
    sizes: Array
    gone: Array


def singular_values(model: Model, x: Array, depths: Sequence[int]) -> Spectrum:
    """All singular values of `P_k` for every k in `depths`, `(num_depths, width_0)`.

    One for every input direction. The error of each log is a few roundings a layer and the log's
    own ulp, whatever the size of the others, where the layers are well conditioned but for the
    scale of their rows (`certificate.singular_value_bound` tells).

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        depths: ascending depths from 1 to the model's.
    """
    factors, _ = at_depths(model, x, depths, _nothing, ())
    d, lost = factors.d, factors.lost
    X = Scaled(jnp.swapaxes(factors.U, 1, 2) * d.mantissa[:, None, :], d.exponent[:, None, :])
    values = jax.vmap(lambda X: jacobi.svd(X).singular_values)(X)
    # Zeros come last, and of those the ones that were lost are not known to be zero.
    num_known = jnp.sum(d.mantissa != 0, axis=1, keepdims=True)
    place = jnp.arange(x.size)[None, :]
    num_lost = jnp.sum(lost, axis=1, keepdims=True)
    return Spectrum(values, (place >= num_known) & (place < num_known + num_lost))


def log_singular_values(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """`log sigma_i(P_k)` (nats) for every k in `depths`, `(num_depths, width_0)`.

    Minus infinity for an exact zero (a dead unit), nan where the rank is lost to rounding.
    """
    return singular_values(model, x, depths).log


def singular_vectors(model: Model, x: Array) -> jacobi.Decomposition:
    """The singular values of `P_L` with both sides' vectors, one a column.

    The columns of `right`, `(width_0, r)`, are the input directions in the order in which they
    survive; those of `left`, `(width_L, r)`, are what becomes of them; r is the smallest width.
    """
    factors, _ = walk(model, x, _nothing, ())
    X = Scaled(factors.U.T * factors.d.mantissa[None, :], factors.d.exponent[None, :])
    side = jacobi.svd(X)
    Q_0 = orthogonal_start(x)
    return jacobi.Decomposition(
        side.singular_values, factors.columns.T @ side.right, Q_0 @ side.left
    )


def lyapunov_exponents(model: Model, x: Array, burn_in: int, num_batches: int) -> Exponents:
    """The mean growth of each direction of a forward QR (Benettin et al. 1980), `(width,)`.

    Args:
        model: a chain that keeps its width.
        x: its input, `(width,)`.
        burn_in: layers at the start that align the directions and are not counted.
        num_batches: contiguous batches of layers whose means give the standard error; they must
            be longer than the memory of the chain. At least 2.
    """
    logs = log_growth(model, x)[burn_in:]
    if not 2 <= num_batches <= logs.shape[0]:
        raise ValueError(
            f"num_batches is {num_batches}; allowed are 2 to {logs.shape[0]}, the layers left."
        )
    length = logs.shape[0] // num_batches
    means = jnp.mean(logs[: length * num_batches].reshape(num_batches, length, -1), axis=1)
    error = jnp.std(means, axis=0, ddof=1) / num_batches**0.5
    return Exponents(jnp.mean(means, axis=0), error)


def log_growth(model: Model, x: Array) -> Array:
    """`log R_ii` (nats) of the forward QR `J_k Q_{k-1} = Q_k R`, `(depth, width)`: increments."""
    parts = chain.checked(model, x)
    carry: tuple[Array, Array] = x, orthogonal_start(x).T
    logs = []
    for segment in parts:
        carry, log = jacobians.scan(partial(_grow, segment.layer), carry, segment)
        logs.append(log)
    if carry[0].shape != x.shape or any(log.shape[1] != x.size for log in logs):
        raise ValueError("Lyapunov exponents belong to a chain that keeps its width.")
    return jnp.concatenate(logs)


def orthogonal_start(x: Array) -> Array:
    """The orthogonal matrix that every product starts from, `(width_0, width_0)`.

    Fixed and without structure: it changes no singular value, and makes sure that no direction
    that a layer singles out lies exactly along one of its columns.
    """
    normal = np.random.default_rng(0).normal(size=(x.size, x.size))
    return jnp.asarray(np.linalg.qr(normal)[0], x.dtype)


def start(x: Array) -> Factors:
    """The factors of the empty product."""
    ones, zeros = jnp.ones(x.size, x.dtype), jnp.zeros(x.size, jnp.int32)
    Q_0 = orthogonal_start(x)
    return Factors(
        Q_0.T, Scaled(ones, zeros), jnp.eye(x.size, dtype=x.dtype), zeros > 0, jnp.arange(x.size)
    )


def advance(layer: Layer, params: Any, z: Array, factors: Factors) -> tuple[Array, Factors, Step]:
    """The next state, the factors after one layer, and the QR that it took."""
    z, columns = jacobians.push(layer, params, z, factors.columns)
    A = scaled.rescale(Scaled(columns, jnp.zeros((1, 1), jnp.int32)))
    factors, A = _descending(factors, A)
    Q, R, sizes = jacobi.graded_qr(A.mantissa.T)
    k = R.shape[0]
    pivots = jnp.diagonal(R)
    noise = _NOISE * max(A.shape) * scaled.eps(R.dtype) * sizes
    d = scaled.rescale(
        Scaled(pivots * factors.d.mantissa[:k], factors.d.exponent[:k] + A.exponent[0, 0])
    )
    gone = (pivots <= noise) | (d.mantissa == 0)
    lost = factors.lost[:k] | ((pivots <= noise) & (sizes > 0) & (factors.d.mantissa[:k] != 0))
    d = Scaled(jnp.where(gone, 0, d.mantissa), jnp.where(gone, 0, d.exponent))
    # Columns are in descending order: R_ij d_j / (R_ii d_i) is large only where d_i = 0.
    before = jnp.where(gone, 1, factors.d.mantissa[:k])[:, None]
    shift = jnp.minimum(factors.d.exponent[None, :] - factors.d.exponent[:k, None], 64)
    T = R / jnp.where(gone, 1, pivots)[:, None] * (factors.d.mantissa[None, :] / before)
    T = T * scaled.power_of_two(shift, R.dtype)
    T = jnp.where(gone[:, None], jnp.eye(k, R.shape[1], dtype=R.dtype), T)
    factors = Factors(Q.T, d, T @ factors.U, lost, factors.label[:k])
    return z, factors, Step(Q, R, sizes, gone)


def _descending(factors: Factors, A: Scaled) -> tuple[Factors, Scaled]:
    """The same with the columns of `A diag(d)` in descending order, which keeps U tame."""
    lengths = jnp.sqrt(jnp.sum(jnp.square(A.mantissa), axis=1))
    size = jnp.log2(lengths * factors.d.mantissa) + factors.d.exponent.astype(lengths.dtype)
    order = jnp.argsort(-size)
    d = Scaled(factors.d.mantissa[order], factors.d.exponent[order])
    moved = Factors(factors.columns, d, factors.U[order], factors.lost[order], factors.label[order])
    return moved, Scaled(A.mantissa[order], A.exponent)


def walk(model: Model, x: Array, see: See, seen: Any) -> tuple[Factors, Any]:
    """Through the model: the last factors, and `seen = see(factors, step, seen)` at the end."""

    def step(layer: Layer, carry: Any, params: Any) -> tuple[Any, None]:
        z, factors, seen = carry
        z, factors, qr = advance(layer, params, z, factors)
        return (z, factors, see(factors, qr, seen)), None

    carry = x, start(x), seen
    for segment in chain.checked(model, x):
        carry, _ = jacobians.scan(partial(step, segment.layer), carry, segment)
    return carry[1], carry[2]


def at_depths(model: Model, x: Array, depths: Sequence[int], see: See, seen: Any) -> Any:
    """`(factors, seen)` as they stand at every depth asked for, `(num_depths, ...)`.

    The factors are padded with zeros to the input's width; their columns are left out.

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        depths: ascending depths from 1 to the model's.
        see: as in `walk`.
        seen: what it starts from, a pytree of arrays.
    """
    slots, num_slots = _slots(depths, chain.depth(model))

    def store(factors: Factors, step: Step, carry: Any) -> Any:
        count, seen, stored = carry
        seen = see(factors, step, seen)
        new = _padded(factors._replace(columns=jnp.zeros((0, 0))), x.size), seen
        stored = jax.tree.map(
            lambda old, leaf: jax.lax.dynamic_update_index_in_dim(old, leaf, slots[count], 0),
            stored,
            new,
        )
        return count + 1, seen, stored

    empty = jax.tree.map(
        lambda leaf: jnp.zeros((num_slots + 1, *leaf.shape), leaf.dtype),
        (start(x)._replace(columns=jnp.zeros((0, 0))), seen),
    )
    _, (_, _, stored) = walk(model, x, store, (jnp.zeros((), jnp.int32), seen, empty))
    return jax.tree.map(lambda leaf: leaf[:-1], stored)


def _slots(depths: Sequence[int], num_layers: int) -> tuple[Array, int]:
    """For every layer the slot that its factors go to: the last one for what nobody asked for."""
    wanted = list(depths)
    if not wanted or wanted != sorted(set(wanted) & set(range(1, num_layers + 1))):
        raise ValueError(
            f"depths must be ascending whole numbers from 1 to {num_layers}, not {wanted}."
        )
    slots = np.full(num_layers, len(wanted))
    slots[np.array(wanted) - 1] = np.arange(len(wanted))
    return jnp.asarray(slots), len(wanted)


def _padded(factors: Factors, size: int) -> Factors:
    """Factors of r rows as factors of `size` rows, the rest of them zero."""

    def pad(leaf: Array) -> Array:
        if leaf.size == 0:
            return leaf
        return jnp.zeros((size, *leaf.shape[1:]), leaf.dtype).at[: leaf.shape[0]].set(leaf)

    return jax.tree.map(pad, factors)


def _nothing(factors: Factors, step: Step, seen: Any) -> Any:
    del factors, step
    return seen


def _grow(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, columns = jacobians.push(layer, params, *carry)
    Q, R, _ = jacobi.graded_qr(columns.T)
    return (z, Q.T), jnp.log(jnp.diagonal(R))
