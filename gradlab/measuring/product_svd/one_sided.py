"""The singular values of a column-scaled matrix, each to high relative accuracy, in any range.

One-sided Jacobi (Hestenes 1958; Demmel and Veselic 1992) on the columns of `Y diag(d)`, where the
scales `d` may differ by any power of two: the error is governed by the condition of `Y` with
columns of unit length, never by that of the product. Two QR steps come first (Drmac and Veselic
2008), after which columns that differ much in scale are orthogonal already.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import qr, scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring.product_svd import thresholds


class Decomposition(NamedTuple):
    """`X = left diag(singular_values) right^T`, with the singular values in descending order.

    Shapes `(n,)`, `(m, n)` and `(k, n)`. A vector that belongs to a zero is arbitrary.
    """

    singular_values: Scaled
    left: Array
    right: Array


class Rotated(NamedTuple):
    """Columns, one a row, with their exponents, and the rotations so far, if they are wanted."""

    columns: Array
    exponents: Array
    rotations: Any


class Triangular(NamedTuple):
    """`X = Q L^T` with orthonormal columns in `Q`, `(m, n)`, and an exponent a column in `L`."""

    Q: Array
    L: Scaled


def svd(X: Scaled) -> Decomposition:
    """The thin singular value decomposition of `X`, `(m, n)`, one exponent a column, m >= n."""
    first = triangular(X)
    second = triangular(first.L)
    columns, exponents, J = _orthogonalise(second.L, jnp.eye(X.shape[1], dtype=X.mantissa.dtype))
    lengths = scaled.norm(Scaled(columns, exponents[:, None]), axis=1)
    unit = columns / jnp.where(lengths.mantissa == 0, 1, _at(lengths, exponents))[:, None]
    order = jnp.argsort(-scaled.log_2(lengths))
    values = Scaled(lengths.mantissa[order], lengths.exponent[order])
    return Decomposition(values, (first.Q @ unit.T)[:, order], (second.Q @ J.T)[:, order])


def singular_values(X: Scaled) -> Scaled:
    """Those of `X` as in `svd`, `(n,)` in descending order, without the cost of vectors."""
    columns, exponents, _ = _orthogonalise(triangular(triangular(X).L).L, None)
    lengths = scaled.norm(Scaled(columns, exponents[:, None]), axis=1)
    order = jnp.argsort(-scaled.log_2(lengths))
    return Scaled(lengths.mantissa[order], lengths.exponent[order])


def triangular(X: Scaled) -> Triangular:
    """A QR step, which brings the columns of `L` nearer to orthogonal than those of `X`."""
    X = scaled.rescale(X)
    order = jnp.argsort(-scaled.log_2(scaled.norm(X, axis=0)))
    exponent = X.exponent[0][order]
    Q, R = qr.row_sorted(X.mantissa[:, order])
    # Columns are in descending order, so a larger ratio meets only a zero, which it must not touch.
    shift = jnp.minimum(exponent[:, None] - exponent[None, :], thresholds.LARGEST_RATIO)
    L = jnp.tril(R.T) * scaled.power_of_two(shift, R.dtype)
    L = jnp.zeros_like(L).at[order].set(L, unique_indices=True)
    return Triangular(Q, scaled.rescale(Scaled(L, exponent[None, :])))


def _orthogonalise(L: Scaled, rotations: Array | None) -> Rotated:
    """Jacobi sweeps until all columns of `L` are orthogonal to working precision."""
    n = L.shape[1]
    padded = n + n % 2

    def pad(leaf: Array) -> Array:
        return jnp.zeros((padded, *leaf.shape[1:]), leaf.dtype).at[:n].set(leaf)

    columns = jnp.pad(L.mantissa.T, ((0, 0), (0, -n % thresholds.LANES)))
    start = jax.tree.map(pad, Rotated(columns, L.exponent[0], rotations))
    # As near as a computed cosine tells; a nan ends it at once.
    tolerance = 2 * padded * scaled.eps(L.mantissa.dtype)

    def unfinished(state: Any) -> Array:
        rotated, num_sweeps = state
        return (_largest_cosine(rotated.columns) > tolerance) & (num_sweeps < thresholds.MAX_SWEEPS)

    def sweep(state: Any) -> Any:
        rotated, num_sweeps = state
        rotated, _ = jax.lax.scan(
            lambda r, _: (_rotate_all_pairs(r), None), rotated, length=padded - 1
        )
        fresh = scaled.rescale(Scaled(rotated.columns, rotated.exponents[:, None]))
        return Rotated(fresh.mantissa, fresh.exponent[:, 0], rotated.rotations), num_sweeps + 1

    done = start
    if n > 1:
        done, _ = jax.lax.while_loop(unfinished, sweep, (start, jnp.zeros((), jnp.int32)))
    done = jax.tree.map(lambda leaf: leaf[:n], done)
    return done._replace(columns=done.columns[:, :n])


def _largest_cosine(columns: Array) -> Array:
    lengths = jnp.linalg.norm(columns, axis=1)
    unit = columns / jnp.where(lengths == 0, 1, lengths)[:, None]
    return jnp.max(jnp.abs(jnp.tril(unit @ unit.T, -1)))


def _rotate_all_pairs(r: Rotated) -> Rotated:
    """One round of a tournament: row i against row i + n/2, then all move on by one seat."""
    half = r.exponents.shape[0] // 2
    swap = r.exponents[:half] < r.exponents[half:]
    large, small = (
        jax.tree.map(lambda a, s=s: _choose(s, a[:half], a[half:]), r) for s in (swap, ~swap)
    )
    ratio = scaled.power_of_two(small.exponents - large.exponents, r.columns.dtype)
    a, b, c = (
        _dot(x, y)
        for x, y in (
            (large.columns, large.columns),
            (small.columns, small.columns),
            (large.columns, small.columns),
        )
    )
    # The tangent of the angle over the ratio of the scales stays in range for any ratio.
    half_difference = (b * ratio * ratio - a) / 2
    size = jnp.abs(half_difference) + jnp.hypot(half_difference, c * ratio)
    slope = jnp.where(half_difference < 0, -c, c) / jnp.where(size == 0, 1, size)
    tangent = slope * ratio
    cosine = 1 / jnp.sqrt(1 + tangent * tangent)
    large, small = (
        Rotated(
            _rotated(large.columns, -tangent * ratio, small.columns, cosine),
            large.exponents,
            _rotated(large.rotations, -tangent, small.rotations, cosine),
        ),
        Rotated(
            _rotated(small.columns, slope, large.columns, cosine),
            small.exponents,
            _rotated(small.rotations, tangent, large.rotations, cosine),
        ),
    )
    seats = _next_seats(half)
    top = jax.tree.map(lambda x, y: _choose(swap, x, y), large, small)
    bottom = jax.tree.map(lambda x, y: _choose(~swap, x, y), large, small)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y])[seats], top, bottom)


def _dot(x: Array, y: Array) -> Array:
    """The dot product of every two rows; XLA on a CPU would add each up number by number."""
    lanes = jnp.sum((x * y).reshape(len(x), -1, thresholds.LANES), axis=1)
    return jnp.sum(jax.lax.optimization_barrier(lanes), axis=1)


def _rotated(one: Any, factor: Array, other: Any, cosine: Array) -> Any:
    return jax.tree.map(lambda x, y: cosine[:, None] * (x + factor[:, None] * y), one, other)


def _choose(swap: Array, one: Array, other: Array) -> Array:
    return jnp.where(swap.reshape(-1, *[1] * (one.ndim - 1)), other, one)


def _next_seats(half: int) -> np.ndarray[Any, Any]:
    """Who sits where in the next round, so that all pairs meet once in `2 half - 1` rounds."""
    top, bottom = list(range(half)), list(range(half, 2 * half))
    return np.array([top[0], bottom[0], *top[1:-1], *bottom[1:], top[-1]][: 2 * half])


def _at(s: Scaled, exponent: Array) -> Array:
    """The mantissas of `s` with respect to other exponents."""
    return s.mantissa * scaled.power_of_two(s.exponent - exponent, s.mantissa.dtype)
