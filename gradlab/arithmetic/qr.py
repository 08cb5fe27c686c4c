"""Householder's QR with an error that is small beside every single row, whatever its scale."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def row_sorted(A: Array) -> tuple[Array, Array]:
    """`Q` and `R` of a thin QR, with a non-negative diagonal in `R`.

    The rows are sorted by their largest entry first, so that Householder's method has an error
    that is small beside every single row (Cox and Higham 1998), not only beside the largest.

    Args:
        A: `(m, n)`; `Q` is `(m, k)`, `R` is `(k, n)`, with k = min(m, n).
    """
    order = jnp.argsort(-jnp.max(jnp.abs(A), axis=1))
    Q, R = jnp.linalg.qr(A[order])
    sign = jnp.where(jnp.diagonal(R) < 0, -1, 1).astype(A.dtype)
    Q = jnp.zeros_like(Q).at[order].set(Q * sign[None, :], unique_indices=True)
    return Q, sign[:, None] * R
